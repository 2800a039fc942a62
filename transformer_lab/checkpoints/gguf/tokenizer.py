"""The tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json: what all kinds of it share."""

import json
from typing import Any

from transformer_lab.checkpoints.gguf import byte_level, sentencepiece
from transformer_lab.checkpoints.gguf.file import GGUFFile
from transformer_lab.checkpoints.gguf.vocabulary import Vocabulary

_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def tokenizer_files(file: GGUFFile) -> dict[str, str]:
    """Name -> content. None for a tokenizer that is not known for certain: the model loads without one.

    Raises InputFileError if what belongs together does not fit.
    """
    vocabulary = Vocabulary(file)
    model = vocabulary.get("model")
    kind = byte_level if model == "gpt2" else sentencepiece if model == "llama" else None
    found = kind.steps(vocabulary) if kind else None
    if found is None:
        return {}
    whole = {"version": "1.0", "truncation": None, "padding": None, "post_processor": _around(vocabulary)} | found
    own: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    names = {token["content"] for token in whole["added_tokens"]}  # an ordinary token cannot have a role
    own |= {role: token for role, name in _ROLES.items() if (token := vocabulary.special(name)) in names}
    template = file.values.get("tokenizer.chat_template")
    own |= {"chat_template": template} if isinstance(template, str) else {}
    return {"tokenizer.json": json.dumps(whole), "tokenizer_config.json": json.dumps(own, indent=2)}


def _around(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """The template that puts tokens around a text, if the file asks for it. llama.cpp begins a text of SentencePiece
    also where the file is silent."""
    begins = vocabulary.get("add_bos_token", vocabulary.get("model") == "llama") is True
    begin = vocabulary.special("bos") if begins else None
    end = vocabulary.special("eos") if vocabulary.get("add_eos_token") is True else None
    if begin is None and end is None:
        return None

    def one(letter: str, type_id: int = 0) -> list[dict[str, Any]]:
        tokens = [[] if token is None else [_special(token)] for token in (begin, end)]
        return [*tokens[0], {"Sequence": {"id": letter, "type_id": type_id}}, *tokens[1]]

    ids = {token: vocabulary.ids[token] for token in (begin, end) if token is not None}
    return {
        "type": "TemplateProcessing",
        "single": one("A"),
        "pair": [*one("A"), *one("B")],
        "special_tokens": {token: {"id": token, "ids": [id_], "tokens": [token]} for token, id_ in ids.items()},
    }


def _special(token: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": 0}}
