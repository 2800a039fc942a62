"""Tokenizers in GGUF files, beside transformers' own reading of them and, where it is installed, llama.cpp's."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from gguf_writer import SIZES, byte_level, random_model, transformers, write_gguf

import transformer_lab as lab
from transformer_lab.checkpoints.gguf.sentencepiece import SPACE, merges

TEXTS = [
    *("The king said: 123 apples", "it's I'M we'll they'Re", "a", " ", "", "the\tthen\r\n\r\nthere  and   there"),
    *("ärgerlich 日本語 🙂 naïve", "x²½Ⅳ ٣٤ 12345678", "__init__(self):\n    return 1.5e-3", "<|end|> </s> <s>"),
    *("hello world, hello there", "aaaaaaaaaa thethethe", "ab\u0301 e\u0301te\u0301", "\u3000wide \u00a0space"),
]
PUBLISHED = os.environ.get("PUBLISHED_TOKENIZERS", "")
BEGINNING_WITH_SPACES = [" two", "  hello  the  world ", "   ", "\n the"]
SAMPLE = "the then there hello help held world word would and an ana banana 12 123 'll 're th he er el lo or \n\n -- "


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def learned_bytes(pre):
    """Byte-level BPE that has learned a little -> keys below tokenizer.ggml. With spaces within words, where a split
    that is wrong would show."""
    found = byte_level(SIZES["vocab_size"])
    size = len(found["tokens"])
    merges = list(found["merges"])
    merges += ["e r", "the r", "e l", "h el", "hel l", "hell o", "1 23", "2 3", "12 3"]
    merges += ["' l", "'l l", "Ċ Ċ", "o r", "or l"]
    known = [token for token in found["tokens"] if not token.startswith("[PAD")]
    made = [merge.replace(" ", "") for merge in merges]
    tokens = list(dict.fromkeys([*known, "the", *made]))
    merges.insert(2, "t he")
    tokens += [f"[PAD{number}]" for number in range(size - len(tokens))]
    kinds = [3, 3, *[1] * (len(tokens) - 2)]
    return found | {"pre": pre, "tokens": tokens, "merges": merges, "token_type": kinds}


def pieces(seed, score_order=True, spaces=False):
    """SentencePiece's BPE with random pieces of SAMPLE -> keys below tokenizer.ggml."""
    draw = np.random.default_rng(seed)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3, *[6] * 256]
    letters = list(dict.fromkeys(SPACE + SAMPLE.replace(" ", SPACE) + "0123456789'.,:日"))
    learned, text = [], list(SAMPLE.replace(" ", SPACE))
    while len(learned) < 60:
        place = int(draw.integers(0, len(text) - 1))
        pair = text[place] + text[place + 1]
        text[place : place + 2] = [pair]
        learned += [pair] if pair not in learned and len(pair) < 8 else []
    if spaces:
        learned = [SPACE * 2, SPACE * 3, SPACE * 4, *learned]
    new = [*dict.fromkeys([*learned, *letters])]
    tokens += [" " * len(one) if spaces and one.strip(SPACE) == "" and len(one) > 1 else one for one in new]
    kinds += [4 if one.strip(" ") == "" and len(one) > 1 else 1 for one in tokens[len(kinds) :]]
    scores = [0.0] * 259 + [-float(number) for number in range(len(new))]
    if not score_order:
        scores[259:] = [float(one) for one in draw.permutation(len(new))]
    roles = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores} | roles


def written(path, tokenizer, kind="Llama", architecture="llama", **changes):
    model = random_model(kind, vocab_size=len(tokenizer["tokens"]), num_hidden_layers=1, **changes)
    write_gguf(path, model, architecture, tokenizer=tokenizer)
    return path


def llama_cpp(path, special=False):
    """A function, text -> ids, or None where it is not installed. special: the names of special tokens count."""
    try:
        import llama_cpp as package
    except ImportError:
        return None
    model = package.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=special)


