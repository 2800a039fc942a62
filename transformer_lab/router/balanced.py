"""A balanced assignment: each of N tokens gets one of E experts, and no expert more than ceil(N / E) of them.

The sum of scores is nearly as large as it can be (an auction makes it so to any precision, Bertsekas 1992; here a fixed
number of steps on arrays). All in whole numbers, so that nothing here has a gradient or is rounded anywhere.
"""

from typing import Any

STEPS = 16  # of the prices: each halves how far an expert's is from the one that it would set by itself
UNIT = 2.0**16  # parts of a score that are told apart
LARGEST = 2.0**12  # score in size; larger ones count as this, so that every difference stays below 2^31
NOTHING = -(1 << 30)  # below every score less a price


def balanced(ops: Any, scores: Any, real: Any) -> Any:
    """scores [N, E]; real: booleans [N], the tokens that are given out, or None: all -> whole numbers [N]. Of equal
    tokens the first come first. What is not real gets its best."""
    xp, (count, experts) = ops.xp, scores.shape
    h = ops.cast(xp.clip(scores, -LARGEST, LARGEST) * UNIT, ops.index_dtype)
    numbers = xp.arange(experts, dtype=h.dtype, device=ops.array_device)
    if experts == 1:
        return xp.zeros_like(h[:, 0])
    real = xp.ones((count,), dtype=xp.bool, device=ops.array_device) if real is None else real
    tokens = xp.sum(ops.cast(real, ops.index_dtype))
    room = (tokens + (experts - 1)) // experts  # of each expert
    # Places that are left over go to tokens that like all experts alike, so that every expert is full.
    h = xp.concat([h, xp.zeros((experts - 1, experts), dtype=h.dtype, device=ops.array_device)], axis=0)
    real = xp.concat([real, numbers[1:] <= room * experts - tokens], axis=0)

    def better_price(_: Any, price: Any) -> Any:
        """That at which just as many tokens as there is room for prefer this expert, were the others' prices right."""
        offers = h - price
        ranked = xp.sort(offers, axis=-1)
        best, second = ranked[:, -1:], ranked[:, -2:-1]
        more = xp.where(real[:, None], h - xp.where(offers == best, second, best), NOTHING)
        ranked = xp.flip(xp.sort(more, axis=0), axis=0)
        last_in, first_out = _row(ops, ranked, room - 1), _row(ops, ranked, room)
        return price + ((last_in + (first_out - last_in) // 2) - price) // 2

    price = ops.repeat(better_price, STEPS, xp.zeros_like(numbers))

    def give_out(_: Any, given: Any) -> Any:
        """Who has none yet asks the best that has room; an expert takes those who would lose most elsewhere. Either all
        have one then, or one expert more is full: so E rounds are enough."""
        ids, left = given
        offers = xp.where(left > 0, h - price, NOTHING)
        ranked = xp.sort(offers, axis=-1)
        asks = (numbers == xp.argmax(offers, axis=-1)[:, None]) & (real & (ids < 0))[:, None]
        loss = xp.where(asks, ranked[:, -1:] - ranked[:, -2:-1], -1)
        order = xp.argsort(-loss, axis=0, stable=True)
        taken = asks & (xp.argsort(order, axis=0, stable=True) < left)
        ids = xp.where(xp.any(taken, axis=-1), ops.cast(xp.argmax(ops.cast(taken, h.dtype), axis=-1), h.dtype), ids)
        return ids, left - xp.sum(ops.cast(taken, h.dtype), axis=0)

    ids, _ = ops.repeat(give_out, experts, (xp.zeros_like(h[:, 0]) - 1, xp.zeros_like(numbers) + room))
    return xp.where(ids < 0, ops.cast(xp.argmax(h, axis=-1), h.dtype), ids)[:count]


def _row(ops: Any, x: Any, place: Any) -> Any:
    """x [N, E], a whole number [] -> [E]."""
    return ops.xp.take(x, ops.xp.reshape(place, (1,)), axis=0)[0, :]
