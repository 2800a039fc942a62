"""Which words of the command line are understood, and what the others are answered."""

import pytest
from hydra.types import RunMode
from hypothesis import example, given
from hypothesis import strategies as st

from transformer_lab.composition import FREE_TEXT_KEYS, compose, normalise, opened, settings_from, take_free_text
from transformer_lab.config import groups, names


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize("group", groups())
def test_a_sign_before_a_group_changes_nothing(group, sign):
    option = names(group)[-1]
    assert normalise([f"{sign}{group}={option}"]) == [f"{group}={option}"]


@pytest.mark.parametrize(
    "words", [[], ["backend=jax"], ["+backend=jax"], ["++backend=torch"], ["+seed=3", "++ops=manual"]]
)
def test_every_spelling_composes(words):
    chosen = dict(word.lstrip("+").split("=") for word in words)
    composed = compose(words)
    assert composed.choices["backend"] == chosen.get("backend", "numpy")
    assert composed.choices["ops"] == chosen.get("ops", "fused")
    assert composed.seed == int(chosen.get("seed", 0))


MISTAKES = {
    "bakend=jax": ["bakend", "backend"],
    "+bakend=jax": ["bakend", "backend"],
    "backend=jaxx": ["backend=jaxx", "backend=jax?", "numpy", "torch"],
    "+backend=jaxx": ["backend=jaxx", "backend=jax?", "numpy", "torch"],
    "++backend=tensorflow": ["jax, numpy, torch"],
    "backend=null": ["jax, numpy, torch"],
    "backend=": ["jax, numpy, torch"],
    "backend=5": ["jax, numpy, torch"],
    "backend={a:1}": ["jax, numpy, torch"],
    "~backend": ["jax, numpy, torch"],
    "backend.devise=cpu": ["backend.devise", "backend.device"],
    "+backend.devise=cpu": ["backend.devise", "backend.device"],
    "backend=numpy,torch": ["-m"],
    "max_new_tokens=ten": ["max_new_tokens", "'ten'", "whole number"],
    "max_new_tokens=1.5": ["max_new_tokens", "whole number"],
    "max_new_tokens=true": ["max_new_tokens", "whole number"],
    "max_new_tokens=-3": ["max_new_tokens", "-3", "at least 1"],
    "max_new_tokns=3": ["max_new_tokens"],
    "seed=-1": ["seed"],
    "seed=[1": ["seed=[1"],
    "seed=${nope}": ["nope"],
    "seed=" + 3000 * "[" + 3000 * "]": ["nested"],
    "hash_logits=maybe": ["hash_logits", "true or false"],
    "sampling.temperature=hot": ["sampling.temperature", "'hot'", "a number"],
    "sampling.temperature=-1": ["temperature", "-1"],
    "sampling.temprature=1": ["sampling.temperature"],
    "sampling=gredy": ["sampling=greedy"],
    "job=benhc": ["job=bench", "generate", "inspect"],
    "job.repeats=2": ["job.repeats", "job.default_prompt"],
    "model.sorce=x": ["model.source"],
    "model=gpt3": ["gpt2", "storybook"],
    "ops.attentoin=manual": ["ops.attention"],
    "track=natve": ["track=native"],
    "experiment=nothing": ["two_voices"],
    "hydra.run.dri=x": ["hydra.run.dir"],
    "runs=x": ["There is no setting runs"],
    "paths=x": ["paths.runs"],
    "=3": ["key=value"],
    "backend.device.x=1": ["backend.device.x"],
    "+backend@x=jax": ["setting x"],
    "max_new_tokens=null": ["max_new_tokens is null"],
    "hydra/launcher=nope": ["basic"],
    "stray": ["key=value", "quotes"],
    "--frobnicate": ["--frobnicate", "--help"],
    "--mutlirun": ["--multirun"],
    "--cfg=jobs": ["job"],
    "--config-dir=/nowhere": ["/nowhere"],
    "prompts=[1]": ["prompts", "one"],
    "prompts=[]": ["prompts"],
    "prompt_ids=[1,x]": ["prompt_ids", "[1,2,3]"],
    "prompt_ids=[true]": ["prompt_ids"],
    "prompt_ids=12": ["prompt_ids"],
    "router.k=1": ["no router that it belongs to", "router=NAME router.k=", "mixtral"],
    "ffn.router.k=1": ["no ffn.router that it belongs to", "router=NAME router.k="],
    "residency.bytes=1": ["residency=NAME residency.bytes=", "tiered"],
    "balancer.rate=1": ["balancer=NAME balancer.rate=", "sign_bias"],
    "prmopt=It's late, (he said": ["prompt"],
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_answered_with_the_nearest_name_or_the_choices(run, word):
    outcome = run(word)
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("Error: ") and outcome.err.count("\n") == 1
    for part in MISTAKES[word]:
        assert part in outcome.err
    for jargon in ("struct", "primary config", "append", "override", "omegaconf"):
        assert jargon not in outcome.err.lower()


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "backend=numpy,jaxx"],
        ["-m", "+bakend=numpy,torch"],
        ["-m", "seed=1,two"],
        ["-m", "job=generate,bench", "job.repeats=2"],
        ["-m", "sampling.temperature=0.5,hot"],
        ["-m", "seed=x("],
        ["hydra.mode=MULTIRUN", "seed=1,two"],
    ],
)
def test_a_mistake_in_one_run_of_a_sweep_stops_it_before_anything_runs(run, words):
    outcome = run(*words)
    assert outcome.code == 2
    assert outcome.err.startswith("Error: ") and outcome.err.count("\n") == 1
    assert list(outcome.folder.iterdir()) == []


