"""Byte-level BPE in a GGUF file -> steps of tokenizer.json. The way to split a text is known by its name, `pre`."""

from typing import Any

from transformer_lab.checkpoints.gguf.vocabulary import Vocabulary
from transformer_lab.tokenizers.published_splits import LLAMA3, QWEN2

_GPT2 = ("gpt-2", "phi-2")
_DIGITS = ("smollm", "starcoder", "refact")  # GPT-2's, behind one of every digit alone
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN2 = ("qwen2",)


def steps(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """None for a split that is not known here."""
    pre = vocabulary.get("pre")
    own = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if pre in _GPT2:
        cuts = [own | {"use_regex": True}]
    elif pre in _DIGITS:
        cuts = [{"type": "Digits", "individual_digits": True}, own | {"use_regex": True}]
    elif pre in _LLAMA3 or pre in _QWEN2:
        pattern = {"Regex": LLAMA3 if pre in _LLAMA3 else QWEN2}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        cuts = [split, own | {"use_regex": False}]
    else:
        return None
    model: dict[str, Any] = {"type": "BPE", "vocab": vocabulary.ids, "merges": vocabulary.texts("merges")}
    model |= {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": pre in _LLAMA3}
    return {
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": {"type": "NFC"} if pre in _QWEN2 else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }
