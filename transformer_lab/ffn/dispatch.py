"""How rows come to their experts and back, in four ways with one result; `ops.dispatch` chooses.

Each takes the experts, their parameters, rows x [N, D], and of every row k slots: ids [N, k], its experts, all of them
others, and kept [N, k], which of the slots are to be computed (None: all); no expert has more than `most` slots. Each
gives what every slot's expert makes of its row, [N, k, D], and 0 where a slot is not kept. Nothing is weighted or
summed here, so the ways differ in no rounding but that of products of other shapes: in exact mode the bits are equal.

    loop     every expert computes every row, and its slots take their part: the plain way, the judge of the others
    one_hot  rows are put into a buffer for each expert by products with ones and zeros (GShard, arXiv 2006.16668)
    grouped  rows are sorted by expert, and each expert computes its own (MegaBlocks, arXiv 2211.15841)
    gather   each slot computes its one row with the kernel of its expert: for few rows, as in decoding; else grouped
"""

from collections.abc import Callable
from typing import Any

FEW_SLOTS = 16  # up to so many, a slot at a time reads no kernel that it does not need


def dispatched(ops: Any, experts: Any, params: Any, x: Any, ids: Any, kept: Any, most: int) -> Any:
    """By the way that was chosen for the backend, or the one that suits the sizes."""
    way = ops.dispatch
    if way in ("fused", "gather"):
        way = "gather" if x.shape[0] * ids.shape[1] <= FEW_SLOTS else "grouped"
    if way == "one_hot":
        return one_hot(ops, experts, params, x, ids, kept, most)
    run: Callable[..., Any] = {"loop": loop, "grouped": grouped, "gather": gather}[way]
    return run(ops, experts, params, x, ids, kept)


def loop(ops: Any, experts: Any, params: Any, x: Any, ids: Any, kept: Any) -> Any:
    xp = ops.xp
    out = None
    for expert in range(experts.count):
        here = ids == expert if kept is None else (ids == expert) & kept  # [N, k]
        rows = experts(ops, _product_of(ops, ops.picked(params, expert)), x)  # [N, D]
        out = xp.where(here[:, :, None], rows[:, None, :], 0.0 if out is None else out)
    return out


def one_hot(ops: Any, experts: Any, params: Any, x: Any, ids: Any, kept: Any, most: int) -> Any:
    """Slot s of row n has a place in its expert's buffer: how many slots before it, row by row, went to that expert."""
    xp, (rows, slots), count = ops.xp, ids.shape, experts.count
    chosen = ids[:, :, None] == _numbers(ops, count, ids)  # [N, k, E]
    chosen = chosen if kept is None else chosen & kept[:, :, None]
    flat = ops.cast(xp.reshape(chosen, (rows * slots, count)), ops.index_dtype)
    before = xp.cumulative_sum(flat, axis=0) - flat
    taken = (before[:, :, None] == _numbers(ops, most, ids)) & (flat[:, :, None] == 1)  # [N k, E, most]
    ones = ops.cast(xp.reshape(taken, (rows * slots, count * most)), ops.float_dtype)
    copies = xp.broadcast_to(x[:, None, :], (rows, slots, x.shape[1]))
    buffers = xp.matmul(xp.matrix_transpose(ones), xp.reshape(copies, (rows * slots, x.shape[1])))
    buffers = xp.reshape(buffers, (count, most, x.shape[1]))
    made = [experts(ops, _product_of(ops, ops.picked(params, expert)), buffers[expert, ...]) for expert in range(count)]
    out = xp.matmul(ones, xp.concat(made, axis=0))  # [N k, D]
    return xp.reshape(out, (rows, slots, x.shape[1]))


def grouped(ops: Any, experts: Any, params: Any, x: Any, ids: Any, kept: Any) -> Any:
    xp, (rows, slots) = ops.xp, ids.shape
    flat = xp.reshape(ids if kept is None else xp.where(kept, ids, experts.count), (-1,))  # those not kept at the end
    order = xp.argsort(flat, stable=True)
    sizes = xp.sum(ops.cast(flat[:, None] == _numbers(ops, experts.count, flat), ops.index_dtype), axis=0)  # [E]

    def expert(own: Any, part: Any) -> Any:
        return experts(ops, _product_of(ops, own), part)

    out = ops.by_groups(expert, params, xp.take(x, order // slots, axis=0), sizes)  # [N k, D]
    return xp.reshape(xp.take(out, xp.argsort(order, stable=True), axis=0), (rows, slots, x.shape[1]))


def gather(ops: Any, experts: Any, params: Any, x: Any, ids: Any, kept: Any) -> Any:
    xp = ops.xp
    made = [
        experts(ops, _product_of(ops, ops.picked(params, ids[row, slot])), x[row : row + 1, :])
        for row in range(ids.shape[0])
        for slot in range(ids.shape[1])
    ]
    out = xp.reshape(xp.concat(made, axis=0), (*ids.shape, x.shape[1]))
    return out if kept is None else xp.where(kept[:, :, None], out, 0.0)


def _product_of(ops: Any, own: Any) -> Callable[[str, Any], Any]:
    """The linear maps of one expert, of its own parameters."""
    return lambda name, rows: ops.linear(rows, own[name]["kernel"], own[name].get("bias"))


def _numbers(ops: Any, count: int, like: Any) -> Any:
    return ops.xp.arange(count, dtype=like.dtype, device=ops.array_device)
