"""The `tokenizers` library behind the interface of this package: the second opinion, and the reader of other kinds.

The only file that names the library. It loads what byte_bpe refuses (WordPiece, Unigram, other pre-tokenizers).
Decoding of byte-level vocabularies is done here, token by token: the library's own decoding has no bytes to give and
breaks special tokens with letters outside ASCII.
"""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import tokenizers

from transformer_lab.errors import ConfigurationError, InputFileError, printable
from transformer_lab.tokenizers.byte_alphabet import from_stand_ins
from transformer_lab.tokenizers.decoding import Rule, decoder_rules
from transformer_lab.tokenizers.definition import END_OF_TEXT, TokenizerDefinition
from transformer_lab.tokenizers.library_limits import require_lasting, require_survivable
from transformer_lab.tokenizers.original_files import save_files
from transformer_lab.tokenizers.pre_tokenization import replace_lone_surrogates
from transformer_lab.tokenizers.saving import rendered
from transformer_lab.tokenizers.stream_decoder import (
    BytesDecoding,
    Decoding,
    StreamDecoder,
    TokensDecoding,
    WholeDecoding,
)
from transformer_lab.tokenizers.text_template import TextTemplate
from transformer_lab.tokenizers.token_ids import checked_token_ids
from transformer_lab.tokenizers.tokenizer_json import read_tokenizer_json_object, to_tokenizer_json


