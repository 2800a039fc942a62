"""Byte-pair encoding, by hand: text -> token ids -> text.

The whole way, on a toy example. Say the merges are (h, e), (l, l), (he, ll) in this order:

    "Hello hey"  --added tokens-->      none here                (`added_tokens.py`)
                 --normalization-->     "hello hey"              (`normalization.py`, if it lowers case)
                 --pre-tokenization-->  "hello", " hey"          (`pre_tokenization.py`)
    "hello"      --merging-->           hell o                   (`merging.py`)
                 --ids-->               17, 4                    and back: (`decoding.py`)

Two families differ in what a character is. To byte-level tokenizers (GPT-2 and most since, `byte_bpe.py`) it is a byte.
SentencePiece's (Llama 2, Gemma) have characters, with a visible sign for the space, and bytes for what they lack.

Knows nothing of files (`loading.py`, `tokenizer_json.py`) and not where merges come from (`bpe_training.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import chain
from os import PathLike
from pathlib import Path

from transformer_lab.errors import ConfigurationError
from transformer_lab.tokenizers.added_tokens import AddedToken, AddedTokenFinder
from transformer_lab.tokenizers.byte_alphabet import from_stand_ins, to_stand_ins
from transformer_lab.tokenizers.decoding import Rule, Steps, decoder_rules
from transformer_lab.tokenizers.definition import END_OF_TEXT, TokenizerDefinition
from transformer_lab.tokenizers.merging import Merger
from transformer_lab.tokenizers.normalization import normalize
from transformer_lab.tokenizers.original_files import save_files
from transformer_lab.tokenizers.pre_tokenization import (
    ByteLevel,
    PreTokenizerStep,
    behind_the_beginning,
    pre_tokenize,
    replace_lone_surrogates,
)
from transformer_lab.tokenizers.saving import rendered
from transformer_lab.tokenizers.stream_decoder import BytesDecoding, StreamDecoder, TokensDecoding
from transformer_lab.tokenizers.text_template import TextTemplate
from transformer_lab.tokenizers.token_ids import checked_token_ids
from transformer_lab.tokenizers.word_cuts import Cut, word_cuts

# Text repeats its words, so the ids of each piece are remembered. At most this many pieces of at most this many
# characters, some 30 MB; when full, the cache starts afresh, which costs one slow encounter per piece.
_CACHE_PIECES = 2**17
_CACHE_LENGTH = 100


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


class BPE:
    """A BPE tokenizer of any kind: str -> list of int in [0, vocab_size), and back.

    What is lost on the way is what the definition takes from the text: by normalization, by a pre-tokenizer that leaves
    white space out, as an unknown character.
    """

    def __init__(self, definition: TokenizerDefinition, cache_pieces: int = _CACHE_PIECES) -> None:
        self.definition = definition
        self.original_files: Mapping[str, bytes] = {}  # of the folder that it was loaded from
        self.template = TextTemplate()
        self._vocab_size = definition.size
        self._merger = Merger(definition)
        self._raw_tokens = AddedTokenFinder([token for token in definition.added_tokens if not token.normalized])
        self._normalized_tokens = AddedTokenFinder(
            [replace(token, text=self._as_it_is_found(token)) for token in definition.added_tokens if token.normalized]
        )
        steps = definition.pre_tokenizer
        self._cuts_bytes = bool(steps) and isinstance(steps[-1], ByteLevel)
        self._split, self._split_behind = self._splitting(steps), self._splitting(behind_the_beginning(steps))
        self._cache = _PieceCache(self._encode_piece, cache_pieces)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size} tokens, {len(self.definition.merges)} merges)"

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included; where the vocabulary has gaps, the largest id + 1."""
        return self._vocab_size

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
        Raises ConfigurationError if `text` is no str, and InputFileError if an expression of the tokenizer's file takes
        too long to cut it.
        """
        if not isinstance(text, str):
            message = f"encode takes text, got {type(text).__name__}. For bytes byte-level BPE has encode_bytes."
            raise ConfigurationError(message)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = replace_lone_surrogates(text)
        ids: list[int] = []
        for number, part in enumerate(self._parts(text, allow_special)):
            if isinstance(part, int):
                ids.append(part)
            else:
                pieces = self._split_behind(part) if number else self._split(part)
                ids.extend(chain.from_iterable(map(self._cache.__getitem__, pieces)))
        return ids

    def _parts(self, text: str, allow_special: bool) -> Iterator[str | int]:
        """The added tokens (int) and, normalized, the text between them."""
        for raw in self._raw_tokens.find(text, allow_special):
            if isinstance(raw, int):
                yield raw
            else:
                yield from self._normalized_tokens.find(normalize(self.definition.normalizer, raw), allow_special)

    def _splitting(self, steps: tuple[PreTokenizerStep, ...]) -> Callable[[str], Iterable[str]]:
        """Text -> pieces. A last ByteLevel only cuts: its stand-ins are written when a piece is first met."""
        cuts: list[Callable[[str], Iterable[str]]] = list(steps)
        if steps and isinstance(last := steps[-1], ByteLevel):
            cuts[-1:] = [last.cut] if last.use_regex or last.add_prefix_space else []
        return pre_tokenize(cuts)

    def _encode_piece(self, piece: str) -> tuple[int, ...]:
        for cut in self._cuts:
            parts = cut(piece)
            if len(parts) > 1:
                return tuple(chain.from_iterable(map(self._cache.__getitem__, parts)))
        return tuple(self._merger(to_stand_ins(piece.encode("utf-8")) if self._cuts_bytes else piece))

    @cached_property
    def _cuts(self) -> list[Cut]:
        return [] if self.definition.writes_bytes else word_cuts(self.definition)

    # Decoding

    @property
    def is_byte_level(self) -> bool:
        """Whether every token stands for bytes of its own, whatever its neighbours are."""
        return self.definition.reads_bytes

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of the ids, special tokens kept; bytes that are no valid UTF-8 become U+FFFD.

        Raises ConfigurationError for an id that is no int in [0, vocab_size), or that no token has.
        """
        ids = self._checked(token_ids)
        if self.is_byte_level:
            return b"".join(map(self._bytes_of_id.__getitem__, ids)).decode("utf-8", "replace")
        steps = Steps(self._decoder_rules)
        pieces = [steps.push(self._token_of_id[token_id]) for token_id in ids]
        return "".join([*pieces, steps.rest()])

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of the ids, special tokens kept; if not byte-level, the text in UTF-8. Errors as in `decode`."""
        if not self.is_byte_level:
            return self.decode(token_ids).encode("utf-8")
        return b"".join(map(self._bytes_of_id.__getitem__, self._checked(token_ids)))

    def stream_decoder(self, prompt: Iterable[int] = ()) -> StreamDecoder:
        """A new decoder with .push(id) -> str and .flush() -> str for one growing sequence of ids behind `prompt`."""
        if self.is_byte_level:
            return StreamDecoder(BytesDecoding(lambda token_id: self.decode_bytes((token_id,))), prompt)
        token_of = self._token_of_id
        decoding = TokensDecoding(lambda token_id: token_of[self._checked((token_id,))[0]], self._decoder_rules)
        return StreamDecoder(decoding, prompt)

    def _checked(self, token_ids: Iterable[int]) -> list[int]:
        ids = checked_token_ids(token_ids, self.vocab_size)
        for token_id in ids if self._gaps else ():
            if token_id in self._gaps:
                message = f"Token id {token_id} does not exist: the vocabulary has a gap there."
                raise ConfigurationError(message)
        return ids

    @cached_property
    def _gaps(self) -> frozenset[int]:
        taken = {*self.definition.vocab.values(), *(token.id for token in self.definition.added_tokens)}
        return frozenset(range(self.vocab_size)) - taken if len(taken) < self.vocab_size else frozenset()

    @cached_property
    def _token_of_id(self) -> list[str]:
        tokens = [""] * self.vocab_size
        for token, token_id in self.definition.vocab.items():
            tokens[token_id] = token
        for added in self.definition.added_tokens:
            tokens[added.id] = self._as_it_is_found(added)
        return tokens

    @cached_property
    def _bytes_of_id(self) -> list[bytes]:
        bytes_of_id = list(map(from_stand_ins, self._token_of_id))
        for added in self.definition.added_tokens:
            bytes_of_id[added.id] = self._token_of_id[added.id].encode("utf-8")
        return bytes_of_id

    def _as_it_is_found(self, added: AddedToken) -> str:
        """The text of an added token where it is looked for, which the library also decodes it to."""
        return normalize(self.definition.normalizer, added.text) if added.normalized else added.text

    @cached_property
    def _decoder_rules(self) -> tuple[Rule, ...]:
        return decoder_rules(self.definition.decoder, "tokenizer.json")

    # Storage

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes tokenizer.json and tokenizer_config.json into `folder` (made if missing), and for a tokenizer like
        GPT-2's vocab.json and merges.txt.

        Hugging Face's transformers and tokenizers load them with the same ids. A tokenizer that was loaded gives the
        files of its folder back as they were, with a tokenizer.json if there was none. All are written under temporary
        names first and then renamed, so a failed save loses nothing. Raises InputFileError if `folder` is a file,
        UnavailableError if it cannot be written.
        """
        save_files(Path(folder), self.original_files, lambda: rendered(self.definition))
