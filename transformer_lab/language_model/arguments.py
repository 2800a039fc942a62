"""A method that is called with the fields of a dataclass, one by one, instead of with an object of it.

So a list of arguments is written once, as the dataclass, and is the signature of every method that takes them: for
`help`, for an editor and for a type checker. Nothing here knows what the arguments mean.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Concatenate, ParamSpec, TypeVar

from transformer_lab.config import unknown_key
from transformer_lab.errors import ConfigurationError

Fields = ParamSpec("Fields")
Asked = TypeVar("Asked")
Owner = TypeVar("Owner")
Answer = TypeVar("Answer")


def arguments_of(
    dataclass: Callable[Fields, Asked],
) -> Callable[[Callable[[Owner, Asked], Answer]], Callable[Concatenate[Owner, Fields], Answer]]:
    """A decorator that turns method(self, asked) into method(self, field, field, ...), as `dataclass` lists them.

    A keyword that is no field raises ConfigurationError with the nearest one; too many or too few values raise
    TypeError, as in every call.
    """
    fields = signature(dataclass)

    def decorate(method: Callable[[Owner, Asked], Answer]) -> Callable[Concatenate[Owner, Fields], Answer]:
        @wraps(method)
        def call(self: Owner, /, *values: Fields.args, **named: Fields.kwargs) -> Answer:
            for name in named:
                if name not in fields.parameters:
                    raise ConfigurationError(unknown_key(name, list(fields.parameters)))
            fields.bind(*values, **named)  # its TypeError speaks of the arguments, and not of the dataclass
            return method(self, dataclass(*values, **named))

        own = signature(method)
        owner = next(iter(own.parameters.values()))
        shown = own.replace(parameters=[owner, *fields.parameters.values()])
        call.__signature__ = shown  # type: ignore[attr-defined]
        return call

    return decorate
