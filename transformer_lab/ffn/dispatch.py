"""How rows come to their experts and back, in four ways with one result; `ops.dispatch` chooses.

Each takes the experts, their parameters, rows x [R, D], the number of each row's expert, ids [R], and kept [R], which
of them are to be computed (None: all); no expert has more than `most`. Each gives what every row's expert makes of it,
[R, D], and 0 where it is not kept. A token with k experts is k rows. Nothing is weighted or summed here, so the ways
differ in no rounding but that of products of other shapes: in exact mode the bits are equal, of gradients too.

    loop     every expert computes every row, of which its own are taken: the plain way, the judge of the others
    one_hot  rows are put into a buffer for each expert by products with ones and zeros (GShard, arXiv 2006.16668)
    grouped  rows are sorted by expert, and each expert computes its own (MegaBlocks, arXiv 2211.15841)
    gather   each row by itself, with the kernel of its expert: for few rows, as in decoding; more are grouped, as
             exact ones are
"""

from collections.abc import Callable
from typing import Any

FEW_ROWS = 16  # up to so many, a row at a time reads no kernel that it does not need


def dispatched(ops: Any, experts: Any, params: Any, x: Any, ids: Any, kept: Any, most: int) -> Any:
    """By the way that was chosen for the backend, or the one that suits the sizes."""
    way = ops.dispatch
    if way in ("fused", "gather"):
        # In exact mode the gradient of a kernel is one product, rounded once, and not a sum of rounded ones.
        way = "gather" if x.shape[0] <= FEW_ROWS and ops.precision != "exact" else "grouped"
    if way == "one_hot":
        return one_hot(ops, experts, params, x, ids, kept, most)
    run: Callable[..., Any] = {"loop": loop, "grouped": grouped, "gather": gather}[way]
    return run(ops, experts, params, x, ids, kept)


def loop(ops: Any, experts: Any, params: Any, x: Any, ids: Any, kept: Any) -> Any:
    out = 0.0
    for expert in range(experts.count):
        here = ids == expert if kept is None else (ids == expert) & kept
        out = ops.xp.where(here[:, None], experts(ops, _product_of(ops, ops.picked(params, expert)), x), out)
    return out


def one_hot(ops: Any, experts: Any, params: Any, x: Any, ids: Any, kept: Any, most: int) -> Any:
    """A row has a place in its expert's buffer: how many rows before it went to that expert."""
    xp, count = ops.xp, experts.count
    chosen = ids[:, None] == _numbers(ops, count, ids)  # [R, E]
    chosen = chosen if kept is None else chosen & kept[:, None]
    counted = ops.cast(chosen, ops.index_dtype)
    before = xp.cumulative_sum(counted, axis=0) - counted
    taken = (before[:, :, None] == _numbers(ops, most, ids)) & chosen[:, :, None]  # [R, E, most]
    ones = ops.cast(xp.reshape(taken, (-1, count * most)), ops.float_dtype)
    buffers = xp.reshape(xp.matmul(xp.matrix_transpose(ones), x), (count, most, x.shape[1]))
    made = [experts(ops, _product_of(ops, ops.picked(params, expert)), buffers[expert, ...]) for expert in range(count)]
    return xp.matmul(ones, xp.concat(made, axis=0))


def grouped(ops: Any, experts: Any, params: Any, x: Any, ids: Any, kept: Any) -> Any:
    xp = ops.xp
    ids = ids if kept is None else xp.where(kept, ids, experts.count)  # what is not kept comes behind all groups
    order = xp.argsort(ids, stable=True)
    sizes = xp.sum(ops.cast(ids[:, None] == _numbers(ops, experts.count, ids), ops.index_dtype), axis=0)  # [E]

    def expert(own: Any, rows: Any) -> Any:
        return experts(ops, _product_of(ops, own), rows)

    out = ops.by_groups(expert, params, xp.take(x, order, axis=0), sizes)
    return xp.take(out, xp.argsort(order, stable=True), axis=0)


def gather(ops: Any, experts: Any, params: Any, x: Any, ids: Any, kept: Any) -> Any:
    made = [
        experts(ops, _product_of(ops, ops.picked(params, ids[row])), x[row : row + 1, :]) for row in range(x.shape[0])
    ]
    out = ops.xp.concat(made, axis=0)
    return out if kept is None else ops.xp.where(kept[:, None], out, 0.0)


def _product_of(ops: Any, own: Any) -> Callable[[str, Any], Any]:
    """The linear maps of one expert, of its own parameters."""
    return lambda name, rows: ops.linear(rows, own[name]["kernel"], own[name].get("bias"))


def _numbers(ops: Any, count: int, like: Any) -> Any:
    return ops.xp.arange(count, dtype=like.dtype, device=ops.array_device)
