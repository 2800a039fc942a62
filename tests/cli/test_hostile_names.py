"""Names that no file has: of a user who is not there, of 5,000 characters, with a null character. Each gets an answer
in a few words, and an exit code that is not that of a bug."""

import pytest

from transformer_lab.errors import LONGEST_MESSAGE, LONGEST_WORD, ConfigurationError, shortened, shown

TRAIN = ("job=train", "model=new", "data.path=t.txt")
PATHS = [
    ("prompt_file=",),
    ("model.source=",),
    ("tokenizer.source=",),
    ("job=inspect", "model.source="),
    ("job=evaluate", "data.path="),
    ("job=tokenizer", "data.path="),
    ("job=tokenizer", "data.path=t.txt", "job.vocab_size=260", "job.output="),
    ("job=compare", "job.participants=[]", "job.dump="),
    (*TRAIN[:2], "data.path="),
    (*TRAIN, "data.validation="),
    (*TRAIN, "job.resume="),
]
SETTINGS = [
    ("backend=",),
    ("precision=",),
    ("max_new_tokens=",),
    ("model.weights=",),
    ("ops.attention=",),
    ("backend=torch", "backend.device="),
    ("job=compare", "job.sweeps=[{}]"),
    ("job=tokenizer", "data.path=t.txt", "job.special_tokens=[{0},{0}]"),
    ("-m", "seed="),
    ("--cfg", ""),
    ("--config-dir", ""),
    ("{}=3",),
    ("--{}",),
    ("job.{}=3",),
    ("hydra.run.dir=/{}",),
]


def words(case, value):
    *first, last = case
    return [*first, last.format(value) if "{" in last else last + value]


@pytest.fixture(autouse=True)
def text(tmp_path):
    (tmp_path / "t.txt").write_text("Once upon a time. " * 100)


@pytest.mark.parametrize("case", PATHS, ids=" ".join)
def test_the_home_folder_of_nobody(run, case):
    outcome = run(*words(case, "~nobody-of-that-name/x"))
    assert outcome.code == 3 and "~nobody-of-that-name/x" in outcome.err, outcome.err


def test_options_in_the_home_folder_of_nobody(run):
    outcome = run("--config-dir", "~nobody-of-that-name/x")
    assert outcome.code == 2 and "not a folder" in outcome.err


@pytest.mark.parametrize("case", [*PATHS, *SETTINGS], ids=" ".join)
def test_five_thousand_letters(run, case):
    outcome = run(*words(case, "a" * 5000))
    assert outcome.code in (2, 3, 4) and len(outcome.err) < 1000, outcome.err
    assert "a" * 50 in outcome.err and "a" * (LONGEST_WORD + 1) not in outcome.err


@pytest.mark.parametrize("case", PATHS, ids=" ".join)
def test_a_null_character(run, case):
    outcome = run(*words(case, "./a\0b"))
    assert outcome.code == 3 and "a\\x00b" in outcome.err, outcome.err


def test_a_long_path_of_words(run):
    outcome = run("model.source=" + "a b " * 1250)
    assert outcome.code == 2 and len(outcome.err) <= LONGEST_MESSAGE and outcome.err.endswith("(owner/name).\n")


def test_a_model_without_weights_is_not_inspected(run):
    outcome = run("job=inspect", "model=new")
    assert outcome.code == 2 and "has no weights" in outcome.err


def test_what_is_cut_keeps_its_ends():
    assert shortened("short words stay " * 20) == "short words stay " * 20
    name = "/" + "a" * 1000 + "/weights.safetensors"
    cut = shortened(f"{name} is damaged.")
    assert cut.startswith("/aaa") and cut.endswith("aaa/weights.safetensors is damaged.") and len(cut) < 320
    assert len(shortened("x " * 5000)) < LONGEST_MESSAGE
    assert str(ConfigurationError("\n" * 5000)).isprintable() and len(str(ConfigurationError("\n" * 5000))) < 320


def test_how_values_are_shown():
    assert [shown(value) for value in (None, True, 1.5, "a\nb", [1], {"a": 1})] == [
        "null", "true", "1.5", r"'a\nb'", "a list of 1 entries", "an object of 1 entries",
    ]  # fmt: skip
    assert shown("x" * 5000) == repr("x" * 80) + "..." and len(shown(10**4000)) < 90
