"""Text of a generation: prompts of all kinds, streams, stop strings, sampled text, ids without a text."""

import numpy as np
import pytest
import tokenizers
from reference_models import BACKENDS, random_ids, save_gpt2

import transformer_lab as lab
from transformer_lab.language_model.request import Request

PROMPT = "Once there was a lamp"
SAMPLED = {"temperature": 1.0, "top_k": 40}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.2, "seed": 4}, {"stop": ["never", "zz"]}], ids=str)
def test_the_pieces_of_a_stream_are_the_text(models, backend, options):
    model = models(backend)
    generation = model.generate(PROMPT, 50, **options)
    stream = model.stream(PROMPT, 50, **options)
    pieces = list(stream)
    assert "".join(pieces) == generation.text and all(pieces) and len(pieces) > 5
    result = stream.result
    assert (result.token_ids, result.finish_reason) == (generation.token_ids, generation.finish_reason)
    assert result.text == generation.text and result.prompt_token_ids == model.tokenizer.encode(PROMPT)
    assert list(stream) == [], "it is exhausted"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_result_of_a_stream_before_its_end(models, backend):
    """Looking at it changes nothing, and what was looked at does not change later."""
    model = models(backend)
    stream = model.stream(PROMPT, 40, **SAMPLED)
    before = stream.result
    assert (before.text, before.token_ids, before.finish_reason) == ("", [], None)
    assert before.timing.decode_tokens_per_s is None
    pieces = [next(stream), next(stream)]
    early = stream.result
    assert early.text == "".join(pieces) and early.finish_reason is None
    tokens = early.token_ids.copy()
    assert len(early.logprobs) == len(tokens) >= 2
    pieces += stream
    assert early.token_ids == tokens and stream.result.token_ids[: len(tokens)] == tokens
    whole = model.generate(PROMPT, 40, **SAMPLED)
    assert "".join(pieces) == whole.text == stream.result.text
    assert stream.result.finish_reason == "length"


def test_half_characters_are_never_shown(models, tokenizer):
    """Sampled bytes are often no UTF-8; text and stream are what the tokenizer makes of all ids together."""
    seen = 0
    for seed in range(30):
        stream = models("numpy").stream(PROMPT, 40, temperature=2.0, seed=seed)
        pieces = list(stream)
        assert "".join(pieces) == tokenizer.decode(stream.result.token_ids) == stream.result.text
        seen += "\ufffd" in stream.result.text
    assert seen, "no broken character came"


def test_characters_of_several_tokens_come_whole(models, tokenizer):
    """The forced continuation "číž ď": its letters are two tokens each, and each comes in one piece."""
    model, ids = models("numpy"), tokenizer.encode("ď ž ű")
    assert len(ids) > 5
    pieces, row = [], model._decoding(Request(PROMPT, 40)).rows[0]
    for token in ids:
        pieces.append(row.accept(token, 0.0, None))
    assert [piece for piece in pieces if piece] == ["ď", " ", "ž", " ", "ű"]


def test_words_keep_their_spaces_behind_a_prompt(tmp_path):
    """With spaces at the beginnings of words (Metaspace) the first of a text goes, but a continuation is no text."""
    words = {"<unk>": 0, "▁the": 1, "▁old": 2, "▁king": 3}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    library.pre_tokenizer, library.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    save_gpt2(tmp_path, seed=1, vocab_size=6, n_positions=32)
    library.save(str(tmp_path / "tokenizer.json"))
    model = lab.load_model(tmp_path, tokenizer="huggingface")
    shown = {0: "<unk>", 1: " the", 2: " old", 3: " king", 4: "\ufffd", 5: "\ufffd"}  # the last two it does not have
    stops, seen = 0, set()
    for seed in range(8):
        rules = {"temperature": 3.0, "seed": seed}
        generation = model.generate("the", 12, **rules)
        assert generation.text == "".join(map(shown.get, generation.token_ids))
        assert generation.text == "".join(model.stream("the", 12, **rules))
        stopped = model.generate("the", 12, **rules, stop=" old")
        assert stopped.text == generation.text.split(" old")[0]
        stops += stopped.finish_reason == "stop"
        seen |= set(generation.token_ids)
    assert stops > 3 and seen == set(range(6))


@pytest.mark.parametrize("backend", BACKENDS)
def test_stop_strings(models, tokenizer, backend):
    model = models(backend)
    free = model.generate(PROMPT, 40, temperature=1.0, seed=7)
    # Parts of two to six letters, many of which begin or end within a token. (U+FFFD may turn into a letter.)
    parts = {free.text[start : start + 2 + start % 5] for start in range(0, len(free.text) - 6, 5)}
    assert len(parts) > 8
    for stop in (part for part in parts if "\ufffd" not in part):
        stopped = model.generate(PROMPT, 40, temperature=1.0, seed=7, stop=stop)
        assert stopped.text == free.text.split(stop)[0] and stopped.finish_reason == "stop"
        count = len(stopped.token_ids)
        assert stopped.token_ids == free.token_ids[:count] and len(stopped.logprobs) == count
        assert stop in tokenizer.decode(stopped.token_ids)
        assert stop not in tokenizer.decode(stopped.token_ids[:-1])
    for absent in ("not in it", ["\ufffe"], (), None, {"a set of one"}):
        assert model.generate(PROMPT, 40, temperature=1.0, seed=7, stop=absent).text == free.text


