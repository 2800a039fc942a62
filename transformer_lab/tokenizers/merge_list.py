"""The merges of a tokenizer: pairs of tokens, the most urgent first, kept as ids.

Half a million pairs of texts would fill a hundred megabytes, and merging works on ids anyway.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any

from transformer_lab.errors import ConfigurationError, shown

# So many merges are looked up at a time: few enough that their texts stay in the processor's cache, and that the memory
# of one section serves the next. All at once takes a quarter longer.
SECTION = 1024


class MergeList(Sequence[tuple[str, str]]):
    """Reads like a list of pairs of tokens. left, right, merged: the ids of the two, and of what becomes of them."""

    def __init__(self, vocab: Mapping[str, int], sections: Iterable[Sequence[str]], prefix: str = "") -> None:
        """sections: left and right of every pair in a row, some pairs at a time. prefix: dropped from the right one,
        which begins with it.

        Raises ConfigurationError for a token that is not in vocab, and one without the prefix.
        """
        self.left: list[int] = []
        self.right: list[int] = []
        self.merged: list[int] = []
        self._vocab = vocab
        for tokens in sections:
            self._add(tokens, prefix)

    def _add(self, tokens: Sequence[str], prefix: str) -> None:
        lefts, rights = tokens[::2], tokens[1::2]
        inside = [_inside(right, prefix) for right in rights] if prefix else rights
        try:
            ids = itemgetter(*tokens)(self._vocab)
            self.merged += map(self._vocab.__getitem__, map("".join, zip(lefts, inside, strict=True)))
        except KeyError:
            raise _wrong_merge(self._vocab, lefts, rights, prefix, len(self.left) + 1) from None
        self.left += ids[::2]
        self.right += ids[1::2]

    @cached_property
    def _token_of_id(self) -> dict[int, str]:
        return dict(zip(self._vocab.values(), self._vocab, strict=True))

    @classmethod
    def of_pairs(cls, vocab: Mapping[str, int], pairs: Sequence[tuple[str, str]], prefix: str = "") -> "MergeList":
        """From pairs of tokens."""
        return cls(vocab, sections_of_pairs(pairs), prefix)

    def __len__(self) -> int:
        return len(self.left)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        token_of = self._token_of_id.__getitem__
        return zip(map(token_of, self.left), map(token_of, self.right), strict=True)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(self)[index]
        return self._token_of_id[self.left[index]], self._token_of_id[self.right[index]]


def sections_of_pairs(pairs: Sequence[tuple[str, str]]) -> Iterator[list[str]]:
    """The tokens of all pairs in a row, by sections."""
    return (list(chain.from_iterable(pairs[start : start + SECTION])) for start in range(0, len(pairs), SECTION))


def _inside(token: str, prefix: str) -> str:
    """What a token adds to the one before it."""
    if not token.startswith(prefix):
        message = f"merges: {shown(token)} does not begin with {shown(prefix)}, the continuing_subword_prefix."
        raise ConfigurationError(message)
    return token[len(prefix) :]


def _wrong_merge(
    vocab: Mapping[str, int], lefts: Sequence[str], rights: Sequence[str], prefix: str, first: int
) -> ConfigurationError:
    number, pair, missing = next(
        (number, pair, token)
        for number, pair in enumerate(zip(lefts, rights, strict=True), start=first)
        for token in (*pair, pair[0] + _inside(pair[1], prefix))
        if token not in vocab
    )
    both = " + ".join(map(shown, pair))
    return ConfigurationError(f"merges: number {number}, {both}, needs {shown(missing)}, which is not in vocab.")
