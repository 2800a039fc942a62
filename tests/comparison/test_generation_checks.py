"""What generate does beyond one prompt: sound on every backend, and each planted bug is found under its name."""

import numpy as np
import pytest
from random_models import random_arrays
from small_models import small_model

import transformer_lab as lab
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.comparison.judging.generation.check import checked
from transformer_lab.comparison.judging.generation.continuations import continuations
from transformer_lab.comparison.judging.generation.generate_checks import GenerateChecks
from transformer_lab.comparison.judging.generation.judged_generate import JudgedGenerate, ending_at
from transformer_lab.comparison.judging.generation.sampler import sampler_rules
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.generation import generate, sampling
from transformer_lab.generation.continuation import Continuation
from transformer_lab.generation.engine import Sequences
from transformer_lab.generation.generate import Decoding
from transformer_lab.generation.stopping import StopStrings
from transformer_lab.language_model import LanguageModel, TextStream, assemble

BACKENDS = ("numpy", "torch", "jax")
# No bytes above 127 are likely, so that there is text to stop at.
TEXT = "the cat sat on the mat and the dog sat on the log, then the cat and the dog ran to the old red barn. " * 4
CONFIG = small_model(280, 40, 32, 2, 4, Dense(64))
PROMPTS = [np.array([5, 17, 3, 58, 41]), np.array([60, 9, 12])]
NAMES = [
    "greedy continuations",
    "a sampled continuation",
    "rules of the sampler",
    "rows of unequal lengths",
    "generators of rows",
    "repetition penalty of rows",
    "end tokens and the limit",
    "stop strings",
    "calls after each other",
    "a full cache",
    "log-probabilities",
    "logits of a whole pass",
]


@pytest.fixture(scope="module")
def tokenizer():
    return lab.train_tokenizer(TEXT, vocab_size=280)


@pytest.fixture(scope="module")
def model_of(tokenizer):
    """Each is built once, so that JAX compiles once."""
    made = {}

    def model(backend, precision="float32", ops="fused"):
        if (backend, precision, ops) not in made:
            built = component("backend", backend, precision=precision, ops=ops)
            made[backend, precision, ops] = assemble(CONFIG, random_arrays(CONFIG, 4, 0.25), built, tokenizer)
        return made[backend, precision, ops]

    return model


def checks_of(model, truth, new_tokens=12, prompts=PROMPTS, seed=0):
    true = [truth.generate(ids.tolist(), new_tokens).token_ids for ids in prompts]
    shown = max(float(np.abs(model.record(ids)["logits"] - truth.record(ids)["logits"]).max()) for ids in prompts)
    found = continuations(model, "the participant", truth, true, prompts, new_tokens, 1, shown, seed)
    assert found.wrong == [check.wrong for check in found.checks if check.wrong]
    return {check.check: check for check in found.checks}


@pytest.fixture
def checks(model_of):
    truth = model_of("numpy", "float64", "manual")
    return lambda backend="numpy", precision="float32", **more: checks_of(model_of(backend, precision), truth, **more)


def wrong(found):
    return {name: check.wrong for name, check in found.items() if check.wrong}


# --- sound ones -------------------------------------------------------------------------------------------------------

