"""The shared definition is wrong, on all our backends and in the truth alike: only transformers differs.

Every bug here is a patch of transformer_lab/model, ffn or the plain operations, which are what the float64 truth runs
too. The folder is sound, and transformers reads it as an outside participant.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from small_models import with_attention

from corpus.form import Bug, Plant, everywhere, method, shared
from corpus.models import SHORT
from transformer_lab.backends.plain import manual
from transformer_lab.model.taps import within

bug = partial(Bug, kind="definition", needs="transformers")
MANUAL, DECODER = "transformer_lab.backends.plain.manual", "transformer_lab.model.decoder"


def planted(model: str, *patches: Any) -> Plant:
    return shared(*patches, model=model, prompts=SHORT, transformers=True, more={"new_tokens": 0})


def table(frequencies: Any) -> Any:
    """The rotary angles with frequencies(base, numbers of the pairs, head size)."""

    def angles(right: Any, self: Any, context_length: int) -> np.ndarray:
        found = frequencies(self.base, np.arange(self.size // 2), self.size)
        return np.arange(context_length)[:, None] * found

    return method("transformer_lab.position.rotary", "Rotary", "angles", angles)


def scaled(scale: Any) -> Any:
    """The scores of GPT-2 are multiplied by scale(config, layer)."""

    def wrong(right: Any, fields: Any) -> Any:
        config = right(fields)
        blocks = [with_attention(block, scale=scale(config, layer)) for layer, block in enumerate(config.blocks)]
        return replace(config, blocks=tuple(blocks))

    return everywhere("transformer_lab.checkpoints.families.gpt2", "config_from", wrong)


def in_bfloat16(base: float, pairs: np.ndarray, size: int) -> np.ndarray:
    bits = (base ** (-2.0 * pairs / size)).astype(np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


def interleaved(right: Any, ops: Any, x: Any, cos: Any, sin: Any) -> Any:
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None, ...], sin[:, None, ...]
    return ops.xp.concat([first * cos - second * sin, second * cos + first * sin], axis=-1)


def blocks_by_their_names(right: Any, flat: Any) -> dict[str, Any]:
    tree = right(flat)
    if "blocks" in tree:
        tree["blocks"] = [tree["blocks"][int(number)] for number in sorted(map(str, range(len(tree["blocks"]))))]
    return tree


def head_of(ops: Any, params: Any) -> Any:
    """The head's kernel, or the embedding turned, as the decoder has it."""
    return params["head"]["kernel"] if "head" in params else ops.xp.permute_dims(params["embed"]["token"], (1, 0))


def no_final_norm(right: Any, ops: Any, config: Any, params: Any, x: Any, tap: Any) -> Any:
    return tap("logits", ops.linear(tap("final_norm", x), head_of(ops, params)))


def default_epsilon_at_the_end(right: Any, ops: Any, config: Any, params: Any, x: Any, tap: Any) -> Any:
    x = tap("final_norm", ops.rms_norm(x, params["final_norm"]["weight"], 1e-6))
    return tap("logits", ops.linear(x, head_of(ops, params)))


def block(second: Any, stream: Any) -> Any:
    """A decoder block with another input of the second norm, second(x, mid), or another residual stream,
    stream(x, normal)."""

    def wrong(right: Any, self: Any, ops: Any, params: Any, x: Any, tokens: Any, cache: Any, tap: Any) -> Any:
        normal = tap("norm_1", self.norm(ops, params["norm_1"], x))
        attended, cache = self.attention(ops, params["attn"], normal, tokens, cache, within(tap, "attn."))
        mid = tap("resid_mid", stream(x, normal) + attended)
        normal = tap("norm_2", self.norm(ops, params["norm_2"], second(x, mid)))
        mid = mid + tap("ffn.out", self.ffn(ops, params["ffn"], normal, within(tap, "ffn.")))
        return tap("resid_post", mid), cache

    return method("transformer_lab.block.sequential", "Sequential", "__call__", wrong)


def embedding_scaled(right: Any, ops: Any, config: Any, params: Any, tokens: Any, tap: Any) -> Any:
    x, angles = right(ops, config, params, tokens, manual.identity)
    return tap("embed", x * config.hidden_size**0.5), angles


def positions_from_two(right: Any, ops: Any, config: Any, params: Any, tokens: Any, tap: Any) -> Any:
    return right(ops, config, params, tokens._replace(positions=tokens.positions + 2), tap)


def gate_on_the_wrong_side(right: Any, self: Any, ops: Any, params: Any, x: Any, tap: Any) -> Any:
    pre = tap("pre", ops.linear(x, params["gate"]["kernel"]))
    act = tap("act", pre * getattr(ops, self.activation)(ops.linear(x, params["up"]["kernel"])))
    return ops.linear(act, params["down"]["kernel"])