@pytest.mark.parametrize("pre", ["smollm", "starcoder", "refact", "gpt-2", "phi-2", "llama-bpe", "llama-v3", "qwen2"])
def test_byte_level_bpe(pre, tmp_path):
    path = written(tmp_path / "model.gguf", learned_bytes(pre))
    by_hand, library = (lab.load_model(path, tokenizer=kind).tokenizer for kind in ("byte_bpe", "huggingface"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    # Llama 3's file takes whole words that are tokens, and so does llama.cpp; transformers' reading has no word for it.
    theirs.backend_tokenizer.model.ignore_merges = pre.startswith("llama")
    cpp = llama_cpp(path)
    for text in TEXTS + BEGINNING_WITH_SPACES:
        ids = by_hand.encode(text)
        assert ids == library.encode(text) and (pre == "qwen2" or by_hand.decode(ids) == text)
        if cpp is not None and (pre != "qwen2" or "\u0301" not in text):  # llama.cpp does not compose letters
            assert ids == cpp(text), text
        if pre in ("gpt-2", "phi-2", "llama-bpe", "llama-v3"):  # of the others transformers does not know the split
            assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True), text
    assert by_hand.encode("<|end|>", allow_special=True) == [1]
    assert len(by_hand.encode("45")) == 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("score_order", [True, False])
@pytest.mark.parametrize("kind", ["Llama", "Phi3"])
def test_sentencepiece(seed, score_order, kind, tmp_path):
    tokenizer = pieces(seed, score_order)
    path = written(tmp_path / "model.gguf", tokenizer, kind, kind.lower(), pad_token_id=0)
    model = lab.load_model(path)
    library = lab.load_model(path, tokenizer="huggingface").tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    cpp = llama_cpp(path)
    for text in TEXTS + BEGINNING_WITH_SPACES:
        ids = model.tokenizer.encode(text)
        assert ids == library.encode(text) and model.tokenizer.decode(ids) == text
        if cpp is not None:
            assert ids == cpp(text), text
        # For Llama transformers adds no space where there is one, which neither SentencePiece nor llama.cpp does.
        if kind == "Phi3" or text not in [*BEGINNING_WITH_SPACES, " "]:
            assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True), text
    assert model.prompt_ids("the")[0] == 1, "a text begins with <s> where the file is silent"
    assert model.tokenizer.encode("</s>", allow_special=True)[-1] == 2


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_text_behind_special_tokens(architecture, tmp_path):
    """Each begins with a space again; Phi-3 passes over white space before."""
    tokenizer = pieces(0)
    for token, kind in {"<|user|>": 4, "<|end|>": 3, "<|endoftext|>": 3}.items():
        tokenizer["tokens"].append(token)
        tokenizer["token_type"].append(kind)
        tokenizer["scores"].append(0.0)
    path, kind = tmp_path / "model.gguf", {"llama": "Llama", "phi3": "Phi3"}[architecture]
    model = random_model(kind, vocab_size=len(tokenizer["tokens"]), num_hidden_layers=1, pad_token_id=0)
    write_gguf(path, model, architecture, tokenizer=tokenizer, values={"general.name": f"A {architecture}"})
    ours, cpp = lab.load_model(path).tokenizer, llama_cpp(path, special=True)
    for name in ("<s>", "</s>", "<|user|>", "<|end|>", "<|endoftext|>"):
        for text in (f"{name}the", f"{name}\n the", f"the {name}  the{name}", f"{name}{name}"):
            ids = ours.encode(text, allow_special=True)
            assert cpp is None or ids == cpp(text), text
    taken = ours.encode("<|end|>\n the", allow_special=True) == ours.encode("<|end|>the", allow_special=True)
    assert taken == (architecture == "phi3")


@pytest.mark.parametrize("seed", range(3))
def test_gemma(seed, tmp_path):
    """No space before a text, and runs of spaces written as they are."""
    tokenizer = pieces(seed, spaces=True) | {"add_space_prefix": False, "add_bos_token": False}
    path = written(tmp_path / "model.gguf", tokenizer, "Gemma2", "gemma2", head_dim=16)
    model = lab.load_model(path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    cpp = llama_cpp(path)
    for text in TEXTS + BEGINNING_WITH_SPACES:
        ids = model.tokenizer.encode(text)
        assert model.tokenizer.decode(ids) == text
        assert cpp is None or ids == cpp(text), text
        assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True), text
    assert model.prompt_ids("the")[0] != 1


@pytest.mark.skipif(not PUBLISHED, reason="PUBLISHED_TOKENIZERS does not name a folder of tokenizers")
@pytest.mark.parametrize("name", ["llama2", "gemma3"])
def test_merges_are_those_of_published_files(name):
    """Of the model's authors, who learned them. Scores are in the order of the ids, in both."""
    file = next(file for file in Path(PUBLISHED).rglob("tokenizer.json") if name in str(file.parent))
    whole = json.loads(file.read_text())
    published = [tuple(one.split(" ") if isinstance(one, str) else one) for one in whole["model"]["merges"]]
    ids = whole["model"]["vocab"]
    own = {token["content"] for token in whole["added_tokens"] if not token["special"]}
    scores = {token: math.inf if token in own else -float(id_) for token, id_ in ids.items() if token[:3] != "<0x"}
    found = list(map(tuple, merges(scores, ids)))
    assert len(found) == len(published) > 50_000 and set(found) == set(published)
    if name == "gemma3":  # the file of Llama 2 was made when ways to one token were in another order
        ordinary = [[pair for pair in pairs if "".join(pair) not in own] for pairs in (found, published)]
        assert ordinary[0] == ordinary[1]


def test_template_and_tokens_around(tmp_path):
    path = tmp_path / "model.gguf"
    template = "{% for m in messages %}{{ m['content'] }};{% endfor %}"
    values = {"tokenizer.chat_template": template, "tokenizer.ggml.add_bos_token": True}
    write_gguf(path, random_model(), "llama", values=values)
    model = lab.load_model(path)
    assert model.chat_ids([{"role": "user", "content": "the"}]) == model.tokenizer.encode("the;")
    assert model.tokenizer.template.around([5]) == [0, 5]
    assert model.config.end_of_text_id == 1 and model.config.begin_of_text_id == 0
    write_gguf(path, random_model(), "llama", values=values | {"tokenizer.ggml.add_eos_token": True})
    assert lab.load_model(path).tokenizer.template.around([5]) == [0, 5, 1]


@pytest.mark.parametrize(
    "unknown", [{"pre": "tekken"}, {"model": "bert"}, {"model": "llama", "remove_extra_whitespaces": True}]
)
def test_an_unknown_tokenizer_is_left_out(unknown, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(), "llama", tokenizer=byte_level(300) | unknown)
    model = lab.load_model(path)
    assert model.tokenizer is None and model.generate([1, 2], max_new_tokens=2).token_ids


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": [1, 2]}, "tokens must be a list of texts"),
        ({"scores": [0.0]}, "scores must have a number for each token"),
        ({"token_type": "x"}, "token_type must have a number for each token"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_named(change, words, tmp_path):
    path = tmp_path / "model.gguf"
    tokenizer = pieces(0)
    write_gguf(path, random_model(vocab_size=len(tokenizer["tokens"])), "llama", tokenizer=tokenizer | change)
    with pytest.raises(lab.InputFileError, match=words):
        lab.load_model(path)
