"""Ids equal those of tiktoken and of the `tokenizers` library on any text, and any bytes survive encoding."""

import codecs
import hashlib
import json
import random
import time

import numpy
import pytest
from hypothesis import HealthCheck, given, settings, strategies
from tokenizer_references import TEXTS, assigned_text, plain_encode, random_assigned_text, tiktoken_encoding

from transformer_lab.errors import ConfigurationError
from transformer_lab.paths import data_folder
from transformer_lab.tokenizers import ByteBPE, TokenizerDefinition, byte_alphabet
from transformer_lab.tokenizers.byte_alphabet import CHARACTER_OF_BYTE, from_stand_ins, to_stand_ins

FOLDER = data_folder("resources") / "tokenizer_data" / "gpt2"
given_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module")
def tiktoken_gpt2(gpt2):
    return tiktoken_encoding(gpt2)


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("vocab.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
        ("merges.txt", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    ],
)
def test_embedded_files_are_the_published_ones(name, sha256):
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == sha256


def test_sample_token_ids(gpt2, gpt2_library, tiktoken_gpt2):
    samples = json.loads((FOLDER / "sample_token_ids.json").read_text(encoding="utf-8"))
    assert len(samples["samples"]) > 20
    for sample in samples["samples"]:
        text, ids = sample["text"], sample["token_ids"]
        assert gpt2.encode(text) == gpt2_library.encode(text) == tiktoken_gpt2.encode_ordinary(text) == ids
        assert gpt2.decode(ids) == text
    for sample in samples["samples_with_special_tokens"]:
        text, ids = sample["text"], sample["token_ids"]
        assert gpt2.encode(text, allow_special=True) == tiktoken_gpt2.encode(text, allowed_special="all") == ids


@pytest.mark.parametrize("text", TEXTS)
def test_known_texts(text, gpt2, gpt2_library, tiktoken_gpt2):
    ids = gpt2.encode(text)
    assert ids == tiktoken_gpt2.encode_ordinary(text) == gpt2_library.encode(text) == plain_encode(gpt2, text)
    assert gpt2.decode(ids) == text


@given_fixture
@given(text=assigned_text)
def test_random_text(text, gpt2, gpt2_library, tiktoken_gpt2):
    ids = gpt2.encode(text)
    assert ids == tiktoken_gpt2.encode_ordinary(text) == gpt2_library.encode(text)
    assert gpt2.decode(ids) == text


@pytest.mark.parametrize("seed", range(3))
def test_long_random_text_in_sections(seed, gpt2, gpt2_library, tiktoken_gpt2):
    text = random_assigned_text(seed, 30_000)
    assert gpt2.encode(text) == tiktoken_gpt2.encode_ordinary(text) == gpt2_library.encode(text)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(100, 140))
def test_more_long_random_text(seed, gpt2, gpt2_library, tiktoken_gpt2):
    text = random_assigned_text(seed, 100_000)
    assert gpt2.encode(text) == tiktoken_gpt2.encode_ordinary(text) == gpt2_library.encode(text)


@given_fixture
@given(text=strategies.text(strategies.characters(max_codepoint=127), max_size=60))
def test_ascii_takes_the_same_cut_as_other_text(text):
    from transformer_lab.tokenizers.expressions import Expression
    from transformer_lab.tokenizers.gpt2_split import GPT2_SPLIT, gpt2_split

    assert gpt2_split(text) == Expression(GPT2_SPLIT).findall(text)


def test_merging_without_ranks_is_noticed(gpt2, tiktoken_gpt2):
    wrong = [text for text in TEXTS if plain_encode(gpt2, text, ranked=False) != tiktoken_gpt2.encode_ordinary(text)]
    assert len(wrong) > len(TEXTS) / 3


def test_a_broken_byte_table_is_noticed(gpt2, tiktoken_gpt2, monkeypatch):
    swapped = list(CHARACTER_OF_BYTE)
    swapped[0xC3], swapped[0xE4] = swapped[0xE4], swapped[0xC3]
    monkeypatch.setattr(byte_alphabet, "CHARACTER_OF_BYTE", swapped)
    wrong = ByteBPE(gpt2.definition)
    assert any(wrong.encode(text) != tiktoken_gpt2.encode_ordinary(text) for text in TEXTS)
    assert any(wrong.decode(wrong.encode(text)) != text for text in TEXTS)


