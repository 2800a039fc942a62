"""Token texts to text, streamed: held against the `tokenizers` library's decode of the whole, for every decoder."""

import json
import time

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, normalizers

from transformer_lab.errors import InputFileError
from transformer_lab.tokenizers import TOKENIZER_KINDS, load_tokenizer
from transformer_lab.tokenizers.decoding import Steps, decoder_rules
from transformer_lab.tokenizers.huggingface import HuggingFaceTokenizer

# Made of what the steps look for, and of what merely resembles it.
TOKENS = [
    *("a", "b", " ", "  ", "", "▁", "▁▁", "▁the", "the", "##ed", "##", "#", "ed</w>", "</w>", "<", "/w>", "n't", "'s"),
    *("'", ".", "?", ",", " do not", " 've", "|", "<pad>", "<unk>", "é", "🙂", "Ġ", "Ġthe", "Ã", "©", "\n", "ab", "ba"),
    *("<0x0A>", "<0xE2>", "<0x82>", "<0xAC>", "<0xF0>", "<0x61>", "<0xC3>", "<0xa9>", "<0x0A", "<0x0g>", "0x0A>"),
]
STEPS = {
    "none": None,
    "ByteLevel": decoders.ByteLevel(),
    "ByteFallback": decoders.ByteFallback(),
    "Fuse": decoders.Fuse(),
    "Metaspace": decoders.Metaspace(),
    "Metaspace that adds nothing": decoders.Metaspace("▁", "never"),
    "Metaspace at the first": decoders.Metaspace("▁", "first"),
    "WordPiece": decoders.WordPiece(),
    "WordPiece as it is": decoders.WordPiece("##", False),
    "BPEDecoder": decoders.BPEDecoder(),
    "BPEDecoder of spaces": decoders.BPEDecoder(" "),
    "Replace": decoders.Replace("▁", " "),
    "Replace of several": decoders.Replace("ab", "x"),
    "Replace of a repetition": decoders.Replace("aa", "a"),
    "Strip at the begin": decoders.Strip(" ", 1, 0),
    "Strip at the end": decoders.Strip(" ", 0, 2),
    "CTC": decoders.CTC(),
    "CTC as it is": decoders.CTC("<pad>", "|", False),
    "Llama 2": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "Gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
}
BEHIND = ("Fuse", "ByteLevel", "ByteFallback", "Metaspace", "Metaspace that adds nothing", "WordPiece", "BPEDecoder")
BEHIND += ("Replace of several", "Replace of a repetition", "Strip at the begin", "Strip at the end", "CTC")
SEQUENCES = [("Fuse", name) for name in BEHIND] + [("Replace", name) for name in BEHIND]
SEQUENCES += [("ByteLevel", name) for name in BEHIND] + [("ByteFallback", "Fuse", name) for name in BEHIND]
KINDS = [(name,) for name in STEPS] + SEQUENCES


def tokenizer_with(kind):
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({t: i for i, t in enumerate(TOKENS)}, unk_token="<unk>"))
    steps = [STEPS[name] for name in kind]
    decoder = steps[0] if len(steps) == 1 else decoders.Sequence(steps)
    if decoder is not None:
        library.decoder = decoder
    return library


def decoded(library, ids):
    """By the library; what it panics at (Strip, of more characters than there are) is not asked for."""
    try:
        return library.decode(ids, skip_special_tokens=False)
    except BaseException as error:
        assume(type(error).__name__ != "PanicException")
        raise


def streamed(tokenizer, ids, prompt=()):
    stream = tokenizer.stream_decoder(prompt)
    return [*map(stream.push, ids), stream.flush()]


def common_beginning(one, other):
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


@pytest.mark.parametrize("kind", KINDS, ids=" + ".join)
def test_a_stream_is_the_text_behind_the_prompt_and_takes_nothing_back(kind):
    library = tokenizer_with(kind)
    tokenizer = HuggingFaceTokenizer(library)
    ids = st.lists(st.integers(0, len(TOKENS) - 1), max_size=8)

    @settings(max_examples=50, deadline=None)
    @given(prompt=ids, new=ids, rest=ids)
    def check(prompt, new, rest):
        before, now, whole = (decoded(library, x) for x in (prompt, [*prompt, *new], [*prompt, *new, *rest]))
        pieces = streamed(tokenizer, [*new, *rest], prompt)
        assert "".join(pieces) == whole[len(common_beginning(whole, before)) :]
        # What had been given out when `new` had come is part of the text, whether it ends there or goes on.
        assert now[len(common_beginning(now, before)) :].startswith("".join(pieces[: len(new)]))
        assert tokenizer.decode(prompt) == before

    check()


def ids_of(text):
    return [TOKENS.index(token) for token in text.split("|")]


def test_a_broken_byte_loses_nothing():
    """A run of bytes that is not valid made everything behind it vanish."""
    tokenizer = HuggingFaceTokenizer(tokenizer_with(["Llama 2"]))
    pieces = streamed(tokenizer, ids_of("▁the|<0x0A>|<0xE2>|▁the|ed</w>|▁the"))
    assert pieces == ["the", "", "", "\ufffd\ufffd the", "ed</w>", " the", ""]


