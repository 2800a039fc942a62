"""Training gives the merges and ids of the `tokenizers` library's trainer, wherever the reading cuts the text."""

import itertools
import logging
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies
from tokenizer_references import TEXTS, assigned_text, library_training

from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.tokenizers import bpe_training, train_tokenizer

ENGLISH = (
    "It was the best of times, it was the worst of times. She sells sea shells; the shells she sells are sea shells.\n"
    "How much wood would a woodchuck chuck, if a woodchuck could chuck wood?\n\n"
) * 3


ORDINARY = [text for text in TEXTS if "<|endoftext|>" not in text]


def ours(source, vocab_size, **options):
    definition = train_tokenizer(source, vocab_size, **options).definition
    return dict(definition.vocab), list(definition.merges)


def random_words(seed):
    """Few letters and few words: nearly every step has several pairs with the same count."""
    chooser = random.Random(seed)
    letters = "abcdé"[: chooser.choice([1, 2, 2, 3, 5])]
    return [
        " ".join("".join(chooser.choices(letters, k=chooser.choice([2, 5, 11, 30]))) for _ in range(40))
        for _ in range(chooser.choice([1, 3]))
    ]


@pytest.mark.parametrize("texts", [[ENGLISH], ORDINARY, ["aaaa aaa aa a aaaaaaa"], ["ab ba"], [""], ["\n", "🙂🙂 🙂"]])
@pytest.mark.parametrize("vocab_size", [257, 258, 300, 600])
def test_merges_and_ids_as_in_the_library(texts, vocab_size):
    assert ours(texts, vocab_size) == library_training(texts, vocab_size)


@pytest.mark.parametrize("seed", range(30))
def test_ties_as_in_the_library(seed):
    texts = random_words(seed)
    assert ours(texts, 357) == library_training(texts, 357)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_more_ties(seed):
    texts = random_words(seed)
    assert ours(texts, 800) == library_training(texts, 800)


@settings(deadline=None, max_examples=50)
@given(texts=strategies.lists(assigned_text, max_size=4))
def test_random_text(texts):
    assert ours(texts, 300) == library_training(texts, 300)


@pytest.mark.parametrize("specials", [(), ("<s>", "</s>"), ("[PAD]", "<|endoftext|>", "ü ü")])
def test_special_tokens_come_first(specials):
    assert ours([ENGLISH], 320, special_tokens=specials) == library_training([ENGLISH], 320, specials)
    tokenizer = train_tokenizer(ENGLISH, 320, special_tokens=specials)
    assert tokenizer.special_tokens == {text: i for i, text in enumerate(specials)}
    assert tokenizer.encode("a".join(specials), allow_special=True)[::2] == list(range(len(specials)))


def test_a_wrong_tie_rule_is_noticed(monkeypatch):
    """Larger pairs first among equals: the comparison with the library must see it."""

    class WrongWay(tuple):
        def __lt__(self, other):
            return (self[0], [-i for i in self[1]]) < (other[0], [-i for i in other[1]])

    import heapq

    class WrongHeap:
        @staticmethod
        def heapify(entries):
            entries[:] = map(WrongWay, entries)
            heapq.heapify(entries)

        @staticmethod
        def heappush(heap, entry):
            heapq.heappush(heap, WrongWay(entry))

        heappop = staticmethod(heapq.heappop)

    monkeypatch.setattr(bpe_training, "heapq", WrongHeap)
    assert ours([ENGLISH], 400) != library_training([ENGLISH], 400)


def test_the_obvious_algorithm_agrees():
    """Counting everything anew for each merge, as the textbook says it."""
    words = [(list(word), n) for word, n in bpe_training.count_words([ENGLISH]).items()]
    to_byte = {i: bytes([i]) for i in range(256)}
    order = sorted(range(256), key=lambda byte: bpe_training.CHARACTER_OF_BYTE[byte])
    ids = {byte: i for i, byte in enumerate(order)}
    words = [([ids[b] for b in word], n) for word, n in words]
    token_bytes = [to_byte[byte] for byte in order]
    merges = []
    for _ in range(40):
        counts = {}
        for word, n in words:
            for pair in itertools.pairwise(word):
                counts[pair] = counts.get(pair, 0) + n
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((token_bytes[best[0]], token_bytes[best[1]]))
        token_bytes.append(token_bytes[best[0]] + token_bytes[best[1]])
        for word, _ in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [len(token_bytes) - 1]
                i += 1
    trained = train_tokenizer(ENGLISH, 296, special_tokens=()).definition.merges
    assert [tuple(map(bpe_training_bytes, pair)) for pair in trained] == merges


def bpe_training_bytes(token):
    from transformer_lab.tokenizers.byte_alphabet import from_stand_ins

    return from_stand_ins(token)


# Sources


def test_special_tokens_in_the_text_separate_documents():
    text = "one two<|endoftext|>two three<|endoftext|>\n four"
    assert ours(text, 300) == library_training(["one two", "two three", "\n four"], 300)
    assert ours(text, 300) != library_training([text], 300)


