"""Softmax attention of one block: project, turn, remember, attend, project back. `attention=softmax` builds it.

Which keys a query may see is the affair of the operation `attention`; where past keys are kept, of the cache.
B batch, T new tokens, D hidden size, H query heads, K key/value heads (H = K * G), N head size, S keys kept so far.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from transformer_lab.attention.written_out import written_out
from transformer_lab.backends.plain.manual import identity
from transformer_lab.cache.layer import Fresh
from transformer_lab.errors import ConfigurationError, shown
from transformer_lab.model.axes import Axis, Shape
from transformer_lab.model.limits import LIMITS, require_choice, require_positive, require_whole
from transformer_lab.model.tokens import Tokens
from transformer_lab.position.rotary import Rotary


@dataclass(frozen=True)
class SoftmaxAttention:
    """softmax(scale Q K^T + mask) V, in H heads of N (Vaswani et al. 2017, arXiv 1706.03762).

    num_heads H, head_size N. num_kv_heads K: fewer than H is grouped-query attention (Ainslie et al. 2023, arXiv
    2305.13245), 1 multi-query attention (Shazeer 2019, arXiv 1911.02150); H if not given. position: a part that is
    `in_attention` (`position/`), or None. qkv_bias, out_bias: whether the projections add one. scale: of the scores,
    1 / sqrt(N) if not given. window: how many keys a query sees, its own included (Beltagy et al. 2020, arXiv
    2004.05150); None is all. norm: a part (`norm/`) for queries and keys before they are turned (Henry et al. 2020,
    arXiv 2010.04245), over each "head" with weights that all heads share, over "each_head" with weights of its own, or
    over "all_heads" at once, as norm_over says. cap: scores become cap * tanh(score / cap) (Gemma Team 2024, arXiv
    2408.00118). clip: queries, keys and values are clipped to it on both sides before they are turned (Groeneveld et
    al. 2024, arXiv 2402.00838). sinks: each head learns a score that is attended to and gives nothing (OpenAI 2025,
    arXiv 2508.10925).
    """

    taps: ClassVar[tuple[str, ...]] = ("q", "k", "v", "scores", "pattern", "out")

    num_heads: int
    head_size: int
    num_kv_heads: int = None  # type: ignore[assignment]  # filled in below
    position: Any = None
    qkv_bias: bool = True
    out_bias: bool = True
    scale: float = None  # type: ignore[assignment]
    window: int | None = None
    norm: Any = None
    norm_over: str = "head"
    cap: float | None = None
    clip: float | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        for name in ("num_heads", "head_size", "num_kv_heads"):
            require_whole(name, getattr(self, name), LIMITS[name])
        if self.num_heads % self.num_kv_heads:
            message = f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}."
            raise ConfigurationError(message)
        if self.scale is None:
            object.__setattr__(self, "scale", 1.0 / math.sqrt(self.head_size))
        require_positive("attention.scale", self.scale)
        if self.window is not None:
            require_whole("attention.window", self.window, LIMITS["context_length"])
        for name in ("cap", "clip"):
            if getattr(self, name) is not None:
                require_positive(f"attention.{name}", getattr(self, name))
        require_choice("attention.norm_over", self.norm_over, ("head", "each_head", "all_heads"))
        if self.position is not None and not hasattr(self.position, "in_attention"):
            message = f"attention.position is {shown(self.position)}; it must be a part, such as Rotary()."
            raise ConfigurationError(message)
        if self.position is not None and not self.position.in_attention:
            message = f"attention.position is {type(self.position).__name__}, which is added to the embedding instead."
            raise ConfigurationError(message)
        if self.norm is not None and not hasattr(self.norm, "shapes"):
            message = f"attention.norm is {shown(self.norm)}; it must be a part, such as RMSNorm()."
            raise ConfigurationError(message)
        if isinstance(self.position, Rotary):
            self._settle_rotary(self.position)

    def _settle_rotary(self, rotary: Rotary) -> None:
        """A rotary position knows how much of a head it turns."""
        if rotary.size is None and self.head_size % 2:
            message = f"head_size {self.head_size} is odd; rotary positions turn pairs, so it must be even."
            raise ConfigurationError(message)
        if rotary.size is not None and rotary.size > self.head_size:
            message = f"position.size is {rotary.size}, more than head_size, {self.head_size}."
            raise ConfigurationError(message)
        object.__setattr__(self, "position", replace(rotary, size=rotary.size or self.head_size))

    def shapes(self, hidden_size: int) -> dict[str, Shape]:
        """The parameters below `blocks.{i}.attn`. qkv: the columns of all queries, then all keys, then all values."""
        heads, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        embed, qkv = Axis(hidden_size, "embed"), Axis(heads + 2 * keys, "qkv")
        shapes: dict[str, Shape] = {"qkv.kernel": (embed, qkv), "out.kernel": (Axis(heads, "heads"), embed)}
        shapes |= {"qkv.bias": (qkv,)} if self.qkv_bias else {}
        shapes |= {"out.bias": (embed,)} if self.out_bias else {}
        if self.norm is not None:
            for name, count in (("q_norm", self.num_heads), ("k_norm", self.num_kv_heads)):
                shapes |= {f"{name}.{part}": shape for part, shape in self._norm_shapes(count).items()}
        return shapes | ({"sinks": (Axis(self.num_heads, "heads"),)} if self.sinks else {})

    def _norm_shapes(self, heads: int) -> dict[str, Shape]:
        """The parameters of a norm of so many heads."""
        shapes = self.norm.shapes(self.head_size * (heads if self.norm_over == "all_heads" else 1))
        each = (heads,) if self.norm_over == "each_head" else ()
        return {name: (*each, *shape) for name, shape in shapes.items()}

    def __call__(
        self, ops: Any, params: Any, x: Any, tokens: Tokens, cache: Any, tap: Callable[[str, Any], Any]
    ) -> tuple[Any, Any]:
        """x [B, T, D] -> ([B, T, D], the layer's cache)."""
        xp, (batch, length, _) = ops.xp, x.shape
        heads, last = self.num_heads, self.num_heads + self.num_kv_heads
        qkv = ops.linear(x, params["qkv"]["kernel"], params["qkv"].get("bias"))  # [B, T, (H + 2 K) N]
        qkv = xp.reshape(qkv, (batch, length, heads + 2 * self.num_kv_heads, self.head_size))
        if self.norm is not None:
            query = self._normal(ops, params.get("q_norm", {}), qkv[:, :, :heads, :])
            key = self._normal(ops, params.get("k_norm", {}), qkv[:, :, heads:last, :])
            qkv = xp.concat([query, key, qkv[:, :, last:, :]], axis=2)
        if self.clip is not None:
            qkv = xp.clip(qkv, -self.clip, self.clip)
        qkv = xp.permute_dims(qkv, (0, 2, 1, 3))  # [B, H + 2 K, T, N]
        query, key, value = qkv[:, :heads, ...], qkv[:, heads:last, ...], qkv[:, last:, ...]
        if tokens.angles is not None:
            query, key = (self.position.turn(ops, part, tokens.angles) for part in (query, key))
        query, key, value = tap("q", query), tap("k", key), tap("v", value)
        start, window, places, scales, rotation = tokens.start, self.window, None, None, None
        if cache is not None:
            cache, seen = cache.update(ops, Fresh(query, key, value, self.scale, self.cap), tokens)
            key, value, places, window = seen.keys, seen.values, seen.places, seen.window or window
            scales, rotation = seen.scales, seen.rotation
        if rotation is not None:
            query = xp.matmul(query, rotation)
        # Scores of keys that do not lie in the order of their positions would be told of the wrong ones.
        inside = tap if places is None else identity
        if self.cap is None and not self.sinks and not hasattr(self.position, "bias") and scales is None:
            elsewhere = {} if places is None else {"places": places}
            mixed = ops.attention(query, key, value, start, self.scale, window, inside, **elsewhere)  # [B, H, T, N]
        else:
            learned = params.get("sinks")
            mixed = written_out(ops, self, query, key, value, start, window, learned, inside, places, scales)
        if rotation is not None:
            mixed = xp.matmul(mixed, rotation)
        mixed = xp.reshape(xp.permute_dims(mixed, (0, 2, 1, 3)), (batch, length, heads * self.head_size))
        return tap("out", ops.linear(mixed, params["out"]["kernel"], params["out"].get("bias"))), cache

    def _normal(self, ops: Any, params: Any, x: Any) -> Any:
        """The norm of queries or keys, x [B, T, heads, N]."""
        if self.norm_over == "head":
            return self.norm(ops, params, x)
        if self.norm_over == "each_head":
            own = [{name: every[head, ...] for name, every in params.items()} for head in range(x.shape[2])]
            return ops.xp.stack([self.norm(ops, one, x[:, :, head, :]) for head, one in enumerate(own)], axis=2)
        rows = ops.xp.reshape(x, (*x.shape[:2], -1))
        return ops.xp.reshape(self.norm(ops, params, rows), x.shape)
