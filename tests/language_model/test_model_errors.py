"""What can be wrong with what a model is asked, and with where it is looked for: one plain message for each."""

import json
import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from reference_models import GPT2, save_gpt2
from small_models import small_model

import transformer_lab as lab
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import assemble
from transformer_lab.model.init import initialise
from transformer_lab.sources import config_folder, model_folder


@pytest.fixture(scope="module")
def model(plain):
    return lab.load_model(plain[0])


def refused(message, kind=lab.ConfigurationError):
    return pytest.raises(kind, match=message)


NOT_IDS = (
    1,
    None,
    "12",
    b"12",
    [1.0, 2.0],
    [1.5],
    [True, False],
    ["1", "2"],
    [[1, 2], [3]],
    [[[1, 2]]],
    [1, None],
    [1, [2]],
    {"a": 1},
    {1, 2},
    np.array([1.0]),
    np.array(3),
    np.ones((2, 2, 2), int),
    [2**70],
)


@pytest.mark.parametrize("ids", NOT_IDS, ids=repr)
def test_what_are_no_token_ids(model, ids):
    for ask in (model.logits, model.loss, model.record):
        with refused(r"^token_ids must be whole numbers, \[T\] or \[B, T\] with rows of one length\.$"):
            ask(ids)


@pytest.mark.parametrize("ids", [[-1], [270], [[3, 3], [3, 270]], np.array([2**62])], ids=repr)
def test_ids_outside_the_vocabulary(model, ids):
    wrong = [token for token in np.ravel(ids).tolist() if not 0 <= token < 270]
    for ask in (model.logits, model.record):
        with refused(rf"^The token id {wrong[0]} is outside the vocabulary, 0 to 269\.$"):
            ask(ids)
    with refused(rf"^The token id {wrong[0]} is outside"):
        model.loss([1, 2, *wrong])
    with refused(rf"^The token id {wrong[0]} is outside"):
        model.generate(wrong, 3)
    with refused(f"^The token id {2**63} is outside"):
        model.logits(np.array([2**63], np.uint64))


def test_numbers_of_ids(model):
    for none in ([], [[]], [[], []], np.empty((0, 4), int), np.empty((3, 0))):
        with refused(r"^0 token ids were given in a row; expected 1 to 24\.$"):
            model.logits(none)
        with refused(r"^0 token ids .* 1 to 24\.$"):
            model.record(none)
    with refused(r"^25 token ids were given in a row; expected 1 to 24\.$"):
        model.logits([1] * 25)
    with refused(r"^25 token ids"):
        model.record([[1] * 25])
    for length in (0, 1, 26):
        with refused(rf"^{length} token ids were given in a row; expected 2 to 25\.$"):
            model.loss([1] * length)


@pytest.mark.parametrize(
    "prompt",
    [
        1,
        None,
        b"text",
        [1.0],
        [True],
        [None],
        [[1, 2], 3],
        [1, "a"],
        {"a"},
        [[[1, 2], [3, 4]]],
        np.array(1),
        np.array([0.5]),
    ],
    ids=repr,
)
def test_what_is_no_prompt(model, prompt):
    with refused(r"^A prompt must be a text, or whole numbers in one row\.$"):
        model.generate(prompt, 3)


def test_prompts_that_do_not_fit(model):
    with refused(r"^The list of prompts is empty"):
        model.generate(np.empty((0, 3), int), 3)
    with refused(
        r"^The prompt has 4 tokens and 21 new ones are .* holds 24\. Ask for at most 20 new tokens, or shorten"
    ):
        model.generate([1, 2, 3, 4], 21)
    with refused(r"^The prompt has 30 tokens .* holds 24\. Shorten the prompt\.$"):
        model.generate([1] * 30, 1)
    with refused(r"^The prompt has 24 tokens .* Shorten the prompt\.$"):
        model.generate([[1], [1] * 24], 1)
    assert len(model.generate([1, 2, 3, 4], 20).token_ids) == 20
    for several in ([[1], [2]], ["a", "b"], np.ones((2, 2), int)):
        with refused(r"^stream takes one prompt; use generate for a list"):
            model.stream(several, 3)


