"""Mixtures of experts as others compute them: transformers' own modules in float64, and loops over single tokens.

Each of CASES is a layer of ours and a function of its parameters (dotted name -> NumPy array) and a batch that gives
(ids, weights, out): the experts of each token in any order [N, k], theirs weights, 0 where one is dropped, and [N, D].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4SparseMoeBlock
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

from transformer_lab.balancer.sign_bias import SignBias
from transformer_lab.ffn.capacity import Capacity
from transformer_lab.ffn.clamped import Clamped
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.router.deepseek_v3 import DeepSeekV3
from transformer_lab.router.deepseek_v4 import DeepSeekV4
from transformer_lab.router.gpt_oss import GptOss
from transformer_lab.router.gshard import GShard
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.noisy_top_k import NoisyTopK
from transformer_lab.router.olmoe import OLMoE
from transformer_lab.router.switch import Switch
from transformer_lab.router.table import Table

D, F, E, VOCAB = 16, 12, 8, 40
PLAIN = Experts(E, F, "relu", gated=False)
GATED = Experts(E, F)


@dataclass(frozen=True)
class Batch:
    """x [B, T, D], the ids of its tokens [B, T], and what is drawn for them [B, T, E], or None."""

    x: np.ndarray
    ids: np.ndarray
    noise: np.ndarray | None = None


@dataclass(frozen=True)
class Case:
    """noise: which is drawn. precision: that of the reference, some of whose routers compute in float32."""

    layer: MixtureOfExperts
    reference: Callable[[MixtureOfExperts, dict[str, np.ndarray], Batch], Any]
    noise: str | None = None
    precision: str = "float64"


# --- transformers -----------------------------------------------------------------------------------------------------


def module(kind, config, arrays, names):
    """A module in float64 with these parameters; names: its own -> how it comes from the arrays."""
    config._experts_implementation = "eager"
    made = kind(config).double().eval()
    state = {name: torch.as_tensor(np.ascontiguousarray(of(arrays))) for name, of in names.items()}
    assert state.keys() == made.state_dict().keys()
    made.load_state_dict(state)
    return made


def turned(name):
    return lambda arrays: arrays[name].swapaxes(-1, -2)


def gate_first(arrays):
    """[E, 2 F, D]."""
    kernels = [arrays[f"experts.{name}.kernel"].swapaxes(1, 2) for name in ("gate", "up")]
    return np.concatenate(kernels, axis=1)


FUSED = {"experts.gate_up_proj": gate_first, "experts.down_proj": turned("experts.down.kernel")}
GATE = {"gate.weight": turned("router.gate")}
SHARED = {f"shared_experts.{name}_proj.weight": turned(f"shared.{name}.kernel") for name in ("gate", "up", "down")}
SIZES = {"hidden_size": D, "num_attention_heads": 2, "num_key_value_heads": 2}


def routed(made, router, *given):
    """(ids, weights, out) of a block whose router gives (logits, weights, ids)."""
    with torch.no_grad():
        _, weights, ids = router(*given)
        out = made(*given)
    return ids.numpy(), weights.numpy(), (out[0] if isinstance(out, tuple) else out).numpy().reshape(-1, D)


def mixtral(layer, arrays, batch):
    config = transformers.MixtralConfig(
        **SIZES, intermediate_size=F, num_local_experts=E, num_experts_per_tok=layer.router.k
    )
    made = module(MixtralSparseMoeBlock, config, arrays, GATE | FUSED)
    return routed(made, made.gate, torch.as_tensor(batch.x))


def olmoe(layer, arrays, batch):
    config = transformers.OlmoeConfig(**SIZES, intermediate_size=F, num_experts=E, num_experts_per_tok=layer.router.k)
    made = module(OlmoeSparseMoeBlock, config, arrays, GATE | FUSED)
    return routed(made, made.gate, torch.as_tensor(batch.x))


def deepseek_v3(layer, arrays, batch):
    router = layer.router
    config = transformers.DeepseekV3Config(
        **SIZES,
        moe_intermediate_size=F,
        n_routed_experts=E,
        n_shared_experts=2,
        num_experts_per_tok=router.k,
        n_group=router.n_groups,
        topk_group=router.top_groups,
        norm_topk_prob=router.renormalise,
        routed_scaling_factor=router.scale,
    )
    bias = {"gate.e_score_correction_bias": lambda arrays: arrays["balancer.bias"]}
    made = module(DeepseekV3MoE, config, arrays, GATE | bias | FUSED | SHARED)
    return routed(made, made.gate, torch.as_tensor(batch.x))


def deepseek_v4(layer, arrays, batch):
    table = isinstance(layer.router, Table)
    config = transformers.DeepseekV4Config(
        vocab_size=VOCAB,
        hidden_size=D,
        moe_intermediate_size=F,
        n_routed_experts=E,
        num_experts_per_tok=layer.router.k,
        routed_scaling_factor=layer.router.scale,
        swiglu_limit=layer.experts.limit,
        num_hidden_layers=1,
        mlp_layer_types=["hash_moe" if table else "moe"],
        layer_types=["sliding_attention"],
    )
    extra = {"gate.tid2eid": lambda arrays: arrays["router.table"].astype(np.int64)}
    if not table:
        extra = {"gate.e_score_correction_bias": lambda arrays: arrays["balancer.bias"]}
    made = module(lambda config: DeepseekV4SparseMoeBlock(config, 0), config, arrays, GATE | extra | FUSED | SHARED)
    given = (torch.as_tensor(batch.x), *((torch.as_tensor(batch.ids),) if table else ()))
    return routed(made, made.gate, *given)


def gpt_oss(layer, arrays, batch):
    config = transformers.GptOssConfig(
        **SIZES, head_dim=8, intermediate_size=F, num_local_experts=E, num_experts_per_tok=layer.router.k
    )
    assert (config.swiglu_limit, config.swiglu_alpha) == (layer.experts.limit, layer.experts.sharpness)

    def interleaved(kind):
        return lambda arrays: np.stack([arrays[f"experts.{name}.{kind}"] for name in ("gate", "up")], axis=-1).reshape(
            (E, D, 2 * F) if kind == "kernel" else (E, 2 * F)
        )

    names = {
        "router.weight": turned("router.gate"),
        "router.bias": lambda arrays: arrays["router.bias"],
        "experts.gate_up_proj": interleaved("kernel"),
        "experts.gate_up_proj_bias": interleaved("bias"),
        "experts.down_proj": lambda arrays: arrays["experts.down.kernel"],
        "experts.down_proj_bias": lambda arrays: arrays["experts.down.bias"],
    }
    made = module(GptOssMLP, config, arrays, names)
    x = torch.as_tensor(batch.x)
    with torch.no_grad():
        _, weights, ids = made.router(x.reshape(-1, D))
        return ids.numpy(), weights.numpy(), made(x)[0].numpy().reshape(-1, D)


def switch(layer, arrays, batch):
    room = int(np.ceil(layer.capacity.factor * batch.x.shape[1] / E))
    config = transformers.SwitchTransformersConfig(
        d_model=D, d_ff=F, num_experts=E, expert_capacity=room, dense_act_fn="relu"
    )
    names = {"router.classifier.weight": turned("router.gate")}
    for expert in range(E):
        for own, name in (("wi", "up"), ("wo", "down")):
            of = f"experts.{name}.kernel"
            names[f"experts.expert_{expert}.{own}.weight"] = lambda arrays, of=of, expert=expert: arrays[of][expert].T
    made = module(SwitchTransformersSparseMLP, config, arrays, names)
    made.router.dtype = torch.float64  # a configuration allows no more than float32
    x = torch.as_tensor(batch.x)
    with torch.no_grad():
        kept, weights, logits = made.router(x)
        out = made(x).numpy().reshape(-1, D)
    weights = (weights * kept.sum(-1, keepdim=True)).numpy().reshape(-1, 1)
    return logits.argmax(-1).numpy().reshape(-1, 1), weights, out


# --- loops ------------------------------------------------------------------------------------------------------------


def softmaxed(row):
    powers = [np.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def expert(arrays, number, row):
    return np.maximum(row @ arrays["experts.up.kernel"][number], 0.0) @ arrays["experts.down.kernel"][number]


def noisy_top_k(layer, arrays, batch):
    """Equations 3 to 5 of 1701.06538, a token at a time."""
    found, k = ([], [], []), layer.router.k
    noise = np.zeros((*batch.ids.shape, E)) if batch.noise is None else batch.noise
    for row, drawn in zip(batch.x.reshape(-1, D), noise.reshape(-1, E), strict=True):
        width = np.log(1.0 + np.exp(row @ arrays["router.noise.gate"]))
        h = (row @ arrays["router.gate"] + drawn * width).tolist()
        ids = sorted(range(E), key=lambda number: -h[number])[:k]
        weights = softmaxed([h[number] for number in ids])
        out = sum(weight * expert(arrays, number, row) for weight, number in zip(weights, ids, strict=True))
        for into, value in zip(found, (ids, weights, out), strict=True):
            into.append(value)
    return tuple(np.array(part) for part in found)


def gshard(layer, arrays, batch):
    """Algorithm 1 of 2006.16668 for each sequence: all first experts, then the second ones, as far as there is room."""
    batch_size, length = batch.ids.shape
    ids, weights = np.zeros((batch_size, length, 2), int), np.zeros((batch_size, length, 2))
    out = np.zeros((batch_size, length, D))
    for row in range(batch_size):
        room = np.inf if layer.capacity is None else int(np.ceil(layer.capacity.factor * 2 * length / E))
        taken = [0] * E
        for choice in (0, 1):
            for token in range(length):
                x = batch.x[row, token]
                gates = softmaxed((x @ arrays["router.gate"]).tolist())
                best = sorted(range(E), key=lambda number, gates=gates: -gates[number])[:2]
                number, g = best[choice], gates[best[choice]] / (gates[best[0]] + gates[best[1]])
                ids[row, token, choice] = number
                if choice and batch.noise is not None and not 2.0 * g > batch.noise[row, token, number]:
                    continue
                if taken[number] < room:
                    taken[number] += 1
                    weights[row, token, choice] = g
                    out[row, token] += g * expert(arrays, number, x)
    return ids.reshape(-1, 2), weights.reshape(-1, 2), out.reshape(-1, D)


# --- the cases --------------------------------------------------------------------------------------------------------

TWO_SHARED = Dense(2 * F, "silu", gated=True, bias=False)
LIMITED, LIMITED_SHARED = Experts(E, F, limit=3.0, sharpness=None), Clamped(F, limit=3.0)
GROUPS = DeepSeekV3(3, n_groups=4, top_groups=2, scale=2.5)
ROOM = Capacity(1.25, "choice")
CLAMPED = Experts(E, F, bias=True, limit=7.0)

CASES = {
    "switch": Case(MixtureOfExperts(Switch(), PLAIN, capacity=Capacity(1.0)), switch),
    "mixtral": Case(MixtureOfExperts(Mixtral(2), GATED), mixtral, precision="float32"),
    "olmoe": Case(MixtureOfExperts(OLMoE(3), GATED), olmoe, precision="float32"),
    "deepseek_v3": Case(
        MixtureOfExperts(GROUPS, GATED, TWO_SHARED, balancer=SignBias()), deepseek_v3, precision="float32"
    ),
    "deepseek_v3 as it is": Case(
        MixtureOfExperts(DeepSeekV3(3, renormalise=False, scale=0.5), GATED, TWO_SHARED, balancer=SignBias()),
        deepseek_v3,
        precision="float32",
    ),
    "deepseek_v4": Case(MixtureOfExperts(DeepSeekV4(3), LIMITED, LIMITED_SHARED, balancer=SignBias()), deepseek_v4),
    "table": Case(MixtureOfExperts(Table(3, vocab_size=VOCAB), LIMITED, LIMITED_SHARED), deepseek_v4),
    "gpt_oss": Case(MixtureOfExperts(GptOss(3), CLAMPED), gpt_oss),
    "noisy_top_k": Case(MixtureOfExperts(NoisyTopK(3), PLAIN), noisy_top_k, "normal"),
    "noisy_top_k without noise": Case(MixtureOfExperts(NoisyTopK(3), PLAIN), noisy_top_k),
    "gshard": Case(MixtureOfExperts(GShard(), PLAIN), gshard, "uniform"),
    "gshard with room": Case(MixtureOfExperts(GShard(), PLAIN, capacity=ROOM), gshard, "uniform"),
    "gshard without noise": Case(MixtureOfExperts(GShard(), PLAIN), gshard),
}
