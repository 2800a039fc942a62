"""What each tap of the decoder should be, given the taps before it: the value in float64, and how far off it may be.

This is the definition of the decoder a second time, cut at the taps. It knows no backend: it takes what a participant
showed, applies one operation to it, and says what a sound implementation would have made of it. So the error that an
operation adds is separated from the error that it was given, for anything that can show its activations: a compiled or
fused implementation is judged by what it did, and a program in another language by its dump.

A tap that a participant does not show is filled in with its expectation, and the bound on that goes into the next.
Of a feed-forward network that is not `Dense` the operations are not known here: it runs as it is, in float64, and what
comes out has no bound.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from transformer_lab.backends.readings.bounded import bounds
from transformer_lab.backends.readings.bounded.bounds import Bounded, Units
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig

Taps = Mapping[str, Bounded]


class Expectation:
    """The expectations of one model for one sequence of token ids [T] in one precision.

    ops: NumPy in float64, with the plain operations. params: nested, its arrays, kernels [in, out]. `see` takes the
    taps in the order of the computation. What lies before the current block is forgotten, so that little is held.
    """

    def __init__(self, ops: Any, config: ModelConfig, params: Any, token_ids: np.ndarray, units: Units) -> None:
        self.ops = ops
        self.config, self.params, self.units = config, params, units
        self.token_ids = np.asarray(token_ids)
        self.known: dict[str, Bounded] = {}  # of the current block, by the names after `blocks.{i}.`
        self.stream: Bounded | None = None  # what the current block was given
        self.layer = 0

    def of(self, name: str) -> Bounded:
        """What the tap `name` should be: [1, ...] as in docs/taps.md. Taps come in order; some may be left out."""
        layer, local = _split(name)
        if local == "embed":
            return self._embed()
        self._go_to(self.config.num_layers if layer is None else layer)
        return self._local(local)

    def see(self, name: str, value: np.ndarray) -> None:
        """Takes what the participant showed at `name` as the input of what follows."""
        layer, local = _split(name)
        seen = bounds.exactly(value, self.units.smallest)
        if local in ("embed", "resid_post"):
            self._enter(0 if layer is None else layer + 1, seen)
        else:
            self.known[local] = seen

    def _enter(self, layer: int, stream: Bounded) -> None:
        self.layer, self.stream, self.known = layer, stream, {}

    def _go_to(self, layer: int) -> None:
        """Fills in the ends of blocks that were not shown, up to the beginning of this one."""
        if self.stream is None:
            self._enter(0, self._embed())
        while self.layer < layer:
            self._enter(self.layer + 1, self._local("resid_post"))

    def _local(self, local: str) -> Bounded:
        """The expectation of a tap of the current block, from what was seen of it or else should have been."""
        if local.startswith("ffn.") and not isinstance(self.config.ffn, Dense):
            return self._own_network(local)
        operation: Callable[[], Bounded] = getattr(self, "_" + local.replace(".", "_"))
        return operation()

    def _given(self, local: str) -> Bounded:
        if local not in self.known:
            self.known[local] = self._local(local)
        return self.known[local]

    @property
    def _block(self) -> Any:
        return self.params["blocks"][self.layer]

    # --- what the taps are, in the order of the computation ----------------------------------------------------------

    def _embed(self) -> Bounded:
        token = bounds.exactly(self.params["embed"]["token"][self.token_ids][None])
        if self.config.position != "learned":
            return token
        return bounds.add(token, bounds.exactly(self.params["embed"]["position"][: len(self.token_ids)]), self.units)

    def _norm_1(self) -> Bounded:
        assert self.stream is not None
        return self._normalised(self.stream, self._block["norm_1"])

    def _attn_q(self) -> Bounded:
        return self._projected(0, self.config.num_heads, turned=True)

    def _attn_k(self) -> Bounded:
        return self._projected(self.config.num_heads, self.config.num_kv_heads, turned=True)

    def _attn_v(self) -> Bounded:
        return self._projected(self.config.num_heads + self.config.num_kv_heads, self.config.num_kv_heads, turned=False)

    def _projected(self, first: int, heads: int, turned: bool) -> Bounded:
        """Some of the heads of the projection to queries, keys and values: [1, heads, T, N]."""
        size = self.config.head_size
        columns = slice(first * size, (first + heads) * size)
        qkv = self._block["attn"]["qkv"]
        bias = qkv["bias"][columns] if "bias" in qkv else None
        flat = bounds.linear(self._given("norm_1"), qkv["kernel"][:, columns], bias, self.units)
        shape = (1, len(self.token_ids), heads, size)
        split = Bounded(*(x.reshape(shape).transpose(0, 2, 1, 3) for x in flat))
        if self.config.position != "rotary" or not turned:
            return split
        frequencies = self.config.rotary_base ** (-2.0 * np.arange(size // 2) / size)
        return bounds.rotary(split, np.arange(len(self.token_ids))[:, None] * frequencies, self.units)

    def _attn_scores(self) -> Bounded:
        length = len(self.token_ids)
        visible = np.arange(length)[None, :] <= np.arange(length)[:, None]
        scale = self.config.score_scale(self.layer)
        return bounds.scores(self._given("attn.q"), self._given("attn.k"), visible, scale, self.units)

    def _attn_pattern(self) -> Bounded:
        return bounds.softmax(self._given("attn.scores"), self.units)

    def _attn_out(self) -> Bounded:
        mixed = bounds.mix(self._given("attn.pattern"), self._given("attn.v"), self.units)
        return self._linear(mixed, self._block["attn"]["out"])

    def _resid_mid(self) -> Bounded:
        assert self.stream is not None
        return self._added(self.stream, "attn.out")

    def _norm_2(self) -> Bounded:
        return self._normalised(self._given("resid_mid"), self._block["norm_2"])

    def _ffn_pre(self) -> Bounded:
        return self._linear(self._given("norm_2"), self._block["ffn"]["gate" if self.config.ffn.gated else "up"])

    def _ffn_act(self) -> Bounded:
        activated = bounds.ACTIVATIONS[self.config.ffn.activation](self._given("ffn.pre"), self.units)
        if not self.config.ffn.gated:
            return activated
        return bounds.multiply(activated, self._linear(self._given("norm_2"), self._block["ffn"]["up"]), self.units)

    def _ffn_out(self) -> Bounded:
        return self._linear(self._given("ffn.act"), self._block["ffn"]["down"])

    def _own_network(self, local: str) -> Bounded:
        """A tap of a network of somebody's own, without a bound."""
        taps: dict[str, Any] = {}

        def keep(name: str, x: Any) -> Any:
            taps[f"ffn.{name}"] = x
            return x

        given = self._given("norm_2").value
        taps["ffn.out"] = self.config.ffn(self.ops, self._block["ffn"], given, keep)
        return Bounded(taps[local], np.full(taps[local].shape, np.inf))

    def _resid_post(self) -> Bounded:
        return self._added(self._given("resid_mid"), "ffn.out")

    def _added(self, stream: Bounded, branch: str) -> Bounded:
        """The stream with a branch added to it.

        An int8 product ends in a multiplication by the kernel's scales. A compiler may make it and this addition one
        operation (a fused multiply-add), and then what is added is the branch before it was rounded.
        """
        added = self._given(branch)
        if self.units.levels:
            added = Bounded(added.value, added.error + self.units.inner * np.abs(added.value))
        return bounds.add(stream, added, self.units)

    def _final_norm(self) -> Bounded:
        assert self.stream is not None
        return self._normalised(self.stream, self.params["final_norm"])

    def _logits(self) -> Bounded:
        head = self.params["head"]["kernel"] if "head" in self.params else self.params["embed"]["token"].T
        return bounds.linear(self._given("final_norm"), head, None, self.units)

    def _linear(self, x: Bounded, layer: Any) -> Bounded:
        return bounds.linear(x, layer["kernel"], layer.get("bias"), self.units)

    def _normalised(self, x: Bounded, params: Any) -> Bounded:
        if self.config.norm == "layer_norm":
            return bounds.layer_norm(x, params["weight"], params["bias"], self.config.norm_epsilon, self.units)
        return bounds.rms_norm(x, params["weight"], self.config.norm_epsilon, self.units)


def _split(name: str) -> tuple[int | None, str]:
    """ "blocks.3.attn.out" -> (3, "attn.out"); "logits" -> (None, "logits")."""
    if not name.startswith("blocks."):
        return None, name
    _, layer, local = name.split(".", 2)
    return int(layer), local
