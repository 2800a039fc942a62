"""Token files and their cache: what is stored, that it is made once, and that no half file is taken for whole."""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from transformer_lab.errors import ConfigurationError, InputFileError, UnavailableError
from transformer_lab.left_over import locked, temporary_name
from transformer_lab.tokenizers import ByteBPE, TokenizerDefinition, load_tokenizer, train_tokenizer
from transformer_lab.training import held_out, token_file, tokenising
from transformer_lab.training.data import TextData
from transformer_lab.training.documents import Piece
from transformer_lab.training.token_file import MappedNumbers, TokenFile, TokenFileWriter
from transformer_lab.training.tokenising import tokenizer_sha256

SEPARATOR = "\n<|endoftext|>\n"
STORIES = [f"Story {i}: the tree and the sun.\nIt was day {i * i}." for i in range(200)]


@pytest.fixture(scope="module")
def tokenizer() -> ByteBPE:
    return train_tokenizer("\n".join(STORIES), 400)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "transformer_lab" / "tokens"


@pytest.fixture
def story_file(tmp_path) -> Path:
    file = tmp_path / "stories.txt"
    file.write_text(SEPARATOR.join(STORIES), encoding="utf-8")
    return file


def texts(tokens: TokenFile, tokenizer) -> list[str]:
    """The documents that a token file holds."""
    starts = tokens.starts(0, tokens.documents + 1)
    assert starts[0] == 1 and starts[-1] == tokens.count
    found = []
    for start, stop in pairwise(starts):
        ids = tokens.read(int(start) - 1, int(stop))
        assert ids[0] == ids[-1] == tokens.end_of_text_id
        found.append(tokenizer.decode(ids[1:-1]))
    return found


class Reading:
    """Hears of progress."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, what: str, done: int, total: int) -> None:
        self.calls.append((what, done, total))

    @property
    def kinds(self) -> set[str]:
        return {what for what, _, _ in self.calls}


# The file


@pytest.mark.parametrize(("vocab_size", "size"), [(65_536, 2), (65_537, 4)])
def test_ids_take_as_few_bytes_as_they_can(tmp_path, vocab_size, size):
    writer = TokenFileWriter(tmp_path / "a.tokens", vocab_size, end_of_text_id=7)
    writer.begin_document()
    writer.add([1, vocab_size - 1], 3)
    writer.add([258], 2)
    writer.close(source="here")
    data = (tmp_path / "a.tokens").read_bytes()
    assert data == b"".join(token.to_bytes(size, "little") for token in [7, 1, vocab_size - 1, 258, 7])
    tokens = TokenFile(tmp_path / "a.tokens")
    assert (tokens.count, tokens.documents, tokens.text_bytes, tokens.end_of_text_id) == (5, 1, 5, 7)
    assert tokens.head["source"] == "here" and tokens.read(1, 4).tolist() == [1, vocab_size - 1, 258]
    assert tokens.read(1, 4).dtype == np.int64
    for wrong in [(-1, 2), (3, 2), (2, 6)]:
        with pytest.raises(IndexError):
            tokens.read(*wrong)


def test_pages_are_given_back(tmp_path, monkeypatch):
    (tmp_path / "numbers").write_bytes(np.arange(3_000_000, dtype="<u4").tobytes())
    numbers = MappedNumbers(tmp_path / "numbers", "<u4")
    released = []
    release = numbers._release
    monkeypatch.setattr(numbers, "_release", lambda: (released.append(True), release()))
    for start in range(0, 3_000_000, 1000):
        assert np.array_equal(numbers.read(start, start + 1000), np.arange(start, start + 1000))
    assert len(released) > 3_000_000 * 4 / token_file._MOST_MAPPED_BYTES
    monkeypatch.delattr("mmap.MADV_DONTNEED", raising=False)  # as on a system that does not know it
    release()
    assert numbers.read(5, 6).tolist() == [5]


_RESIDENT = """
import sys
from pathlib import Path
from transformer_lab.training.token_file import MappedNumbers
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
numbers = MappedNumbers(Path(sys.argv[1]), "<u2")
numbers.read(0, 1000)
if sys.argv[2] == "keep":
    numbers._release = lambda: None
before = peak()
for start in range(0, len(numbers) - 1000, 20_000):
    numbers.read(start, start + 1000)
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_does_not_grow_with_what_was_read(tmp_path):
    with open(tmp_path / "numbers", "wb") as file:
        for _ in range(64):
            file.write(b"\1" * 2**20)

    def growth(how: str) -> int:
        command = [sys.executable, "-c", _RESIDENT, str(tmp_path / "numbers"), how]
        return int(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)

    assert growth("give back") < 8
    assert growth("keep") > 40  # MiB: the measure would find it


