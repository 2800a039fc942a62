"""The operations of the decoder once more, each with its gradient beside it, for training on NumPy.

Every function computes y as the plain version does (manual.py; shape letters as there), and puts one step on the tape:
with L the loss and g = dL/dy, what L's gradient is with respect to each input. sum_D is a sum over the last axis,
mean_D a mean. These are faster than recording every multiplication (ops=manual does that, and gives the same
gradients): nothing is kept that is cheap to compute again, and large arrays are worked on in pieces that fit the
processor's cache.

It knows nothing of the tape beyond `record`, and nothing of the model.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from transformer_lab.backends.plain import manual
from transformer_lab.backends.readings.recorded import Part, Recorded, plain, record, record_together

PIECE = 1 << 15  # elements: a few arrays of 128 KB lie in a second-level cache together
QUERY_BLOCK = 128


def in_pieces(function: Callable[..., None], *arrays: np.ndarray) -> np.ndarray:
    """function(out, *arrays), elementwise, on one piece after the other; returns out, shaped like the first array."""
    out = np.empty(arrays[0].shape, arrays[0].dtype)
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    flat.insert(0, out.reshape(-1))
    for first in range(0, out.size, PIECE):
        function(*(array[first : first + PIECE] for array in flat))
    return out


def linear(ops: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """y = x w + b, x [..., in], w [in, out], b [out]. With the rows of x and g below each other, n of them:

    dL/dx = g w^T                 [n, out] [out, in]
    dL/dw = x^T g                 [in, n] [n, out]
    dL/db = sum over the rows of g
    """
    w, shape = plain(kernel), x.shape
    rows = plain(x).reshape(-1, shape[-1])
    y = rows @ w
    if bias is not None:
        y += plain(bias)

    def gradients(g: Any) -> tuple[Any, Any, Any]:
        g = g.reshape(-1, w.shape[1])
        return (g @ w.T).reshape(shape), rows.T @ g, None if bias is None else g.sum(axis=0)

    return record_together(y.reshape(*shape[:-1], w.shape[1]), (x, kernel, bias), gradients)


def embed(ops: Any, table: Any, ids: Any) -> Any:
    """y = table[ids]: each row of g goes to the row of the table that it came from; rows used twice get the sum."""
    return record(plain(table)[ids], (table, lambda g: Part((ids,), g)))


def layer_norm(ops: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """y = n w + b with n = (x - mean_D x) r and r = 1 / sqrt(mean_D (x - mean_D x)^2 + epsilon) (arXiv 1607.06450).

    With h = g w = dL/dn:
    dL/dx = r (h - mean_D h - n mean_D (h n)): a norm forgets the mean and the length of x, so the gradient has no part
    along them.
    dL/dw = sum over the rows of g n;   dL/db = sum over the rows of g
    """
    p, w = plain(x), plain(weight)
    n = p - p.mean(axis=-1, keepdims=True)
    r = 1.0 / np.sqrt(mean_product(n, n) + epsilon)
    n *= r
    y = n * w
    y += plain(bias)

    def to_x(g: Any) -> Any:
        h = g * w
        inner = mean_product(h, n)
        h -= h.mean(axis=-1, keepdims=True)
        h -= n * inner
        h *= r
        return h

    return record(y, (x, to_x), (weight, lambda g: rows_product(g, n)), (bias, lambda g: g))


def rms_norm(ops: Any, x: Any, weight: Any, epsilon: float) -> Any:
    """y = n w with n = x r and r = 1 / sqrt(mean_D x^2 + epsilon) (arXiv 1910.07467). With h = g w = dL/dn:

    dL/dx = r (h - n mean_D (h n));   dL/dw = sum over the rows of g n
    """
    p, w = plain(x), plain(weight)
    r = 1.0 / np.sqrt(mean_product(p, p) + epsilon)
    n = p * r

    def to_x(g: Any) -> Any:
        h = g * w
        h -= n * mean_product(h, n)
        h *= r
        return h

    return record(n * w, (x, to_x), (weight, lambda g: rows_product(g, n)))


def mean_product(a: Any, b: Any) -> Any:
    """mean_D (a b), [..., D] -> [..., 1], without the array of products."""
    return np.einsum("...d,...d->...", a, b)[..., None] / a.shape[-1]


def rows_product(a: Any, b: Any) -> Any:
    """The sum over all rows of a b: [..., D] -> [D]."""
    size = a.shape[-1]
    return np.einsum("nd,nd->d", a.reshape(-1, size), b.reshape(-1, size))


def gelu_tanh(ops: Any, x: Any) -> Any:
    """y = x s with s = 1 / (1 + exp(-2 z)), z = c (x + 0.044715 x^3), c = sqrt(2 / pi) (arXiv 1606.08415).

    ds/dx = s (1 - s) 2 dz/dx and dz/dx = c (1 + 3 * 0.044715 x^2), so
    dL/dx = g (s + x s (1 - s) 2 c (1 + 0.134145 x^2))
    """
    twice = 2.0 * math.sqrt(2.0 / math.pi)

    def sigmoid(s: Any, x: Any) -> None:
        """s = 1 / (1 + exp(-2 z))."""
        np.multiply(x, x, out=s)
        s *= -twice * 0.044715
        s -= twice
        s *= x
        np.minimum(s, 80.0, out=s)
        np.exp(s, out=s)
        s += 1.0
        np.reciprocal(s, out=s)

    def forward(y: Any, x: Any) -> None:
        sigmoid(y, x)
        y *= x

    def backward(out: Any, g: Any, x: Any) -> None:
        s = np.empty_like(out)
        sigmoid(s, x)
        np.multiply(x, x, out=out)
        out *= twice * 3.0 * 0.044715
        out += twice  # 2 dz/dx
        out *= x
        out *= 1.0 - s
        out += 1.0
        out *= s
        out *= g

    p = plain(x)
    return record(in_pieces(forward, p), (x, lambda g: in_pieces(backward, g, p)))


def gelu_erf(ops: Any, x: Any) -> Any:
    """y = x F(x), F(x) = erfc(-x / sqrt 2) / 2 the normal distribution, f(x) = exp(-x^2 / 2) / sqrt(2 pi) its density.

    dL/dx = g (F(x) + x f(x))
    """
    p = plain(x)
    distribution = 0.5 * ops.erfc(p * -math.sqrt(0.5))

    def backward(out: Any, g: Any, x: Any, distribution: Any) -> None:
        np.multiply(x, x, out=out)
        out *= -0.5
        np.exp(out, out=out)
        out *= x
        out *= 1.0 / math.sqrt(2.0 * math.pi)
        out += distribution
        out *= g

    return record(p * distribution, (x, lambda g: in_pieces(backward, g, p, distribution)))


def relu(ops: Any, x: Any) -> Any:
    """y = max(x, 0): dL/dx = g where x > 0, else 0."""
    p = plain(x)
    return record(np.maximum(p, 0.0), (x, lambda g: np.where(p > 0.0, g, 0.0)))


def silu(ops: Any, x: Any) -> Any:
    """y = x s with s = 1 / (1 + exp(-x)) (arXiv 1702.03118); ds/dx = s (1 - s), so dL/dx = g s (1 + x (1 - s))."""

    def sigmoid(s: Any, x: Any) -> None:
        np.negative(x, out=s)
        np.minimum(s, 80.0, out=s)
        np.exp(s, out=s)
        s += 1.0
        np.reciprocal(s, out=s)

    def forward(y: Any, x: Any) -> None:
        sigmoid(y, x)
        y *= x

    def backward(out: Any, g: Any, x: Any) -> None:
        s = np.empty_like(out)
        sigmoid(s, x)
        np.subtract(1.0, s, out=out)
        out *= x
        out += 1.0
        out *= s
        out *= g

    p = plain(x)
    return record(in_pieces(forward, p), (x, lambda g: in_pieces(backward, g, p)))


def sigmoid(ops: Any, x: Any) -> Any:
    """y = 1 / (1 + exp(-x)): dL/dx = g y (1 - y)."""
    y = 1.0 / (1.0 + np.exp(np.minimum(-plain(x), 80.0)))
    return record(y, (x, lambda g: g * y * (1.0 - y)))


def logsumexp(ops: Any, x: Any) -> Any:
    """y = log sum_D exp(x): dL/dx = g softmax(x)."""
    p = plain(x)
    largest = p.max(axis=-1, keepdims=True)
    powers = np.exp(p - largest)
    total = powers.sum(axis=-1, keepdims=True)
    return record((largest + np.log(total))[..., 0], (x, lambda g: g[..., None] * (powers / total)))


def softmax(ops: Any, x: Any) -> Any:
    """y = exp(x) / sum_D exp(x). dy[i]/dx[j] = y[i] ((i = j) - y[j]), so dL/dx = y (g - sum_D g y)."""
    p = plain(x)
    y = np.exp(p - p.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)

    def to_x(g: Any) -> Any:
        result = g - np.einsum("...d,...d->...", g, y)[..., None]
        result *= y
        return result

    return record(y, (x, to_x))


def rotary(ops: Any, x: Any, cos: Any, sin: Any) -> Any:
    """(y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin), the halves of each head turned by an angle (arXiv 2104.09864).

    The gradient is turned back: dL/dx1 = g1 cos + g2 sin, dL/dx2 = g2 cos - g1 sin. The table is the same for all
    heads: dL/dcos = sum over the heads of g1 x1 + g2 x2, dL/dsin = sum over the heads of g2 x1 - g1 x2.
    """
    p, half = plain(x), x.shape[-1] // 2

    def turned(x: Any, cos: Any, sin: Any) -> Any:
        y, cos, sin = np.empty_like(x), cos[:, None], sin[:, None]
        y[..., :half] = x[..., :half] * cos - x[..., half:] * sin
        y[..., half:] = x[..., half:] * cos + x[..., :half] * sin
        return y

    c, s = plain(cos), plain(sin)
    return record(
        turned(p, c, s),
        (x, lambda g: turned(g, c, -s)),
        (cos, lambda g: (g[..., :half] * p[..., :half] + g[..., half:] * p[..., half:]).sum(axis=1)),
        (sin, lambda g: (g[..., half:] * p[..., :half] - g[..., :half] * p[..., half:]).sum(axis=1)),
    )


def attention(
    ops: Any,
    query: Any,
    key: Any,
    value: Any,
    start: Any,
    scale: float,
    window: int | None = None,
    tap: Any = manual.identity,
) -> Any:
    """y = P V with P = softmax(S), S = scale Q K^T + mask (arXiv 1706.03762), one row of the batch after the other.

    dL/dV = P^T g and dL/dP = g V^T. Through the softmax dL/dS = P (dL/dP - d), where d, for each query, is
    sum_S P dL/dP = sum_N g y: the sum over the keys need not be taken. Then
    dL/dQ = scale (dL/dS) K,  dL/dK = scale (dL/dS)^T Q

    P is computed again from log sum_S exp S, as in FlashAttention (Dao et al. 2022, arXiv 2205.14135): there are never
    more scores in memory than those of one block of queries, [H, QUERY_BLOCK, S]. G heads that share a key are rows of
    one product, so that the sum over them comes by itself. Like other fused versions this shows no scores or pattern.
    """
    q, k, v = plain(query), plain(key), plain(value)
    batch, heads, queries, size = q.shape
    kv_heads = k.shape[1]

    def rows(x: Any, row: int, block: slice) -> Any:
        """The queries of a block, those that share a key head below each other: [K, G * T, N]."""
        return x[row, :, block].reshape(kv_heads, -1, x.shape[-1])

    def masked_scores(row: int, block: slice, seen: int, hidden: Any) -> Any:
        scores = (rows(q, row, block) * scale) @ np.matrix_transpose(k[row, :, :seen])  # [K, G * T, S]
        np.copyto(scores.reshape(kv_heads, -1, *hidden.shape), -np.inf, where=hidden)
        return scores

    y = heads_last(q.shape, q.dtype)
    logs = np.empty((batch, heads, queries, 1), q.dtype)  # log sum_S exp S
    for row, block, seen, hidden in query_blocks(ops, start, queries, k.shape[2], window):
        scores = masked_scores(row, block, seen, hidden)
        largest = scores.max(axis=-1, keepdims=True)
        scores -= largest
        np.exp(scores, out=scores)
        total = scores.sum(axis=-1, keepdims=True)
        mixed = scores @ v[row, :, :seen]
        mixed /= total
        y[row, :, block] = mixed.reshape(heads, -1, size)
        logs[row, :, block] = (largest + np.log(total)).reshape(heads, -1, 1)

    def gradients(g: Any) -> tuple[Any, Any, Any]:
        to_q = heads_last(q.shape, q.dtype)
        to_k, to_v = np.zeros(k.shape, k.dtype), np.zeros(v.shape, v.dtype)
        means = np.einsum("bhtn,bhtn->bht", g, y)[..., None]  # d
        for row, block, seen, hidden in query_blocks(ops, start, queries, k.shape[2], window):
            pattern = masked_scores(row, block, seen, hidden)
            pattern -= rows(logs, row, block)
            np.exp(pattern, out=pattern)
            g_rows = rows(g, row, block)
            to_v[row, :, :seen] += np.matrix_transpose(pattern) @ g_rows
            to_scores = g_rows @ np.matrix_transpose(v[row, :, :seen])  # dL/dP
            to_scores -= rows(means, row, block)
            to_scores *= pattern
            to_scores *= scale
            to_q[row, :, block] = (to_scores @ k[row, :, :seen]).reshape(heads, -1, size)
            to_k[row, :, :seen] += np.matrix_transpose(to_scores) @ rows(q, row, block)
        return to_q, to_k, to_v

    return record_together(y, (query, key, value), gradients)


def query_blocks(
    ops: Any, start: Any, queries: int, keys: int, window: int | None
) -> Iterator[tuple[int, slice, int, Any]]:
    """(row of the batch, its queries, how many keys they may see, bool [T, S]: which of these are hidden to which)."""
    for row, position in enumerate(start.tolist()):
        for first in range(0, queries, QUERY_BLOCK):
            count = min(QUERY_BLOCK, queries - first)
            seen = min(keys, position + first + count)
            visible = manual.visible_keys(ops, start[row : row + 1] + first, count, seen, window)
            yield row, slice(first, first + count), seen, ~visible[0]


def heads_last(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array [B, H, T, N] that lies [B, T, H, N] in memory: heads are joined again without a copy."""
    batch, heads, queries, size = shape
    return np.empty((batch, queries, heads, size), dtype).transpose(0, 2, 1, 3)