def head_reshaped(right: Any, self: Any, table: Any) -> Any:
    stored = self.to_numpy(table)
    return self.place("head.kernel", np.ascontiguousarray(stored.reshape(stored.shape[::-1])))


BUGS = (
    bug(
        "rotary base fixed at 10000",
        says="The base of the configuration, 500000, is not used: ports written for Llama 2 that ran Llama 3.",
        place="blocks.*.attn.q",
        plant=planted("llama with base 500000", table(lambda base, pairs, size: 10000.0 ** (-2.0 * pairs / size))),
    ),
    bug(
        "rotary exponent without its 2",
        says="base^(-i / N) for base^(-2 i / N), where i already counts pairs.",
        place="blocks.*.attn.q",
        plant=planted("llama", table(lambda base, pairs, size: base ** (-1.0 * pairs / size))),
    ),
    bug(
        "rotary frequencies rounded to bfloat16",
        says="inv_freq is a buffer that is cast to bfloat16 with the model; transformers had it before the buffer was "
        "kept in float32.",
        place="blocks.*.attn.q",
        plant=planted("llama", table(in_bfloat16)),
    ),
    bug(
        "rotary pairs taken side by side and written as halves",
        says="Even and odd elements are turned, as the paper and GPT-J have it, on weights that want halves, and the "
        "results are put one half after the other.",
        place="blocks.*.attn.q",
        plant=planted("llama", everywhere(MANUAL, "rotary", interleaved)),
    ),
    bug(
        "scores divided by the root of the hidden size",
        says="1 / sqrt(D) for 1 / sqrt(N), as in minimal ports that had one head first.",
        place="blocks.*.attn.scores",
        plant=planted(
            "gpt2",
            scaled(lambda config, layer: config.hidden_size**-0.5),
        ),
    ),
    bug(
        "scaling by the layer's number counts from 0",
        says="scale_attn_by_inverse_layer_idx divides by the number from 1; here by max(number from 0, 1).",
        place="blocks.1.attn.scores",
        plant=planted(
            "gpt2 scaled by layer",
            scaled(lambda config, layer: config.blocks[0].attention.head_size ** -0.5 / max(layer, 1)),
        ),
    ),
    bug(
        "blocks in the order of their names",
        says="Layers are sorted as strings, 10 before 2: converters that sort the keys of a state dict.",
        place="blocks.2.norm_1",
        plant=planted(
            "llama of 11 layers", everywhere("transformer_lab.model.parameters", "nest", blocks_by_their_names)
        ),
    ),
    bug(
        "final norm left out",
        says="The head reads the stream as it is.",
        place="final_norm",
        plant=planted("gpt2", everywhere(DECODER, "read_out", no_final_norm)),
    ),
    bug(
        "final norm with the default epsilon",
        says="The last norm is built without the epsilon of the configuration (1e-3) and has its class's 1e-6.",
        place="final_norm",
        plant=planted("llama with epsilon 1e-3", everywhere(DECODER, "read_out", default_epsilon_at_the_end)),
    ),
    bug(
        "parallel residual",
        says="The feed-forward network reads the stream from before the attention, as in GPT-J and GPT-NeoX.",
        place="blocks.*.norm_2",
        plant=planted("gpt2", block(lambda x, mid: x, lambda x, normal: x)),
    ),
    bug(
        "residual taken after the norm",
        says="The attention is added to the normalised stream, which BLOOM has as an option.",
        place="blocks.*.resid_mid",
        plant=planted("gpt2", block(lambda x, mid: mid, lambda x, normal: normal)),
    ),
    bug(
        "embedding multiplied by the root of the hidden size",
        says="As in Gemma and T5X; Llama has none.",
        place="embed",
        plant=planted("llama", everywhere(DECODER, "embedding", embedding_scaled)),
    ),
    bug(
        "positions begin at 2",
        says="The table of positions has two rows for padding in fairseq and OPT; GPT-2's has none.",
        place="embed",
        plant=planted("gpt2", everywhere(DECODER, "embedding", positions_from_two)),
    ),
    bug(
        "activation on the wrong side of the gate",
        says="gate * silu(up) for silu(gate) * up.",
        place="blocks.*.ffn.act",
        plant=planted("llama", method("transformer_lab.ffn.dense", "Dense", "__call__", gate_on_the_wrong_side)),
    ),
    bug(
        "tied head reshaped, not transposed",
        says="The table [V, D] becomes a kernel [D, V] by reshaping, which no check of shapes finds.",
        place="logits",
        plant=planted("gpt2", method("transformer_lab.backends.base", "Backend", "place_tied_head", head_reshaped)),
    ),
)
