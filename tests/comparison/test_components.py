"""Components from outside are judged like ours: random models are sound on all backends, and a defect that one backend
alone makes in a function of `ops.xp` is found and put at the component's tap.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from components import COMPONENTS, BestTwo, SoftmaxGate, SquaredReLU
from reference_models import save_gpt2, save_llama

import transformer_lab as lab
from transformer_lab.config import component

IDS = [5, 17, 3, 88, 41, 2, 60, 9]
FAMILIES = {"gpt2": save_gpt2, "llama": save_llama}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {name: tmp_path_factory.mktemp(name) for name in FAMILIES}
    for name, save in FAMILIES.items():
        save(found[name])
    return found


def compared(folder, ffn, backends, seed=0, **options):
    options = {"exact": False, "gradients": False, "new_tokens": 0} | options
    random = {"ffn": ffn, "weights": "random", "seed": seed}
    return lab.compare(folder, IDS, backends, options=random, **options)


# --- what is sound is sound -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", COMPONENTS)
def test_random_models_are_sound_exact_and_gradients_too(folders, name, family):
    ffn = COMPONENTS[name]
    found = compared(folders[family], ffn, ["numpy", "torch"], exact=True, gradients=True, new_tokens=4)
    assert found.status == "sound", found.verdict
    assert found.verdict.startswith("Identical in exact mode on numpy and torch, gradients too.")
    assert all(row["unjudged"] is None for row in found.table)
    shown = {row["tap"] for row in found.table}
    assert {f"blocks.{layer}.ffn.{tap}" for layer in range(2) for tap in (*ffn.taps, "out")} <= shown
    content = found.to_dict()
    assert content["reached"]["unbounded"] == []
    steps = {row["parameter"].split(":")[0] for row in content["gradients"] if row["ratio"] is not None}
    assert any(step.startswith("blocks.1.ffn.") for step in steps)


@dataclass(frozen=True)
class Nothing:
    """Without a parameter, and without a tap."""

    taps: ClassVar[tuple[str, ...]] = ()

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {}

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        return x


def test_a_component_needs_no_parameters(folders):
    found = compared(folders["gpt2"], Nothing(), ["numpy", "torch", "jax"], exact=True, gradients=True, new_tokens=4)
    assert found.status == "sound", found.verdict


@dataclass(frozen=True)
class Own(SquaredReLU):
    """down(run(up(x))) for a function of the inner values."""

    taps: ClassVar[tuple[str, ...]] = ("act",)
    run: Any = None

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        act = tap("act", self.run(ops, ops.xp, ops.linear(x, params["up"]["kernel"])))
        return ops.linear(act, params["down"]["kernel"])


def log_beside_0(ops, xp, pre):
    r = ops.relu(pre)
    return xp.where(r > 0.0, xp.log(r), xp.zeros_like(r))


def mean_of_nothing(ops, xp, pre):
    """Of centred numbers: what is left of it is rounding alone."""
    centred = pre - xp.mean(pre, axis=-1, keepdims=True)
    return pre + xp.mean(centred, axis=-1, keepdims=True)


# What has no gradient where it is taken, in float64 itself or in float32: nobody who computes it is to blame.
WITHOUT_GRADIENT = {
    "the log of a 0 that is not taken": (log_beside_0, "not judged", "is not finite in float64 itself"),
    "an overflow that saturates": (
        lambda ops, xp, pre: xp.tanh(xp.exp(pre * 4000.0)),
        "not judged",
        "beyond the largest number",
    ),
    "the logs of 1 in place of 0": (
        lambda ops, xp, pre: xp.where(pre > 0.0, xp.log(xp.where(pre > 0.0, pre, xp.ones_like(pre))), 0.0 * pre),
        "sound",
        "",
    ),
    "a mean of nothing": (mean_of_nothing, "sound", ""),
}


@pytest.mark.parametrize("title", WITHOUT_GRADIENT)
@pytest.mark.parametrize("seed", [0, 5])
def test_nobody_is_blamed_for_what_has_no_number(folders, title, seed):
    run, status, said = WITHOUT_GRADIENT[title]
    found = compared(folders["gpt2"], Own(run=run), ["numpy", "torch"], seed, exact=True, gradients=True)
    assert found.status == status, found.verdict
    assert said in found.verdict


@pytest.mark.parametrize("name", ["SoftmaxGate", "BestTwo", "Ranks"])
def test_random_models_are_sound_on_jax(folders, name):
    found = compared(folders["gpt2"], COMPONENTS[name], ["jax"])
    assert found.status == "sound", found.verdict


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", COMPONENTS)
def test_random_models_are_sound_on_three_backends(folders, name, family):
    for seed in range(4):
        found = compared(folders[family], COMPONENTS[name], ["numpy", "torch", "jax"], seed, gradients=True)
        assert found.status == "sound", found.verdict
    found = compared(folders[family], COMPONENTS[name], ["numpy", "torch", "jax"], exact=True, gradients=True)
    assert found.status == "sound", found.verdict
    assert found.to_dict()["exact"]["identical"]


@pytest.mark.parametrize("name", COMPONENTS)
def test_many_random_models_are_sound(folders, name):
    """Of other seeds, and in float64, where nothing hides behind float32's rounding."""
    for seed in range(1, 4):
        for precision in ("float32", "float64"):
            found = compared(folders["gpt2"], COMPONENTS[name], ["numpy", "torch"], seed, precision=precision)
            assert found.status == "sound", found.verdict