def test_byte_alphabet():
    assert len(set(CHARACTER_OF_BYTE)) == 256
    assert all(character.isprintable() and not character.isspace() for character in CHARACTER_OF_BYTE)
    everything = bytes(range(256))
    assert from_stand_ins(to_stand_ins(everything)) == everything
    assert to_stand_ins(b" the\n") == "ĠtheĊ"
    assert from_stand_ins("a b") == b"a b"


# Bytes


@given_fixture
@given(data=strategies.binary(max_size=200))
def test_any_bytes_survive(data, gpt2):
    assert gpt2.decode_bytes(gpt2.encode_bytes(data)) == data


@given_fixture
@given(
    data=strategies.lists(
        strategies.sampled_from(
            [b"\xff", b"\xc3", b"\x80", b" ", b"\n", b" \n", b"word", b" the", "é".encode(), b"\t "]
        ),
        max_size=12,
    ).map(b"".join)
)
def test_invalid_bytes_as_in_tiktoken(data, gpt2, tiktoken_gpt2):
    assert gpt2.encode_bytes(data) == tiktoken_gpt2._encode_bytes(data)


def test_encode_bytes_of_text(gpt2):
    for text in TEXTS:
        assert gpt2.encode_bytes(text.encode()) == gpt2.encode(text)


# Decoding


@given_fixture
@given(ids=strategies.lists(strategies.integers(0, 50256), max_size=30), cut=strategies.integers(0, 30))
def test_decoding_any_ids(ids, cut, gpt2, gpt2_library, tiktoken_gpt2):
    data = gpt2.decode_bytes(ids)
    assert data == tiktoken_gpt2.decode_bytes(ids) == gpt2_library.decode_bytes(ids)
    assert gpt2.decode(ids) == tiktoken_gpt2.decode(ids) == gpt2_library.decode(ids)
    assert gpt2_library._tokenizer.decode(ids, skip_special_tokens=False) == gpt2.decode(ids)


@given_fixture
@given(data=strategies.binary(max_size=40))
def test_streaming_gives_what_decode_gives(data, either):
    by_byte = [either.encode(character)[0] for character in "!"]  # the id of a one-byte token
    assert by_byte == [0]
    single_bytes = {bytes(either.decode_bytes([token_id])): token_id for token_id in range(256)}
    ids = [single_bytes[bytes([byte])] for byte in data]
    decoder = either.stream_decoder()
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "".join(pieces) + decoder.flush() == either.decode(ids) == data.decode("utf-8", "replace")


@given_fixture
@given(ids=strategies.lists(strategies.integers(0, 50256), max_size=30))
def test_streaming_any_ids(ids, either):
    decoder = either.stream_decoder()
    assert "".join([*map(decoder.push, ids), decoder.flush()]) == either.decode(ids)


def test_a_character_that_the_prompt_began(either):
    first, *rest = either.encode("🙂é")
    decoder = either.stream_decoder([first])
    assert "".join([*map(decoder.push, rest), decoder.flush()]) == "🙂é"
    assert either.stream_decoder([first]).flush() == "", "it is the prompt's"


def test_stream_never_gives_half_a_character(either):
    ids = either.encode("🙂é")
    assert len(ids) > 2
    decoder = either.stream_decoder()
    assert [piece for piece in map(decoder.push, ids) if piece] == ["🙂", "é"]
    assert decoder.flush() == ""


def test_decoding_each_id_by_itself_is_noticed(gpt2):
    ids = gpt2.encode("🙂")
    assert "".join(gpt2.decode([token_id]) for token_id in ids) != gpt2.decode(ids)


@pytest.mark.parametrize("bad", [50257, -1, 10**12, 1.0, "5", None, True, [1], numpy.float32(3)])
def test_wrong_ids(bad, either):
    for ids in ([1, bad], [bad]):
        with pytest.raises(ConfigurationError) as caught:
            either.decode(ids)
        assert str(bad) in str(caught.value)
    if isinstance(bad, int) and bad is not True:
        assert "50257" in str(caught.value)


@pytest.mark.parametrize("bad", [5, None, "12", numpy.zeros((2, 2), dtype=int)])
def test_wrong_sequences_of_ids(bad, either):
    with pytest.raises(ConfigurationError):
        either.decode(bad)


def test_ids_from_arrays_and_iterators(either):
    ids = either.encode("Hello world")
    assert either.decode(numpy.array(ids)) == either.decode(iter(ids)) == "Hello world"
    assert either.decode([]) == ""
    assert all(type(token_id) is int for token_id in ids)