def cross_entropy(ops: Any, logits: Any, targets: Any) -> Any:
    """y = log sum_V exp(x) - x[target]: dL/dx = g (softmax(x) - onehot(target)).

    The exponentials of the forward computation become the gradient in place.
    """
    x = plain(logits).reshape(-1, logits.shape[-1])
    places = (np.arange(len(x)), np.asarray(targets).reshape(-1))
    powers, totals = np.empty_like(x), np.empty((len(x), 1), x.dtype)
    chosen = np.empty(len(x), x.dtype)
    step = max(1, PIECE // x.shape[1])
    for first in range(0, len(x), step):
        some = slice(first, first + step)
        piece = np.subtract(x[some], x[some].max(axis=-1, keepdims=True), out=powers[some])
        chosen[some] = piece[places[0][: len(piece)], places[1][some]]
        np.exp(piece, out=piece)
        piece.sum(axis=-1, keepdims=True, out=totals[some])
    shape = logits.shape

    def to_logits(g: Any) -> Any:
        g = np.reshape(g, (-1, 1))
        gradient = powers
        gradient *= g / totals
        gradient[places] -= g[:, 0]
        return gradient.reshape(shape)

    return record((np.log(totals[:, 0]) - chosen).reshape(shape[:-1]), (logits, to_logits))


# --- the primitives of the backend that are not in NumPy ------------------------------------------------------------


def erfc(ops: Any, x: Any) -> Any:
    """y = erfc x: dL/dx = -2 / sqrt(pi) exp(-x^2) g."""
    p = x.value
    return record(ops.erfc(p), (x, lambda g: g * (-2.0 / math.sqrt(math.pi) * np.exp(-(p * p)))))


def scatter_add(ops: Any, target: Any, index: Any, update: Any) -> Any:
    """y = target with update[n] added at index[n]: dL/dtarget = g, dL/dupdate[n] = g[index[n]]."""
    value = ops.scatter_add(plain(target).copy(), index, plain(update))
    return record(value, (target, lambda g: g), (update, lambda g: g[index]))


def slice_update(ops: Any, target: Any, update: Any, start: Any, axis: int) -> Any:
    Recorded.refuse("slice_update; train without a cache")
