"""Faults that mixtures of experts are known for, planted one by one: the judge of the right behaviour must refuse each.

A judge compares with something outside: loops and central differences in float64 (`step_by_hand.py`), transformers, or
NumPy. Every judge is a test of its own here, without a fault. Faults of single routers are planted where those are
judged: in tests/router/test_router_layers.py scores, weights, scales, biases, gate and up, clamps, k + 1 experts,
rounded scores and vanishing sums; in tests/router/test_router_promises.py the future, padding and lost gradients.
"""

import json
from dataclasses import replace
from functools import cache
from itertools import islice

import numpy as np
import pytest
import step_by_hand
from step_by_hand import EXPERTS, IDLE, IDS, WEIGHTS, judge_step, loads
from test_experts import kept_by_hand, run, slow
from tolerances import LOGITS_FLOAT32, OPERATION

import transformer_lab as lab
from transformer_lab.backends.base import Backend
from transformer_lab.balancer.sign_bias import SignBias
from transformer_lab.checkpoints.families import mixtral
from transformer_lab.checkpoints.tensor_names import Stored
from transformer_lab.config import component
from transformer_lab.ffn import dispatch, losses, moe
from transformer_lab.ffn.capacity import Capacity
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.language_model import assemble
from transformer_lab.model.parameters import nest
from transformer_lab.model.tokens import tokens_of
from transformer_lab.router import noisy_top_k, olmoe
from transformer_lab.router.deepseek_v3 import DeepSeekV3
from transformer_lab.router.gpt_oss import GptOss
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.noisy_top_k import NoisyTopK
from transformer_lab.router.olmoe import OLMoE
from transformer_lab.router.router import Router
from transformer_lab.router.switch import Switch
from transformer_lab.training import loop, optimizer
from transformer_lab.training import step as step_module
from transformer_lab.training.loop import Plan, TrainingRun
from transformer_lab.training.optimizer import AdamW
from transformer_lab.training.schedule import Constant
from transformer_lab.training.step import TrainingStep

MOE = MixtureOfExperts(OLMoE(2), Experts(EXPERTS, 6, bias=True), balance_loss=0.5, z_loss=0.1, balancer=SignBias(0.01))
TWO = (MOE, MOE)
MIXED = (replace(MOE, balancer=None), Dense(6), MOE)


# --- a step of training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("scope", moe.SCOPES)
def test_a_step_is_that_by_hand(scope, pieces):
    judge_step(tuple(replace(ffn, balance_scope=scope) for ffn in TWO), pieces)
    judge_step(tuple(ffn if ffn is MIXED[1] else replace(ffn, balance_scope=scope) for ffn in MIXED), pieces)


def test_torch_takes_the_same_step():
    judge_step(TWO, 3, "torch")


def test_the_step_shows_what_it_is_there_for():
    assert loads(TWO)[1][IDLE] == 0
    assert all((load > 0).sum() >= 3 for load in loads(TWO).values())
    found = step_by_hand.gradients(TWO, 3)
    assert max(map(abs, found["blocks.0.ffn.router.gate"].values())) > 0.01
    assert any(x == 0.0 for x in found["blocks.1.ffn.experts.up.kernel"].values())


def of_all_layers_together(monkeypatch):
    """One loss over the tokens of all layers, as if they were of one (transformers)."""
    right, before = moe.balance, []

    def pooled(ops, load, probabilities, share, scope, of_step=None):
        if not before:
            before.append((load, probabilities))
            return 0.0 * ops.xp.sum(probabilities)
        other, more = before.pop()
        return 2.0 * right(ops, load + other, 0.5 * (probabilities + more), share, scope)

    monkeypatch.setattr(moe, "balance", pooled)


def for_each_piece_in_full(name):
    """What is asked for is a mean over the piece, and those of all pieces are added up."""

    def plant(monkeypatch):
        right, place = getattr(moe, name), {"balance": 2, "z_loss": 1}[name]

        def wrong(ops, *given):
            given = list(given)
            given[place] = given[place] / ops.xp.sum(given[place])
            return right(ops, *given)

        monkeypatch.setattr(moe, name, wrong)

    return plant


