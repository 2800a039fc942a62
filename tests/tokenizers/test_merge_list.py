"""Merges are read in sections: what comes out, and the numbers in messages, are as if they were read one by one."""

import json
import random

import pytest

from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.tokenizers import load_tokenizer
from transformer_lab.tokenizers.merge_list import SECTION, MergeList, sections_of_pairs

LETTERS = [*map(chr, range(0x4E00, 0x4E00 + 60)), "\0"]
COUNT = 2 * SECTION + 10


def pairs_and_vocab(prefix=""):
    """More merges than two sections hold, of letters that a null character is among."""
    pairs = [(left, prefix + right) for left in LETTERS for right in LETTERS][:COUNT]
    random.Random(0).shuffle(pairs)
    tokens = [
        *LETTERS,
        *(prefix + letter for letter in LETTERS),
        *(left + right[len(prefix) :] for left, right in pairs),
    ]
    return pairs, {token: 7 + number for number, token in enumerate(dict.fromkeys(tokens))}


def write(folder, vocab, merges):
    data = {"model": {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": LETTERS[0]}, "decoder": None}
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


@pytest.mark.parametrize("prefix", ["", "##"])
def test_ids_as_looked_up_one_by_one(prefix):
    pairs, vocab = pairs_and_vocab(prefix)
    merges = MergeList.of_pairs(vocab, pairs, prefix)
    assert len(pairs) == len(merges) == COUNT
    assert merges.left == [vocab[left] for left, _ in pairs]
    assert merges.right == [vocab[right] for _, right in pairs]
    assert merges.merged == [vocab[left + right[len(prefix) :]] for left, right in pairs]
    assert list(merges) == pairs
    assert merges[-1] == pairs[-1]


def test_sections_hold_every_pair_once():
    pairs, _ = pairs_and_vocab()
    sizes = [len(section) for section in sections_of_pairs(pairs)]
    assert sizes == [2 * SECTION, 2 * SECTION, 20]
    assert list(sections_of_pairs([])) == []


@pytest.mark.parametrize("number", [0, SECTION - 1, SECTION, COUNT - 1])
@pytest.mark.parametrize("place", [0, 1])
def test_an_unknown_token_is_named_by_the_number_of_its_merge(number, place):
    pairs, vocab = pairs_and_vocab()
    pairs[number] = ("zz", LETTERS[0]) if place == 0 else (LETTERS[0], "zz")
    with pytest.raises(ConfigurationError, match=rf"merges: number {number + 1}, .* needs 'zz'"):
        MergeList.of_pairs(vocab, pairs)


def test_a_token_without_the_prefix():
    pairs, vocab = pairs_and_vocab("##")
    pairs[-1] = (LETTERS[0], LETTERS[0])
    with pytest.raises(ConfigurationError, match="does not begin with '##'"):
        MergeList.of_pairs(vocab, pairs, "##")


@pytest.mark.parametrize("form", ["texts", "lists", "both"])
def test_texts_and_lists_in_a_file(form, tmp_path):
    pairs, vocab = pairs_and_vocab()
    chooser = random.Random(1)
    as_text = {"texts": lambda: True, "lists": lambda: False, "both": lambda: chooser.random() < 0.5}[form]
    merges = [" ".join(pair) if as_text() else list(pair) for pair in pairs]
    assert list(load_tokenizer(write(tmp_path, vocab, merges)).definition.merges) == pairs


@pytest.mark.parametrize("number", [0, SECTION - 1, SECTION, COUNT - 1])
@pytest.mark.parametrize("wrong", ["ab", "a b c", ["a"], ["a", "b", "c"], ["a", 1], None, 5])
@pytest.mark.parametrize("as_text", [True, False])
def test_what_is_no_merge_is_named_by_its_number(wrong, number, as_text, tmp_path):
    pairs, vocab = pairs_and_vocab()
    merges = [" ".join(pair) if as_text else list(pair) for pair in pairs]
    merges[number] = wrong
    with pytest.raises(InputFileError, match=rf"field model.merges\[{number}\]: expected two tokens"):
        load_tokenizer(write(tmp_path, vocab, merges))


def test_two_wrong_merges_do_not_make_two_right_ones(tmp_path):
    """One has a space too many and one has none: together they have as many as two merges."""
    pairs, vocab = pairs_and_vocab()
    merges = [" ".join(pair) for pair in pairs]
    (a, b), (c, d) = pairs[:2]
    merges[:2] = [f"{a} {b} {c}", d]
    with pytest.raises(InputFileError, match=r"field model.merges\[0\]: expected two tokens"):
        load_tokenizer(write(tmp_path, vocab, merges))