def test_the_same_seed_gives_the_same_text_everywhere(models):
    rules = (
        SAMPLED,
        {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.3},
        {"temperature": 1.5, "min_p": 0.05},
    )
    for rule in rules:
        texts = {models(backend).generate(PROMPT, 40, seed=11, **rule).text for backend in BACKENDS}
        assert len(texts) == 1
        texts |= {models("numpy").generate(PROMPT, 40, seed=seed, **rule).text for seed in range(5)}
        assert len(texts) == 6, "each seed gives a text of its own"


def test_several_texts_from_one_prompt(models):
    model = models("numpy")
    texts = [row.text for row in model.generate([PROMPT] * 3, 20, seed=[1, 2, 1], **SAMPLED)]
    assert texts[0] == texts[2] != texts[1]
    assert texts == [model.generate(PROMPT, 20, seed=seed, **SAMPLED).text for seed in (1, 2, 1)]


def test_kinds_of_prompts(models, tokenizer):
    model, ids = models("numpy"), tokenizer.encode(PROMPT)
    expected = model.generate(PROMPT, 5).token_ids
    for prompt in (ids, tuple(ids), np.array(ids), np.array(ids, np.uint16), [np.int64(token) for token in ids]):
        generation = model.generate(prompt, 5)
        assert generation.token_ids == expected and all(type(token) is int for token in generation.prompt_token_ids)
    several = ([PROMPT], (PROMPT, PROMPT), [PROMPT, ids], [ids, np.array(ids)], np.array([ids, ids]), [ids])
    for prompts in several:
        results = model.generate(prompts, 5)
        assert [row.token_ids for row in results] == [expected] * len(prompts)
    assert model.stream(np.array(ids), 5).result.prompt_token_ids == ids


def test_an_empty_prompt(folder, tmp_path, models):
    for prompt in ("", [], np.array([], np.int64)):
        with pytest.raises(lab.ConfigurationError, match="is empty, and this model has no begin-of-text token"):
            models("numpy").generate(prompt)
    save_gpt2(tmp_path, bos_token_id=3)
    model = lab.load_model(tmp_path)
    expected = model.generate([3], 5).token_ids
    assert model.generate([], 5).token_ids == expected
    one, other = model.generate([[], [3]], 5)
    assert one.token_ids == other.token_ids == expected and one.prompt_token_ids == [3]


# --- A vocabulary that is larger than the tokenizer's ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte_bpe", "huggingface"])
def test_ids_that_the_tokenizer_does_not_have(tmp_path, tokenizer, kind):
    save_gpt2(tmp_path, seed=2, vocab_size=400)
    tokenizer.save(tmp_path)
    model = lab.load_model(tmp_path, tokenizer=kind)
    assert model.tokenizer.vocab_size == 280
    stream = model.stream([5], 20, temperature=5.0, stop=["\ufffd" * 50])
    pieces = list(stream)
    ids = stream.result.token_ids
    assert 0 < sum(token >= 280 for token in ids) < len(ids)
    assert "".join(pieces) == stream.result.text == model.generate([5], 20, temperature=5.0).text
    decoded, known = "", []
    for token in [*ids, 400]:
        if token < 280:
            known.append(token)
        else:
            decoded += tokenizer.decode(known) + "\ufffd"
            known = []
    assert stream.result.text == decoded.removesuffix("\ufffd")


# --- Without a tokenizer, and with the other one --------------------------------------------------------------------


def test_without_a_tokenizer(tmp_path):
    save_gpt2(tmp_path)
    model = lab.load_model(tmp_path)
    assert model.tokenizer is None
    generation = model.generate(random_ids(4, 101).tolist(), 6)
    assert generation.text is None and len(generation.token_ids) == 6
    for ask in (
        lambda: model.generate("text", 5),
        lambda: model.generate([[1], "text"], 5),
        lambda: model.generate([1], 5, stop="."),
        lambda: model.stream([1], 5),
        lambda: model.stream("text", 5),
    ):
        with pytest.raises(
            lab.ConfigurationError, match=r"has no tokenizer, so it cannot .*merges\.txt.* work without"
        ):
            ask()


def test_both_tokenizers_give_the_same(folder, models):
    ours, theirs = models("numpy"), lab.load_model(folder, tokenizer="huggingface")
    assert type(theirs.tokenizer) is not type(ours.tokenizer)
    for seed in range(4):
        options = {"max_new_tokens": 40, "temperature": 1.3, "seed": seed, "stop": "!"}
        one, other = ours.generate("Čtyři děti!", **options), theirs.generate("Čtyři děti!", **options)
        assert (one.text, one.token_ids, one.prompt_token_ids) == (other.text, other.token_ids, other.prompt_token_ids)
        assert list(ours.stream("Čtyři", **options)) == list(theirs.stream("Čtyři", **options))