@pytest.mark.parametrize(
    "damage", ["cut tokens", "cut starts", "no head", "no JSON", "a list", "format", "count", "gone"]
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "a.tokens"
    writer = TokenFileWriter(path, 300, end_of_text_id=0)
    writer.begin_document()
    writer.add([1, 2, 3], 3)
    writer.close()
    harm(path, damage)
    with pytest.raises(InputFileError, match=r"a\.tokens is not a whole token file"):
        TokenFile(path)


def harm(path: Path, damage: str) -> None:
    head = path.with_suffix(".json")
    if damage in ("cut tokens", "cut starts"):
        file = path if damage == "cut tokens" else path.with_suffix(".starts")
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "no head":
        head.unlink()
    elif damage == "gone":
        path.unlink()
    elif damage in ("format", "count"):
        values = json.loads(head.read_text())
        head.write_text(json.dumps(values | {damage: values[damage] + 1}))
    else:
        head.write_text("{" if damage == "no JSON" else "[]")


# From text to token files


def test_documents_are_held_out_whole(story_file, tokenizer):
    data = TextData(str(story_file), validation_share=0.1)
    training, validation = data.prepare(tokenizer)
    in_training, in_validation = texts(training, tokenizer), texts(validation, tokenizer)
    assert sorted(in_training + in_validation) == sorted(STORIES)
    assert in_training == [story for story in STORIES if story in in_training]  # in order
    assert 8 <= len(in_validation) <= 35
    assert training.text_bytes == sum(len(text.encode()) for text in in_training)
    assert validation.text_bytes == sum(len(text.encode()) for text in in_validation)
    assert training.name == str(story_file) and training.vocab_size == tokenizer.vocab_size
    other = texts(data.prepare(tokenizer, seed=1)[1], tokenizer)
    assert other != in_validation
    assert texts(data.prepare(tokenizer, seed=0)[1], tokenizer) == in_validation


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 50])
def test_no_side_is_empty(tmp_path, tokenizer, share, count):
    (tmp_path / "a.txt").write_text(SEPARATOR.join(STORIES[:count]))
    training, validation = TextData(str(tmp_path / "a.txt"), validation_share=share).prepare(tokenizer)
    assert training.documents + validation.documents == count
    assert min(training.documents, validation.documents) >= 1


def test_the_choice_is_the_same_whatever_is_read_at_once(monkeypatch):
    choice = held_out.held_out(1000, 0.05, 4)
    chosen = [number for number in range(1000) if number in choice]
    monkeypatch.setattr(held_out, "_AT_ONCE", 7)
    assert held_out.held_out(1000, 0.05, 4) == choice
    assert 25 < len(chosen) < 80


