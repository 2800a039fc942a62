"""The tokenizer that belongs to a model: where it is looked for, and that the model can take its ids."""

from os import PathLike
from pathlib import Path

from transformer_lab.errors import InputFileError
from transformer_lab.model.config import ModelConfig
from transformer_lab.paths import data_folder
from transformer_lab.tokenizers import Tokenizer, embedded_tokenizer_names, load_tokenizer, load_tokenizer_folder


def fitting_tokenizer(folder: Path, config: ModelConfig, kind: str) -> Tokenizer | None:
    """That of the folder, or for a published configuration the embedded one; it must fit the vocabulary."""
    found = load_tokenizer_folder(folder, kind)
    published = folder.parent == data_folder("resources") / "config"  # a configuration alone, without a tokenizer
    if found is None and published and folder.name in embedded_tokenizer_names():
        found = load_tokenizer(folder.name, kind)
    if found is not None:
        require_fitting(found, config.vocab_size, folder)
    return found


def require_fitting(tokenizer: Tokenizer, vocab_size: int, where: str | PathLike[str]) -> None:
    """Raises InputFileError if a model of vocab_size cannot take every id of the tokenizer found at `where`."""
    if tokenizer.vocab_size > vocab_size:
        message = (
            f"The tokenizer in {where} has {tokenizer.vocab_size} tokens and the model's vocab_size is "
            f"{vocab_size}. They do not belong together."
        )
        raise InputFileError(message)
