"""A router of one's own: cosine scores (Chi et al. 2022, arXiv 2204.09179), the k best, a softmax over them."""

from dataclasses import dataclass

from transformer_lab.router.router import Router


@dataclass(frozen=True)
class Cosine(Router):
    """logits = sharpness * cos(angle between a token and an expert's column)."""

    k: int = 2
    sharpness: float = 10.0

    def logits(self, ops, params, x, tap, tokens):
        def unit(a, axis):
            return a / ops.xp.sqrt(ops.xp.sum(a * a, axis=axis, keepdims=True) + 1e-6)

        rows = ops.xp.reshape(x, (-1, x.shape[-1]))
        scores = ops.xp.matmul(unit(rows, -1), unit(params["gate"], 0)) * self.sharpness
        return ops.xp.reshape(scores, (*x.shape[:-1], -1))

    def weigh(self, ops, params, logits, ids):
        return ops.softmax(ops.xp.take_along_axis(logits, ids, axis=-1))
