"""BPE of SentencePiece (Kudo and Richardson 2018, arXiv 1808.06226) in a GGUF file -> steps of tokenizer.json.

Such a file has no merges but scores: of all neighbours that are a token together, those with the best score become one.
So each way to put a token together from two others is a merge, in the order of the scores. What is no token is written
in bytes, <0x0A>.
"""

import math
from typing import Any

from transformer_lab.checkpoints.gguf.vocabulary import BYTE, CONTROL, OWN, UNKNOWN, Vocabulary

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_GEMMA = ("gemma", "gemma2", "gemma3")
# Behind the tokens of a chat Phi-3 passes over white space, but not behind these. No key says so; llama.cpp knows it.
_PHI3_KEEPS = ("<unk>", "<s>", "<|endoftext|>")


def steps(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """None for a tokenizer that also changes the spaces of a text."""
    if vocabulary.get("remove_extra_whitespaces") is True:
        return None
    begins_with_space = vocabulary.get("add_space_prefix", True) is not False
    architecture = vocabulary.file.values.get("general.architecture")
    gemma = architecture in _GEMMA
    # Runs of spaces are written as they are, beside those in words.
    tokens = [token if token.strip(" ") else SPACE * len(token) for token in vocabulary.tokens]
    ids = {token: id_ for id_, token in enumerate(tokens)}
    # Gemma's merges follow its ids; its scores do not say in which order they were learned.
    scores = [-float(id_) for id_ in range(len(tokens))] if gemma else vocabulary.scores()
    whole = {  # the file's own tokens are found before all others
        token: math.inf if kind == OWN else score
        for token, score, kind in zip(tokens, scores, vocabulary.kinds, strict=True)
        if kind not in (UNKNOWN, CONTROL, BYTE)
    }
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if begins_with_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model: dict[str, Any] = {
        "type": "BPE",
        "vocab": ids,
        "merges": merges(whole, ids),
        "unk_token": vocabulary.special("unknown"),
    }
    model |= {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": True, "byte_fallback": True, "ignore_merges": False}
    added = [
        token | {"rstrip": architecture == "phi3" and token["content"] not in _PHI3_KEEPS}
        for token in vocabulary.added_tokens()
    ]
    return {
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]} if begins_with_space else replace,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def merges(scores: dict[str, float], ids: dict[str, int]) -> list[list[str]]:
    """Every two tokens that are one together, the best score first, and of equal ones the longest."""
    found = []
    for token, score in scores.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in scores and right in scores:
                found.append((-score, -len(left), -len(right), ids[token], left, right))
    return [[left, right] for *_, left, right in sorted(found)]