# --- a defect of one backend ------------------------------------------------------------------------------------------


class Namespace:
    """`ops.xp` of a backend, one function of which is wrong."""

    def __init__(self, right: Any, name: str, wrong: Any) -> None:
        self._right, self._name, self._wrong = right, name, wrong

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._right, name)
        if name != self._name:
            return found
        return lambda *arguments, **named: self._wrong(self._right, found, *arguments, **named)


def exp_of_few_digits(xp, right, x):
    """Off by 1e-5 of its value, more or less with x: a polynomial that is too short."""
    return right(x) * (1.0 + 1e-5 * xp.sin(7.0 * x))


def sum_in_float16(xp, right, x, **named):
    half = xp.astype(xp.astype(x, xp.float16), x.dtype)
    return xp.astype(xp.astype(right(half, **named), xp.float16), x.dtype)


def tanh_of_half(xp, right, x):
    return right(0.5 * x)


MISTAKES = {"exp": exp_of_few_digits, "sum": sum_in_float16, "tanh": tanh_of_half}
GUILTY = [(name, mistake) for name, ffn in COMPONENTS.items() for mistake in ffn.guilty]


def with_a_mistake(backend, mistake):
    """The fused operations of these backends do without `ops.xp`: only the component is hit."""
    ops = component("backend", backend, precision="float32", ops="fused")
    ops.xp = Namespace(ops.xp, mistake, MISTAKES[mistake])
    return ops


@pytest.mark.parametrize("backend", ["numpy", "torch", pytest.param("jax", marks=pytest.mark.full)])
@pytest.mark.parametrize(("name", "mistake"), GUILTY)
def test_a_defect_of_one_backend_is_found_at_the_components_tap(folders, name, mistake, backend):
    ffn = COMPONENTS[name]
    ops = with_a_mistake(backend, mistake)
    sound = "torch" if backend != "torch" else "numpy"
    found = compared(folders["gpt2"], ffn, [sound, ops])
    assert found.status == "defect", found.verdict
    tap = f"blocks.0.ffn.{ffn.guilty[mistake]}"
    assert found.verdict.startswith(f"A defect: {tap} on {backend} float32 differs by ")
    assert found.to_dict()["verdict"]["tap"] == tap
    rows = [row for row in found.table if row["participant"] == f"{sound} float32"]
    assert all(row["ratio"] is not None and row["ratio"] <= 1.0 for row in rows)


@dataclass(frozen=True)
class OneLess(BestTwo):
    """On one backend the second best is the third. What it chooses from is not shown."""

    taps: ClassVar[tuple[str, ...]] = ("chosen", "weights")
    wrong: str = ""

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        pre = ops.linear(x, params["up"]["kernel"])
        chosen = ops.top_k(pre, 3)[1]
        chosen = tap("chosen", chosen[..., ::2] if ops.name == self.wrong else chosen[..., :2])
        weights = tap("weights", ops.xp.tanh(ops.xp.take_along_axis(pre, chosen, axis=-1)))
        return ops.linear(weights, params["down"]["kernel"])


def test_a_wrong_choice_is_a_defect_at_its_tap(folders):
    assert compared(folders["gpt2"], OneLess(), ["numpy", "torch"]).sound
    found = compared(folders["gpt2"], OneLess(wrong="torch"), ["numpy", "torch"])
    assert found.status == "defect" and found.first_divergence.tap == "blocks.0.ffn.chosen"
    assert "blocks.0.ffn.chosen on torch float32" in found.verdict
    margins = [row["margin"] for row in found.table if row["tap"] == "blocks.0.ffn.chosen"]
    assert len(margins) == 2 and all(margin > 1.0 for margin in margins)  # no near tie that could excuse it


def test_a_wrong_gradient_of_one_backend_is_found_at_the_components_step(folders):
    """tanh is right, and the way back through it is that of half the slope."""
    import torch

    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            y = torch.tanh(x)
            context.save_for_backward(y)
            return y

        @staticmethod
        def backward(context, g):
            (y,) = context.saved_tensors
            return 0.5 * g * (1.0 - y * y)

    ops = component("backend", "torch", precision="float32", ops="fused")
    ops.xp = Namespace(ops.xp, "tanh", lambda xp, right, x: Tanh.apply(x))
    found = compared(folders["gpt2"], SoftmaxGate(), [ops], gradients=True)
    assert found.status == "defect" and found.first_divergence is None
    assert "A defect of the gradients: blocks." in found.verdict and "tanh" in found.verdict