def test_a_text_that_cannot_fit_is_not_cut_into_tokens(model, monkeypatch):
    """A text of 60 MB would take gigabytes, only to be refused."""
    monkeypatch.setattr(model, "tokenizer", None)
    with refused("no tokenizer"):
        model.generate("word " * 10**6)
    monkeypatch.setattr(model, "tokenizer", object())  # nothing is asked of it
    with refused(r"^The prompt has 5,000,000 characters, more than 256 for .* holds, 24\. Shorten the prompt\.$"):
        model.generate("word " * 10**6)
    with refused(r"^The prompt has 6,145 characters"):
        model.stream("a" * (24 * 256 + 1))
    files = {"chat_template.jinja": b"{{ 'a' * 6145 }}"}
    monkeypatch.setattr(model, "tokenizer", SimpleNamespace(original_files=files))
    with refused(r"^The prompt has 6,145 characters"):
        model.chat([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(("max_new_tokens", value, "a whole number of at least 1") for value in (0, -1, 1.0, "5", None, True)),
        *(("seed", value, "a whole number of at least 0, or one") for value in (-1, 0.5, None, "1", [1, 2], [], [-1])),
        *(
            ("stop", value, "a text, or a list of texts, none of them empty")
            for value in ("", ["a", ""], 5, [5], b"a", 0)
        ),
        ("temperature", -1, "a number of at least 0"),
        ("top_k", 0, "a whole number of at least 1"),
        ("top_p", 0, "above 0 and at most 1"),
        ("min_p", 2, "from 0 to 1"),
        ("repetition_penalty", 0, "above 0"),
    ],
)
def test_options_out_of_range(model, option, value, message):
    options = {"max_new_tokens": 3} | {option: value}
    for ask in (model.generate, model.stream):
        with refused(rf"^{option} is {re.escape(repr(value))}; it must be .*{message}"):
            ask([1, 2], **options)


# --- Loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "jaxx"}, "There is no backend=jaxx. Did you mean backend=jax?"),
        ({"precision": "float16"}, "does not offer precision=float16; it offers float32, float64"),
        ({"ops": {"atention": "manual"}}, "There is no operation 'atention'"),
        ({"ops": {"attention": "sdpa"}}, "attention=sdpa is not available on the numpy backend"),
        ({"tokenizer": "wordpiece"}, "tokenizer is 'wordpiece'; choose one of byte_bpe, huggingface."),
        ({"weights": "none"}, "weights is 'none'; choose one of pretrained, random, shaken."),
        ({"ffn": {"activaton": "relu"}}, "There is no setting ffn.activaton. Did you mean ffn.activation?"),
        ({"ffn": {"activation": "tanh"}}, "ffn.activation is 'tanh'; choose one of"),
        ({"ffn": {"size": "10"}}, "ffn.size is '10'; it must be a whole number"),
    ],
    ids=str,
)
def test_choices_that_are_not_there(plain, options, message):
    with refused(re.escape(message)):
        lab.load_model(plain[0], **options)


@pytest.mark.parametrize(
    "parts",
    [
        {"ffn": {"size": 10}},
        {"attention": {"num_heads": 1}},
        {"attention": {"sinks": True}},
        {"position": "rotary"},
        {"norm": "rms_norm"},
        {"block": "parallel"},
    ],
    ids=str,
)
def test_parts_that_need_other_tensors_than_the_weights(plain, parts):
    expected = r"^The chosen parts ask for other tensors than the weights in \S+ hold\..*model\.weights=random"
    with refused(expected) as said:
        lab.load_model(plain[0], **parts)
    assert str(said.value).count(". ") == 1 and len(str(said.value)) < 400  # two sentences, no list of tensors
    assert lab.load_model(plain[0], weights="random", **parts).generate([1], max_new_tokens=1).token_ids