def test_one_document_is_cut_at_a_line(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("\n".join(STORIES))
    training, validation = TextData(str(tmp_path / "a.txt"), validation_share=0.1).prepare(tokenizer)
    (first,), (second,) = texts(training, tokenizer), texts(validation, tokenizer)
    assert first + "\n" + second == "\n".join(STORIES)
    assert 0.09 * len(first + second) - 50 < len(second) <= 0.1 * len(first + second)


@pytest.mark.parametrize("first_bytes", range(24))
def test_a_document_that_comes_in_pieces_is_cut_at_the_same_line(first_bytes):
    text = "é one\n\ntwo か\r\n three\nend"
    expected = list(held_out.cut_in_two([Piece(0, text)], first_bytes))
    at = text.find("\n", len(text.encode()[:first_bytes].decode("utf-8", "ignore")))
    assert "".join(piece.text for piece in expected if piece.document == 0) == text[:at].rstrip("\r")
    for size in (1, 2, 5):
        pieces = [Piece(0, text[i : i + size]) for i in range(0, len(text), size)]
        found = list(held_out.cut_in_two(pieces, first_bytes))
        for document in (0, 1):
            joined = ["".join(p.text for p in parts if p.document == document) for parts in (found, expected)]
            assert joined[0].rstrip("\r") == joined[1]


def test_a_document_of_one_line_cannot_be_cut(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("Only this.")
    with pytest.raises(InputFileError, match=r"a\.txt is one document, and no line begins"):
        TextData(str(tmp_path / "a.txt")).prepare(tokenizer)


def test_a_validation_file_of_its_own(tmp_path, story_file, tokenizer):
    (tmp_path / "other.txt").write_text("Another.\n<|endoftext|>\nAnd one.")
    training, validation = TextData(str(story_file), str(tmp_path / "other.txt")).prepare(tokenizer)
    assert texts(training, tokenizer) == STORIES
    assert texts(validation, tokenizer) == ["Another.", "And one."]


def test_special_tokens_in_the_text_are_text(tmp_path, tokenizer):
    text = "He wrote <|endoftext|> here.\nAnd on."
    (tmp_path / "a.txt").write_text(text + SEPARATOR + "b")
    training, validation = TextData(str(tmp_path / "a.txt")).prepare(tokenizer)
    assert {*texts(training, tokenizer), *texts(validation, tokenizer)} == {text, "b"}
    for tokens in (training, validation):
        assert np.sum(tokens.read(0, tokens.count) == tokens.end_of_text_id) == 2


def test_both_kinds_of_tokenizer(story_file):
    found = []
    for kind in ("byte_bpe", "huggingface"):
        training, _ = TextData(str(story_file)).prepare(load_tokenizer("gpt2", kind=kind))
        found.append(training.read(0, training.count))
    assert np.array_equal(*found)


# The cache


def test_a_corpus_is_tokenised_once(story_file, tokenizer, cache):
    data = TextData(str(story_file))
    first, second, third = Reading(), Reading(), Reading()
    training, _ = data.prepare(tokenizer, progress=first)
    size = story_file.stat().st_size
    assert first.calls == [("reading", size, size), ("tokenising", size, size)]
    assert data.prepare(tokenizer, progress=second)[0].path == training.path
    assert second.calls == []
    # The text decides, not its name or file: neither a copy nor CRLF separators are tokenised again.
    copy = story_file.with_name("copy.txt")
    copy.write_bytes(SEPARATOR.replace("\n", "\r\n").join(STORIES).encode())
    assert TextData(str(copy)).prepare(tokenizer, progress=third)[0].path == training.path
    assert third.kinds == {"reading"}
    assert sorted(path.name for path in cache.iterdir()) == sorted(["contents", training.path.parent.name])


def test_whatever_changes_the_tokens_is_tokenised_again(story_file, tokenizer):
    data = TextData(str(story_file))
    paths = {data.prepare(tokenizer)[0].path}
    paths.add(data.prepare(tokenizer, seed=1)[0].path)
    paths.add(TextData(str(story_file), validation_share=0.02).prepare(tokenizer)[0].path)
    paths.add(TextData(str(story_file), str(story_file)).prepare(tokenizer)[0].path)
    paths.add(data.prepare(train_tokenizer("\n".join(STORIES), 399))[0].path)
    story_file.write_text(story_file.read_text().replace("Story 7:", "Story 8:"))
    paths.add(data.prepare(tokenizer)[0].path)
    story_file.write_text(story_file.read_text().replace(SEPARATOR, "", 1))
    paths.add(data.prepare(tokenizer)[0].path)
    assert len(paths) == 7


def test_tokenizers_with_other_merges_have_other_digests(tokenizer):
    definition = tokenizer.definition
    swapped = [definition.merges[1], definition.merges[0], *definition.merges[2:]]
    other = ByteBPE(TokenizerDefinition(definition.vocab, swapped, definition.added_tokens))
    assert tokenizer_sha256(ByteBPE(definition)) == tokenizer_sha256(tokenizer) != tokenizer_sha256(other)


@pytest.mark.parametrize("damage", ["cut tokens", "cut starts", "no head", "no JSON", "gone"])
def test_damaged_files_are_made_again(story_file, tokenizer, damage):
    data = TextData(str(story_file))
    training, validation = data.prepare(tokenizer)
    before = texts(training, tokenizer)
    del training
    harm(validation.path, damage)
    reading = Reading()
    training, validation = data.prepare(tokenizer, progress=reading)
    assert texts(training, tokenizer) == before and reading.kinds == {"tokenising"}
    assert validation.documents + training.documents == len(STORIES)


def test_an_interrupted_run_leaves_nothing(story_file, tokenizer, cache):
    class Interrupting(Reading):
        def __call__(self, what: str, done: int, total: int) -> None:
            if what == "tokenising":
                assert len(list(cache.glob(".*.transformer-lab/train.tokens"))) == 1
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TextData(str(story_file)).prepare(tokenizer, progress=Interrupting())
    assert [path.name for path in cache.iterdir()] == ["contents"]


def test_what_a_killed_run_left_is_not_taken_and_is_removed_later(story_file, tokenizer, cache):
    training, _ = TextData(str(story_file)).prepare(tokenizer)
    left = temporary_name(training.path.parent)
    shutil.move(training.path.parent, left)
    os.truncate(left / "train.tokens", 10)
    with locked(left):
        assert TextData(str(story_file)).prepare(tokenizer)[0].count == training.count
        assert left.exists()  # it belongs to a run that is still going on
    TextData(str(story_file)).prepare(tokenizer, seed=9)
    assert not left.exists()


def test_a_remembered_digest_that_is_damaged_is_computed_again(story_file, tokenizer, cache):
    TextData(str(story_file)).prepare(tokenizer)
    (memory,) = (cache / "contents").iterdir()
    for content in ("{", "[]", '{"sha256": 1, "documents": 2, "text_bytes": 3}', ""):
        memory.write_text(content)
        reading = Reading()
        TextData(str(story_file)).prepare(tokenizer, progress=reading)
        assert reading.kinds == {"reading"}


def test_a_corpus_that_changes_meanwhile_is_refused(story_file, tokenizer, cache):
    real = tokenising.Corpus.contents

    def contents(self, progress=None):
        found = real(self, progress)
        story_file.write_text(story_file.read_text() + "!")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenising.Corpus, "contents", contents)
        with pytest.raises(InputFileError, match=r"stories\.txt was changed while it was read"):
            TextData(str(story_file)).prepare(tokenizer)
    assert [path.name for path in cache.iterdir()] == ["contents"]


def test_two_runs_at_once_agree(story_file, tokenizer, cache):
    class Overtaken(Reading):
        def __call__(self, what: str, done: int, total: int) -> None:
            if what == "tokenising":
                TextData(str(story_file)).prepare(tokenizer)

    training, _ = TextData(str(story_file)).prepare(tokenizer, progress=Overtaken())
    assert texts(training, tokenizer) and len(list(cache.iterdir())) == 2


# What is wrong with the settings


LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")


def test_the_models_own_end_token_separates(story_file, tokenizer, cache):
    """Llama 3 ends its texts with <|end_of_text|> and has no <|endoftext|>; the line in text files stays the same."""
    like_llama = train_tokenizer("\n".join(STORIES), 400, LLAMA_3)
    tokens = TextData(str(story_file)).whole(like_llama, end_of_text_id=1)
    assert tokens.end_of_text_id == 1 and texts(tokens, like_llama) == STORIES
    assert like_llama.decode(tokens.read(0, 1)) == "<|end_of_text|>"
    both = train_tokenizer("\n".join(STORIES), 400, ("<|endoftext|>", "<|end_of_text|>"))
    files = {end: TextData(str(story_file)).whole(both, end_of_text_id=end) for end in (None, 0, 1, 300)}
    assert {end: file.end_of_text_id for end, file in files.items()} == {None: 0, 0: 0, 1: 1, 300: 0}
    assert files[None].path == files[0].path == files[300].path != files[1].path
    for end in (None, 300):
        with pytest.raises(ConfigurationError, match=r"no <\|endoftext\|> token.*eos_token_id"):
            TextData(str(story_file)).prepare(like_llama, end_of_text_id=end)


def test_wrong_settings_are_said_in_words(tmp_path, story_file, tokenizer):
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ConfigurationError, match=r"data\.validation_share is .*; it must be"):
            TextData(validation_share=share)
    for path in (None, ""):
        with pytest.raises(ConfigurationError, match=r"data\.path is missing"):
            TextData(path).prepare(tokenizer)
    with pytest.raises(InputFileError, match=r"There is no file .*none\.txt"):
        TextData(str(tmp_path / "none.txt")).prepare(tokenizer)
    with pytest.raises(InputFileError, match=r"There is no file .*none\.txt"):
        TextData(str(story_file), str(tmp_path / "none.txt")).prepare(tokenizer)
    (tmp_path / "empty.txt").write_text(" \n<|endoftext|>\n\n")
    with pytest.raises(InputFileError, match=r"empty\.txt holds no text"):
        TextData(str(tmp_path / "empty.txt")).prepare(tokenizer)
    without = ByteBPE(TokenizerDefinition(tokenizer.definition.vocab, tokenizer.definition.merges))
    with pytest.raises(ConfigurationError, match=r"no <\|endoftext\|> token"):
        TextData(str(story_file)).prepare(without)


def test_a_cache_that_cannot_be_written_is_said(story_file, tokenizer, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in its place")
    with pytest.raises(UnavailableError, match=r"The token files of .*stories\.txt cannot be written"):
        TextData(str(story_file)).prepare(tokenizer)


def test_the_file_under_conf_builds_it(story_file):
    from transformer_lab.config import component

    assert component("data", "text") == TextData()
    assert component("data", "text", path=str(story_file)) == TextData(str(story_file))
