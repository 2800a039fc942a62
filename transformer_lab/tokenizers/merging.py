"""Byte-pair encoding proper: one piece of text -> token ids.

A piece begins as one symbol per character. Then the most urgent listed pair of neighbours becomes one token, wherever
it stands, the leftmost of equals first, until no neighbours form a listed pair:

    merges  (h, e), (l, l), (he, ll)        h e l l o  ->  he l l o  ->  he ll o  ->  hell o

Sennrich, Haddow and Birch 2016, arXiv 1508.07909. What a symbol is, and what becomes of a character that the vocabulary
lacks, follows the `tokenizers` library. Knows nothing of where pieces come from.
"""

import heapq
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise, repeat

from transformer_lab.tokenizers.definition import BYTE_TOKENS, TokenizerDefinition

# From this many symbols on a piece goes through the heap: searching it for every merge would take quadratic time.
_LONG_PIECE = 100

_NO_MERGE = 2**62  # larger than any rank


class Merger:
    """Merges the pieces of one definition."""

    def __init__(self, definition: TokenizerDefinition) -> None:
        self._definition = definition
        self._vocab = definition.vocab
        self._special = definition.special_tokens
        self._prefix = definition.continuing_subword_prefix
        self._suffix = definition.end_of_word_suffix
        unk_token = definition.unk_token
        self._unknown = None if unk_token is None else self._vocab.get(unk_token)

    def __call__(self, piece: str) -> list[int]:
        """The ids of a piece of text."""
        if self._definition.ignore_merges and piece not in self._special:
            whole = self._vocab.get(piece)
            if whole is not None:
                return [whole]
        ids = self.symbols(piece)
        return self.merge(ids) if len(ids) < _LONG_PIECE else self.merge_long(ids)

    def symbols(self, piece: str) -> list[int]:
        """The ids of the characters of a piece, before any are merged."""
        if not (self._prefix or self._suffix):
            ids = list(map(self._vocab.get, piece))
            if None not in ids:
                return ids  # type: ignore[return-value]
        return list(self._symbols_one_by_one(piece))

    def _symbols_one_by_one(self, piece: str) -> Iterator[int]:
        waiting = False  # whether an unk_token is due: it waits for others that fuse_unk makes one with it
        last = len(piece) - 1
        for i, character in enumerate(piece):
            written = (self._prefix if i else "") + character + (self._suffix if i == last else "")
            known = self._vocab.get(written)
            if known is not None:
                if waiting and self._unknown is not None:
                    yield self._unknown
                waiting = False
                yield known
            elif bytes_of_it := self._bytes(written):
                yield from bytes_of_it  # one that waits stays behind them, in the library too
            elif self._unknown is not None:
                if waiting and not self._definition.fuse_unk:
                    yield self._unknown
                waiting = True
        if waiting and self._unknown is not None:
            yield self._unknown

    def _bytes(self, written: str) -> list[int]:
        """The ids of the tokens of its bytes, if byte_fallback wants them and there are all of them."""
        if not self._definition.byte_fallback:
            return []
        ids = [self._vocab.get(BYTE_TOKENS[byte]) for byte in written.encode("utf-8")]
        return [] if None in ids else ids  # type: ignore[return-value]

    @cached_property
    def _rank_of_pair(self) -> dict[tuple[int, int], int]:
        """The urgency of a pair of ids, lower is sooner. Made for the first piece, since that takes a while."""
        merges = self._definition.merge_list
        return dict(zip(zip(merges.left, merges.right, strict=True), range(len(merges)), strict=True))

    def merge(self, ids: list[int]) -> list[int]:
        """Merges the most urgent pair, the leftmost of equals, until no pair is listed. Changes and returns `ids`.

        `ranks[i]` is the urgency of the pair (ids[i], ids[i + 1]); a merge changes only the pairs beside it.
        """
        rank_of, merged_id = self._rank_of_pair.get, self._definition.merge_list.merged
        ranks = list(map(rank_of, pairwise(ids), repeat(_NO_MERGE)))
        while ranks:
            rank = min(ranks)
            if rank == _NO_MERGE:
                break
            i = ranks.index(rank)
            merged = ids[i] = merged_id[rank]
            del ids[i + 1], ranks[i]
            if i > 0:
                ranks[i - 1] = rank_of((ids[i - 1], merged), _NO_MERGE)
            if i < len(ranks):
                ranks[i] = rank_of((merged, ids[i + 1]), _NO_MERGE)
        return ids

    def merge_long(self, ids: list[int]) -> list[int]:
        """The same in O(n log n): a heap of (rank, position), and a linked list so that removing a token is O(1).

        A merge does not search the heap for the pairs it destroyed: they are recognised when they come up, because
        the pair that then stands at their position has another rank, or none.
        """
        rank_of, merged_id = self._rank_of_pair.get, self._definition.merge_list.merged
        end = len(ids)
        following = list(range(1, end + 1))
        previous = list(range(-1, end - 1))
        heap = [(rank, i) for i in range(end - 1) if (rank := rank_of((ids[i], ids[i + 1]), _NO_MERGE)) != _NO_MERGE]
        heapq.heapify(heap)
        while heap:
            rank, i = heapq.heappop(heap)
            right = following[i]
            if right >= end or rank_of((ids[i], ids[right])) != rank:
                continue
            ids[i] = merged_id[rank]
            ids[right] = -1  # removed: no pair holds id -1
            behind = following[i] = following[right]
            following[right] = end
            if behind < end:
                previous[behind] = i
                new_rank = rank_of((ids[i], ids[behind]), _NO_MERGE)
                if new_rank != _NO_MERGE:
                    heapq.heappush(heap, (new_rank, i))
            before = previous[i]
            if before >= 0:
                new_rank = rank_of((ids[before], ids[i]), _NO_MERGE)
                if new_rank != _NO_MERGE:
                    heapq.heappush(heap, (new_rank, before))
        return [token_id for token_id in ids if token_id >= 0]