# Special tokens, surrogates, wrong arguments


def test_special_tokens(either):
    text = "a<|endoftext|>b"
    assert either.special_tokens == {"<|endoftext|>": 50256}
    assert either.end_of_text_id == 50256
    assert either.vocab_size == 50257
    assert 50256 not in either.encode(text)
    assert either.encode(text, allow_special=True) == [64, 50256, 65]
    assert either.decode([64, 50256, 65]) == text
    assert either.encode(text) != either.encode(text, allow_special=True)
    assert 50256 not in either.encode(text)  # nothing is left of the setting of the call before


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude42", "\ude42\ud83d", "x \udc80 <|endoftext|>"])
def test_lone_surrogates_as_in_tiktoken(text, either, tiktoken_gpt2):
    assert either.encode(text) == tiktoken_gpt2.encode_ordinary(text)


@pytest.mark.parametrize("bad", [None, 5, b"bytes", ["text"]])
def test_encode_takes_only_text(bad, either):
    with pytest.raises(ConfigurationError, match=type(bad).__name__):
        either.encode(bad)


# Long pieces, and the cache


@pytest.mark.parametrize("alphabet", ["a", "ab", "abcde ", "é🙂 "])
def test_long_pieces_merge_as_short_ones(alphabet, gpt2, tiktoken_gpt2):
    chooser = random.Random(alphabet)
    for length in (99, 100, 101, 500, 3000):
        text = "".join(chooser.choice(alphabet) for _ in range(length)).replace(" ", "")
        assert gpt2.encode(text) == tiktoken_gpt2.encode_ordinary(text)
        merger = gpt2._merger
        ids = merger.symbols(to_stand_ins(text.encode()))
        assert merger.merge(list(ids)) == merger.merge_long(list(ids))


def test_merging_takes_no_quadratic_time(gpt2):
    def seconds(length):
        start = time.perf_counter()
        assert len(gpt2.encode("a" * length)) < length
        return time.perf_counter() - start

    seconds(1000)
    # Quadratic would be a factor of 256.
    assert min(seconds(160_000) for _ in range(2)) < 80 * min(seconds(10_000) for _ in range(3))


@pytest.mark.full
def test_one_million_letters(gpt2, tiktoken_gpt2):
    assert gpt2.encode("a" * 1_000_000) == tiktoken_gpt2.encode_ordinary("a" * 100_000) * 10
    assert gpt2.decode(gpt2.encode(" " * 1_000_000 + "x")) == " " * 1_000_000 + "x"


def test_cache_is_bounded_and_changes_nothing(gpt2):
    small = ByteBPE(gpt2.definition, cache_pieces=3)
    for text in TEXTS * 2:
        assert small.encode(text) == gpt2.encode(text)
        assert len(small._cache) <= 3
    gpt2.encode("z" * 5000)
    assert "z" * 5000 not in gpt2._cache


# Definitions


def tiny_definition(**changes):
    vocab = {character: i for i, character in enumerate(CHARACTER_OF_BYTE)}
    for token in ("ab", "bc", "abc"):
        vocab[token] = len(vocab)
    parts = {"vocab": vocab, "merges": [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")], **changes}
    return TokenizerDefinition(**parts)


def test_ids_need_not_follow_the_merges():
    tokenizer = ByteBPE(tiny_definition())
    assert [tokenizer.decode([i]) for i in tokenizer.encode("abcab")] == ["abc", "ab"]


def test_a_pair_listed_twice_counts_at_its_last_place():
    from transformer_lab.tokenizers.huggingface import HuggingFaceTokenizer

    definition = tiny_definition(merges=[("b", "c"), ("a", "b"), ("b", "c")])
    ours = ByteBPE(definition).encode("abc")
    assert ours == HuggingFaceTokenizer.from_definition(definition).encode("abc")
    assert ours == [definition.vocab["ab"], definition.vocab["c"]]


def test_stream_decoder_equals_the_codec_on_every_split():
    data = b"\xf0\x9f\x99\x82\xf0\x9f\xe2\x82\xac\xff\xc3(\xed\xa0\x80\xf4\x90\x80\x80"
    for i in range(len(data)):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        assert decoder.decode(data[:i]) + decoder.decode(data[i:], True) == data.decode("utf-8", "replace")
