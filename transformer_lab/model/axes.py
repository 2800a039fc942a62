"""The axes of parameters, by name: what a size in a shape stands for.

A shape is a tuple of whole numbers; one that knows its axis is an `Axis`. The names say how a model can be cut:
"vocab", "embed" (the stream), "heads" (all numbers of all heads, a head's beside each other), "qkv" (those of queries,
keys and values, one after the other: to be cut within each), "ffn" (the inner width), "gate_up" (two of them, to be cut
within each), "experts". An axis without a name is never cut.
"""

Shape = tuple[int, ...]


class Axis(int):
    """A size with the name of its axis. In every other way it is the number."""

    name: str

    def __new__(cls, size: int, name: str) -> "Axis":
        axis = super().__new__(cls, size)
        axis.name = name
        return axis


def axis_names(shape: Shape) -> tuple[str | None, ...]:
    """The name of each axis of a shape, None where it has none."""
    return tuple(getattr(size, "name", None) for size in shape)
