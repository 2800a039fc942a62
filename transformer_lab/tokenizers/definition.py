"""What a BPE tokenizer is made of, however it was stored, and the checks that every such thing passes.

Read from tokenizer.json (`tokenizer_json.py`) or from vocab.json + merges.txt (`vocab_and_merges.py`), or trained
(`bpe_training.py`); `bpe.py` runs it. Knows no files and no algorithm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformer_lab.errors import ConfigurationError, shown
from transformer_lab.tokenizers.added_tokens import AddedToken
from transformer_lab.tokenizers.byte_alphabet import CHARACTER_OF_BYTE, from_stand_ins, is_stand_in_text
from transformer_lab.tokenizers.expressions import Literal
from transformer_lab.tokenizers.merge_list import MergeList
from transformer_lab.tokenizers.normalization import NormalizerStep, Prepend, Replace, Strip, StripAccents, growth
from transformer_lab.tokenizers.normalization import normalize as normalized
from transformer_lab.tokenizers.pre_tokenization import GPT2_PRE_TOKENIZER, ByteLevel, Metaspace, PreTokenizerStep

END_OF_TEXT = "<|endoftext|>"
BYTE_LEVEL_DECODER: Mapping[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]  # SentencePiece's names of the tokens of single bytes

LARGEST_ID = 10_000_000  # far above any vocabulary; whoever decodes makes a list of that length
_MOST_STEPS = 50
_LONGEST_TEXT = 1_000  # of an added token, a prefix or the like, in characters
_MOST_GROWTH = 1_000  # how many characters a normalizer may make of one


@dataclass(frozen=True)
class TokenizerDefinition:
    """Vocabulary, merges and the rules around them. A wrong one is refused with a ConfigurationError.

    vocab: token -> id. The tokens of a byte-level vocabulary are written in stand-ins, see `byte_alphabet.py`.
    merges: pairs of tokens, the most urgent first. A pair listed twice counts at its last place.
    added_tokens: tokens that are recognised as they stand; their ids may lie in or behind the vocabulary.
    normalizer, pre_tokenizer: the steps before merging, see `normalization.py` and `pre_tokenization.py`.
    decoder: the way back, as the `decoder` object of a tokenizer.json, see `decoding.py`.
    unk_token: stands for a character that the vocabulary lacks; without one such characters are left out. fuse_unk:
        neighbours of this kind are one such token together.
    byte_fallback: such a character becomes its bytes of UTF-8, written `<0xE2>`, if the vocabulary has them all.
    ignore_merges: a piece that is a vocabulary entry as a whole, and no special one, becomes that token, whatever the
        merges say.
    continuing_subword_prefix, end_of_word_suffix: written before every character of a piece but the first, and behind
        the last one, before merging; a merge drops the prefix inside.
    """

    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added_tokens: Sequence[AddedToken] = ()
    normalizer: tuple[NormalizerStep, ...] = ()
    pre_tokenizer: tuple[PreTokenizerStep, ...] = GPT2_PRE_TOKENIZER
    decoder: Mapping[str, Any] | None = field(default_factory=lambda: BYTE_LEVEL_DECODER)
    unk_token: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False
    continuing_subword_prefix: str = ""
    end_of_word_suffix: str = ""

    def __post_init__(self) -> None:
        _check_text(self)
        _check_ids(self)
        if not isinstance(self.merges, MergeList):
            merges = MergeList.of_pairs(self.vocab, self.merges, self.continuing_subword_prefix)
            object.__setattr__(self, "merges", merges)
        _check_unknown(self)
        _check_added_tokens(self)
        _check_normalizer(self)
        _check_pre_tokenizer(self)

    @property
    def size(self) -> int:
        """One more than the largest id. There may be gaps: ids that belong to no token."""
        return max([-1, *self.vocab.values(), *(token.id for token in self.added_tokens)]) + 1

    @property
    def special_tokens(self) -> dict[str, int]:
        """text -> id, in the order of the ids."""
        special = sorted((token.id, token.text) for token in self.added_tokens if token.special)
        return {text: token_id for token_id, text in special}

    @property
    def merge_list(self) -> MergeList:
        """The merges with their ids."""
        assert isinstance(self.merges, MergeList)
        return self.merges

    @property
    def is_byte_level(self) -> bool:
        """Whether any bytes can be encoded, and come back."""
        return self.writes_bytes and self.reads_bytes and self.has_all_bytes

    @property
    def writes_bytes(self) -> bool:
        """Whether text is written in stand-ins for its bytes before it is merged."""
        return any(isinstance(step, ByteLevel) for step in self.pre_tokenizer)

    @property
    def reads_bytes(self) -> bool:
        """Whether every token stands for bytes of its own when decoded."""
        steps = (self.decoder or {}).get("decoders", [self.decoder])
        return [step.get("type") if isinstance(step, Mapping) else None for step in steps] == ["ByteLevel"]

    @property
    def has_all_bytes(self) -> bool:
        """Whether every byte is a token."""
        affixes = self.continuing_subword_prefix + self.end_of_word_suffix
        return not affixes and all(map(self.vocab.__contains__, CHARACTER_OF_BYTE))


def _check_text(definition: TokenizerDefinition) -> None:
    try:
        "".join([*definition.vocab, *(token.text for token in definition.added_tokens)]).encode("utf-8")
    except UnicodeEncodeError:
        message = "vocab: a token holds a lone surrogate, which is no character."
        raise ConfigurationError(message) from None
    affixes = (definition.continuing_subword_prefix, definition.end_of_word_suffix)
    if max(map(len, (*affixes, *(token.text for token in definition.added_tokens)))) > _LONGEST_TEXT:
        message = f"added_tokens: an added token, a prefix or a suffix has more than {_LONGEST_TEXT:,} characters."
        raise ConfigurationError(message)


def _check_ids(definition: TokenizerDefinition) -> None:
    """Ids are whole numbers, used once, and none is so large that a list of all would fill the memory."""
    vocab = definition.vocab
    added = {token.text: token.id for token in definition.added_tokens if token.text not in vocab}
    values = [*vocab.values(), *added.values()]
    right = set(map(type, values)) <= {int} and len(set(values)) == len(values)
    if right and min(values, default=0) >= 0 and max(values, default=0) <= LARGEST_ID:
        return
    token_of_id: dict[int, str] = {}
    for token, token_id in (*added.items(), *vocab.items()):
        if type(token_id) is not int or token_id < 0:
            message = f"vocab: the id of {shown(token)} is {shown(token_id)}, expected a whole number from 0 on."
            raise ConfigurationError(message)
        if token_id > LARGEST_ID:
            message = f"vocab: the id of {shown(token)} is {shown(token_id)}; at most {LARGEST_ID:,} is read."
            raise ConfigurationError(message)
        if token_of_id.setdefault(token_id, token) != token:
            message = f"vocab: {shown(token_of_id[token_id])} and {shown(token)} have the same id {shown(token_id)}."
            raise ConfigurationError(message)


def _check_unknown(definition: TokenizerDefinition) -> None:
    """What text without tokens becomes must be a token. (Without unk_token it is left out: SmolLM2's vocabulary lacks
    some control characters.)"""
    if definition.writes_bytes and definition.has_all_bytes:
        return
    if definition.unk_token is not None and definition.unk_token not in definition.vocab:
        message = f"unk_token: {shown(definition.unk_token)} is not in vocab."
        raise ConfigurationError(message)


def _check_added_tokens(definition: TokenizerDefinition) -> None:
    seen: set[str] = set()
    largest = -1
    for token in definition.added_tokens:
        if not token.text or token.text in seen:
            message = f"added_tokens: {shown(token.text)} is empty or listed twice."
            raise ConfigurationError(message)
        seen.add(token.text)
        # A token outside the vocabulary is numbered on by the tokenizers library, whatever number it is given.
        size = len(definition.vocab)
        right = definition.vocab.get(token.text, largest + 1 if largest >= size else size)
        if token.id != right:
            message = f"added_tokens: {shown(token.text)} has id {shown(token.id)} here and {shown(right)} in vocab."
            if token.text not in definition.vocab:
                message = (
                    f"added_tokens: {shown(token.text)} has id {shown(token.id)}, but the tokenizers library numbers "
                    f"on what is not in vocab, and would give it {right}. Nobody could say which of the two is meant."
                )
            raise ConfigurationError(message)
        largest = max(largest, token.id)
    _check_stand_ins(definition)
    _check_normalized_tokens(definition)


def _check_stand_ins(definition: TokenizerDefinition) -> None:
    """'é' in a vocabulary is byte 0xE9, in a text it is two bytes: one id cannot decode to both."""
    for token in definition.added_tokens if definition.reads_bytes else ():
        both = is_stand_in_text(token.text) and from_stand_ins(token.text) != token.text.encode("utf-8")
        if both and (len(token.text) == 1 or token.id in definition.merge_list.merged):
            message = (
                f"added_tokens: {shown(token.text)} is also the stand-in form of the ordinary token "
                f"{shown(from_stand_ins(token.text))}, so its id would mean two things."
            )
            raise ConfigurationError(message)


def _check_normalized_tokens(definition: TokenizerDefinition) -> None:
    """Of two tokens that normalization makes one text, the library finds now this one, now that."""
    found: dict[str, str] = {}
    for token in definition.added_tokens:
        if token.normalized:
            text = normalized(definition.normalizer, token.text)
            if text and found.setdefault(text, token.text) != token.text:
                both = f"{shown(found[text])} and {shown(token.text)}"
                message = f"added_tokens: {both} are the same after normalization."
                raise ConfigurationError(message)


def _check_normalizer(definition: TokenizerDefinition) -> None:
    """However little a file holds, it could ask for more text than any memory has."""
    steps = definition.normalizer
    prefixes = sum(len(step.prefix) for step in steps if isinstance(step, Prepend))
    if len(steps) > _MOST_STEPS or prefixes > _LONGEST_TEXT or growth(steps) > _MOST_GROWTH:
        message = (
            f"normalizer: more than {_MOST_STEPS} steps, or they put more than {_LONGEST_TEXT:,} characters in front, "
            f"or make more than {_MOST_GROWTH:,} of one."
        )
        raise ConfigurationError(message)


def _check_pre_tokenizer(definition: TokenizerDefinition) -> None:
    if len(definition.pre_tokenizer) > _MOST_STEPS:
        message = f"pre_tokenizer: {len(definition.pre_tokenizer):,} steps; at most {_MOST_STEPS} are read."
        raise ConfigurationError(message)
    for place, step in enumerate(definition.pre_tokenizer):
        if isinstance(step, Metaspace) and step.prepend_scheme == "first":
            moved = any(map(_may_take_the_beginning, definition.normalizer))
            # The library asks where a piece stood in the original text, and such steps leave several answers.
            if place > 0 or moved:
                message = (
                    'pre_tokenizer: prepend_scheme "first" is read only of a first step, and behind a normalizer that '
                    "takes nothing from the beginning of a text."
                )
                raise ConfigurationError(message)


def _may_take_the_beginning(step: NormalizerStep) -> bool:
    if isinstance(step, Replace):
        return not (isinstance(step.pattern, Literal) and len(step.pattern.text) == 1 and step.content)
    return isinstance(step, StripAccents) or (isinstance(step, Strip) and step.left)
