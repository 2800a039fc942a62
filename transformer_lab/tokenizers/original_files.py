"""The files of a tokenizer as they lay in its folder, kept so that saving gives them back, byte for byte.

They say more than is used here: chat templates, roles of tokens, settings of other libraries. A tokenizer cannot be
changed after it was loaded, so its files stay true.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from transformer_lab.tokenizers.tokenizer_files import read_bytes, write_files

# Every file that belongs to a tokenizer in the layout of Hugging Face, of whatever kind it is.
NAMES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "gpt2-vocab.json",
    "gpt2-merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


def original_files(folder: Path) -> dict[str, bytes]:
    """name -> content of those of NAMES that lie in the folder. InputFileError for what cannot be read."""
    return {name: read_bytes(folder / name) for name in NAMES if os.path.lexists(folder / name)}


def save_files(folder: Path, originals: Mapping[str, bytes], rendered: Callable[[], Mapping[str, str]]) -> None:
    """Writes a tokenizer's files: the originals, and if they have no tokenizer.json what `rendered` makes of it too.

    Files of another tokenizer in the same folder go, for they would be read together with these. Errors as in
    `write_files`.
    """
    contents: dict[str, str | bytes] = dict(originals)
    if "tokenizer.json" not in originals:
        contents = {**rendered(), **originals}
    write_files(folder, contents)
    for name in NAMES:
        if name not in contents and (folder / name).is_file():
            with suppress(OSError):
                (folder / name).unlink()