@pytest.mark.parametrize(
    ("kind", "prompt", "new", "text"),
    [
        ("Llama 2", "▁the", "▁the|a", " thea"),
        ("Metaspace", "▁the", "▁the|a", " thea"),
        ("WordPiece", "the", "##ed|the", "ed the"),
        ("BPEDecoder", "ed</w>", "a|ed</w>", " aed"),
        ("none", "a", "b", " b"),
        ("Llama 2", "▁the|<0xE2>|<0x82>", "<0xAC>|a", "€a"),
    ],
)
def test_a_continuation_fits_its_prompt(kind, prompt, new, text):
    tokenizer = HuggingFaceTokenizer(tokenizer_with([kind]))
    assert "".join(streamed(tokenizer, ids_of(new), ids_of(prompt))) == text


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_added_tokens_are_decoded_as_they_are_found(kind, tmp_path):
    """One that is looked for after normalization has a normalized text, here with a sign for each space."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE({"▁": 0, "a": 1, "<unk>": 2}, [], unk_token="<unk>"))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence([STEPS["Replace"], STEPS["Fuse"], STEPS["Strip at the begin"]])
    library.add_tokens([AddedToken("the king", normalized=True), AddedToken("x y", normalized=False)])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path, kind)
    ids = library.encode("a the king x ya the king").ids
    assert tokenizer.encode("a the king x ya the king") == ids and ids.count(3) == 2
    text = library.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids) == "".join(streamed(tokenizer, ids)) == text == "a the king x y a the king"


def test_a_text_that_has_two_ids():
    """Unigram may list it twice, and gives the first of them."""
    library = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("<unk>", 0.0), ("a", -1.0)], 0))
    tokenizer = HuggingFaceTokenizer(library)
    ids = tokenizer.encode("a☃")
    assert ids == [2, 0] and tokenizer.decode(ids) == "a <unk>" == "".join(streamed(tokenizer, ids))


def test_text_comes_while_it_grows():
    tokenizer = HuggingFaceTokenizer(tokenizer_with(["Llama 2"]))
    assert streamed(tokenizer, ids_of("▁the|▁the|<0xC3>|<0xa9>|a|b")) == ["the", " the", "", "", "éa", "b", ""]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if len(kind) == 1], ids=" + ".join)
def test_streaming_takes_no_quadratic_time(kind):
    tokenizer = HuggingFaceTokenizer(tokenizer_with(kind))

    def seconds(count):
        start = time.perf_counter()
        streamed(tokenizer, ids_of("▁the|<0x61>|##ed|aa"[:-3]) * count)
        return time.perf_counter() - start

    seconds(10)
    assert min(seconds(4_000) for _ in range(2)) < 64 * min(seconds(500) for _ in range(3))  # quadratic would be 64


def test_an_id_that_the_tokenizer_does_not_have():
    tokenizer = HuggingFaceTokenizer(tokenizer_with(["Llama 2"]))
    stream = tokenizer.stream_decoder([*ids_of("▁the|<0xE2>"), 10**6])
    assert [stream.push(1), stream.push_unknown(), stream.flush()] == ["b", "\ufffd", ""]


def test_a_step_that_only_the_library_knows_comes_at_the_end():
    library = tokenizer_with(["Fuse"])
    library.decoder = decoders.Sequence([decoders.Replace(tokenizers.Regex("a+"), "x"), decoders.Fuse()])
    tokenizer = HuggingFaceTokenizer(library)
    assert streamed(tokenizer, ids_of("a|b"), ids_of("b|ab")) == ["", "", "xb"]
    stream = tokenizer.stream_decoder()
    assert [stream.push(0), stream.push_unknown(), stream.push(1), stream.flush()] == ["", "", "", "x\ufffdb"]


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        (3, "field decoder: expected an object"),
        ({"type": "Unheard"}, "decoder.type: 'Unheard'"),
        ({"type": "Sequence", "decoders": 3}, "decoder.decoders: 3"),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}] * 51}, "at most 50"),
        ({"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": [{"type": "Fuse"}] * 30}] * 2}, "60 steps"),
        ({"type": "Strip", "content": "ab"}, "one character"),
        ({"type": "Strip", "content": "a", "start": -1}, "decoder.start: -1"),
        ({"type": "Replace", "pattern": {"Regex": "a"}, "content": ""}, "decoder.pattern.String: null"),
        ({"type": "Replace", "pattern": {"String": ""}, "content": ""}, "decoder.pattern.String: ''"),
        ({"type": "WordPiece", "cleanup": "yes"}, "decoder.cleanup: 'yes'; expected true or false"),
        ({"type": "BPEDecoder", "suffix": "x" * 1001}, "1 to 1000 characters"),
    ],
)
def test_what_is_no_decoder(decoder, words):
    with pytest.raises(InputFileError, match=words) as caught:
        decoder_rules(decoder, "tokenizer.json")
    assert len(str(caught.value)) < 300


def test_decoders_inside_each_other_end():
    decoder = {"type": "Fuse"}
    for _ in range(200):
        decoder = {"type": "Sequence", "decoders": [decoder]}
    with pytest.raises(InputFileError, match="at most 50"):
        decoder_rules(json.loads(json.dumps(decoder)), "tokenizer.json")


def test_nothing_is_nothing():
    for decoder in (None, {"type": "Fuse"}, {"type": "CTC"}, {"type": "BPEDecoder"}):
        assert Steps(decoder_rules(decoder, "tokenizer.json")).rest() == ""
