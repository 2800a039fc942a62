"""Where a text that no pre-tokenizer cuts may be cut all the same, without changing its ids.

SentencePiece's tokenizers (Llama 2, Gemma) merge a whole text as one piece. But hardly a token of theirs holds the sign
of a space behind another character, and none mixes ASCII's letters, digits and signs. Merges do not reach across such a
place, so what lies between two of them can be merged, and remembered, by itself. Whether a tokenizer is like that is
looked up in the tokens that its merges make.
"""

import re
from collections.abc import Callable

from transformer_lab.tokenizers.definition import BYTE_TOKENS, TokenizerDefinition

_BETWEEN = "\ud800"  # half a surrogate pair, which no token holds (`definition.py`)

_LETTERS, _DIGITS, _SIGNS = "A-Za-z", "0-9", r"!-/:-@\[-`{-~"
_MIXED = re.compile(f"[{_LETTERS}][{_DIGITS}{_SIGNS}]|[{_DIGITS}][{_LETTERS}{_SIGNS}]|[{_SIGNS}][{_LETTERS}{_DIGITS}]")
_ALIKE = f"(?:[{_LETTERS}]++|[{_DIGITS}]++|[{_SIGNS}]++)"
_OTHER = f"[^{_LETTERS}{_DIGITS}{_SIGNS}]"
# Neighbours that are alike, with what stands beside them and is none of the three.
_PART = re.compile(f"(?:{_ALIKE}|(?={_OTHER}))(?:{_OTHER}++{_ALIKE}?)*+")

Cut = Callable[[str], list[str]]


def word_cuts(definition: TokenizerDefinition) -> list[Cut]:
    """Functions that each cut a text into pieces, in order and without gaps: into words, and a word into parts.

    Fewer, or none, if it is not known that merges do not reach so far.
    """
    vocab = definition.vocab
    # A character that is left out would make neighbours of what stands on its two sides.
    none_left_out = definition.unk_token is not None or (
        definition.byte_fallback and all(token in vocab for token in BYTE_TOKENS)
    )
    # What is written before or behind a piece, and a piece that is a token as a whole, depend on where pieces end.
    whole = definition.ignore_merges or definition.continuing_subword_prefix or definition.end_of_word_suffix
    if not none_left_out or whole:
        return []
    made = set(definition.merge_list.merged)
    tokens = _BETWEEN.join([token for token, token_id in vocab.items() if token_id in made])
    # The characters at a cut must be tokens: at one, an unk_token that waits for its like comes out.
    cuts = [_words(sign, tokens) for sign in "▁ " if sign in vocab][:1]
    if all(chr(code) in vocab for code in range(0x21, 0x7F)) and not _MIXED.search(tokens):
        cuts.append(_PART.findall)
    return cuts


def _words(sign: str, tokens: str) -> Cut:
    """Cuts before each run of signs, unless it stands behind a character that a token joins with a sign."""
    joined = "".join(set(re.findall(f"([^{sign}{_BETWEEN}]){sign}", tokens)))
    word = f"(?:{sign}+|[^{sign}])[^{sign}]*"
    if joined:
        word += f"(?:(?<=[{re.escape(joined)}]){sign}+[^{sign}]*)*"
    return re.compile(word).findall
