"""Mixtures of experts in a config.json, to `MixtureOfExperts` and back, and where their weights lie.

Left out on purpose, because they matter to transformers' own training alone: output_router_logits, without which it
has no balance loss whatever its coefficient, and router_jitter_noise.
"""

from typing import Any

from transformer_lab.checkpoints.config_fields import Fields, activation_name
from transformer_lab.errors import shown
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.olmoe import OLMoE

MOST_EXPERTS = 100_000  # of all layers together; each one has three names in the files, before these are looked at
_DIGITS = 14  # of a coefficient: those that a person writes, without the rounding of what is done with it

# Where they lie, for `TensorNames`: what is there for each expert, and what may hold all of them.
INSIDE = {
    "ffn.router.gate": "mlp.gate",
    "ffn.experts.gate": "mlp.experts.*.gate_proj",
    "ffn.experts.up": "mlp.experts.*.up_proj",
    "ffn.experts.down": "mlp.experts.*.down_proj",
}
FUSED = {
    "mlp.experts.gate_up_proj": ("ffn.experts.gate", "ffn.experts.up"),
    "mlp.experts.down_proj": ("ffn.experts.down",),
}
RESULTS = {"ffn.router.logits": "mlp.gate", "ffn.out": "mlp"}


def read_experts(
    fields: Fields,
    layers: int,
    count: int,
    slots: int,
    size: int,
    coefficient: float,
    renormalised: bool,
    size_field: str = "moe_intermediate_size",
    **own: Any,
) -> MixtureOfExperts:
    """What the fields say of each of so many layers.

    count, slots, size, coefficient: num_experts, num_experts_per_tok, `size_field` and router_aux_loss_coef where the
    fields are silent. renormalised: whether the weights of a token sum to 1. own: what else the network has.
    """
    experts = fields.whole("num_experts", count, LIMITS["num_experts"])
    if experts * layers > MOST_EXPERTS:
        reason = f"is {experts}, for each of {layers} layers; more than {MOST_EXPERTS} in all are not read"
        fields.refuse("num_experts", reason)
    k = fields.whole("num_experts_per_tok", slots, LIMITS["num_experts"])
    if k > experts:
        fields.refuse("num_experts_per_tok", f"is {k}, and there are {experts} experts; a token cannot have more")
    inner, act = fields.whole(size_field, size, 100 * LIMITS["hidden_size"]), fields.activation("hidden_act", "silu")
    router = Mixtral(k) if renormalised else OLMoE(k)
    balance = balance_loss(read_coefficient(fields, coefficient), k, layers)
    return MixtureOfExperts(router, Experts(experts, inner, act), balance_loss=balance, **own)


def read_coefficient(fields: Fields, default: float) -> float:
    value = fields.values.get("router_aux_loss_coef", default)
    if type(value) not in (int, float) or not 0 <= value <= 1e300:
        fields.refuse("router_aux_loss_coef", f"is {shown(value)}; it must be a number that is not negative")
    return float(value)


def balance_loss(coefficient: float, slots: int, layers: int) -> float:
    """Of each layer, as `MixtureOfExperts` has it: 1 in every layer where all experts are used alike, and the layers
    are added up. transformers' is `slots` there, and a mean over the layers."""
    return float(f"{coefficient * slots / layers:.{_DIGITS}g}")


def aux_loss_coefficient(balance: float, slots: int, layers: int) -> float:
    """The inverse: the shortest number that comes out at `balance` again."""
    exact = balance * layers / slots
    written = (float(f"{exact:.{digits}g}") for digits in range(1, 17))
    return next((one for one in written if balance_loss(one, slots, layers) == balance), exact)


def sparse_layers(fields: Fields, layers: int) -> set[int]:
    """Those that have experts: every decoder_sparse_step-th, but for mlp_only_layers."""
    step, dense = fields.whole("decoder_sparse_step", 1, LIMITS["num_layers"]), fields.values.get("mlp_only_layers")
    dense = [] if dense is None else dense
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        fields.refuse("mlp_only_layers", f"is {shown(dense)}; it must be a list of the numbers of layers, or null")
    return {layer for layer in range(layers) if (layer + 1) % step == 0} - set(dense)


def layer_fields(config: ModelConfig) -> dict[str, Any]:
    """The inverse, with the width of the networks that are dense."""
    dense = [layer for layer, block in enumerate(config.blocks) if not hasattr(block.ffn, "experts")]
    width = {"intermediate_size": config.blocks[dense[0]].ffn.size} if dense else {}
    return width | {"mlp_only_layers": dense, "decoder_sparse_step": 1}


def expert_fields(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_experts`, of its usual names. StopIteration for a model that has no experts."""
    networks = [block.ffn for block in config.blocks if hasattr(block.ffn, "experts")]
    ffn = next(iter(networks))
    k = ffn.router.k
    return {
        "hidden_act": activation_name(ffn.experts.activation),
        "num_experts": ffn.experts.count,
        "num_experts_per_tok": k,
        "moe_intermediate_size": ffn.experts.size,
        "norm_topk_prob": isinstance(ffn.router, Mixtral),
        "router_aux_loss_coef": aux_loss_coefficient(ffn.balance_loss, k, len(networks)),
    }
