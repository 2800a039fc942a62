"""Whether exact mode gave the same bits: a single one that differs is found, counted and named."""

import numpy as np
from reference_models import save_gpt2

from transformer_lab.backends import exact, exact_gradients
from transformer_lab.comparison.exactness import Exactness
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
    assert bits.first_difference(["embed", "logits"]) == ("embed", "participant 2", 1)
    assert bits.first_difference(["logits"]) == ("logits", "participant 1", 2)


def test_gradients_come_after_the_taps_from_the_loss_to_the_embedding(tmp_path):
    names = ("logits", "gradient of head.kernel", "gradient of embed.token")
    one = np.ones(3, np.float32)
    bits = looked_at(tmp_path, dict.fromkeys(names, one), {names[0]: one, names[1]: 2 * one, names[2]: 2 * one})
    assert bits.gradients == list(names[1:])
    assert not bits.identical and bits.first_difference(["logits"]) == (names[1], "participant 1", 3)


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
