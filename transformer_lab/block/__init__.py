"""A block of the decoder: the order in which it applies attention, feed-forward network and norms. One file per kind,
chosen by the `block` group of the configuration.

A block is a frozen dataclass with `attention`, `ffn` and `norm`; `taps`, the names that it shows in order; `shapes`;
and a call (ops, params, x, tokens, cache, tap) -> (x, cache).
"""
