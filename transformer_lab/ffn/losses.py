"""What a router is asked for beside the text: that experts are used alike, and that its logits stay small.

`share` [B, T] is each token's share of a step: it sums to 1 over all pieces of the step, and is 0 for padding. So every
sum here is a part of a mean over the step, whatever the number of pieces. E experts, k slots.
"""

from typing import Any


def counted(ops: Any, chosen: Any, share: Any) -> Any:
    """chosen, booleans [B, T, ...] -> [B, ...], of how many tokens that are no padding it is true.

    Whole numbers in floats: what hangs on whether one is larger than another must not hang on how a sum was rounded.
    """
    real = ops.xp.reshape(share > 0.0, (*share.shape, *(1,) * (chosen.ndim - 2)))
    return ops.xp.sum(ops.cast(chosen & real, share.dtype), axis=1)


def used(ops: Any, ids: Any, kept: Any, share: Any, experts: int) -> Any:
    """ids [B, T, k], kept of them (None: all) -> [B, E], how many tokens of each row go to each expert."""
    numbers = ops.xp.arange(experts, dtype=ids.dtype, device=ops.array_device)
    here = ids[..., None] == numbers if kept is None else (ids[..., None] == numbers) & kept[..., None]  # [B, T, k, E]
    return counted(ops, ops.xp.any(here, axis=2), share)


def balance(ops: Any, load: Any, probabilities: Any, share: Any, scope: str, of_step: Any = None) -> Any:
    """E sum_i f_i P_i (Fedus et al. 2021, arXiv 2101.03961, equation 4): f_i the part of all slots that expert i has,
    P_i its mean probability. It is 1 where both are uniform, for every k.

    load [B, E]: from `used`. probabilities [B, T, E]. scope: the tokens that f and P are taken over, "sequence",
    "piece" (these B rows) or "step", with the `load` of the whole step in of_step [E] where these rows are not all of
    it (Qiu et al. 2025, arXiv 2501.11873).
    """
    xp, experts = ops.xp, load.shape[-1]
    mean = xp.sum(probabilities * share[..., None], axis=1)  # [B, E]
    if scope != "sequence":
        mean, load = (xp.sum(x, axis=0, keepdims=True) for x in (mean, load))
    if of_step is not None:
        load = of_step[None, :]
    slots = xp.sum(load, axis=-1, keepdims=True)
    slots = xp.where(slots > 0.0, slots, 1.0)
    # f = load / slots. P is mean over the tokens' share, and all this weighs as much as that share: it cancels.
    return experts * xp.sum(load / slots * mean)


def z_loss(ops: Any, logits: Any, share: Any) -> Any:
    """The mean of logsumexp(logits)^2 (Zoph et al. 2022, arXiv 2202.08906, equation 5). logits [B, T, E]."""
    return ops.xp.sum(ops.logsumexp(logits) ** 2 * share)


def squared_variation(ops: Any, values: Any, share: Any) -> Any:
    """CV^2, the variance over the squared mean, of the sums over tokens of values [B, T, E] that are not negative
    (Shazeer et al. 2017, arXiv 1701.06538, equations 7 and 11), times the tokens' part of the step."""
    xp = ops.xp
    sums = xp.sum(values * share[..., None], axis=(0, 1))  # [E]
    mean = xp.mean(sums)
    return xp.sum(share) * xp.mean((sums / xp.where(mean > 0.0, mean, 1.0) - 1.0) ** 2)
