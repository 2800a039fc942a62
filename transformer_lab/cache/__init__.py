"""Where the keys and values of past tokens are kept: one file per policy, chosen by the `cache` group.

A policy is a frozen dataclass. `allocate` gives the cache, a list with one NamedTuple of arrays per layer, whose
`update` writes new keys and values and returns all that attention may read. NamedTuples are trees to every compiler.
"""
