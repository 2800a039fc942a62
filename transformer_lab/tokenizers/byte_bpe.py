"""Byte-level byte-pair encoding, by hand: text -> token ids -> text, exact on any text and any bytes.

The whole way, on a toy example. Say the merges are (h, e), (l, l), (he, ll) in this order:

    "hello hey"  --pre-tokenization-->  "hello", " hey"          (`pre_tokenization.py`)
    "hello"      --UTF-8-->             h e l l o                one token per byte to start with
                 --merge (h, e)-->      he l l o                 the most urgent pair first, wherever it stands,
                 --merge (l, l)-->      he ll o                  until no neighbours form a listed pair
                 --merge (he, ll)-->    hell o

It cannot fail: every byte has a token, so any text has one, and decoding joins the bytes of the tokens.
BPE for text: Sennrich, Haddow and Birch 2016, arXiv 1508.07909; on bytes, with this split: GPT-2, Radford et al. 2019.

Knows nothing of files (`loading.py`, `tokenizer_json.py`) and not where merges come from (`bpe_training.py`).
"""

import heapq
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, pairwise, repeat
from os import PathLike
from pathlib import Path

from transformer_lab.errors import ConfigurationError
from transformer_lab.tokenizers.added_tokens import AddedTokenFinder
from transformer_lab.tokenizers.byte_alphabet import CHARACTER_OF_BYTE, from_stand_ins, is_stand_in_text
from transformer_lab.tokenizers.definition import END_OF_TEXT, TokenizerDefinition
from transformer_lab.tokenizers.original_files import save_files
from transformer_lab.tokenizers.pre_tokenization import (
    GPT2_SPLIT,
    replace_lone_surrogates,
    sections,
    split_function,
)
from transformer_lab.tokenizers.stream_decoder import BytesDecoding, StreamDecoder
from transformer_lab.tokenizers.text_template import TextTemplate
from transformer_lab.tokenizers.tokenizer_json import rendered

# Text repeats its words, so the ids of each piece are remembered. At most this many pieces of at most this many
# characters, some 30 MB; when full, the cache starts afresh, which costs one slow encounter per piece.
_CACHE_PIECES = 2**17
_CACHE_LENGTH = 100
# From this many bytes on a piece goes through the heap: searching it for every merge would take quadratic time.
_LONG_PIECE = 100

_NO_MERGE = 2**62  # larger than any rank


class _PieceCache(dict[str, tuple[int, ...]]):
    """piece -> ids. A missing piece is computed by `__missing__`, so looking up stays one C call."""

    def __init__(self, encode_piece: Callable[[str], tuple[int, ...]], limit: int) -> None:
        super().__init__()
        self._encode_piece = encode_piece
        self._limit = limit

    def __missing__(self, piece: str) -> tuple[int, ...]:
        ids = self._encode_piece(piece)
        if len(piece) <= _CACHE_LENGTH:
            if len(self) >= self._limit:
                self.clear()
            self[piece] = ids
        return ids


