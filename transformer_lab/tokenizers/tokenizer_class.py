"""What a `tokenizer_class` of Hugging Face's transformers means beside vocabulary and merges.

vocab.json and merges.txt say nothing of the split, of normalization or of the ends of words. Those rules are in the
class that tokenizer_config.json names; here they are as in transformers 5. Beside a tokenizer.json one of them counts.
"""

from pathlib import Path
from typing import Any

from transformer_lab.errors import InputFileError, shown
from transformer_lab.tokenizers import published_splits
from transformer_lab.tokenizers.definition import BYTE_LEVEL_DECODER, END_OF_TEXT
from transformer_lab.tokenizers.expressions import Expression
from transformer_lab.tokenizers.normalization import Lowercase, Replace, UnicodeForm
from transformer_lab.tokenizers.pre_tokenization import ByteLevel, Split

# Those with GPT-2's split and nothing else, and the tokens that each knows as special, where the vocabulary has them.
_ROBERTA = ("<s>", "</s>", "<unk>", "<pad>", "<mask>")
_LIKE_GPT2 = {
    "GPT2Tokenizer": (END_OF_TEXT,),
    "CodeGenTokenizer": (END_OF_TEXT,),
    "WhisperTokenizer": (END_OF_TEXT,),
    "RobertaTokenizer": _ROBERTA,
    "BartTokenizer": _ROBERTA,
    "LongformerTokenizer": _ROBERTA,
    "LEDTokenizer": _ROBERTA,
    "BlenderbotTokenizer": _ROBERTA,
    "DebertaTokenizer": ("[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"),
}
CLASSES = (*_LIKE_GPT2, "GPTNeoXTokenizer", "Qwen2Tokenizer", "CLIPTokenizer")


def prefix_space(name: str, asked: bool | None) -> bool | None:
    """Whether a class puts a space before a text, of which its configuration says `asked`, None if nothing.

    None for a class that leaves this to its tokenizer.json, or is not known here.
    """
    kind = name.removesuffix("Fast")
    if kind not in CLASSES or kind == "CLIPTokenizer":
        return None
    return kind == "BlenderbotTokenizer" if asked is None else asked


def rules_of_class(name: str, add_prefix_space: bool | None, file: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(parts of a TokenizerDefinition, special tokens) of a class; "Fast" at the end of its name makes no difference.

    add_prefix_space: what the configuration says of it, None if nothing. file: for messages. Raises InputFileError
    for a class that is not known here.
    """
    kind = name.removesuffix("Fast")
    prefix = bool(prefix_space(name, add_prefix_space))
    if kind in _LIKE_GPT2:
        return {"pre_tokenizer": (ByteLevel(prefix),)}, _LIKE_GPT2[kind]
    if kind == "GPTNeoXTokenizer":
        parts = {"normalizer": (UnicodeForm("NFC"),), "pre_tokenizer": (ByteLevel(prefix),)}
        return parts, (END_OF_TEXT, "<|padding|>")
    if kind == "Qwen2Tokenizer":
        split = Split(Expression(published_splits.QWEN2))
        steps = (split, ByteLevel(prefix, use_regex=False))
        return {"normalizer": (UnicodeForm("NFC"),), "pre_tokenizer": steps}, (END_OF_TEXT,)
    if kind == "CLIPTokenizer":
        return _clip(), ("<|startoftext|>", END_OF_TEXT)
    message = (
        f"{file}, field tokenizer_class: {shown(name)} has a way of its own to cut a text, of which vocab.json and "
        f"merges.txt do not tell. Known are {', '.join(CLASSES)}; or bring its tokenizer.json."
    )
    raise InputFileError(message)


def _clip() -> dict[str, Any]:
    suffix = "</w>"
    spaces = {"type": "Replace", "pattern": {"String": suffix}, "content": " "}
    no_last_space = {"type": "Strip", "content": " ", "start": 0, "stop": 1}
    return {
        "normalizer": (UnicodeForm("NFC"), Replace(Expression(r"\s+"), " "), Lowercase()),
        "pre_tokenizer": (Split(Expression(published_splits.CLIP), "Removed", invert=True), ByteLevel()),
        "decoder": {"type": "Sequence", "decoders": [BYTE_LEVEL_DECODER, spaces, no_last_space]},
        "unk_token": END_OF_TEXT,
        "end_of_word_suffix": suffix,
    }