class HuggingFaceTokenizer:
    """A tokenizer of the `tokenizers` library. Methods and errors as in `byte_bpe.ByteBPE`, `encode_bytes` apart."""

    def __init__(self, library_tokenizer: tokenizers.Tokenizer) -> None:
        # A stored length limit or padding would cut or stretch what is encoded.
        library_tokenizer.no_truncation()
        library_tokenizer.no_padding()
        self._tokenizer = library_tokenizer
        self.original_files: Mapping[str, bytes] = {}  # of the folder that it was loaded from
        self.template = TextTemplate()
        # encode_special_tokens is a setting of the tokenizer, not of the call.
        self._lock = threading.Lock()

    @classmethod
    def from_tokenizer_json(cls, data: dict[str, Any], file: Path) -> "HuggingFaceTokenizer":
        """From a parsed tokenizer.json of any kind; InputFileError if the library cannot read it."""
        require_survivable(data, file)
        tokenizer = _parse(json.dumps(data), str(file))
        require_lasting(_normalized_tokens(tokenizer, file), file)
        return cls(tokenizer)

    @classmethod
    def from_definition(cls, definition: TokenizerDefinition) -> "HuggingFaceTokenizer":
        """The same tokenizer as `ByteBPE(definition)`, run by the library."""
        return cls(_parse(json.dumps(to_tokenizer_json(definition)), "The tokenizer"))

    def __repr__(self) -> str:
        return f"HuggingFaceTokenizer({self.vocab_size} tokens)"

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included; with gaps, which only this kind accepts, the largest id + 1."""
        return self._vocab_size

    @cached_property
    def _vocab_size(self) -> int:
        return max(self._token_of_id, default=-1) + 1

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """text -> id of the special tokens, in the order of the ids."""
        added = sorted(self._tokenizer.get_added_tokens_decoder().items())
        return {token.content: token_id for token_id, token in added if token.special}

    @property
    def end_of_text_id(self) -> int | None:
        """The id of `<|endoftext|>`, None if this tokenizer has no such special token."""
        return self.special_tokens.get(END_OF_TEXT)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of `text`; nothing is put before or behind it (no BOS, no [CLS]). See `ByteBPE.encode`."""
        if not isinstance(text, str):
            message = f"encode takes text, got {type(text).__name__}."
            raise ConfigurationError(message)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = replace_lone_surrogates(text)
        with self._lock:
            self._tokenizer.encode_special_tokens = not allow_special
            try:
                return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
            except BaseException as error:
                raise _refused(error, "With this tokenizer, the text") from None

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of the ids, special tokens kept, broken UTF-8 as U+FFFD."""
        ids = self._checked(token_ids)
        if self.is_byte_level:
            return self._join(ids).decode("utf-8", "replace")
        try:
            return str(self._tokenizer.decode(ids, skip_special_tokens=False))
        except BaseException as error:
            raise _refused(error, "With this tokenizer, the ids") from None

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of the ids, special tokens kept; of a tokenizer that is not byte-level, the UTF-8 of the text."""
        ids = self._checked(token_ids)
        return self._join(ids) if self.is_byte_level else self.decode(ids).encode("utf-8")

    def stream_decoder(self, prompt: Iterable[int] = ()) -> StreamDecoder:
        """A new decoder with .push(id) -> str and .flush() -> str for one growing sequence of ids behind `prompt`."""
        decoding: Decoding
        if self.is_byte_level:
            decoding = BytesDecoding(lambda token_id: self.decode_bytes((token_id,)))
        elif self._decoder_rules is None:
            decoding = WholeDecoding(self.decode, lambda token_id: self._checked((token_id,))[0])
        else:
            token_of = self._token_of_id
            decoding = TokensDecoding(lambda token_id: token_of[self._checked((token_id,))[0]], self._decoder_rules)
        return StreamDecoder(decoding, prompt)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes the files that `ByteBPE.save` writes; of another kind of tokenizer only the JSON files."""
        save_files(Path(folder), self.original_files, self._rendered)

    def _rendered(self) -> dict[str, str]:
        text = self._tokenizer.to_str()
        try:
            return rendered(read_tokenizer_json_object(json.loads(text), Path("tokenizer.json")))
        except InputFileError:
            config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
            return {"tokenizer_config.json": json.dumps(config) + "\n", "tokenizer.json": text}

    def _checked(self, token_ids: Iterable[int]) -> list[int]:
        ids = checked_token_ids(token_ids, self.vocab_size)
        known = self._token_of_id
        for token_id in ids:
            if token_id not in known:
                message = f"Token id {token_id} does not exist: the vocabulary has a gap there."
                raise ConfigurationError(message)
        return [int(token_id) for token_id in ids]

    def _join(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self._bytes_of_id.__getitem__, ids))

    @cached_property
    def _token_of_id(self) -> dict[int, str]:
        """As the library decodes them: an added token is normalized, and Unigram may list a text twice."""
        ids = {*self._tokenizer.get_vocab(with_added_tokens=True).values()}
        ids.update(range(self._tokenizer.get_vocab_size(with_added_tokens=True)))
        texts = {token_id: self._tokenizer.id_to_token(token_id) for token_id in sorted(ids)}
        return {token_id: text for token_id, text in texts.items() if text is not None}

    @cached_property
    def _bytes_of_id(self) -> dict[int, bytes]:
        bytes_of_id = {token_id: from_stand_ins(token) for token_id, token in self._token_of_id.items()}
        for token_id in self._tokenizer.get_added_tokens_decoder():
            bytes_of_id[token_id] = self._token_of_id[token_id].encode("utf-8")
        return bytes_of_id

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether every token stands for bytes of its own, whatever its neighbours are."""
        decoder = self._decoder or {}
        steps = decoder.get("decoders", [decoder])
        return [step.get("type") for step in steps] == ["ByteLevel"]

    @cached_property
    def _decoder_rules(self) -> tuple[Rule, ...] | None:
        """None if the decoder has a step that only the library knows."""
        try:
            return decoder_rules(self._decoder, "tokenizer.json")
        except InputFileError:
            return None

    @cached_property
    def _decoder(self) -> Any:
        decoder = self._tokenizer.decoder
        return None if decoder is None else json.loads(decoder.__getstate__())


def _normalized_tokens(tokenizer: tokenizers.Tokenizer, file: Path) -> Iterator[tuple[str, str]]:
    """(content, what normalization makes of it) of the added tokens that are looked for after normalization."""
    for token in tokenizer.get_added_tokens_decoder().values():
        if token.normalized and tokenizer.normalizer is not None:
            try:
                left = tokenizer.normalizer.normalize_str(token.content)
            except BaseException as error:
                raise _refused(error, str(file)) from None
            yield token.content, left


def _parse(text: str, name: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as error:
        raise _refused(error, name) from None


def _refused(error: BaseException, what: str) -> BaseException:
    """What to raise for an error of the library: plain Exception, or a panic, which derives from BaseException."""
    if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
        return error
    reason = printable(" ".join(str(error).split()))
    reason = reason if len(reason) <= 300 else f"{reason[:300]}..."
    message = f"{what} cannot be read by the tokenizers library: {reason}."
    return InputFileError(message)