PRECISIONS = [
    *((backend, "float32") for backend in BACKENDS),
    ("numpy", "float64"),
    ("numpy", "exact"),
    ("torch", "exact"),
    ("torch", "bfloat16"),
    ("torch", "int8"),
    pytest.param("jax", "bfloat16", marks=pytest.mark.full),
    pytest.param("jax", "int8", marks=pytest.mark.full),
    pytest.param("jax", "exact", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("backend", "precision"), PRECISIONS)
def test_sound_ones_are_silent_and_everything_is_tried(checks, backend, precision):
    found = checks(backend, precision)
    assert list(found) == NAMES
    assert not wrong(found), wrong(found)
    assert all(check.tried and check.skipped is None for check in found.values())
    assert "rows ended after 0" in found["end tokens and the limit"].tried
    assert "0 of 5 rows" not in found["stop strings"].tried
    assert "40 positions, which is the whole context" in found["a full cache"].tried
    if precision in ("float32", "float64", "exact"):  # elsewhere noise is large
        assert " 0 sampled tokens" not in found["generators of rows"].tried


@pytest.mark.parametrize("seed", range(4))
def test_random_models_are_silent(seed):
    """Large weights, grouped heads, rotary positions; without a tokenizer."""
    changes = {"position": "rotary", "norm": "rms_norm", "attention_bias": False, "num_kv_heads": 2}
    ffn = Dense(48, "silu", gated=True, bias=False) if seed % 2 else Dense(48)
    config = small_model(61, 300, 32, 2, 4, ffn, **(changes if seed % 2 else {}))
    arrays = random_arrays(config, seed, 0.2 + 0.2 * seed)
    truth = assemble(config, arrays, component("backend", "numpy", precision="float64", ops="manual"))
    for backend in ("numpy", "torch"):
        model = assemble(config, arrays, component("backend", backend, precision="float32", ops="fused"))
        model.end_of_text_ids = (3,)
        found = checks_of(model, truth, 24, seed=seed)
        assert not wrong(found), wrong(found)
        assert model.end_of_text_ids == (3,)
        assert found["stop strings"].skipped == "The model has no tokenizer, so it has no text."
        assert "26 positions, of a context of 300" in found["a full cache"].tried


def test_what_cannot_be_tried_is_listed(checks, model_of):
    few = checks(new_tokens=1)
    assert list(few) == NAMES and not wrong(few)
    config = small_model(61, 6, 32, 1, 4, Dense(48))
    arrays = random_arrays(config, 0, 0.3)
    built = [component("backend", "numpy", precision=name, ops="manual") for name in ("float32", "float64")]
    model, truth = (assemble(config, arrays, backend) for backend in built)
    short = checks_of(model, truth, 2, [np.array([1])])
    assert list(short) == NAMES and not wrong(short)
    assert short["rows of unequal lengths"].skipped.startswith("The context of 6 positions is too short")
    assert short["end tokens and the limit"].skipped.startswith("The batch of unequal rows")
    assert short["a full cache"].skipped is None


def test_an_error_of_the_engine_is_a_defect_and_the_rest_goes_on(checks, monkeypatch):
    right = Sequences.feed

    def full(self, tokens):
        if len(self.rows[0]) > 12 and self.engine.ops.precision == "float32":
            raise IndexError(13)
        right(self, tokens)

    monkeypatch.setattr(Sequences, "feed", full)
    found = checks()
    said = "A defect: greedy decoding on the participant raised IndexError: 13"
    assert found["greedy continuations"].wrong == said
    assert found["a sampled continuation"].wrong.startswith("A defect: sampling on the participant raised IndexError")
    assert list(found) == NAMES and found["rules of the sampler"].wrong is None


def rounded_to_float16(right):
    return lambda self, params, ids: right(self, params, ids).astype(np.float16).astype(np.float32)


def wrong_behind_the_prompts(right):
    """A table of positions that ends too early, in every pass."""

    def logits(self, params, ids):
        found = right(self, params, ids)
        found[:, 30:] = found[:, 29:30]
        return found

    return logits


@pytest.mark.parametrize("bug", [rounded_to_float16, wrong_behind_the_prompts])
def test_logits_that_are_worse_than_those_that_were_judged(model_of, monkeypatch, bug):
    """Held against themselves, generations are sound."""
    model, truth = model_of("numpy"), model_of("numpy", "float64", "manual")
    passes = type(model._passes)
    right, changed = passes.logits, bug(passes.logits)

    def logits(self, params, ids):  # of this model alone
        return (changed if self is model._passes else right)(self, params, ids)

    monkeypatch.setattr(passes, "logits", logits)
    found = wrong(checks_of(model, truth))
    assert found["logits of a whole pass"].startswith("A defect: model.logits on the participant is off by ")


def test_end_tokens_are_put_back(model_of):
    model = model_of("numpy")
    with pytest.raises(ZeroDivisionError), ending_at(model, [1, 2]):
        assert model.end_of_text_ids == (1, 2)
        raise ZeroDivisionError
    assert model.end_of_text_ids == ()


# --- bugs of the engine -----------------------------------------------------------------------------------------------


def around(monkeypatch, owner, name, change):
    """change(right) -> what takes the place of the method."""
    monkeypatch.setattr(owner, name, change(getattr(owner, name)))


def last_of_the_longest_row(right):
    """Padding on the right is read as if it were text."""

    def run(self, pieces, starts):
        longest = max(map(len, pieces))
        right(self, [[*piece, *[0] * (longest - len(piece))] for piece in pieces], starts)

    return run


def position_of_the_first_row(right):
    return lambda self, pieces, starts: right(self, pieces, [starts[0]] * len(starts))


def sorted_by_length(right):
    def init(self, engine, rows, rules):
        right(self, engine, sorted(rows, key=lambda row: len(row.prompt)), rules)

    return init


def one_generator(right):
    def init(self, engine, rows, rules):
        for row in rows:
            row.noise = rows[0].noise
        right(self, engine, rows, rules)

    return init


def generator_of_the_first_seed(right):
    def init(self, engine, rows, rules):
        for row in rows[1:]:
            row.noise = np.random.default_rng(0)
        right(self, engine, rows, rules)

    return init


def generator_by_row_number(right):
    def init(self, engine, rows, rules):
        for number, row in enumerate(rows):
            row.noise.random(number)
        right(self, engine, rows, rules)

    return init


def one_history(right):
    def init(self, engine, rows, rules):
        together = [token for row in rows for token in row.history]
        for row in rows:
            row.history = together
        right(self, engine, rows, rules)

    return init


def history_without_the_prompt(right):
    def init(self, engine, rows, rules):
        for row in rows:
            row.history = []
        right(self, engine, rows, rules)

    return init


def only_the_first_end_token(right):
    def init(self, prompt, limit, seed, ends, *rest):
        right(self, prompt, limit, seed, tuple(ends)[:1], *rest)

    return init


def end_token_kept(right):
    def accept(self, token, logprob, logits):
        piece = right(self, token, logprob, logits)
        if self.finish_reason == "end_of_text":
            self.token_ids.append(token)
            self.logprobs.append(logprob)
        return piece

    return accept


def end_called_length(right):
    def result(self, timing):
        if self.finish_reason == "end_of_text":
            self.finish_reason = "length"
        return right(self, timing)

    return result


def one_row_ends_all(right):
    def choose(self, sequences):
        tokens, pieces = right(self, sequences)
        ended = [row for row in self.rows if row.finish_reason == "end_of_text"]
        for row in self.rows if ended else ():
            row.finish_reason = row.finish_reason or "end_of_text"
        return tokens, pieces

    return choose


def one_token_short(right):
    def init(self, prompt, limit, *rest):
        right(self, prompt, max(limit - 1, 1), *rest)

    return init


def stop_string_shown(right):
    def push(self, text):
        already, before = self.found, self._held + text
        piece = right(self, text)
        return before if self.found and not already else piece

    return push


def held_back_text_lost(right):
    return lambda self: ""


def earlier_token_only(right):
    """A stop string that spans two tokens is not seen."""

    def push(self, text):
        self._held = ""
        return right(self, text)

    return push


def last_piece_lost(right):
    def init(self, decoding):
        right(self, decoding)
        pieces = list(self._pieces)
        self._pieces = iter(pieces[:-1])

    return init


def generators_that_go_on(right):
    """A generator is kept for each seed, and a second call begins where the first ended."""
    kept = {}

    def init(self, prompt, limit, seed, *rest):
        right(self, prompt, limit, seed, *rest)
        self.noise = kept.setdefault(seed, self.noise)

    return init


def prompt_of_the_call_before(right):
    """A prefill is kept for the next call and taken for a shorter prompt, too."""
    kept = {}

    def init(self, engine, prompts, new_tokens):
        right(self, engine, prompts, new_tokens)
        if len(prompts) == 1 and len(prompts[0]) < kept.get("length", 0):
            self.logits = kept["logits"]
        kept.update(length=len(prompts[0]), logits=self.logits)

    return init


def prefix_by_its_length(right):
    """What is kept of a beginning is found by its first tokens and its length."""
    kept = {}

    def run(self, pieces, starts):
        if len(pieces) == 1 and not any(starts) and len(pieces[0]) > 3:
            pieces = [kept.setdefault((*pieces[0][:3], len(pieces[0])), pieces[0])]
        right(self, pieces, starts)

    return run


def four_rows_at_once(right):
    """What is behind the fourth row of a batch is read wrong."""
    return lambda self, pieces, starts: right(self, [*pieces[:4], *(p[:1] * len(p) for p in pieces[4:])], starts)


def too_short_a_cache(right):
    def allocate(self, ops, config, batch, capacity):
        return right(self, ops, config, batch, capacity - 2 * (capacity == config.context_length))

    return allocate


def of_the_tempered_logits(right):
    return lambda logits, token: right(logits / np.float32(0.98), token)


def of_the_likeliest(right):
    return lambda logits, token: right(logits, int(logits.argmax()))


BUGS = {
    "last_of_the_longest_row": (Sequences, "_run", last_of_the_longest_row, "rows of unequal lengths"),
    "position_of_the_first_row": (Sequences, "_run", position_of_the_first_row, "rows of unequal lengths"),
    "sorted_by_length": (Decoding, "__init__", sorted_by_length, "rows of unequal lengths"),
    "one_generator": (Decoding, "__init__", one_generator, "generators of rows"),
    "generator_of_the_first_seed": (Decoding, "__init__", generator_of_the_first_seed, "generators of rows"),
    "generator_by_row_number": (Decoding, "__init__", generator_by_row_number, "generators of rows"),
    "one_history": (Decoding, "__init__", one_history, "repetition penalty of rows"),
    "history_without_the_prompt": (Decoding, "__init__", history_without_the_prompt, "repetition penalty of rows"),
    "only_the_first_end_token": (Continuation, "__init__", only_the_first_end_token, "end tokens and the limit"),
    "end_token_kept": (Continuation, "accept", end_token_kept, "end tokens and the limit"),
    "end_called_length": (Continuation, "result", end_called_length, "end tokens and the limit"),
    "one_row_ends_all": (Decoding, "_choose", one_row_ends_all, "end tokens and the limit"),
    "one_token_short": (Continuation, "__init__", one_token_short, "rows of unequal lengths"),
    "stop_string_shown": (StopStrings, "push", stop_string_shown, "stop strings"),
    "held_back_text_lost": (StopStrings, "flush", held_back_text_lost, "stop strings"),
    "earlier_token_only": (StopStrings, "push", earlier_token_only, "stop strings"),
    "last_piece_lost": (TextStream, "__init__", last_piece_lost, "stop strings"),
    "generators_that_go_on": (Continuation, "__init__", generators_that_go_on, "calls after each other"),
    "prompt_of_the_call_before": (Sequences, "__init__", prompt_of_the_call_before, "calls after each other"),
    "prefix_by_its_length": (Sequences, "_run", prefix_by_its_length, "calls after each other"),
    "four_rows_at_once": (Sequences, "_run", four_rows_at_once, "rows of unequal lengths"),
    "too_short_a_cache": (Contiguous, "allocate", too_short_a_cache, "a full cache"),
    "of_the_tempered_logits": (generate, "log_probability", of_the_tempered_logits, "log-probabilities"),
    "of_the_likeliest": (generate, "log_probability", of_the_likeliest, "log-probabilities"),
}
BATCHES_ALONE = ("last_of_the_longest_row", "position_of_the_first_row", "one_generator", "one_history")


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found_and_named(checks, monkeypatch, bug):
    owner, name, change, check = BUGS[bug]
    around(monkeypatch, owner, name, change)
    found = wrong(checks())
    assert check in found, found
    assert "the participant" in found[check] and found[check].startswith("A defect: ")
    if bug in BATCHES_ALONE:
        assert "row " in found[check] and "greedy continuations" not in found


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize(
    "bug",
    ["last_of_the_longest_row", "one_generator", "one_history", "only_the_first_end_token"],
)
def test_and_on_other_backends(checks, monkeypatch, backend, bug):
    owner, name, change, check = BUGS[bug]
    around(monkeypatch, owner, name, change)
    assert check in wrong(checks(backend))


def test_jax_decodes_many_tokens_in_a_call_and_each_may_end_a_row(checks, monkeypatch):
    """Rows that have ended wait in the middle of a call; here they go on."""
    right = Continuation.accept

    def accept(self, token, logprob, logits):
        if logits is None and len(self.token_ids) > 3:
            self.end_of_text_ids = ()
        return right(self, token, logprob, logits)

    monkeypatch.setattr(Continuation, "accept", accept)
    found = wrong(checks("jax"))
    assert list(found) == ["end tokens and the limit"]
    assert "did not end before the end token" in found["end tokens and the limit"]


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_the_last_place_of_a_cache(model_of, tokenizer, backend):
    """What is written there lands a place before, as a slice does that is pushed back into its array."""
    built = component("backend", backend, precision="float32", ops="fused")
    right = built.slice_update

    def pushed_back(target, update, start, axis):
        if update.shape[axis] == 1:  # the last token is chosen and never fed
            start = built.xp.minimum(start, built.asarray(np.array(CONFIG.context_length - 3)))
        return right(target, update, start, axis)

    built.slice_update = pushed_back
    model = assemble(CONFIG, random_arrays(CONFIG, 4, 0.25), built, tokenizer)
    truth = model_of("numpy", "float64", "manual")
    judged = JudgedGenerate(model, truth, "the participant")
    judged.one("a short call", [1, 2], 4)
    check = checked("a full cache", GenerateChecks(judged, PROMPTS, 12, 0)._full_cache)
    assert "a generation that fills 40 positions on the participant" in check.wrong


def test_in_exact_mode_everything_is_equal(checks, monkeypatch):
    """A log-probability that is off by one rounding in a batch, and logits that are off by one bit."""
    right = Decoding._choose

    def choose(self, sequences):
        if len(self.rows) > 1:
            sequences.logits = np.nextafter(sequences.logits, np.float32(np.inf))
        return right(self, sequences)

    monkeypatch.setattr(Decoding, "_choose", choose)
    assert not wrong(checks())
    assert "their sha256 differ" in wrong(checks(precision="exact"))["rows of unequal lengths"]
    monkeypatch.undo()

    alone = Decoding.__init__

    def init(self, engine, rows, rules):
        """Rows of a batch hand out numbers that are off by one rounding."""
        alone(self, engine, rows, rules)
        for row in rows if len(rows) > 1 else ():
            row.logprobs = Off()

    class Off(list):
        def append(self, number):
            super().append(float(np.nextafter(number, 0.0)))

    monkeypatch.setattr(Decoding, "__init__", init)
    assert not wrong(checks())
    assert "is not the same alone: logprobs differ from token 0 on" in wrong(checks(precision="exact"))[NAMES[3]]


def test_an_error_is_a_defect(checks, monkeypatch):
    right = LanguageModel.generate

    def no_batches(self, prompt, *rest, **named):
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], list):
            raise IndexError
        return right(self, prompt, *rest, **named)

    monkeypatch.setattr(LanguageModel, "generate", no_batches)
    found = wrong(checks())
    assert "on the participant raised IndexError" in found["rows of unequal lengths"]