@pytest.mark.parametrize("read", [1, 2, 3, 7, 64])
def test_reading_in_pieces_changes_nothing(read, tmp_path, monkeypatch):
    """The reader may cut anywhere: within a character, a special token, a run of spaces."""
    text = (
        "Füße 🙂🙂  und   mehr \n\n  <|endoftext|>  x<|endoftext|><|end of|>a<|end of|>b it's \t " + "ö" * 90
    ) * 3 + " <|endoftext|"
    file = tmp_path / "corpus.txt"
    file.write_bytes(text.encode())
    specials = ("<|endoftext|>", "<|end of|>", "<|end of|>a")
    whole = bpe_training.count_words(bpe_training._documents(text, specials))
    monkeypatch.setattr(bpe_training, "_READ_BYTES", read)
    pieces = list(bpe_training._documents(file, specials))
    assert bpe_training.count_words(pieces) == whole
    assert len(pieces) > 12


def test_cutting_anywhere_is_noticed(tmp_path, monkeypatch):
    file = tmp_path / "corpus.txt"
    file.write_text(ENGLISH)
    whole = bpe_training.count_words([ENGLISH])
    monkeypatch.setattr(bpe_training, "_READ_BYTES", 7)
    monkeypatch.setattr(bpe_training, "last_safe_cut", lambda text, low, high: high)
    assert bpe_training.count_words(bpe_training._documents(file, [])) != whole


def test_large_texts_are_counted_in_sections():
    text = "".join(random_words(5)) * 800 + "  " * 70_000 + " x  \n y"
    from tokenizer_references import GPT2_SPLIT, regex

    counts = bpe_training.count_words([text])
    assert counts == bpe_training.Counter(piece.encode() for piece in regex.findall(GPT2_SPLIT, text))


def test_texts_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"lower lowest\r\n")
    (tmp_path / "a.txt").write_bytes(b"low low")
    (tmp_path / "c.md").write_text("not this")
    expected = ours(["low low", "lower lowest\r\n"], 270)
    assert ours(tmp_path, 270) == expected
    assert ours([tmp_path / "a.txt", "lower lowest\r\n"], 270) == expected
    assert ours(iter(["low low", tmp_path / "b.txt"]), 270) == expected
    assert ours("low low", 265) == ours(tmp_path / "a.txt", 265)


def test_wrong_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_bytes(b"abc \xff def")
    with pytest.raises(ConfigurationError, match="Path"):
        train_tokenizer("corpus.txt", 300)
    with pytest.raises(InputFileError, match=r"corpus.txt is not UTF-8 text: byte 4"):
        train_tokenizer(Path("corpus.txt"), 300)
    Path("cut.txt").write_bytes("abcé".encode()[:-1])
    with pytest.raises(InputFileError, match="cut off"):
        train_tokenizer(Path("cut.txt"), 300)
    with pytest.raises(InputFileError, match=r"missing\.txt"):
        train_tokenizer(Path("missing.txt"), 300)
    os.mkfifo("pipe.txt")
    with pytest.raises(InputFileError, match=r"pipe\.txt"):
        train_tokenizer(Path("pipe.txt"), 300)
    Path("empty").mkdir()
    with pytest.raises(InputFileError, match=r"\*.txt"):
        train_tokenizer(Path("empty"), 300)
    for source in (5, None, [b"bytes"], [["nested"]]):
        with pytest.raises(ConfigurationError, match="texts"):
            train_tokenizer(source, 300)


@pytest.mark.parametrize("vocab_size", [256, 0, -1, 300.0, "300", True, None])
def test_wrong_vocab_size(vocab_size):
    with pytest.raises(ConfigurationError, match="at least 257"):
        train_tokenizer("text", vocab_size)


@pytest.mark.parametrize("specials", ["<|endoftext|>", ("a",), ("",), ("<s>", "<s>"), (5,), ("Ġ",)])
def test_wrong_special_tokens(specials):
    with pytest.raises(ConfigurationError):
        train_tokenizer("text", 300, special_tokens=specials)


def test_a_small_corpus_gives_a_smaller_vocabulary_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = train_tokenizer("low lower", 1000)
    assert tokenizer.vocab_size == len(library_training(["low lower"], 1000)[0]) < 270
    assert str(tokenizer.vocab_size) in caplog.text and "1000" in caplog.text
    caplog.clear()
    train_tokenizer(ENGLISH, 300)
    assert not caplog.text


def test_lone_surrogates_in_texts():
    tokenizer = train_tokenizer("\ud800\ud800 \ud800\ud800", 262)
    assert tokenizer.decode(tokenizer.encode("\ud800")) == "\ufffd"


def test_progress_and_result():
    steps = []
    tokenizer = train_tokenizer(ENGLISH, 300, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 300) for done in range(258, 301)]
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode(ENGLISH)) == ENGLISH
    assert len(tokenizer.encode(ENGLISH)) < len(ENGLISH) / 2


@pytest.mark.full
def test_a_real_corpus():
    """STORYBOOK_TEXT names a text file, or a folder with train.txt."""
    place = os.environ.get("STORYBOOK_TEXT")
    if not place:
        pytest.skip("STORYBOOK_TEXT does not name a corpus")
    file = Path(place) / "train.txt" if Path(place).is_dir() else Path(place)
    texts = file.read_text(encoding="utf-8").split("<|endoftext|>")
    assert ours(file, 8192) == library_training(texts, 8192)
