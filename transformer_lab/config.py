"""The files under conf/ as objects, and the settings of a run as plain values.

A file that names a `_target_` describes a component: the target is imported and called with the other keys of the
file, after these were compared with its signature. Nothing here knows what a backend or a sampler is, nor how a command
line becomes settings (composition.py).
"""

import inspect
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformer_lab.errors import ConfigurationError, LabError, UnavailableError
from transformer_lab.paths import data_folder

PRIMARY = "config"  # conf/config.yaml


@dataclass(frozen=True)
class Settings:
    """Everything one run was told, as plain values.

    choices: group -> chosen file, such as {"backend": "jax"}. sections: the content of each group, {"backend": {...}}.
    folder: where the run may write, once it has begun. The other fields are the top-level keys of conf/config.yaml.
    """

    choices: Mapping[str, str | None]
    sections: Mapping[str, Mapping[str, Any]]
    prompt: str | None = None
    prompt_file: str | None = None
    prompt_ids: str | list[int] | None = None
    prompts: str | list[str] | None = None
    max_new_tokens: int = 64
    stop: str | list[str] | None = None
    seed: int = 0
    hash_logits: bool = False
    chat: str | list[Any] | None = None
    prompt_special: bool = False
    prompt_template: bool = True
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            message = f"max_new_tokens is {self.max_new_tokens}; it must be at least 1."
            raise ConfigurationError(message)
        if not 0 <= self.seed < 2**64:
            message = f"seed is {self.seed}; it must be from 0 to 2^64 - 1."
            raise ConfigurationError(message)

    def as_dict(self) -> dict[str, Any]:
        """All of it but the choices, in the form of the YAML: what `--cfg job` shows, with the free text in it."""
        keys = [field.name for field in fields(self) if field.name not in ("choices", "sections", "folder")]
        return {key: getattr(self, key) for key in keys} | {key: dict(value) for key, value in self.sections.items()}

    def build(self, group: str, **values: Any) -> Any:
        """The component chosen for `group`, with `values` beside those of its file."""
        return _build(self.sections[group], group, values)


# --- Components ----------------------------------------------------------------------------------------------------


def names(group: str) -> list[str]:
    """What there is to choose in a group: the files in its folder, sorted."""
    return sorted(path.stem for path in (data_folder("conf") / group).glob("*.yaml"))


def groups() -> list[str]:
    """The folders of conf/, in the order of the defaults list."""
    keys = [key for entry in _primary()["defaults"] if isinstance(entry, dict) for key in entry]
    return [key for key in keys if not key.startswith("override ")]


def top_level_keys() -> list[str]:
    """Everything that a setting can begin with: the groups, and the keys of conf/config.yaml itself."""
    return [*groups(), *(key for key in _primary() if key not in ("defaults", "hydra"))]


@cache
def _primary() -> dict[str, Any]:
    return read_yaml(data_folder("conf") / f"{PRIMARY}.yaml")


def component(group: str, name: str, **values: Any) -> Any:
    """Builds what conf/GROUP/NAME.yaml describes; a value that is not None replaces the file's."""
    if name not in names(group):
        raise ConfigurationError(unknown_choice(group, name, names(group)))
    section = read_yaml(data_folder("conf") / group / f"{name}.yaml")
    return _build(section, group, {key: value for key, value in values.items() if value is not None})


def available_backends() -> dict[str, bool]:
    """Every backend under conf/backend, and whether the package of that name is installed. Imports none of them."""
    return {name: find_spec(name) is not None for name in names("backend")}


def construct(target: Any, values: Mapping[str, Any], where: str = "") -> Any:
    """`target(**values)`, after comparing names and types with its signature. `where` is the key above them."""
    prefix = f"{where}." if where else ""
    parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in values:
        if name not in parameters and not takes_any:
            raise ConfigurationError(unknown_key(prefix + name, [prefix + known for known in parameters]))
    for name, parameter in parameters.items():
        variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.default is parameter.empty and name not in values and not variadic:
            message = f"{prefix}{name} is missing; give it a value, as in {prefix}{name}=VALUE."
            raise ConfigurationError(message)
    hints = _type_hints(target)
    for name, value in values.items():
        if not _fits(value, hints.get(name, Any)):
            given = "null" if value is None else repr(value)
            message = f"{prefix}{name} is {given}; it must be {_in_words(hints[name])}."
            raise ConfigurationError(message)
    return target(**values)


