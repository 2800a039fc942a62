"""Where the keys and values of past tokens are kept: one file per policy, chosen by the `cache` group.

A policy (`policy.py`) is a frozen dataclass. `allocate` gives the cache, a list with one NamedTuple of arrays for each
layer, whose `update` writes new keys and values and returns all that attention may read, and at which positions it
stood (`layer.py`). NamedTuples are trees to every compiler. How far a row has come is never stored: it is the `start`
of the next pass, so going back is writing over what comes later.
"""
