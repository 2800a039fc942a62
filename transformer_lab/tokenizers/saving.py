"""Writes a tokenizer into a folder, for this package, for Hugging Face's transformers and for tokenizers."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from transformer_lab.tokenizers.definition import BYTE_LEVEL_DECODER, END_OF_TEXT, TokenizerDefinition
from transformer_lab.tokenizers.pre_tokenization import ByteLevel
from transformer_lab.tokenizers.tokenizer_files import write_files
from transformer_lab.tokenizers.tokenizer_json import added_token_json, to_tokenizer_json
from transformer_lab.tokenizers.vocab_and_merges import merges_text


def save_definition(definition: TokenizerDefinition, folder: str | PathLike[str]) -> None:
    """Writes the files into `folder`; see `BPE.save`.

    vocab.json and merges.txt are written where a reader that knows only them gets the same ids: for a tokenizer like
    GPT-2's. vocab.json then also holds the added tokens.
    """
    files = {
        "tokenizer_config.json": json.dumps(_tokenizer_config(definition), ensure_ascii=False, indent=2) + "\n",
        "tokenizer.json": json.dumps(to_tokenizer_json(definition), ensure_ascii=False),
    }
    if _is_like_gpt2(definition):
        added = {token.text: token.id for token in definition.added_tokens}
        vocab = dict(sorted({**definition.vocab, **added}.items(), key=lambda item: item[1]))
        files = {
            "vocab.json": json.dumps(vocab, ensure_ascii=False),
            "merges.txt": merges_text(definition.merges),
            **files,
        }
    write_files(Path(folder), files)


def _is_like_gpt2(definition: TokenizerDefinition) -> bool:
    """Whether the class GPT2Tokenizer of transformers, which takes only vocabulary and merges, gives the same ids."""
    return (
        definition.pre_tokenizer in ((ByteLevel(),), (ByteLevel(add_prefix_space=True),))
        and definition.has_all_bytes
        and not (definition.normalizer or definition.ignore_merges or definition.byte_fallback)
    )


def _tokenizer_config(definition: TokenizerDefinition) -> dict[str, Any]:
    end_of_text = END_OF_TEXT if END_OF_TEXT in definition.special_tokens else None
    # transformers builds its GPT2Tokenizer with an end-of-text token, whatever the files say.
    like_gpt2 = end_of_text is not None and _is_like_gpt2(definition)
    return {
        "tokenizer_class": "GPT2Tokenizer" if like_gpt2 else "PreTrainedTokenizerFast",
        "add_prefix_space": any(
            isinstance(step, ByteLevel) and step.add_prefix_space for step in definition.pre_tokenizer
        ),
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "unk_token": definition.unk_token or end_of_text,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(token.id): added_token_json(token) for token in definition.added_tokens},
    }
