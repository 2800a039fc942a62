"""Makes the token files of a corpus, once: they lie in the cache folder, named by what decides their content.

That is the text, the tokenizer, the token between documents, and how documents are held out. The folder of them appears
when all are whole (`atomic_folder.py`). Knows nothing of training windows.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from transformer_lab.atomic_file import make_folder
from transformer_lab.atomic_folder import new_folder, remove_folder
from transformer_lab.errors import InputFileError, UnavailableError
from transformer_lab.left_over import temporary_folder
from transformer_lab.paths import cache_folder
from transformer_lab.tokenizers import END_OF_TEXT, Tokenizer
from transformer_lab.training.corpus import ContentCounter, Contents, Corpus, Progress
from transformer_lab.training.documents import Piece
from transformer_lab.training.held_out import cut_in_two, held_out
from transformer_lab.training.token_file import TokenFile, TokenFileWriter

_FORMAT = 1  # a change of what the same text and tokenizer give needs another number


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """A digest of all that decides the ids: the files that the tokenizer saves hold it, for every kind of tokenizer."""
    digest = hashlib.sha256(type(tokenizer).__qualname__.encode())
    with temporary_folder() as folder:
        tokenizer.save(folder)
        for file in sorted(folder.iterdir()):
            digest.update(f"\n{file.name} {file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def token_files(
    corpus: Corpus,
    tokenizer: Tokenizer,
    separator: int,
    held_out_share: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[TokenFile]:
    """[the token file of the corpus], or with a share [training, validation]; made if they are not there yet.

    separator: the id of the token between two documents.
    """
    contents = corpus.contents(progress)
    settings = {
        "format": _FORMAT,
        "text_sha256": contents.sha256,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "held_out_share": held_out_share,
        "seed": None if held_out_share is None else seed,
    }
    if separator != tokenizer.special_tokens.get(END_OF_TEXT):  # the names of others stay what they were
        settings["separator"] = separator
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
    names = ["all"] if held_out_share is None else ["train", "validation"]
    try:
        folder = cache_folder() / "tokens" / key
    except RuntimeError as error:
        message = f"The token files of {corpus.name} cannot be written: there is no home folder for the cache."
        raise UnavailableError(message) from error
    with suppress(InputFileError):
        return _open(folder, names, corpus)
    try:
        _make(folder, names, corpus, contents, tokenizer, separator, settings, progress)
    except OSError as error:
        with suppress(InputFileError):  # another run has made the same in the meantime
            return _open(folder, names, corpus)
        message = f"The token files of {corpus.name} cannot be written: {error.strerror or error}."
        raise UnavailableError(message) from error
    return _open(folder, names, corpus)


def _open(folder: Path, names: list[str], corpus: Corpus) -> list[TokenFile]:
    return [TokenFile(folder / f"{name}.tokens", corpus.name) for name in names]


def _make(
    folder: Path,
    names: list[str],
    corpus: Corpus,
    contents: Contents,
    tokenizer: Tokenizer,
    separator: int,
    settings: dict[str, object],
    progress: Progress | None,
) -> None:
    make_folder(folder.parent)
    with new_folder(folder) as place, ExitStack() as opened:
        writers: list[TokenFileWriter] = []
        for name in names:
            writers.append(TokenFileWriter(place / f"{name}.tokens", tokenizer.vocab_size, separator))
            opened.callback(writers[-1].abandon)
        _write(writers, corpus, contents, tokenizer, settings, progress)
        for writer in writers:
            writer.close(**settings)
        try:
            _open(folder, names, corpus)
        except InputFileError:  # it is not there, or damaged
            remove_folder(folder)


def _write(
    writers: list[TokenFileWriter],
    corpus: Corpus,
    contents: Contents,
    tokenizer: Tokenizer,
    settings: dict[str, object],
    progress: Progress | None,
) -> None:
    counter = ContentCounter()
    share, seed = settings["held_out_share"], settings["seed"]

    def counted(pieces: Iterable[Piece]) -> Iterable[Piece]:
        for piece in pieces:
            counter.add(piece)
            yield piece

    pieces = counted(corpus.pieces("tokenising", progress))
    in_validation: object = ()
    if isinstance(share, float) and isinstance(seed, int):
        if contents.documents > 1:
            in_validation = held_out(contents.documents, share, seed)
        else:
            pieces, in_validation = cut_in_two(pieces, int(contents.text_bytes * (1 - share))), (1,)
    document = -1
    for piece in pieces:
        writer = writers[piece.document in in_validation]  # type: ignore[operator]
        if piece.document != document:
            writer.begin_document()
            document = piece.document
        writer.add(tokenizer.encode(piece.text, allow_special=False), len(piece.text.encode("utf-8")))
    if counter.contents() != contents:
        message = f"{corpus.name} was changed while it was read. Try again when it is complete."
        raise InputFileError(message)
    if not all(writer.documents for writer in writers):
        message = (
            f"{corpus.name} is one document, and no line begins in the share to hold out for validation. "
            "Give data.validation, or more text."
        )
        raise InputFileError(message)
