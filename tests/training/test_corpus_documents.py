"""Text files as documents: what separates them, what is cut where, and that cutting changes no token id."""

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_lab.errors import InputFileError
from transformer_lab.tokenizers import load_tokenizer
from transformer_lab.tokenizers.gpt2_split import gpt2_split
from transformer_lab.training import documents as module
from transformer_lab.training.documents import documents, text_files

SEPARATOR = "<|endoftext|>"
GPT2 = load_tokenizer("gpt2")


def whole(files, piece_bytes=module.PIECE_BYTES) -> list[str]:
    """The documents, their pieces joined."""
    texts: list[str] = []
    for piece in documents(files, piece_bytes=piece_bytes):
        if piece.document == len(texts):
            texts.append("")
        assert piece.document == len(texts) - 1 and piece.text
        texts[-1] += piece.text
    return texts


def obvious(data: str) -> list[str]:
    """The same in memory, line by line."""
    texts, lines = [], []
    for line in [*data.split("\n"), SEPARATOR]:
        if line in (SEPARATOR, SEPARATOR + "\r"):
            texts.append("\n".join(lines).strip(" \t\n\r\v\f"))
            lines = []
        else:
            lines.append(line)
    return [text for text in texts if text]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("documents") / "text.txt"


parts = st.sampled_from(
    ["\n", "\r\n", SEPARATOR, f"\n{SEPARATOR}\n", f"\r\n{SEPARATOR}\r\n", " ", "  ", "\t", "a", "word", "don't", "42"]
) | st.sampled_from(
    ["。", "か", "é", "\u00a0", "\u2003", "\u3000", "\u1680", "\u001c", "😀", "...", "<|", "endoftext|>", "\x85"]
)
texts = st.lists(parts | st.text(max_size=5), max_size=60).map("".join)


@settings(max_examples=100, deadline=None)
@given(text=texts, piece_bytes=st.integers(8, 60))
def test_documents_are_those_of_the_obvious_way(file, text, piece_bytes):
    text = text.encode("utf-8", "replace").decode().removeprefix("\ufeff")
    file.write_bytes(text.encode())
    assert whole([file], piece_bytes) == obvious(text)


WORDS = ["a", "word", "don't", "it's", "'s", "x1", "42", "?!", "...", "é", "か。", "x\u001c", "ab😀"]
SPACES = ["\n", "\r\n", " ", " ", " ", "  ", " \n", "\n ", "\n\n", "\t", "\u00a0 ", " \u2003", "\u3000", "\u3000  "]


