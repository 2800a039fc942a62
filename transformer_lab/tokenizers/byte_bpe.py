"""Byte-level byte-pair encoding: exact on any text and on any bytes.

Every byte has a token, so any text has one, nothing is unknown, and decoding joins the bytes of the tokens. That is
GPT-2's idea (Radford et al. 2019), and what most models since do. The way from text to ids is that of `bpe.py`; only
here bytes can be encoded too that are no text.
"""

from dataclasses import replace
from itertools import chain

from transformer_lab.errors import ConfigurationError
from transformer_lab.tokenizers.bpe import _CACHE_PIECES, BPE
from transformer_lab.tokenizers.byte_alphabet import to_stand_ins
from transformer_lab.tokenizers.definition import TokenizerDefinition
from transformer_lab.tokenizers.pre_tokenization import ByteLevel


class ByteBPE(BPE):
    """A byte-level BPE tokenizer.

    encode: str -> list of int in [0, vocab_size); decode: such ints -> str. Never loses anything on the way:
    `decode(encode(text)) == text` for every text without lone surrogates (if the definition neither normalizes nor
    adds a prefix space nor leaves something out nor has added tokens that strip), and
    `decode_bytes(encode_bytes(data)) == data` for any bytes (if it leaves nothing out).
    """

    def __init__(self, definition: TokenizerDefinition, cache_pieces: int = _CACHE_PIECES) -> None:
        if not definition.is_byte_level:
            message = "The definition is not that of byte-level BPE; the class BPE runs it."
            raise ConfigurationError(message)
        super().__init__(definition, cache_pieces)
        steps = definition.pre_tokenizer
        self._split_as_it_is = self._splitting(
            tuple(replace(step, add_prefix_space=False) if isinstance(step, ByteLevel) else step for step in steps)
        )

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes, also of those that are no valid UTF-8; `decode_bytes` gives the same bytes back.

        Valid UTF-8 is encoded as its text (nothing normalized, no space in front, no special tokens). Else the text
        before the first invalid byte is, except its last piece: that piece (of white space: all the white space tokens
        at the end), the invalid byte and everything behind it are merged as one piece, since without characters there
        is no telling where words end. This is also what tiktoken does.
        """
        try:
            text, rest = data.decode("utf-8"), b""
        except UnicodeDecodeError as error:
            text, rest = data[: error.start].decode("utf-8"), data[error.start :]
        pieces = [self._cache[piece] for piece in self._split_as_it_is(text)] if text else []
        ids = list(chain.from_iterable(pieces))
        if not rest:
            return ids
        open_tokens = len(pieces[-1]) if pieces else 0
        if open_tokens and self._is_blank(ids[-open_tokens]):
            while open_tokens < len(ids) and self._is_blank(ids[-open_tokens - 1]):
                open_tokens += 1
        keep = len(ids) - open_tokens
        return ids[:keep] + self._merger(to_stand_ins(self.decode_bytes(ids[keep:]) + rest))

    def _is_blank(self, token_id: int) -> bool:
        return not self._bytes_of_id[token_id].strip(b" \n\t")