class ByteBPE:
    """A byte-level BPE tokenizer.

    encode: str -> list of int in [0, vocab_size); decode: such ints -> str. Never loses anything on the way:
    `decode(encode(text)) == text` for every text without lone surrogates (if the definition neither normalizes nor
    adds a prefix space nor has added tokens that strip), and `decode_bytes(encode_bytes(data)) == data` for any bytes.
    """

    def __init__(self, definition: TokenizerDefinition, cache_pieces: int = _CACHE_PIECES) -> None:
        self.definition = definition
        self.original_files: Mapping[str, bytes] = {}  # of the folder that it was loaded from
        self.template = TextTemplate()
        vocab = definition.vocab
        self._byte_ids = [vocab[character] for character in CHARACTER_OF_BYTE]
        # Merging works on ids: rank_of_pair gives the urgency of a pair (lower is sooner), merged_id its result.
        self._rank_of_pair = {(vocab[left], vocab[right]): rank for rank, (left, right) in enumerate(definition.merges)}
        self._merged_id = [vocab[left + right] for left, right in definition.merges]

        self._bytes_of_id = [b""] * definition.size
        for token, token_id in vocab.items():
            self._bytes_of_id[token_id] = from_stand_ins(token)
        for added in definition.added_tokens:
            self._bytes_of_id[added.id] = added.text.encode("utf-8")

        special = set(definition.special_tokens)
        self._id_of_whole_piece: dict[bytes, int] = {}
        if definition.ignore_merges:
            self._id_of_whole_piece = {
                from_stand_ins(token): token_id
                for token, token_id in vocab.items()
                if is_stand_in_text(token) and token not in special
            }

        self._raw_tokens = AddedTokenFinder([token for token in definition.added_tokens if not token.normalized])
        self._normalized_tokens = AddedTokenFinder(
            [replace(token, text=self._normalize(token.text)) for token in definition.added_tokens if token.normalized]
        )
        self._split = split_function(definition.split_expressions)
        self._may_cut = definition.split_expressions == (GPT2_SPLIT,)
        self._cache = _PieceCache(self._encode_piece, cache_pieces)

    def __repr__(self) -> str:
        return f"ByteBPE({self.vocab_size} tokens, {len(self.definition.merges)} merges)"

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included."""
        return len(self._bytes_of_id)

    @property
    def special_tokens(self) -> dict[str, int]:
        """text -> id of the special tokens, in the order of the ids."""
        return self.definition.special_tokens

    @property
    def end_of_text_id(self) -> int | None:
        """The id of `<|endoftext|>`, None if this tokenizer has no such special token."""
        return self.definition.special_tokens.get(END_OF_TEXT)

    # Encoding

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of `text`.

        allow_special: recognise special tokens such as `<|endoftext|>` (the longest where several begin at one place).
        By default their text is ordinary text, so that a user's text cannot forge one. No token is put before or
        behind the text. A pair of surrogates counts as the character it means, a lone one as U+FFFD, as in tiktoken.
        Raises ConfigurationError if `text` is no str.
        """
        if not isinstance(text, str):
            message = f"encode takes text, got {type(text).__name__}. For bytes there is encode_bytes."
            raise ConfigurationError(message)
        try:
            return self._encode(text, allow_special)
        except UnicodeEncodeError:
            return self._encode(replace_lone_surrogates(text), allow_special)

    def _encode(self, text: str, allow_special: bool) -> list[int]:
        ids: list[int] = []
        for part in self._parts(text, allow_special):
            if isinstance(part, int):
                ids.append(part)
                continue
            for section in sections(part) if self._may_cut else (part,):
                ids.extend(chain.from_iterable(map(self._cache.__getitem__, self._split(section))))
        return ids

    def _parts(self, text: str, allow_special: bool) -> Iterator[str | int]:
        """The added tokens (int) and, ready to be split, the text between them."""
        for raw in self._raw_tokens.find(text, allow_special):
            if isinstance(raw, int):
                yield raw
                continue
            for part in self._normalized_tokens.find(self._normalize(raw), allow_special):
                if isinstance(part, str) and self.definition.add_prefix_space and not part.startswith(" "):
                    part = " " + part
                yield part

    def _normalize(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self.definition.normalize_nfc else text

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes, also of those that are no valid UTF-8; `decode_bytes` gives the same bytes back.

        Valid UTF-8 is encoded as its text (nothing normalized, no special tokens). Else the text before the first
        invalid byte is, except its last piece: that piece (of white space: all the white space tokens at the end),
        the invalid byte and everything behind it are merged as one piece, since without characters there is no telling
        where words end. This is also what tiktoken does.
        """
        try:
            text, rest = data.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            text, rest = data[: error.start].decode("utf-8"), data[error.start :]
        pieces = [self._cache[piece] for piece in self._split(text)]
        ids = list(chain.from_iterable(pieces))
        if not rest:
            return ids
        open_tokens = len(pieces[-1]) if pieces else 0
        if open_tokens and self._is_blank(ids[-open_tokens]):
            while open_tokens < len(ids) and self._is_blank(ids[-open_tokens - 1]):
                open_tokens += 1
        keep = len(ids) - open_tokens
        return ids[:keep] + self._merge_bytes(self.decode_bytes(ids[keep:]) + rest)

    def _is_blank(self, token_id: int) -> bool:
        return not self._bytes_of_id[token_id].strip(b" \n\t")

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        return tuple(self._merge_bytes(piece.encode("utf-8")))

    def _merge_bytes(self, data: bytes) -> list[int]:
        whole = self._id_of_whole_piece.get(data)
        if whole is not None:
            return [whole]
        ids = [self._byte_ids[byte] for byte in data]
        return self._merge(ids) if len(ids) < _LONG_PIECE else self._merge_long(ids)

    def _merge(self, ids: list[int]) -> list[int]:
        """Merges the most urgent pair, the leftmost of equals, until no pair is listed. Changes and returns `ids`.

        `ranks[i]` is the urgency of the pair (ids[i], ids[i + 1]); a merge changes only the pairs beside it.
        """
        rank_of = self._rank_of_pair.get
        ranks = list(map(rank_of, pairwise(ids), repeat(_NO_MERGE)))
        while ranks:
            rank = min(ranks)
            if rank == _NO_MERGE:
                break
            i = ranks.index(rank)
            merged = ids[i] = self._merged_id[rank]
            del ids[i + 1], ranks[i]
            if i > 0:
                ranks[i - 1] = rank_of((ids[i - 1], merged), _NO_MERGE)
            if i < len(ranks):
                ranks[i] = rank_of((merged, ids[i + 1]), _NO_MERGE)
        return ids

    def _merge_long(self, ids: list[int]) -> list[int]:
        """The same in O(n log n): a heap of (rank, position), and a linked list so that removing a token is O(1).

        A merge does not search the heap for the pairs it destroyed: they are recognised when they come up, because
        the pair that then stands at their position has another rank, or none.
        """
        rank_of = self._rank_of_pair.get
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
            ids[i] = self._merged_id[rank]
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

    # Decoding

    is_byte_level = True

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of the ids, special tokens kept; bytes that are no valid UTF-8 become U+FFFD.

        Raises ConfigurationError for an id that is no int in [0, vocab_size).
        """
        return self.decode_bytes(token_ids).decode("utf-8", "replace")

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of the ids, special tokens kept. Errors as in `decode`."""
        ids = checked_token_ids(token_ids, self.vocab_size)
        return b"".join(map(self._bytes_of_id.__getitem__, ids))

    def stream_decoder(self, prompt: Iterable[int] = ()) -> StreamDecoder:
        """A new decoder with .push(id) -> str and .flush() -> str for one growing sequence of ids behind `prompt`."""
        return StreamDecoder(BytesDecoding(lambda token_id: self.decode_bytes((token_id,))), prompt)

    # Storage

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes vocab.json, merges.txt, tokenizer.json and tokenizer_config.json into `folder` (made if missing).

        Hugging Face's transformers and tokenizers load them with the same ids. A tokenizer that was loaded gives the
        files of its folder back as they were, with a tokenizer.json if there was none. All are written under temporary
        names first and then renamed, so a failed save loses nothing. Raises InputFileError if `folder` is a file,
        UnavailableError if it cannot be written.
        """
        save_files(Path(folder), self.original_files, lambda: rendered(self.definition))


def checked_token_ids(token_ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids as a list; a ConfigurationError names the first that is no int (Python's or NumPy's) in range."""
    try:
        ids = list(token_ids)
    except TypeError:
        message = f"Token ids must be a sequence of ints, got {type(token_ids).__name__}."
        raise ConfigurationError(message) from None
    if set(map(type, ids)) <= {int} and (not ids or (min(ids) >= 0 and max(ids) < vocab_size)):
        return ids
    for token_id in ids:
        if not _is_integer(token_id):
            message = f"A token id must be an int, got {token_id!r} ({type(token_id).__name__})."
            raise ConfigurationError(message)
        if not 0 <= token_id < vocab_size:
            message = (
                f"Token id {int(token_id)} does not exist: the vocabulary has {vocab_size} ids, 0 to {vocab_size - 1}."
            )
            raise ConfigurationError(message)
    return ids


def _is_integer(value: object) -> bool:
    if type(value) is int:
        return True
    # NumPy's integers have __index__ too, but so have one-element arrays, which are no single id: those have no
    # scalar `shape`.
    return hasattr(value, "__index__") and not isinstance(value, bool) and getattr(value, "shape", ()) == ()
