"""Whether exact mode gave the same bits: a single one that differs is found, counted and named."""

import numpy as np
from reference_models import save_gpt2

from transformer_lab.backends.readings.exact import gradients as exact_gradients
from transformer_lab.backends.readings.exact import operations as exact
from transformer_lab.comparison.judging.exactness import Difference, Exactness
from transformer_lab.comparison.study import compare


def looked_at(folder, *participants):
    """participants: {tap: array} each."""
    bits = Exactness(folder / "taps")
    for number, taps in enumerate(participants):
        bits.begin(f"participant {number}")
        for name, value in taps.items():
            bits.look_on(0, name, value)
    return bits


def test_equal_bits_are_identical(tmp_path):
    taps = {"embed": np.array([1.0, np.nan, -np.inf, 0.0], np.float32), "logits": np.ones((2, 3), np.float32)}
    bits = looked_at(tmp_path, taps, {name: value.copy() for name, value in taps.items()}, taps)
    assert bits.identical and bits.first_difference(["embed", "logits"]) is None
    assert bits.differing["participant 2"] == {"embed": 0, "logits": 0}


def test_each_bit_counts_even_that_of_minus_zero(tmp_path):
    first = {"embed": np.zeros(4, np.float32), "logits": np.ones(3, np.float32)}
    second = {
        "embed": np.zeros(4, np.float32),
        "logits": np.array([1.0, np.nextafter(1.0, 2.0, dtype=np.float32), 2.0]),
    }
    second["logits"] = second["logits"].astype(np.float32)
    third = {"embed": np.array([0.0, -0.0, 0.0, 0.0], np.float32), "logits": first["logits"]}
    bits = looked_at(tmp_path, first, second, third)
    assert not bits.identical
    assert bits.differing["participant 1"] == {"embed": 0, "logits": 2}
    assert bits.first_difference(["embed", "logits"]) == Difference("embed", "participant 2", 1)
    assert bits.first_difference(["logits"]) == Difference("logits", "participant 1", 2)
    assert bits.first_difference([]) == Difference("embed", "participant 2", 1)  # whatever was shown is judged


def test_a_tap_that_is_left_out_is_a_difference(tmp_path):
    whole = {"embed": np.ones(4, np.float32), "final_norm": np.ones(2, np.float32), "logits": np.ones(3, np.float32)}
    less = {name: value for name, value in whole.items() if name != "final_norm"}
    bits = looked_at(tmp_path, whole, less, whole)
    assert not bits.identical
    assert bits.missing == {"participant 0": {}, "participant 1": {"final_norm": 2}, "participant 2": {}}
    expected = Difference("final_norm", "participant 1", 2, missing=True)
    assert bits.first_difference(["embed", "final_norm", "logits"]) == expected
    assert bits.differing["participant 1"] == {"embed": 0, "logits": 0}


def test_a_tap_that_the_first_leaves_out_is_missing_there(tmp_path):
    more = {name: np.ones(4, np.float32) for name in ("embed", "gradient")}
    bits = looked_at(tmp_path, {"embed": np.ones(4, np.float32)}, more)
    assert bits.first_difference(["embed"]) == Difference("gradient", "participant 0", 4, missing=True)


def test_a_tap_that_is_left_out_of_one_prompt_is_missing(tmp_path):
    bits = Exactness(tmp_path / "taps")
    for participant, prompts in (("first", (0, 1)), ("second", (0,))):
        bits.begin(participant)
        for prompt in prompts:
            bits.look_on(prompt, "logits", np.ones((2, 3), np.float32))
    assert bits.first_difference(["logits"]) == Difference("logits", "second", 6, missing=True)


