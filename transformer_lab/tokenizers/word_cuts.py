"""Where a text that no pre-tokenizer cuts may be cut all the same, without changing its ids.

SentencePiece's tokenizers (Llama 2, Gemma) merge a whole text as one piece. But hardly a token of theirs holds the sign
of a space behind another character, so merges do not reach from one word into the next, and each word can be merged,
and remembered, by itself. Behind which characters that does not hold is looked up in the merges.
"""

import re
from collections.abc import Callable

from transformer_lab.tokenizers.definition import BYTE_TOKENS, TokenizerDefinition

_BETWEEN = "\uffff"  # no character, so hardly a token holds it


def word_cut(definition: TokenizerDefinition) -> Callable[[str], list[str]] | None:
    """The function text -> words, in order and without gaps; None if nothing is known of where merges do not reach."""
    vocab = definition.vocab
    # A character that is left out would make neighbours of what stands on its two sides.
    none_left_out = definition.unk_token is not None or (
        definition.byte_fallback and all(token in vocab for token in BYTE_TOKENS)
    )
    # What is written before or behind a piece, and a piece that is a token as a whole, depend on where pieces end.
    whole = definition.ignore_merges or definition.continuing_subword_prefix or definition.end_of_word_suffix
    if not none_left_out or whole:
        return None
    merged = [left + right for left, right in definition.merges]
    text = _BETWEEN.join(merged)
    if text.count(_BETWEEN) >= max(1, len(merged)):
        return None
    for sign in "▁ ":
        # The sign must be a token: at one, an unk_token that waits for its like comes out.
        if sign in vocab:
            joined = "".join(set(re.findall(f"([^{sign}{_BETWEEN}]){sign}", text)))
            word = f"(?:{sign}+|[^{sign}])[^{sign}]*"
            if joined:
                word += f"(?:(?<=[{re.escape(joined)}]){sign}+[^{sign}]*)*"
            return re.compile(word).findall
    return None
