"""Our own family: every model that can be put together from parts, whatever else holds it or not.

A part is an object with its fields, and its name beside them: {"part": "ffn/dense", "size": 640, ...} is the class in
`ffn/dense.py`, what `ffn=dense` is on the command line. Only what belongs to this package is ever imported: a model's
folder cannot bring code. A part from outside is written as {"part": "outside", "class": ...} and must be given again
when the model is loaded. Tensors have our own names, and lie as they are used: kernels [in, out].

Every field is written, so one that is absent is missing, and is never taken for its default. The day a published
version gets another field, config.json needs a number of its layout; where there is none, it is this one.
"""

import re
from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from importlib import import_module
from itertools import groupby
from pkgutil import iter_modules
from typing import Any

from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import NO_BUFFERS
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.checkpoints.tensor_names import Stored
from transformer_lab.config import construct
from transformer_lab.errors import ConfigurationError, shown
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.model.outside_part import OutsidePart
from transformer_lab.model.parameters import shapes

ARCHITECTURE = None
PREFIX = ""
BUFFERS = re.compile(NO_BUFFERS)
SIZES = Sizes(1, 1, 1, 1, 1)  # none of them may be absent
GROUPS = ("block", "attention", "position", "norm", "ffn", "router", "balancer")
DEEPEST = 8  # parts within parts
# The fields that hold parts, and of which group; nothing else may hold one.
_GROUP_OF = {group: group for group in GROUPS} | {"blocks": "block", "embedding_norm": "norm", "scaling": "position"}
_GROUP_OF["inner"] = "block"  # without parts of its own, which are those of the block around it
_GROUP_OF |= dict.fromkeys(("experts", "shared", "capacity"), "ffn")
_NUMBERS = ("blocks.capacity", "blocks.ffn.router.experts")  # what has the name of a part and is none
_TOKENS = {"end_of_text_id": "eos_token_id", "begin_of_text_id": "bos_token_id"}


class _OwnNames:
    """Our names as they are."""

    embedding, head_kernel = "embed.token", "head.kernel"
    fused: Mapping[str, tuple[str, ...]] = {}

    def in_file(self, name: str, prefix: str) -> str:
        return name

    def in_model(self, name: str, prefix: str) -> str:
        return name

    def stored(self, config: ModelConfig) -> dict[str, Stored]:
        return {name: Stored(((name, shape),)) for name, shape in shapes(config).items()}


NAMES = _OwnNames()


def config_from(fields: Fields) -> ModelConfig:
    """Every field of a ModelConfig, under its name; blocks that are alike are written once, with how many `layers`."""
    vocab = fields.whole("vocab_size", 0, LIMITS["vocab_size"])
    blocks = fields.values.get("blocks")
    if not isinstance(blocks, list):
        fields.refuse("blocks", f"is {shown(blocks)}; it must be a list of blocks")
    made: list[Any] = []
    for block in blocks:
        layers = block.get("layers") if isinstance(block, dict) else None
        if type(layers) is not int or not 1 <= layers <= LIMITS["num_layers"] - len(made):
            fields.refuse("blocks", f"holds {shown(block)}; a block is an object with `layers`, a whole number")
        part = _value({name: value for name, value in block.items() if name != "layers"}, "blocks")
        made += [part] * layers
    own = {field.name for field in fields_of(ModelConfig)} - {"blocks", "vocab_size", *_TOKENS}
    for name in (*own, *_TOKENS.values()):
        if name not in fields.values:
            fields.refuse(name, "is missing")
    values = {name: _value(value, name) for name, value in fields.values.items() if name in own}
    tokens = {ours: next(iter(fields.token_ids(theirs, None, vocab)), None) for ours, theirs in _TOKENS.items()}
    return construct(ModelConfig, {"vocab_size": vocab, "blocks": tuple(made), **values, **tokens})