def test_a_backend_that_does_not_show_a_tap_is_named_in_the_report(tmp_path, monkeypatch):
    """A fused attention in exact mode would show neither scores nor pattern."""
    save_gpt2(tmp_path / "model")
    right = exact.attention

    def silent(ops, query, key, value, start, scale, window=None, tap=exact.identity):
        return right(ops, query, key, value, start, scale, *([] if ops.name == "torch" else [window, tap]))

    monkeypatch.setattr(exact, "attention", silent)
    report = compare(tmp_path / "model", [5, 17, 3, 88], ["numpy", "torch"], new_tokens=0)
    content = report.to_dict()
    assert not report.sound and content["verdict"]["exact_identical"] is False
    assert "Exact mode is not identical: blocks.0.attn.scores is missing on torch exact" in report.verdict
    missing = {row["tap"] for row in content["exact"]["taps"] if row["missing"] == ["torch exact"]}
    assert missing == {f"blocks.{layer}.attn.{name}" for layer in (0, 1) for name in ("scores", "pattern")}
    report.to_html(tmp_path / "report.html")
    assert "Missing on" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_who_differs_from_the_first_is_judged_on_its_own(tmp_path, monkeypatch):
    """Of the second, equal to the first, all is as of the first; the third is looked at again, and counted once."""
    save_gpt2(tmp_path / "model")
    right = exact.gelu_tanh

    def off(ops, x):
        y = right(ops, x)
        return y * 1.25 if ops.name == "jax" else y

    monkeypatch.setattr(exact, "gelu_tanh", off)
    ids = [[5, 17, 3, 88], [9, 2]]
    content = compare(tmp_path / "model", ids, gradients=False, new_tokens=0, progress=None).to_dict()
    rows = {(row["tap"], row["participant"]): row for row in content["taps"]}
    for tap in ("blocks.0.norm_1", "blocks.0.ffn.act", "logits"):
        first, second = rows[tap, "numpy exact"], rows[tap, "torch exact"]
        assert first | {"participant": "torch exact"} == second and first["ratio"] <= 1.0
    assert rows["blocks.0.ffn.act", "jax exact"]["ratio"] > 1e4
    differing = {row["tap"]: row["differing"] for row in content["exact"]["taps"]}
    assert differing["blocks.0.ffn.pre"] == {"torch exact": 0, "jax exact": 0}
    count = differing["blocks.0.ffn.act"]["jax exact"]
    inner = rows["blocks.0.ffn.act", "jax exact"]
    assert 0.9 * 6 * 128 < count <= 6 * 128 and inner["participant"] == "jax exact"
    assert content["verdict"]["status"] == "defect" and content["verdict"]["tap"] == "blocks.0.ffn.act"


def test_gradients_come_after_the_taps_from_the_loss_to_the_embedding(tmp_path):
    names = ("logits", "gradient of head.kernel", "gradient of embed.token")
    one = np.ones(3, np.float32)
    bits = looked_at(tmp_path, dict.fromkeys(names, one), {names[0]: one, names[1]: 2 * one, names[2]: 2 * one})
    assert bits.gradients == list(names[1:])
    assert not bits.identical and bits.first_difference(["logits"]) == Difference(names[1], "participant 1", 3)


def test_one_bit_of_a_gradient_is_named(tmp_path, monkeypatch):
    save_gpt2(tmp_path / "model")
    right = exact_gradients.gelu_tanh

    def one_bit_off(ops, g, x):
        (gradient,) = right(ops, g, x)

        def to_x():
            y = gradient()
            if ops.name == "torch":
                y[0, 1, 7] = float(np.nextafter(np.float32(y[0, 1, 7]), np.float32(np.inf)))
            return y

        return (to_x,)

    monkeypatch.setattr(exact_gradients, "gelu_tanh", one_bit_off)
    report = compare(tmp_path / "model", [5, 17, 3, 88], ["numpy", "torch"], gradients=True, new_tokens=0)
    assert not report.sound
    found = {row["tap"]: row["differing"]["torch exact"] for row in report.to_dict()["exact"]["taps"]}
    assert "gradient of blocks.1.ffn.up.kernel on torch exact differs in" in report.verdict
    assert found["gradient of blocks.1.ffn.up.kernel"] > 0
    # These come before it.
    assert found["gradient of blocks.1.ffn.down.kernel"] == found["logits"] == 0
    report.to_html(tmp_path / "report.html")
    assert "taps, and all gradients" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_one_bit_on_one_backend_is_named(tmp_path, monkeypatch):
    save_gpt2(tmp_path / "model")
    right = exact.gelu_tanh

    def one_bit_off(ops, x):
        y = right(ops, x)
        if ops.name == "torch":
            y[0, 2, 7] = float(np.nextafter(np.float32(y[0, 2, 7]), np.float32(np.inf)))
        return y

    monkeypatch.setattr(exact, "gelu_tanh", one_bit_off)
    report = compare(tmp_path / "model", [5, 17, 3, 88], ["numpy", "torch"], new_tokens=0)
    content = report.to_dict()
    assert not report.sound and content["verdict"]["exact_identical"] is False
    assert "blocks.0.ffn.act on torch exact differs in 1 elements from numpy exact" in report.verdict
    rows = {row["tap"]: row["differing"]["torch exact"] for row in content["exact"]["taps"]}
    assert rows["blocks.0.ffn.act"] == 1 and rows["blocks.0.ffn.pre"] == rows["embed"] == 0
