r"""GPT-2's split: words, numbers, signs and white space, the pieces inside which its BPE may merge.

Without a cut BPE would learn tokens such as `dog.` and `dog!` beside `dog`. The rule is one regular expression: a
contraction, or letters, digits or other signs with at most one space before them, or white space; the last white space
of a run is left to the word behind it. Later models changed the expression and kept the idea.

Knows nothing of bytes, merges or ids.
"""

import re
from collections.abc import Iterable
from functools import cache
from itertools import chain

from transformer_lab.tokenizers.expressions import Expression
from transformer_lab.tokenizers.published_splits import GPT2 as GPT2_SPLIT
from transformer_lab.tokenizers.safe_cuts import SECTION, sections

# The same cut for ASCII text, in the words of the standard library's `re`, which is twice as fast as `regex` but does
# not know \p{L}. The commonest alternative comes first: the alternatives cannot match at the same place, except the
# contractions and the signs, and those two keep their order.
_ascii_pieces = re.compile(
    r" ?[A-Za-z]+|'(?:[stmd]|re|ve|ll)| ?[0-9]+| ?[^\t-\r A-Za-z0-9]+|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"
).findall


@cache
def _expression() -> Expression:
    return Expression(GPT2_SPLIT)


def gpt2_split(text: str) -> Iterable[str]:
    """The pieces, in order and without gaps."""
    if len(text) <= SECTION:
        return _split_section(text)
    return chain.from_iterable(map(_split_section, sections(text)))


def _split_section(text: str) -> list[str]:
    return _ascii_pieces(text) if text.isascii() else _expression().findall(text)