def _build(section: Mapping[str, Any], where: str, values: Mapping[str, Any]) -> Any:
    keys = [key for key in section if key != "_target_" and key not in values]
    own = {key: _built(section[key], f"{where}.{key}") for key in keys}
    return construct(import_target(section.get("_target_"), where), own | dict(values), where)


def _built(value: Any, where: str) -> Any:
    """A part within a part, if the value has a `_target_`."""
    return _build(value, where, {}) if isinstance(value, dict) and "_target_" in value else value


def import_target(path: Any, where: str) -> Any:
    if not isinstance(path, str) or "." not in path:
        message = f"{where}._target_ is {path!r}; it must be a module and a class in it, such as my_module.MyClass."
        raise ConfigurationError(message)
    module_name, _, attribute = path.rpartition(".")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            message = (
                f"{where}._target_ is {path}, but there is no module {missing}. "
                "A module of your own must lie in the current folder, in the --config-dir, or be installed."
            )
            raise ConfigurationError(message) from error
        message = f"{path} needs the package {missing}, which is not installed here."
        raise UnavailableError(message) from error
    except SyntaxError as error:
        message = f"{where}._target_ is {path}, but {error.filename}, line {error.lineno}, is not Python: {error.msg}."
        raise ConfigurationError(message) from error
    except LabError:
        raise
    except Exception as error:
        message = f"{where}._target_ is {path}, but importing {module_name} fails: {type(error).__name__}: {error}."
        raise ConfigurationError(message) from error
    if not callable(getattr(module, attribute, None)):
        near = _did_you_mean(attribute, [name for name in vars(module) if not name.startswith("_")])
        message = f"{where}._target_ is {path}, but {module_name} defines no class {attribute}.{near}"
        raise ConfigurationError(message)
    return getattr(module, attribute)


def read_yaml(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    return dict(content)


# --- Types ---------------------------------------------------------------------------------------------------------

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text (a number in quotes is text)",
    type(None): "null",
}


def _type_hints(target: Any) -> dict[str, Any]:
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # a name that only type checkers import: then the constructor's own checks must do
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from YAML or from the command line has the annotated type; other types are not judged."""
    if hint is None:
        return value is None
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, choice) for choice in inner)
    if origin is Literal:
        return value in inner
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, inner[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in _WORDS else True


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(choice) for choice in inner)
    if origin is Literal:
        return " or ".join(str(choice) for choice in inner)
    if origin in (list, tuple):
        return f"a list, each {_in_words(inner[0])}"
    return _WORDS.get(hint, str(hint))


# --- What to answer to a mistyped word -----------------------------------------------------------------------------


def unknown_choice(group: str, name: object, choices: Sequence[str]) -> str:
    near = _did_you_mean(str(name), choices, f"{group}=")
    return f"There is no {group}={name}.{near} Choose one of: {', '.join(sorted(choices))}."


def unknown_key(key: str, known: Sequence[str]) -> str:
    others = f" Known here: {', '.join(known)}." if known else ""
    start, dot, last = key.rpartition(".")
    if start in groups() and (owners := [f"{start}={name}" for name in names(start) if last in _section(start, name)]):
        one = "it" if len(owners) == 1 else "one"
        return f"{key} is a setting of {', '.join(owners)}. Choose {one} in the same line.{others}"
    here = [name.removeprefix(start + dot) for name in known]  # else any two names below one part would be near
    return f"There is no setting {key}.{_did_you_mean(last, here, start + dot) or others}"


def _section(group: str, name: str) -> dict[str, Any]:
    return read_yaml(data_folder("conf") / group / f"{name}.yaml")


def _did_you_mean(word: str, known: Sequence[str], prefix: str = "") -> str:
    near = get_close_matches(word, known, 1)
    return f" Did you mean {prefix}{near[0]}?" if near else ""
