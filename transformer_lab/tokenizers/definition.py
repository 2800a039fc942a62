"""What a byte-level BPE tokenizer is made of, however it was stored, and the checks that every such thing passes.

Read from vocab.json + merges.txt or from tokenizer.json (`tokenizer_json.py`), or trained (`bpe_training.py`);
`byte_bpe.py` runs it. Knows no files and no algorithm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformer_lab.errors import ConfigurationError, shown
from transformer_lab.tokenizers.added_tokens import AddedToken
from transformer_lab.tokenizers.byte_alphabet import CHARACTER_OF_BYTE, from_stand_ins, is_stand_in_text
from transformer_lab.tokenizers.pre_tokenization import GPT2_SPLIT

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class TokenizerDefinition:
    """Vocabulary, merges and the rules around them. A wrong one is refused with a ConfigurationError.

    vocab: token (in stand-in characters, see `byte_alphabet.py`) -> id.
    merges: pairs of tokens, the most urgent first. A pair listed twice counts at its last place.
    added_tokens: tokens that are recognised as they stand; their ids may lie in or behind the vocabulary.
    split_expressions: the pre-tokenization, see `pre_tokenization.py`.
    add_prefix_space: put a space before text that does not start with one.
    ignore_merges: a piece that is a vocabulary entry as a whole becomes that token, whatever the merges say.
    normalize_nfc: compose the text (Unicode NFC) first, as the Qwen models do.
    """

    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added_tokens: Sequence[AddedToken] = ()
    split_expressions: tuple[str, ...] = (GPT2_SPLIT,)
    add_prefix_space: bool = False
    ignore_merges: bool = False
    normalize_nfc: bool = False

    def __post_init__(self) -> None:
        _check_text([*self.vocab, *(token.text for token in self.added_tokens)])
        _check_ids(self.vocab, self.added_tokens)
        _check_bytes(self.vocab)
        _check_merges(self.vocab, self.merges)
        _check_added_tokens(self)

    @property
    def size(self) -> int:
        """The number of ids, which are 0 to size - 1."""
        return len(set(self.vocab.values()).union(token.id for token in self.added_tokens))

    @property
    def special_tokens(self) -> dict[str, int]:
        """text -> id, in the order of the ids."""
        special = sorted((token.id, token.text) for token in self.added_tokens if token.special)
        return {text: token_id for token_id, text in special}


def _check_text(tokens: Sequence[str]) -> None:
    try:
        "".join(tokens).encode("utf-8")
    except UnicodeEncodeError:
        message = "vocab: a token holds a lone surrogate, which is no character."
        raise ConfigurationError(message) from None


def _check_ids(vocab: Mapping[str, int], added_tokens: Sequence[AddedToken]) -> None:
    """Every id from 0 on exactly once: a model has one row of weights for each."""
    token_of_id: dict[int, str] = {}
    for token, token_id in [*vocab.items(), *((token.text, token.id) for token in added_tokens)]:
        if type(token_id) is not int or token_id < 0:
            message = f"vocab: the id of {shown(token)} is {shown(token_id)}, expected a whole number from 0 on."
            raise ConfigurationError(message)
        if token_of_id.setdefault(token_id, token) != token:
            message = f"vocab: {shown(token_of_id[token_id])} and {shown(token)} have the same id {shown(token_id)}."
            raise ConfigurationError(message)
    largest = max(token_of_id, default=-1)
    if largest != len(token_of_id) - 1:
        missing = next(i for i in range(len(token_of_id)) if i not in token_of_id)
        message = (
            f"vocab: the ids have gaps: {len(token_of_id)} tokens, but the largest id is {shown(largest)} "
            f"and id {missing} belongs to no token."
        )
        raise ConfigurationError(message)


def _check_bytes(vocab: Mapping[str, int]) -> None:
    for byte, character in enumerate(CHARACTER_OF_BYTE):
        if character not in vocab:
            message = (
                f"vocab: byte 0x{byte:02x} (written {shown(character)}) has no token. "
                "A byte-level vocabulary holds all 256 bytes, or some text could not be encoded."
            )
            raise ConfigurationError(message)


def _check_merges(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
    for number, (left, right) in enumerate(merges, start=1):
        for token in (left, right, left + right):
            if token not in vocab or not token:
                pair = f"{shown(left)} + {shown(right)}"
                message = f"merges: number {number}, {pair}, needs {shown(token)}, which is not in vocab."
                raise ConfigurationError(message)
    used = {character for pair in merges for token in pair for character in token}
    if not is_stand_in_text("".join(used)):
        message = "merges: a merge holds a character that stands for no byte; this is no byte-level BPE."
        raise ConfigurationError(message)


def _check_added_tokens(definition: TokenizerDefinition) -> None:
    made = {*CHARACTER_OF_BYTE, *(left + right for left, right in definition.merges)}
    seen: set[str] = set()
    for token in definition.added_tokens:
        if not token.text or token.text in seen:
            message = f"added_tokens: {shown(token.text)} is empty or listed twice."
            raise ConfigurationError(message)
        seen.add(token.text)
        if definition.vocab.get(token.text, token.id) != token.id:
            other = shown(definition.vocab[token.text])
            message = f"added_tokens: {shown(token.text)} has id {shown(token.id)} here and {other} in vocab."
            raise ConfigurationError(message)
        # 'é' in a vocabulary is byte 0xE9, in a text it is two bytes: one id cannot decode to both.
        if token.text in made and from_stand_ins(token.text) != token.text.encode("utf-8"):
            message = (
                f"added_tokens: {shown(token.text)} is also the stand-in form of the ordinary token "
                f"{shown(from_stand_ins(token.text))}, so its id would mean two things."
            )
            raise ConfigurationError(message)
