"""What every tokenizer here offers, whoever does the work. Knows no implementation."""

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Protocol

from transformer_lab.tokenizers.text_template import TextTemplate


class TextStream(Protocol):
    """Text of a growing sequence of ids, see `stream_decoder.py`."""

    def push(self, token_id: int) -> str:
        """The text completed by this id."""

    def push_unknown(self) -> str:
        """The text completed by an id that the tokenizer does not have: U+FFFD."""

    def flush(self) -> str:
        """The rest."""


class Tokenizer(Protocol):
    """Text to token ids and back. `byte_bpe.ByteBPE` and `huggingface.HuggingFaceTokenizer` are the two kinds."""

    original_files: Mapping[str, bytes]
    """name -> content of the files that it was loaded from; empty if it was not."""

    template: TextTemplate
    """The tokens around a text that stands alone; `encode` leaves them out."""

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included."""

    @property
    def special_tokens(self) -> dict[str, int]:
        """text -> id of the tokens that `encode` recognises only with allow_special=True."""

    @property
    def end_of_text_id(self) -> int | None:
        """The id of `<|endoftext|>`, None if there is no such token."""

    @property
    def is_byte_level(self) -> bool:
        """Whether every token stands for bytes of its own, whatever its neighbours are."""

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of `text`. Unless allowed, the text of a special token is ordinary text."""

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of the ids, special tokens kept, broken UTF-8 as U+FFFD."""

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of the ids, special tokens kept."""

    def stream_decoder(self, prompt: Iterable[int] = ()) -> TextStream:
        """A new decoder for one growing sequence of ids behind those of a prompt, whose text it leaves out."""

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes files that this package and Hugging Face's libraries load."""