def by_the_counting_pass_too(monkeypatch):
    right, counted = step_module.summed, []

    def summed(ops, piece, count):
        found = right(ops, piece, count)
        if "told" not in found:
            counted.append(found)
        elif counted:
            for layer, load in counted.pop().items():
                found["told"][layer]["load"] = found["told"][layer]["load"] + load
        return found

    monkeypatch.setattr(step_module, "summed", summed)


def twice(monkeypatch):
    """As where a block counts in its pass, and again when that is computed anew for its gradient."""
    right = moe.used
    monkeypatch.setattr(moe, "used", lambda *given: 2.0 * right(*given))


def padding_is_used(monkeypatch):
    right = losses.counted
    monkeypatch.setattr(losses, "counted", lambda ops, chosen, share: right(ops, chosen, share + 1.0))


def up_to_the_first_without(monkeypatch):
    right = step_module._moved

    def moved(ops, talking, states, *rest):
        for layer in talking:
            if f"blocks.{layer}.ffn.balancer.bias" not in states:
                return states
        return right(ops, talking, states, *rest)

    monkeypatch.setattr(step_module, "_moved", moved)


def as_it_stands(x):
    return getattr(x, "value", x)


def weights_without_gradient(monkeypatch):
    right = olmoe.at
    monkeypatch.setattr(olmoe, "at", lambda ops, scores, ids: right(ops, as_it_stands(scores), as_it_stands(ids)))


def shares_without_gradient(monkeypatch):
    monkeypatch.setattr(Router, "probabilities", lambda self, ops, logits: ops.softmax(as_it_stands(logits)))


def idle_experts_left_alone(what):
    """As an optimizer does that is given no gradient for them."""

    def plant(monkeypatch):
        right = AdamW.update

        def update(self, ops, params, gradients, moments, rates):
            new, after, norm = right(self, ops, params, gradients, moments, rates)
            pairs = {"weights": (new, params)} | {moment: (after[moment], moments[moment]) for moment in moments}
            for name, gradient in gradients.items():
                for expert in range(EXPERTS if ".experts." in name else 0):
                    if not gradient[expert].any():
                        pairs[what][0][name][expert] = pairs[what][1][name][expert]
            return new, after, norm

        monkeypatch.setattr(AdamW, "update", update)

    return plant


def biases_of_experts_decayed(monkeypatch):
    monkeypatch.setattr(optimizer, "is_decayed", lambda name, axes: axes > 1)


def stacks_not_decayed(monkeypatch):
    monkeypatch.setattr(optimizer, "is_decayed", lambda name, axes: axes == 2 and not name.endswith(".bias"))


IN_A_STEP = {
    "balance over concatenated layers": (TWO, 1, of_all_layers_together),
    "balance not divided by pieces": (TWO, 3, for_each_piece_in_full("balance")),
    "z-loss not divided by pieces": (TWO, 3, for_each_piece_in_full("z_loss")),
    "load counted by the counting pass too": (TWO, 3, by_the_counting_pass_too),
    "load counted twice": (TWO, 1, twice),
    "padding counted": (TWO, 3, padding_is_used),
    "a layer without a balancer stops the later ones": (MIXED, 1, up_to_the_first_without),
    "the same, in pieces": (MIXED, 3, up_to_the_first_without),
    "weights gathered without gradient": (TWO, 1, weights_without_gradient),
    "balance without gradient": (TWO, 1, shares_without_gradient),
    "idle experts do not decay": (TWO, 1, idle_experts_left_alone("weights")),
    "first moments of idle experts stay": (TWO, 1, idle_experts_left_alone("first")),
    "second moments of idle experts stay": (TWO, 1, idle_experts_left_alone("second")),
    "biases of experts decayed as matrices": (TWO, 1, biases_of_experts_decayed),
    "stacked kernels not decayed": (TWO, 1, stacks_not_decayed),
}


@pytest.mark.parametrize("fault", IN_A_STEP)
def test_a_fault_of_a_step_is_noticed(fault, monkeypatch):
    ffns, pieces, plant = IN_A_STEP[fault]
    step_by_hand.gradients(ffns, pieces), step_by_hand.loads(ffns)  # before the fault is there
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        judge_step(ffns, pieces)


