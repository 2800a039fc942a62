"""`lab.compare` as a whole: what it returns, what it refuses, what it holds in memory."""

import json
import tracemalloc
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from reference_models import save_gpt2, save_llama
from small_models import changed, small_model

import transformer_lab as lab
from transformer_lab.comparison.default_prompts import default_prompts
from transformer_lab.comparison.judging.examination import examine
from transformer_lab.comparison.judging.training_loss import parameters_of
from transformer_lab.comparison.participants.own_model import OwnModel
from transformer_lab.comparison.participants.participant import Function
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import assemble
from transformer_lab.model.decoder import tap_names
from transformer_lab.model.init import initialise

IDS = [5, 17, 3, 88, 41, 2, 60, 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("gpt2")
    save_gpt2(found)
    return found


@pytest.fixture(scope="module")
def report(folder):
    return lab.compare(folder, [IDS, IDS[:3]], ["numpy", "torch"], sweeps=["pieces", "batch", "manual"], gradients=True)


def test_the_report_of_a_sound_model(report, folder):
    assert report.sound and report.first_divergence is None
    assert report.verdict.startswith(
        "Identical in exact mode on numpy and torch, gradients too. Float32 differences are rounding"
    )
    content = report.to_dict()
    assert content["verdict"] == {
        "status": "sound",
        "sentence": report.verdict,
        "tap": None,
        "exact_identical": True,
    }
    assert report.status == "sound"
    assert [row["name"] for row in content["participants"]] == [
        "numpy float32",
        "torch float32",
        "numpy exact",
        "torch exact",
    ]
    assert [prompt["token_ids"] for prompt in content["prompts"]] == [IDS, IDS[:3]]
    model = lab.load_model(folder)
    shown = set(model.record(IDS))
    rows = [row for row in report.table if row["participant"] == "numpy float32"]
    assert [row["tap"] for row in rows] == [name for name in tap_names(model.config) if name in shown]
    assert all(0.0 <= row["ratio"] <= 1.0 for row in report.table)
    assert {row["participant"] for row in content["sweeps"]} == {row["name"] for row in content["participants"]}
    assert {row["participant"] for row in content["gradients"]} == {row["name"] for row in content["participants"]}
    exact = [row for row in content["gradients"] if row["participant"].endswith("exact")]
    assert all(row["ratio"] is None for row in exact)  # operations alone have rows in the precision that was asked for
    names = {f"gradient of {row['parameter']}" for row in exact}
    found = {row["tap"]: row for row in content["exact"]["taps"] if row["roundings"] is None}
    assert found.keys() == names and not any(row["differing"]["torch exact"] for row in found.values())
    assert all(row["ratio"] is None or row["ratio"] <= 1.0 for row in content["gradients"])
    assert [row["participant"] for row in content["text"]] == ["numpy float32", "torch float32"]
    assert all(row["agreement"] == row["tokens"] == 2 * (24 - len(IDS)) for row in content["text"])  # the context's end
    assert all(row["distinct"] == 1 and row["sampler"] for row in content["text"])
    assert content["environment"]["blas"]


def test_the_errors_of_the_report_are_the_errors(report, folder):
    """max_abs and rms of the logits, by hand; inherited and added make the total."""
    truth = lab.load_model(folder, precision="float64", ops="manual")
    found = lab.load_model(folder)
    apart = [found.record(ids)["logits"] - truth.record(ids)["logits"] for ids in (IDS, IDS[:3])]
    (row,) = (r for r in report.table if r["tap"] == "logits" and r["participant"] == "numpy float32")
    assert row["max_abs"] == max(np.abs(one).max() for one in apart)
    flat = np.concatenate([one.reshape(-1) for one in apart])
    assert row["rms"] == pytest.approx(float(np.sqrt(np.mean(flat**2))), rel=1e-12)
    assert row["rms"] <= row["added_rms"] + row["inherited_rms"]
    nearest = [r for r in report.table if r["tap"] == "logits" and r["nearest"]]
    assert len({r["participant"].split()[1] for r in nearest}) == 2  # one in float32, one in exact mode, or more


def test_exact_mode_is_certified(report):
    exact = report.to_dict()["exact"]
    assert exact["identical"] and exact["participants"] == ["numpy exact", "torch exact"]
    assert exact["roundings"] == sum(row["roundings"] or 0 for row in exact["taps"]) > 0
    assert all(row["differing"] == {"torch exact": 0} for row in exact["taps"])
    zero = [row for row in report.to_dict()["sweeps"] if row["participant"].endswith("exact")]
    assert zero and all(row["differing"] == 0 and row["max_abs"] == 0.0 for row in zero)


def test_the_report_is_written(report, tmp_path):
    report.to_json(tmp_path / "report.json")
    report.to_html(tmp_path / "report.html")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report.to_dict()
    assert report.verdict in (tmp_path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(lab.UnavailableError, match="cannot be written"):
        report.to_json(tmp_path / "nowhere" / "report.json")


def test_other_precisions_are_rows_of_a_sweep_and_no_alarm(folder):
    """Exact mode differs from float32, which is no defect; that another way leaves exact mode's bits would be one."""
    found = lab.compare(folder, IDS, ["numpy", "torch"], new_tokens=0, sweeps=["precision"])
    assert found.sound, found.verdict
    rows = [(row["participant"], row["change"]) for row in found.to_dict()["sweeps"]]
    assert rows == [
        *(("numpy float32", f"precision {name}") for name in ("float64", "exact")),
        *(("torch float32", f"precision {name}") for name in ("float64", "exact", "bfloat16", "int8")),
    ]
    assert all(row["differing"] > 0 for row in found.to_dict()["sweeps"])


@pytest.mark.parametrize("precision", ["float64", "exact", "bfloat16", "int8"])
def test_every_precision_is_judged_by_its_own_bounds(folder, precision):
    found = lab.compare(folder, IDS, ["torch"], precision, exact=False, new_tokens=0)
    assert found.sound, found.verdict
    assert found.to_dict()["participants"][0]["precision"] == precision


def test_kernels_of_few_bits_may_lose_nothing_on_one_backend_alone():
    """The embedded weights are bfloat16 already: JAX, which keeps the rest in float32, is thousands of times nearer."""
    found = lab.compare("storybook", IDS, ["torch", "jax"], "bfloat16", exact=False, new_tokens=0)
    assert found.sound, found.verdict


def test_three_backends_and_grouped_queries(tmp_path):
    save_llama(tmp_path)
    found = lab.compare(tmp_path, IDS, new_tokens=0, gradients=True)
    assert found.sound, found.verdict
    assert "numpy, torch and jax" in found.verdict
    names = {f"{name} {precision}" for name in BACKENDS for precision in ("float32", "exact")}
    assert {row["participant"] for row in found.to_dict()["gradients"]} == names


BACKENDS = ("numpy", "torch", "jax")


def test_a_defect_of_the_shared_definition_takes_an_outsider(folder, monkeypatch):
    """All backends make it, the truth and the judge too, and the report says that it shares it with them. Beside
    somebody else's program it is seen where it begins."""
    from transformer_lab.comparison.participants.transformers import Transformers
    from transformer_lab.norm.layer_norm import LayerNorm

    right = LayerNorm.__call__

    def wrong(self, ops, params, x):
        return right(replace(self, epsilon=1e-4), ops, params, x)

    monkeypatch.setattr(LayerNorm, "__call__", wrong)
    alone = lab.compare(folder, IDS, ["numpy", "torch"], new_tokens=0)
    assert alone.sound
    assert "shares the definition of the decoder" in alone.to_dict()["reached"]["judge"]
    found = lab.compare(folder, IDS, ["numpy"], exact=False, new_tokens=0, participants=[Transformers(folder)])
    assert not found.sound
    assert found.first_divergence.tap == "blocks.0.norm_1"
    assert found.first_divergence.participant == "transformers float32"


def test_a_single_backend_in_exact_mode_is_said_to_be_alone(folder):
    found = lab.compare(folder, IDS, ["numpy"], "exact", new_tokens=0)
    assert found.sound
    assert found.verdict.startswith("Exact mode is within its bounds; numpy is alone in it")


def test_configurations_that_differ_are_said_first(folder):
    sound = lab.load_model(folder)
    config = changed(sound.config, norm_epsilon=1e-3)
    model = assemble(config, parameters_of(sound), component("backend", "numpy", precision="float32", ops="manual"))
    other = Function("theirs", model.record, config=model.config)
    found = lab.compare(folder, IDS, ["numpy"], exact=False, new_tokens=0, participants=[other])
    assert found.verdict.startswith("The configurations differ: norm.epsilon is")
    assert "A defect: blocks.0.norm_1 on theirs" in found.verdict


def test_a_participant_with_the_logits_alone_is_judged(folder):
    model = lab.load_model(folder, precision="float64")

    def of(change):
        only = Function("theirs", lambda ids: {"logits": change(model.logits(ids))})
        return lab.compare(folder, IDS, ["numpy"], exact=False, new_tokens=0, participants=[only])

    right = of(lambda logits: logits)
    assert right.status == "not judged"  # the bounds of so many operations are wide
    assert right.verdict.startswith("Not judged: logits on theirs: too little is shown before it; show blocks.1.")
    (row,) = (row for row in right.table if row["participant"] == "theirs")
    assert row["ratio"] is None and not row["nearest"] and row["unjudged"] in right.verdict
    wrong = of(lambda logits: logits + 0.01 * (np.arange(logits.shape[-1]) % 2))
    assert wrong.status == "defect" and wrong.first_divergence is None
    assert wrong.verdict.startswith("A defect at or before logits on theirs: its error is")


@dataclass(frozen=True)
class SquaredReLU:
    """A network of somebody's own. wrong: one backend squares a little less."""

    taps: ClassVar[tuple[str, ...]] = ("pre", "act")
    size: int = 48
    wrong: str = ""

    def shapes(self, hidden_size):
        return {"up.kernel": (hidden_size, self.size), "down.kernel": (self.size, hidden_size)}

    def __call__(self, ops, params, x, tap):
        pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
        act = tap("act", ops.relu(pre) ** 2 * (0.999 if ops.name == self.wrong else 1.0))
        return ops.linear(act, params["down"]["kernel"])


def test_a_network_of_somebodys_own_takes_part(folder):
    def of(ffn):
        options = {"ffn": ffn, "weights": "random"}
        return lab.compare(folder, IDS, ["numpy", "torch"], gradients=True, new_tokens=0, options=options)

    right = of(SquaredReLU())
    assert right.sound and right.to_dict()["exact"]["identical"]
    assert all(row["unjudged"] is None for row in right.table)
    wrong = of(SquaredReLU(wrong="torch"))
    assert wrong.status == "defect" and wrong.first_divergence.tap == "blocks.0.ffn.act"
    assert "A defect: blocks.0.ffn.act on torch exact" in wrong.verdict
    assert "Something differs on torch float32, too." in wrong.verdict


def test_two_of_a_name_are_told_apart(folder):
    objects = [component("backend", "numpy", precision="float32", ops=ops) for ops in ("fused", "manual")]
    found = lab.compare(folder, IDS, objects, exact=False, new_tokens=0).to_dict()["participants"]
    assert [row["name"] for row in found] == ["numpy float32", "numpy float32 (2)"]
    assert [row["operations"]["layer_norm"] for row in found] == ["in_place", "manual"]


def test_text_that_does_not_follow_from_the_logits_is_found(folder, monkeypatch):
    from transformer_lab.generation.engine import Sequences

    right = Sequences.feed

    def late(self, tokens):
        """A cache that is one position behind from the first decoded token on."""
        right(self, tokens)
        self.logits = self.logits[:, ::-1].copy()

    monkeypatch.setattr(Sequences, "feed", late)
    found = lab.compare(folder, IDS, ["torch"], exact=False)
    assert "greedy decoding on torch float32 chose token 1" in found.verdict


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompts": []}, "prompt is empty"),
        ({"prompts": np.empty((0, 4), int)}, "list of prompts is empty"),
        ({"prompts": [IDS, [101]]}, "101 is outside the vocabulary"),
        ({"prompts": [list(range(25))]}, "25 tokens"),
        ({"prompts": "text"}, "no tokenizer"),
        ({"backends": ["nympy"]}, "nympy"),
        ({"precision": "float8"}, "float8"),
        ({"sweeps": ["cache"]}, "no sweep 'cache'"),
        ({"new_tokens": -1}, "new_tokens is -1"),
        ({"runs": 0}, "runs is 0"),
    ],
)
def test_mistakes_are_answered(folder, arguments, said):
    with pytest.raises(lab.ConfigurationError, match=said):
        lab.compare(folder, **{"prompts": IDS, "backends": ["numpy"], "exact": False} | arguments)


def test_what_is_held_is_the_taps_of_one_block():
    """Twelve layers take hardly more than two, apart from their weights."""
    peaks = {}
    for layers in (2, 12):
        config = small_model(64, 128, 32, layers, 2, Dense(size=128))
        arrays = dict(initialise(config))
        models = [
            assemble(config, arrays, component("backend", "numpy", precision=precision, ops="manual"))
            for precision in ("float64", "float32")
        ]
        truth, participant = map(OwnModel, models)
        ids = np.arange(128) % 64
        examine(participant, truth, [ids])
        tracemalloc.start()
        examine(participant, truth, [ids])
        peaks[layers] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[12] < 1.2 * peaks[2]


@pytest.mark.parametrize("longest", [1, 2, 5, 141])
def test_default_ids_have_the_first_and_the_last_of_the_vocabulary(longest):
    rows = default_prompts(None, 5000, longest)
    assert [len(row) for row in rows] == [min(length, longest) for length in (141, 64, 17, 2)]
    assert 4999 in rows[0] and (longest == 1 or 0 in rows[0])