def test_a_part_that_the_family_has_no_name_for(tmp_path):
    """Llama has no table of positions, whatever it would be called."""
    llama = small_model(20, 8, 8, 1, 2, Dense(8, "silu", True, False), position="rotary", norm="rms_norm",
                        attention_bias=False)  # fmt: skip
    assemble(llama, dict(initialise(llama)), component("backend", "numpy")).save(tmp_path)
    for parts in ({"position": "learned"}, {"norm": "layer_norm"}):
        with refused("The chosen parts ask for other tensors"):
            lab.load_model(tmp_path, **parts)


def test_damaged_weights_are_no_fault_of_the_parts(plain, tmp_path):
    folder = shutil.copytree(plain[0], tmp_path / "damaged")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"n_layer": fields["n_layer"] + 1}))
    with refused(r"do not fit the configuration\. Missing: ", lab.InputFileError):
        lab.load_model(folder, ffn={"activation": "relu"})


def test_parts_that_need_no_other_tensors_are_taken(plain):
    whole = lab.load_model(plain[0]).logits([1, 2, 3])
    for parts in ({"ffn": {"activation": "relu"}}, {"attention": {"window": 2}}):
        assert np.abs(lab.load_model(plain[0], **parts).logits([1, 2, 3]) - whole).max() > 1e-4


def test_a_tokenizer_that_does_not_belong_to_the_model(tmp_path, tokenizer):
    save_gpt2(tmp_path)
    tokenizer.save(tmp_path)
    with refused(r"has 262 tokens and the model's vocab_size is 101\. They do not belong", lab.InputFileError):
        lab.load_model(tmp_path)


def test_configuration_and_weights_come_before_the_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{damaged")
    with refused(r"config\.json", lab.InputFileError):
        lab.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | GPT2))
    with refused(r"safetensors", lab.InputFileError):
        lab.load_model(tmp_path)


def test_folders_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for source in (tmp_path / "missing", str(tmp_path / "missing"), "./missing", "../missing", "~/is missing"):
        with refused(r"^The model folder .*missing does not exist\. Expected a folder with config", lab.InputFileError):
            lab.load_model(source)
    for source in (tmp_path / "file", "./file"):
        with refused(r"^The model folder .*file is a file, not a folder\.", lab.InputFileError):
            lab.load_model(source)
    with refused(r"^The model folder /a+\.\.\.a+ cannot be read \(file name too long\)", lab.InputFileError):
        lab.load_model("/" + "a" * 5000)
    with refused(r"^~nobody-of-that-name/x names the home folder of an unknown user", lab.InputFileError):
        lab.load_model("~nobody-of-that-name/x")
    with refused(r"^./a\\x00b holds a null character", lab.InputFileError):
        lab.load_model("./a\0b")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions stop")
def test_a_folder_that_may_not_be_read(tmp_path):
    (tmp_path / "closed" / "inside").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    try:
        with refused(r"cannot be read \(permission denied\)", lab.InputFileError):
            lab.load_model(tmp_path / "closed" / "inside")
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_names_that_are_not_there():
    for source in ("gpt-2", "gpt2 ", "a/b/c", "a b/c", "storybok", "file.txt"):
        with refused(rf"^There is no model '{re.escape(source)}'\. Choose one of .*gpt2.*hub id \(owner/name\)"):
            lab.load_model(source)


def test_folders_by_kinds_of_names(plain, monkeypatch):
    folder = plain[0]
    monkeypatch.chdir(folder.parent)
    for source in (folder, str(folder), folder.name, f"./{folder.name}", f"../{folder.parent.name}/{folder.name}"):
        assert model_folder(source).resolve() == folder.resolve()
        assert config_folder(source).resolve() == folder.resolve()
    monkeypatch.setenv("HOME", str(folder.parent))
    assert model_folder(f"~/{folder.name}") == folder
    # A folder that is there wins over a name.
    (folder.parent / "gpt2").mkdir()
    try:
        assert model_folder("gpt2").resolve() == (folder.parent / "gpt2").resolve()
    finally:
        (folder.parent / "gpt2").rmdir()


def test_published_shapes_need_no_network():
    for source in ("gpt2", "openai-community/gpt2"):
        assert json.loads((config_folder(source) / "config.json").read_text())["n_embd"] == 768