# --- everything routed learns -----------------------------------------------------------------------------------------

ROUTERS = {"olmoe": OLMoE(2), "gpt_oss": GptOss(2), "noisy": NoisyTopK(2), "v3": DeepSeekV3(2), "switch": Switch()}


def judge_learning(title):
    """After 3 steps each array of the layer is another one, of every expert, by the loss of the text alone."""
    shared = Dense(6, "silu", gated=True)
    ffn = MixtureOfExperts(ROUTERS[title], Experts(EXPERTS, 6, bias=True), shared, True, balancer=SignBias(0.01))
    config, arrays = step_by_hand.model(ffn)
    arrays["blocks.0.ffn.balancer.bias"][:] = 0.0
    training = TrainingStep(component("backend", "numpy", precision="float64"), config, arrays, AdamW(weight_decay=0.0))
    for step in range(1, 4):
        training.run(IDS[None], WEIGHTS[None], step, 1.0)
    for name, array in training.trees()["params"].items():
        if ".ffn." in name:
            moved = np.abs(array - arrays[name]).reshape(EXPERTS if ".experts." in name else 1, -1).max(axis=1)
            assert (moved > 1e-4).all(), (name, moved)


@pytest.mark.parametrize("title", ROUTERS)
def test_every_routed_array_has_moved_after_some_steps(title):
    judge_learning(title)


def in_products_of_experts(name):
    def plant(monkeypatch):
        right = dispatch._product_of

        def product_of(ops, own):
            return right(ops, own | {name: {leaf: as_it_stands(x) for leaf, x in own[name].items()}})

        monkeypatch.setattr(dispatch, "_product_of", product_of)

    return plant


def in_the_shared_network(monkeypatch):
    right = Dense.__call__
    monkeypatch.setattr(Dense, "__call__", lambda self, *given: as_it_stands(right(self, *given)))


def in_the_noise(monkeypatch):
    right = noisy_top_k.softplus
    monkeypatch.setattr(noisy_top_k, "softplus", lambda ops, x: right(ops, as_it_stands(x)))


def one_expert_forgotten(monkeypatch):
    right = dispatch.dispatched
    monkeypatch.setattr(moe, "dispatched", lambda ops, experts, params, x, ids, kept, most: (
        right(ops, experts, params, x, ids, as_it_stands(ids) != 1, most)
    ))  # fmt: skip


UNLEARNED = {
    "weights gathered without gradient": ("olmoe", weights_without_gradient),
    "up of the experts": ("gpt_oss", in_products_of_experts("up")),
    "gate of the experts": ("v3", in_products_of_experts("gate")),
    "the shared network": ("switch", in_the_shared_network),
    "the width of the noise": ("noisy", in_the_noise),
    "one expert": ("v3", one_expert_forgotten),
}


@pytest.mark.parametrize("fault", UNLEARNED)
def test_an_array_that_does_not_learn_is_noticed(fault, monkeypatch):
    title, plant = UNLEARNED[fault]
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        judge_learning(title)


# --- validation on the way --------------------------------------------------------------------------------------------


class Rows:
    """The batches of a run, and a text for validation."""

    length, count, text_bytes = IDS.shape[1] - 1, 60, 60

    def at(self, index):
        return np.roll(IDS, index, axis=0), np.roll(WEIGHTS, index, axis=0)

    def read(self, start, stop):
        return np.random.default_rng(9).integers(0, step_by_hand.VOCABULARY, self.count)[start:stop]


def trained(folder, every):
    """(the trees, and what each step told of its loads) of 3 steps with an evaluation after so many."""
    config, arrays = step_by_hand.model(*TWO)
    ops = component("backend", "numpy", precision="float64")
    plan = Plan(4, 3, 2, every, 60, 0, 1, 0, "", 1)
    parts = TrainingStep(ops, config, arrays, AdamW()), assemble(config, arrays, ops)
    run = TrainingRun(folder, plan, *parts, Rows(), Rows(), Constant(), {}, {})
    told = []
    for _ in islice(run.reports(lambda: None), 3):
        told.append(np.stack([run.training.told[layer]["load"] for layer in (0, 1)]))
    return run.training.trees(), told


