"""The files that a definition becomes, for this package, for Hugging Face's transformers and for tokenizers."""

import json
from typing import Any

from transformer_lab.tokenizers.definition import END_OF_TEXT, TokenizerDefinition
from transformer_lab.tokenizers.pre_tokenization import ByteLevel
from transformer_lab.tokenizers.tokenizer_json import added_token_json, to_tokenizer_json
from transformer_lab.tokenizers.vocab_and_merges import merges_text


def rendered(definition: TokenizerDefinition) -> dict[str, str]:
    """name of the file -> text; see `BPE.save`.

    vocab.json and merges.txt are among them where a reader that knows only them gets the same ids: for a tokenizer like
    GPT-2's. vocab.json then also holds the added tokens.
    """
    files = {
        "tokenizer_config.json": json.dumps(_tokenizer_config(definition), ensure_ascii=False, indent=2) + "\n",
        "tokenizer.json": json.dumps(to_tokenizer_json(definition), ensure_ascii=False),
    }
    if _is_like_gpt2(definition):
        added = {token.text: token.id for token in definition.added_tokens}
        vocab = dict(sorted({**definition.vocab, **added}.items(), key=lambda item: item[1]))
        files["vocab.json"] = json.dumps(vocab, ensure_ascii=False)
        files["merges.txt"] = merges_text(definition.merges)
    return files


def _is_like_gpt2(definition: TokenizerDefinition) -> bool:
    """Whether the class GPT2Tokenizer of transformers, which takes only vocabulary and merges, gives the same ids.

    It puts an end-of-text token in, whatever the files say.
    """
    return (
        END_OF_TEXT in definition.special_tokens
        and definition.pre_tokenizer in ((ByteLevel(),), (ByteLevel(add_prefix_space=True),))
        and definition.has_all_bytes
        and not (definition.normalizer or definition.ignore_merges or definition.byte_fallback)
    )


def _tokenizer_config(definition: TokenizerDefinition) -> dict[str, Any]:
    end_of_text = END_OF_TEXT if END_OF_TEXT in definition.special_tokens else None
    return {
        "tokenizer_class": "GPT2Tokenizer" if _is_like_gpt2(definition) else "PreTrainedTokenizerFast",
        "add_prefix_space": any(
            isinstance(step, ByteLevel) and step.add_prefix_space for step in definition.pre_tokenizer
        ),
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "unk_token": definition.unk_token or end_of_text,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(token.id): added_token_json(token) for token in definition.added_tokens},
    }