def text_of(gaps: list[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(st.sampled_from(WORDS), st.sampled_from(gaps))
    return st.lists(pairs, min_size=10, max_size=80).map(lambda pairs: "".join(word + gap for word, gap in pairs))


# In the second kind of text no single space stands between two words.
words = text_of(SPACES) | text_of(["\n", "\r\n", "  ", "    ", "\n\n\n", " \t ", "\u3000  ", "\n \u2003 "])


@settings(max_examples=200, deadline=None)
@given(text=words, piece_bytes=st.integers(24, 60))
def test_cutting_changes_no_id(file, text, piece_bytes):
    file.write_bytes(text.encode())
    pieces = [piece.text for piece in documents([file], piece_bytes=piece_bytes)]
    text = text.strip(" \t\n\r\v\f")
    assert [token for piece in pieces for token in GPT2.encode(piece)] == GPT2.encode(text)
    # Not every wrong cut shows in the ids, so the pieces inside which the tokenizer merges are compared too.
    assert [part for piece in pieces for part in gpt2_split(piece)] == list(gpt2_split(text))


def test_a_cut_elsewhere_would_change_ids():
    text = "one  two"
    assert GPT2.encode("one ") + GPT2.encode(" two") == GPT2.encode(text)
    assert GPT2.encode("one") + GPT2.encode("  two") == GPT2.encode(text)
    assert GPT2.encode("one  ") + GPT2.encode("two") != GPT2.encode(text)
    assert GPT2.encode("on") + GPT2.encode("e  two") != GPT2.encode(text)


def test_long_documents_come_in_pieces_of_the_same_ids(file):
    draw = random.Random(5)
    text = " ".join(
        draw.choice(["tree", "sun\n", "and", "was.", "“No!”", "\n\n  he", "1234", "día"]) for _ in range(400_000)
    )
    file.write_text(text, encoding="utf-8", newline="")
    pieces = [piece.text for piece in documents([file])]
    assert len(pieces) > 2 and "".join(pieces) == text.strip()
    assert max(len(piece.encode()) for piece in pieces[:-1]) < 2 * module.PIECE_BYTES
    assert [token for piece in pieces for token in GPT2.encode(piece)] == GPT2.encode(text.strip())


def test_a_text_without_white_space_is_cut_between_characters(file):
    for text in ("か" * 700_000, "x" * 2_000_000):
        file.write_text(text, encoding="utf-8")
        pieces = [piece.text for piece in documents([file])]
        assert len(pieces) > 1 and "".join(pieces) == text


@pytest.mark.parametrize("distance", range(-4, 40))
def test_a_separator_across_two_reads(file, distance):
    """Wherever the end of a read falls in the separator line."""
    for line_end in ("\n", "\r\n"):
        text = "a" * (100 - distance) + f"{line_end}{SEPARATOR}{line_end}b b"
        file.write_bytes(text.encode())
        assert whole([file], 100) == obvious(text) == ["a" * (100 - distance), "b b"]


@pytest.mark.parametrize("distance", range(-4, 40))
def test_what_is_no_separator_across_two_reads(file, distance):
    for text in (
        "a" * (100 - distance) + f"\n{SEPARATOR}b\n{SEPARATOR}\rc",
        # The cut that is made for want of a better place falls before it, and still it begins no line.
        "a" * (200 - distance) + f"{SEPARATOR}\n" + "\u2003" * 60 + "b",
    ):
        file.write_bytes(text.encode())
        assert whole([file], 100) == obvious(text) == [text]


def test_what_only_looks_like_a_separator_is_text(file):
    text = f"{SEPARATOR} not\nnor {SEPARATOR}\n {SEPARATOR}\n{SEPARATOR}{SEPARATOR}\nend"
    file.write_text(text)
    assert whole([file]) == [text]


def test_empty_documents_and_a_byte_order_mark(file):
    file.write_bytes(f"\ufeff{SEPARATOR}\n\n{SEPARATOR}\r\n \t\n{SEPARATOR}\nOne.\n\n{SEPARATOR}\n{SEPARATOR}".encode())
    assert whole([file]) == ["One."]


def test_a_folder_is_read_in_order_with_its_subfolders(tmp_path):
    (tmp_path / "b").mkdir()
    for name, text in {"c.txt": "3", "a.txt": "1", "b/z.txt": "2", "b/y.md": "no"}.items():
        (tmp_path / name).write_text(text)
    files = text_files(tmp_path)
    assert whole(files) == ["1", "2", "3"]  # each file is a document, without any separator
    read: list[int] = []
    assert len(list(documents(files, read.append))) == sum(read) == 3


def test_invalid_utf_8_is_named_with_its_byte(file):
    for before in (b"", b"\xef\xbb\xbf", b"one\n<|endoftext|>\n  ", b"word " * 300_000):
        for wrong in (b"\xff", b"\xe3\x81 x", b"\xed\xa0\x80"):
            file.write_bytes(before + wrong + b" and more\n")
            with pytest.raises(InputFileError, match=f"text.txt is not UTF-8 text: byte {len(before)} is wrong"):
                list(documents([file]))
    file.write_bytes(b"cut off \xe3\x81")
    with pytest.raises(InputFileError, match="byte 8 is wrong"):
        list(documents([file]))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputFileError, match=r"There is no file .*missing\.txt"):
        text_files(tmp_path / "missing.txt")
    with pytest.raises(InputFileError, match="holds a null character"):
        text_files("a\0b")
    (tmp_path / "note.md").write_text("no")
    with pytest.raises(InputFileError, match=r"holds no \*\.txt files"):
        text_files(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputFileError, match="is a pipe"):
        text_files(tmp_path / "pipe.txt")
    with pytest.raises(InputFileError, match="is a pipe"):
        list(documents(text_files(tmp_path)))
