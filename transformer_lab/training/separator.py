"""Which token stands between two documents: the one at which the model ends its own texts.

What separates documents in a text file is another matter, a line `<|endoftext|>` whatever the tokenizer
(`documents.py`). Knows nothing of files.
"""

from transformer_lab.errors import ConfigurationError
from transformer_lab.tokenizers import END_OF_TEXT, Tokenizer


def separator_id(tokenizer: Tokenizer, end_of_text_id: int | None = None) -> int:
    """The id of the model's end token, such as Llama 3's `<|end_of_text|>`, or else that of the tokenizer.

    end_of_text_id: what the model's config.json names (the first, if there are several); None for a new model. It
    counts if the tokenizer has it among its special tokens: an id that is left over from another tokenizer would
    stand for an ordinary word. Raises ConfigurationError if there is neither.
    """
    if end_of_text_id in tokenizer.special_tokens.values():
        return int(end_of_text_id)  # type: ignore[arg-type]  # not None, since it is there
    if tokenizer.end_of_text_id is not None:
        return tokenizer.end_of_text_id
    named = "no end token" if end_of_text_id is None else f"the end token {end_of_text_id}, which is not special in it"
    message = (
        f"The tokenizer has no {END_OF_TEXT} token, which separates the documents, and the model names {named}. "
        "Set eos_token_id in config.json to a special token of the tokenizer, or take another tokenizer."
    )
    raise ConfigurationError(message)