# --- what has no bound ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hyperbolic(SquaredReLU):
    """asinh has no rule in the bounded reading, nor a gradient on NumPy."""

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
        act = tap("act", ops.xp.asinh(pre))
        return ops.linear(act, params["down"]["kernel"])


def test_a_function_without_a_bound_is_not_judged_by_name(folders):
    found = compared(folders["gpt2"], Hyperbolic(), ["numpy", "torch"])
    assert found.status == "not judged"
    assert "Not judged: blocks.0.ffn.act on numpy float32: xp.asinh, which has no bound." in found.verdict
    rows = [row for row in found.table if row["tap"] == "blocks.0.ffn.act"]
    assert all(row["unjudged"] and row["ratio"] is None and not row["nearest"] for row in rows)
    assert found.to_dict()["reached"]["unbounded"] == ["asinh"]
    judged = [row for row in found.table if row["tap"] == "blocks.0.ffn.out"]  # on what was shown, all is known again
    assert all(row["unjudged"] is None for row in judged)


def test_a_function_without_a_gradient_leaves_the_rest_of_the_report(folders):
    found = compared(folders["gpt2"], Hyperbolic(), ["numpy", "torch"], gradients=True)
    assert found.status == "not judged"
    assert "Not judged: the gradients: " in found.verdict and "asinh" in found.verdict
    assert found.to_dict()["gradients"] == [] and found.table


def test_beside_others_a_function_without_a_bound_still_shows_a_defect(folders):
    @dataclass(frozen=True)
    class Wrong(Hyperbolic):
        wrong: str = "torch"

        def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
            pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
            act = tap("act", ops.xp.asinh(pre) * (1.001 if ops.name == self.wrong else 1.0))
            return ops.linear(act, params["down"]["kernel"])

    found = compared(folders["gpt2"], Wrong(), ["numpy", "torch"])
    assert found.status == "defect"
    assert "A defect at or before blocks.0.ffn.act on torch float32" in found.verdict
    assert compared(folders["gpt2"], replace(Wrong(), wrong=""), ["numpy", "torch"]).status == "not judged"


def test_the_mistakes_are_mistakes():
    x = np.linspace(-2.0, 2.0, 40, dtype=np.float32).reshape(4, 10)
    for backend in ("numpy", "torch"):
        xp = component("backend", backend, precision="float32", ops="fused").xp
        ops = component("backend", backend, precision="float32", ops="fused")
        for name, wrong in MISTAKES.items():
            named = {"axis": -1} if name == "sum" else {}
            right = ops.to_numpy(getattr(xp, name)(ops.asarray(x), **named))
            off = ops.to_numpy(wrong(xp, getattr(xp, name), ops.asarray(x), **named)) - right
            assert off.dtype == np.float32 and 1e-7 < np.abs(off).max() < 1.0, (backend, name)


def test_a_gradient_that_is_infinite_by_itself_is_not_judged(folders):
    """The root of a 0: no bound says what becomes of its slope, and no backend is to blame."""

    @dataclass(frozen=True)
    class Root(SquaredReLU):
        taps: ClassVar[tuple[str, ...]] = ("pre",)

        def __call__(self, ops, params, x, tap):
            pre = ops.relu(tap("pre", ops.linear(x, params["up"]["kernel"])))
            return ops.linear(ops.xp.sqrt(pre), params["down"]["kernel"])

    found = compared(folders["gpt2"], Root(), ["numpy"], gradients=True)
    assert found.status == "not judged" and "is not finite in float64 itself" in found.verdict


TAP_MISTAKES = {
    "twice": (("a",), lambda xp, tap, h: tap("a", tap("a", h) * 2.0), "tap ffn.a is shown twice"),
    "out": (("out",), lambda xp, tap, h: tap("out", h), "tap ffn.out is shown twice"),
    "undeclared": ((), lambda xp, tap, h: tap("zz", h), "tap ffn.zz is not declared"),
    "not of each token": (("a",), lambda xp, tap, h: h * tap("a", xp.max(h)), r"tap blocks\.0\.ffn\.a has the shape"),
}


@pytest.mark.parametrize("name", TAP_MISTAKES)
def test_mistakes_with_taps_are_answered_in_words(folders, name):
    declared, run, said = TAP_MISTAKES[name]

    @dataclass(frozen=True)
    class Mistaken(SquaredReLU):
        taps: ClassVar[tuple[str, ...]] = declared

        def __call__(self, ops, params, x, tap):
            inner = run(ops.xp, tap, ops.linear(x, params["up"]["kernel"]))
            return ops.linear(inner, params["down"]["kernel"])

    with pytest.raises(lab.ConfigurationError, match=said):
        compared(folders["gpt2"], Mistaken(), ["numpy"])


def test_a_short_context_is_filled_by_prompts_not_by_continuations(tmp_path):
    save_gpt2(tmp_path / "short", n_positions=24)
    found = lab.compare(tmp_path / "short", None, ["numpy"], exact=False)
    assert max(found.to_dict()["reached"]["lengths"]) >= 12 and found.to_dict()["gradients"]
