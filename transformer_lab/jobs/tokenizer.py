"""`job=tokenizer`: trains a byte-level BPE tokenizer on a text, and leaves a folder for `tokenizer.source=`."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from transformer_lab.config import Settings
from transformer_lab.errors import ConfigurationError
from transformer_lab.jobs.loading import progress_bar
from transformer_lab.jobs.record import Result
from transformer_lab.paths import expanded


@dataclass(frozen=True)
class TrainTokenizer:
    """vocab_size: ids wanted, special tokens and the 256 bytes among them. output: the folder to write."""

    unused: ClassVar[tuple[str, ...]] = ("cache", "residency")

    vocab_size: int
    special_tokens: list[str]
    output: str | None

    def run(self, settings: Settings) -> Result:
        from transformer_lab.tokenizers import train_tokenizer

        path = settings.sections["data"]["path"]
        if path is None:
            message = "data.path is missing; name the text to learn from, as in data.path=FILE_OR_FOLDER."
            raise ConfigurationError(message)
        folder = expanded(self.output) if self.output else (settings.folder or Path.cwd()) / "tokenizer"
        with progress_bar() as progress:
            report = (lambda done, total: progress("tokens", done, total)) if progress else None
            tokenizer = train_tokenizer(expanded(path), self.vocab_size, self.special_tokens, report)
        tokenizer.save(folder)
        print(folder)
        return Result(output={"folder": str(folder), "vocab_size": tokenizer.vocab_size, "path": path})