def test_two_prompts_are_refused(run):
    outcome = run("prompt=a", "prompt_ids=[1]")
    assert outcome.code == 2
    assert "prompt and prompt_ids" in outcome.err


@pytest.mark.parametrize(
    ("words", "tokenizer", "ops"),
    [
        ([], "byte_bpe", "fused"),
        (["track=native"], "byte_bpe", "manual"),
        (["track=experimental"], "huggingface", "fused"),
        (["track=native", "ops=fused"], "byte_bpe", "fused"),
        (["tokenizer=byte_bpe", "+track=experimental"], "byte_bpe", "fused"),
        (["experiment=two_voices"], "byte_bpe", "manual"),
        (["experiment=two_voices", "track=experimental"], "huggingface", "fused"),
    ],
)
def test_a_track_is_a_preset_and_the_command_line_wins(words, tokenizer, ops):
    choices = compose(words).choices
    assert (choices["tokenizer"], choices["ops"]) == (tokenizer, ops)


def test_an_experiment_wins_over_the_defaults_and_loses_to_the_command_line():
    assert compose(["experiment=two_voices"]).seed == 7
    assert compose(["experiment=two_voices", "seed=3"]).seed == 3
    assert compose(["experiment=two_voices"]).prompts is not None
    replaced = compose(["experiment=two_voices", "prompt=Mine"])
    assert (replaced.prompt, replaced.prompts) == ("Mine", None)


@given(st.text(), st.sampled_from(FREE_TEXT_KEYS), st.sampled_from(["", "+", "++"]))
def test_free_text_is_taken_as_typed(text, key, sign):
    texts, rest = take_free_text([f"{sign}{key}={text}", "seed=1"])
    quoted = len(text) >= 2 and text[0] in "'\"" and text[-1] == text[0]
    assert texts == {key: text[1:-1] if quoted else text}
    assert rest == ["seed=1"]


@pytest.fixture(scope="module")
def composed():
    with opened() as hydra:
        yield hydra.compose_config("config", [], RunMode.RUN)


@given(st.text())
@example("null")
def test_free_text_reaches_the_settings_unchanged(composed, text):
    texts, rest = take_free_text([f'prompt="{text}"', f"model.source='{text}'"])
    found = settings_from(composed, composed.hydra.runtime.choices, texts)
    assert rest == []
    assert found.prompt == text
    assert found.sections["model"]["source"] == (None if text == "null" else text)  # a path `null` is none


@pytest.mark.parametrize(
    ("word", "prompt"),
    [
        ('prompt=It\'s late, "he" said: {x}=$5?', 'It\'s late, "he" said: {x}=$5?'),
        ('prompt="quoted"', "quoted"),
        ("prompt='quoted'", "quoted"),
        ("prompt='\"twice\"'", '"twice"'),
        ("prompt=\"unlike'", "\"unlike'"),
        ("prompt='", "'"),
        ("prompt=12", "12"),
        ("prompt=null", "null"),
        ("prompt=", ""),
        ("prompt=a=b", "a=b"),
        ("prompt=${oc.env:HOME}", "${oc.env:HOME}"),
        ("prompt=two\nlines\n", "two\nlines\n"),
        ("++prompt=[1,2]", "[1,2]"),
    ],
)
def test_prompts_of_the_contract(word, prompt):
    assert compose([word]).prompt == prompt
