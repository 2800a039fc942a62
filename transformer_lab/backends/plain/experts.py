"""Parameters of experts, stacked along their first axis, and the plain ways to use one of them, or all in turn.

`params` here is {map: {leaf: stack}}, as a layer's experts have it. Written once, for every backend whose arrays are
there at once; one that compiles has ways of its own.
"""

from collections.abc import Callable, Iterator
from typing import Any

from transformer_lab.errors import ConfigurationError

DISPATCHES = ("loop", "one_hot", "grouped", "gather")  # told in ffn/dispatch.py


class NoSuchExpert(ConfigurationError):
    """A router chose the number of an expert that there is not."""


class Stacked(tuple[Any, ...]):
    """The kernels of experts, placed one by one."""


class Fetched(Stacked):
    """The same, of which each is brought when somebody takes it: by `fetch(number)`.

    Who goes through them all, to write them down say, gets each by `read(number)`, which is to leave no trace.
    """

    fetch: Callable[[int], Any]
    read: Callable[[int], Any]

    def __new__(cls, count: int, fetch: Callable[[int], Any], read: Callable[[int], Any]) -> "Fetched":
        made = super().__new__(cls, range(count))
        made.fetch, made.read = fetch, read
        return made

    def __getitem__(self, number: Any) -> Any:
        return self.fetch(int(number))

    def __iter__(self) -> Iterator[Any]:
        return map(self.read, range(len(self)))


def picked(ops: Any, params: Any, index: Any) -> Any:
    """The parameters of the expert with this number, an int or an array []."""
    number = index if isinstance(index, int) else _chosen(ops, params, index)
    return {name: {leaf: stack[number] for leaf, stack in own.items()} for name, own in params.items()}


def _chosen(ops: Any, params: Any, index: Any) -> int:
    """The number that a router chose, on the host. ConfigurationError if there is no such expert."""
    number, first = int(ops.to_numpy(index)), next(stack for own in params.values() for stack in own.values())
    count = len(first) if isinstance(first, tuple) else first.shape[0]
    if not 0 <= number < count:
        message = f"A router chose expert {number} of {count}; they are counted from 0."
        raise NoSuchExpert(message)
    return number


def by_groups(ops: Any, run: Callable[[Any, Any], Any], params: Any, rows: Any, sizes: Any) -> Any:
    """rows [R, D] lie in groups of `sizes` [E] rows, one group for each expert -> [R, D]: run(its parameters, its rows)
    for every group that is not empty, and 0 for the rows behind the last one."""
    apart = {
        name: {leaf: stack if isinstance(stack, Stacked) else ops.xp.unstack(stack) for leaf, stack in own.items()}
        for name, own in params.items()
    }
    made, first = [], 0
    for expert, size in enumerate(ops.to_numpy(sizes).tolist()):
        if size:
            made.append(run(picked(ops, apart, expert), rows[first : first + size, :]))
            first += size
    if first < rows.shape[0]:
        made.append(ops.xp.zeros_like(rows[first:, :]))
    return made[0] if len(made) == 1 else ops.xp.concat(made, axis=0)