def judge_evaluation(folder):
    (one, told), (other, more) = (trained(folder / str(every), every) for every in (0, 1))
    np.testing.assert_array_equal(told, more)
    assert (np.sum(told, axis=-1) == 2 * WEIGHTS.sum()).all()
    for title, tree in one.items():
        for name, array in tree.items():
            np.testing.assert_array_equal(other[title][name], array, err_msg=f"{title} {name}")


def test_validation_leaves_all_as_it_was(tmp_path):
    judge_evaluation(tmp_path)


def validation_moves(what):
    """Evaluation as a step whose learning rate is 0: weights and moments are put back, and `what` is forgotten."""

    def plant(monkeypatch):
        right = TrainingRun._evaluate

        def evaluate(self, max_tokens):
            training = self.training
            kept = {name: getattr(training, name) for name in ("params", "moments", "states", "told")}
            ids = self.validation.read(0, 3 * 8).reshape(1, 3, 8)
            training.run(ids, np.ones((1, 3, 7)), self.done + 1, 0.0)
            for name, value in kept.items():
                if name != what:
                    setattr(training, name, value)
            return right(self, max_tokens)

        monkeypatch.setattr(loop.TrainingRun, "_evaluate", evaluate)

    return plant


@pytest.mark.parametrize("what", ["states", "told"])
def test_tokens_of_the_validation_in_the_load_are_noticed(what, monkeypatch, tmp_path):
    validation_moves(what)(monkeypatch)
    with pytest.raises(AssertionError):
        judge_evaluation(tmp_path)


# --- the gate beside kernels of 16 bits -------------------------------------------------------------------------------

WIDE = MixtureOfExperts(OLMoE(2), Experts(8, 6))
MANY = np.random.default_rng(4).standard_normal((2, 300, 16)).astype(np.float32)


def judge_gate(backend):
    draw = np.random.default_rng(5)
    arrays = {name: draw.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in WIDE.shapes(16).items()}
    ops, seen = component("backend", backend, precision="bfloat16"), {}
    with ops.scope():
        placed = nest({name: ops.place(name, array) for name, array in arrays.items()})
        tokens = tokens_of(ops, ops.asarray(np.zeros((2, 300), int)), ops.asarray(np.zeros(2, int)))
        WIDE(ops, placed, ops.asarray(MANY), lambda name, x: seen.setdefault(name, x), tokens)
        ids, weights = (ops.to_numpy(seen[f"router.{name}"]) for name in ("expert_ids", "weights"))
    logits = MANY.astype(np.float64) @ arrays["router.gate"].astype(np.float64)
    order = np.argsort(-logits, axis=-1)
    best = np.take_along_axis(logits, order, -1)
    clear = (best[..., :2] - best[..., 1:3]).min(-1) > 1e-5  # what is no matter of rounding in float32
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(ids[clear], order[..., :2][clear])
    right = np.exp(best[..., :2]) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(weights[clear], right[clear], rtol=0, atol=OPERATION["float32"])


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_gate_is_float32_beside_kernels_of_16_bits(backend):
    judge_gate(backend)


