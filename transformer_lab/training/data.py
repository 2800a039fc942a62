"""The training text as the settings name it: which files, and what is held out for validation. Knows no model."""

from dataclasses import dataclass

from transformer_lab.errors import ConfigurationError
from transformer_lab.tokenizers import Tokenizer
from transformer_lab.training.corpus import Corpus, Progress
from transformer_lab.training.separator import separator_id
from transformer_lab.training.token_file import TokenFile
from transformer_lab.training.tokenising import token_files


@dataclass(frozen=True)
class TextData:
    """Text files to train on.

    path: a UTF-8 text file, or a folder whose *.txt files are taken, those of its subfolders too, in the order of their
        paths. A line that holds only <|endoftext|> ends a document, and so does the end of a file.
    validation: a file or folder like it. Without one, a share of the documents of `path` is held out; if there is only
        one document, the last share of its text.
    validation_share: of the documents, about.
    cross_documents: windows may run over the border of two documents. Otherwise they never do, and short ones are
        padded; the padding does not count in the loss.
    """

    path: str | None = None
    validation: str | None = None
    validation_share: float = 0.01
    cross_documents: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.validation_share < 1.0:
            message = f"data.validation_share is {self.validation_share}; it must be greater than 0 and below 1."
            raise ConfigurationError(message)

    def prepare(
        self,
        tokenizer: Tokenizer,
        seed: int = 0,
        progress: Progress | None = None,
        end_of_text_id: int | None = None,
    ) -> tuple[TokenFile, TokenFile]:
        """(training, validation). Tokenises what was not tokenised before: progress(what, done, total), in bytes.

        seed: chooses the documents that are held out. end_of_text_id: the model's own end token, see `separator_id`.
        """
        corpus, separator = self._corpus(), separator_id(tokenizer, end_of_text_id)
        if self.validation is None:
            share = float(self.validation_share)
            training, validation = token_files(corpus, tokenizer, separator, share, seed, progress)
            return training, validation
        # Both are looked for before the first is tokenised, which may take minutes.
        corpora = [corpus, Corpus(self.validation)]
        (training,), (validation,) = (token_files(each, tokenizer, separator, progress=progress) for each in corpora)
        return training, validation

    def whole(
        self, tokenizer: Tokenizer, progress: Progress | None = None, end_of_text_id: int | None = None
    ) -> TokenFile:
        """All documents of `path`, with none held out."""
        corpus, separator = self._corpus(), separator_id(tokenizer, end_of_text_id)
        return token_files(corpus, tokenizer, separator, progress=progress)[0]

    def _corpus(self) -> Corpus:
        if not self.path:
            message = "data.path is missing; give it a text file or a folder of *.txt files, as in data.path=story.txt."
            raise ConfigurationError(message)
        return Corpus(self.path)