def fields_from(config: ModelConfig) -> dict[str, Any]:
    runs = [(block, len(list(same))) for block, same in groupby(config.blocks)]
    found = {field.name: _written(getattr(config, field.name)) for field in fields_of(config) if field.name != "blocks"}
    tokens = {theirs: found.pop(ours) for ours, theirs in _TOKENS.items()}
    return found | tokens | {"blocks": [{"layers": layers} | _written(block) for block, layers in runs]}


def _written(value: Any) -> Any:
    if isinstance(value, OutsidePart):
        return {"part": "outside", "class": value.name} | {name: _written(own) for name, own in value.fields}
    if is_dataclass(value):
        return _named(type(value)) | {field.name: _written(getattr(value, field.name)) for field in fields_of(value)}
    if isinstance(value, (list, tuple)):
        return [_written(one) for one in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    message = f"a part holds {shown(value)}, which is neither a number nor text nor another part"
    raise ConfigurationError(message)


def _named(kind: type) -> dict[str, str]:
    package, *path = kind.__module__.split(".")
    if package == __name__.partition(".")[0] and len(path) == 2 and path[0] in GROUPS:
        alone = len(_classes("/".join(path))) == 1
        return {"part": "/".join(path if alone else [*path, kind.__name__])}
    return {"part": "outside", "class": f"{kind.__module__}.{kind.__qualname__}"}


def _value(value: Any, where: str, depth: int = 0) -> Any:
    """A field as it was written: a part where a part belongs, of the right group, and a plain value elsewhere."""
    field = where.rpartition(".")[2]
    if depth > DEEPEST:
        message = f"{where} holds parts within parts, more than {DEEPEST} deep."
        raise ConfigurationError(message)
    if field in _GROUP_OF and where not in _NUMBERS and value is not None:
        return _part(value, where, depth)
    if isinstance(value, Mapping):
        message = f"{where} is {shown(value)}; no part belongs there."
        raise ConfigurationError(message)
    return tuple(_value(one, where, depth + 1) for one in value) if isinstance(value, list) else value


def _part(value: Any, where: str, depth: int = 0) -> Any:
    group = _GROUP_OF[where.rpartition(".")[2]]
    path = value.get("part") if isinstance(value, Mapping) else None
    if not isinstance(path, str) or not (path == "outside" or path.startswith(f"{group}/")):
        message = f"{where} is {shown(value)}; expected a part of the group {group}."
        raise ConfigurationError(message)
    values = {name: _value(own, f"{where}.{name}", depth + 1) for name, own in value.items() if name != "part"}
    if path == "outside":
        name = values.pop("class", None)
        if not isinstance(name, str):
            message = f"{where} is a part from outside without the name of its class."
            raise ConfigurationError(message)
        return OutsidePart(where, name, tuple(values.items()))
    classes = _classes(path)
    name = path.split("/")[2] if path.count("/") == 2 else next(iter(classes), "")
    if name not in classes:
        message = f"{where} is {shown(path)}, which is no part of this version of transformer_lab."
        raise ConfigurationError(message)
    whole = group == "block" and not where.endswith(".inner")
    without = [own for own in ("attention", "norm", "ffn") if whole and values.get(own) is None]
    if without:
        message = f"{where} is a block without {' and '.join(without)}."
        raise ConfigurationError(message)
    for field in fields_of(classes[name]):
        if field.name not in values:
            message = f"{where}.{field.name} is missing."
            raise ConfigurationError(message)
    return construct(classes[name], values, where)


def _classes(path: str) -> dict[str, type]:
    """The components in a file of ours, "GROUP/FILE", by their names; none if there is no such file."""
    group, _, file = path.partition("/")
    if group not in GROUPS:
        return {}
    package = import_module(f"transformer_lab.{group}")
    file = file.partition("/")[0]
    if file not in [module.name for module in iter_modules(package.__path__)]:
        return {}
    module = import_module(f"transformer_lab.{group}.{file}")
    return {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__
    }