def in_16_bits(ops, x):
    bits = np.ascontiguousarray(ops.to_numpy(x), np.float32).view(np.uint32)
    return ops.asarray(((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32))


def gate_stored_in_16_bits(monkeypatch):
    right = Backend.place
    monkeypatch.setattr(Backend, "place", lambda self, name, array: (
        in_16_bits(self, right(self, name, array)) if name.endswith(".gate") else right(self, name, array)
    ))  # fmt: skip


def tokens_in_16_bits(monkeypatch):
    right = Router.logits
    monkeypatch.setattr(Router, "logits", lambda self, ops, params, x, *rest: (
        right(self, ops, params, in_16_bits(ops, x), *rest)
    ))  # fmt: skip


def scores_in_16_bits(monkeypatch):
    right = Router.selection
    monkeypatch.setattr(Router, "selection", lambda self, ops, *given: in_16_bits(ops, right(self, ops, *given)))


@pytest.mark.parametrize("plant", [gate_stored_in_16_bits, tokens_in_16_bits, scores_in_16_bits])
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_gate_of_16_bits_is_noticed(backend, plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        judge_gate(backend)


# --- capacity ---------------------------------------------------------------------------------------------------------


def judge_capacity(order, scope):
    ops, draw = component("backend", "numpy"), np.random.default_rng(0)
    ids = np.stack([[draw.permutation(4)[:2] for _ in range(11)] for _ in range(3)])
    weights = -np.sort(-draw.random((3, 11, 2)).astype(np.float32), axis=-1)
    lengths, capacity = np.array([5, 11, 2]), Capacity(0.5, order, scope)
    tokens = tokens_of(ops, ids[..., 0], np.zeros(3, int), lengths)
    found = capacity.kept(ops, ids, None, weights, 4, tokens)
    right = kept_by_hand(ids, weights, np.arange(11) < lengths[:, None], 4, capacity)
    np.testing.assert_array_equal(found, right)


def padding_takes_places(monkeypatch):
    """It asks like any other token, of as much room as there is for what is real."""
    right = Capacity.kept

    def kept(self, ops, ids, given, weights, experts, tokens):
        if tokens.real is None:
            return right(self, ops, ids, given, weights, experts, tokens)
        found = []
        for rows in [slice(None)] if self.scope == "batch" else [slice(row, row + 1) for row in range(len(ids))]:
            real = tokens.real[rows]
            room, own = self._rooms(real.size, ids.shape[-1], experts)[real.sum()], replace(self)
            object.__setattr__(own, "_rooms", lambda longest, *_, room=room: np.full(longest + 1, room))
            found.append(right(own, ops, ids[rows], None, weights[rows], experts, tokens._replace(real=None)))
        return np.concatenate(found) & tokens.real[:, :, None]

    monkeypatch.setattr(Capacity, "kept", kept)


def padding_makes_room(monkeypatch):
    right = Capacity._rooms
    monkeypatch.setattr(Capacity, "_rooms", lambda self, longest, slots, experts: (
        np.full(longest + 1, right(self, longest, slots, experts)[-1])
    ))  # fmt: skip


CAPACITIES = [(order, scope) for order in ("token", "choice", "priority") for scope in ("sequence", "batch")]


@pytest.mark.parametrize(("order", "scope"), CAPACITIES)
def test_capacity_is_that_of_a_loop(order, scope):
    judge_capacity(order, scope)


@pytest.mark.parametrize("plant", [padding_takes_places, padding_makes_room])
@pytest.mark.parametrize(("order", "scope"), CAPACITIES)
def test_padding_in_the_capacity_is_noticed(order, scope, plant, monkeypatch):
    plant(monkeypatch)
    if plant is padding_takes_places and (order, scope) == ("token", "sequence"):
        return judge_capacity(order, scope)  # it stands behind all that is real: no fault
    with pytest.raises(AssertionError):
        judge_capacity(order, scope)


# --- layouts: no size may tell what an axis is ------------------------------------------------------------------------

SIZES = {"F == D == E": (8, 8, 8), "F < D": (8, 5, 6), "F > D": (8, 12, 6), "E == 2 F == D": (8, 4, 8)}  # D, F, E


def judge_layout(title, backend="numpy", way="loop"):
    width, size, count = SIZES[title]
    for experts in (Experts(count, size), Experts(count, size, "gelu_tanh", gated=False, bias=True)):
        ffn, draw = MixtureOfExperts(Mixtral(2), experts), np.random.default_rng(0)
        own = {name: 0.5 * draw.standard_normal(shape) for name, shape in ffn.shapes(width).items()}
        x = draw.standard_normal((2, 9, width))
        expected = slow(ffn, own, x)
        found = run(ffn, x, backend=backend, dispatch=way, params=own)
        np.testing.assert_allclose(found, expected, rtol=0, atol=OPERATION["float64"] * np.abs(expected).max())


@pytest.mark.parametrize(("backend", "way"), [("numpy", "loop"), ("torch", "grouped"), ("jax", "loop")])
@pytest.mark.parametrize("title", SIZES)
def test_kernels_are_experts_then_in_then_out_in_all_sizes(title, backend, way):
    judge_layout(title, backend, way)


def square(array):
    return array.shape[-1] == array.shape[-2]


def turned_where_square(monkeypatch):
    right = dispatch._product_of

    def product_of(ops, own):
        kernels = {name: leaves["kernel"] for name, leaves in own.items()}
        turned = {name: kernel.T if square(kernel) else kernel for name, kernel in kernels.items()}
        return right(ops, {name: leaves | {"kernel": turned[name]} for name, leaves in own.items()})

    monkeypatch.setattr(dispatch, "_product_of", product_of)


def stacked_along_the_last(monkeypatch):
    right = Backend.place

    def place(self, name, array):
        alike = array.ndim == 3 and len(set(array.shape)) == 1
        return right(self, name, np.moveaxis(array, -1, 0) if alike else array)

    monkeypatch.setattr(Backend, "place", place)


@pytest.mark.parametrize("plant", [turned_where_square, stacked_along_the_last])
def test_a_layout_by_sizes_is_noticed(plant, monkeypatch):
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        judge_layout("F == D == E")


# --- the same in files ------------------------------------------------------------------------------------------------

TOKENS = np.random.default_rng(3).integers(0, 31, (2, 9))
WEIGHTS_FILE, CONFIG = "model.safetensors", "config.json"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """title -> (a folder with a tensor for each expert, one with those of all in one, transformers' logits)."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from safetensors.numpy import save_file

    @cache
    def made(title):
        width, size, count = SIZES[title]
        config = transformers.MixtralConfig(
            vocab_size=31, hidden_size=width, intermediate_size=size,
            num_local_experts=count, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=16, initializer_range=0.5,
        )  # fmt: skip
        config._experts_implementation = "eager"
        torch.manual_seed(0)
        model = transformers.MixtralForCausalLM._from_config(config).eval()
        folder = tmp_path_factory.mktemp("experts")
        model.save_pretrained(folder / "apart")
        (folder / "fused").mkdir()
        (folder / "fused" / CONFIG).write_text((folder / "apart" / CONFIG).read_text())
        save_file({name: x.numpy() for name, x in model.state_dict().items()}, folder / "fused" / WEIGHTS_FILE)
        with torch.no_grad():
            return folder / "apart", folder / "fused", model(torch.as_tensor(TOKENS)).logits.double().numpy()

    return made


def judge_files(made, title, again):
    from safetensors.numpy import load_file

    apart, fused, expected = made(title)
    for folder in (apart, fused):
        model = lab.load_model(folder)
        found = model.logits(TOKENS)
        np.testing.assert_allclose(found, expected, rtol=0, atol=LOGITS_FLOAT32 * expected.std())
        model.save(again / folder.name)
        theirs, ours = (load_file(where / WEIGHTS_FILE) for where in (apart, again / folder.name))
        assert json.loads((again / folder.name / CONFIG).read_text())["model_type"] == "mixtral"
        assert theirs.keys() == ours.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.parametrize("title", SIZES)
def test_files_are_read_and_written_as_transformers_does_in_all_sizes(title, stored, tmp_path):
    judge_files(stored, title, tmp_path)


def as_it_lies_where_square(*methods):
    """Reading, writing, or both, so that what is written is read as it was."""

    def plant(monkeypatch):
        for method in methods:
            right = getattr(Stored, method)
            monkeypatch.setattr(Stored, method, lambda self, array, right=right: (
                array if self.numbered and square(array) else right(self, array)
            ))  # fmt: skip

    return plant


def up_before_gate(monkeypatch):
    fused = {module: parts[::-1] for module, parts in mixtral.NAMES.fused.items()}
    monkeypatch.setattr(mixtral, "NAMES", replace(mixtral.NAMES, fused=fused))


IN_FILES = {
    "read as it lies": ("F == D == E", as_it_lies_where_square("from_file")),
    "written as it lies": ("F == D == E", as_it_lies_where_square("to_file")),
    "both": ("F == D == E", as_it_lies_where_square("from_file", "to_file")),
    "gate and up swapped in one tensor": ("F < D", up_before_gate),
}


@pytest.mark.parametrize("fault", IN_FILES)
def test_a_fault_of_reading_or_writing_is_noticed(fault, stored, tmp_path, monkeypatch):
    title, plant = IN_FILES[fault]
    stored(title)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        judge_files(stored, title, tmp_path)