# --- bugs of the sampler ----------------------------------------------------------------------------------------------


def changed(right, wrong_line):
    import inspect
    import types

    source = inspect.getsource(sampling)
    assert source.count(right) == 1
    module = types.ModuleType("wrong_sampler")
    module.__dict__["__name__"] = sampling.__name__
    exec(source.replace(right, wrong_line), module.__dict__)
    return module.choose


FAULTS = {
    "a negative logit is divided": ("values / penalty, values * penalty", "values / penalty, values / penalty"),
    "the penalty of what was generated alone": ("np.asarray(history, np.int64)", "np.asarray(history[4:], np.int64)"),
    "the penalty writes into the logits": ("logits.astype(np.float64)\n    seen", "logits\n    seen"),
    "ties at the edge of top-k to the higher id": (
        "np.flatnonzero(values == threshold)[: k - len(above)]",
        "np.flatnonzero(values == threshold)[len(above) - k :]",
    ),
    "all ties at the edge of top-k": (
        "np.flatnonzero(values == threshold)[: k - len(above)]",
        "np.flatnonzero(values == threshold)",
    ),
    "top-p keeps one more where p is met": ("before < sampling.top_p", "before <= sampling.top_p"),
    "min-p without its equals": ("probabilities >= sampling.min_p", "probabilities > sampling.min_p"),
    "near ties in half precision": (
        "wide = logits.astype(np.float64)",
        "wide = logits.astype(np.float16).astype(float)",
    ),
    "logits in float32 after the penalty": (
        "logits = penalise(logits, history, float(sampling.repetition_penalty or 1.0))",
        "logits = penalise(logits, history, float(sampling.repetition_penalty or 1.0)).astype(np.float16)",
    ),
    "a floor under the temperature": (
        "wide /= sampling.temperature",
        "wide /= max(sampling.temperature, 1e-5)",
    ),
    "a ceiling over the temperature": ("wide /= sampling.temperature", "wide /= min(sampling.temperature, 2.0)"),
    "top-p before top-k": ("ids = largest(wide, sampling.top_k)", "ids = np.sort(largest(wide, sampling.top_k))"),
    "no number drawn where one candidate is left": (
        "drawn = generator.random() * reached[-1]",
        "drawn = generator.random() * reached[-1] if len(ids) > 1 else 0.0",
    ),
    "the first candidate has a head start": ("generator.random() *", "(0.999 * generator.random()) *"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_sampler_is_found(monkeypatch, fault):
    monkeypatch.setattr(generate, "choose", changed(*FAULTS[fault]))
    for seed in (0, 7):
        check = sampler_rules("the participant", seed)
        assert check.wrong and "the sampler on the participant" in check.wrong
    monkeypatch.undo()


def test_the_rules_are_sound_with_many_seeds():
    for seed in range(8):
        check = sampler_rules("the participant", seed)
        assert check.wrong is None and check.skipped is None
        assert "tokens; rounding left" in check.tried and ": 0 tokens" not in check.tried
