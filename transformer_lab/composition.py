"""From the words of a command line to the Settings of a run: the only file that deals with Hydra.

Two things happen before Hydra reads anything. Free text is taken out, so that no prompt meets Hydra's grammar or
OmegaConf, which would resolve a `${...}` in it. And the sign rule is applied: `key=`, `+key=` and `++key=` are one.
What Hydra then refuses is said again in plain words, with the nearest name. Hydra is imported at first use: it costs
more than the rest of the package.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from transformer_lab.config import (
    PRIMARY,
    Settings,
    construct,
    groups,
    import_target,
    names,
    top_level_keys,
    unknown_choice,
    unknown_key,
)
from transformer_lab.errors import ConfigurationError, UnavailableError, shown
from transformer_lab.paths import data_folder

# Taken as typed, and never given to Hydra.
PROMPT_KEYS = ("prompt", "prompt_file", "prompt_ids", "prompts", "chat")
PATH_KEYS = (
    "model.source",
    "tokenizer.source",
    "data.path",
    "data.validation",
    "job.resume",
    "job.output",
    "job.dump",
    "cache.cold_folder",
    "residency.folder",
)
FREE_TEXT_KEYS = (*PROMPT_KEYS, "stop", *PATH_KEYS)
# Groups of which nothing may be chosen: presets, which set others, and parts that a model brings itself.
MAY_BE_NULL = ("track", "experiment", "block", "position", "norm", "router", "balancer", "residency")


def take_free_text(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separates the free text (`prompt=...`) from what Hydra is to read; a leading + or ++ says nothing more.

    One pair of outer quotes is dropped. Of several words with the same key the last one counts. The name of a job may
    stand for `job`, unless it is that of a group: `compare.runs=3` is `job.runs=3`.
    """
    jobs = [re.escape(name) for name in names("job") if name not in groups()]
    of_a_job = re.compile(r"([+~]{0,2})(?:" + "|".join(jobs) + r")\.(?=\w+=)")
    pattern = re.compile(r"\+{0,2}(" + "|".join(map(re.escape, FREE_TEXT_KEYS)) + r")=(.*)", re.DOTALL)
    texts: dict[str, str] = {}
    rest = []
    for word in words:
        word = of_a_job.sub(r"\1job.", word) if of_a_job.match(word) else word
        if match := pattern.fullmatch(word):
            key, text = match.groups()
            quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
            texts[key] = text[1:-1] if quoted else text
        else:
            rest.append(word)
    return texts, rest


def normalise(words: Sequence[str], extra_groups: Sequence[str] = ()) -> list[str]:
    """Makes `key=`, `+key=` and `++key=` mean the same, and refuses what is no setting at all.

    Hydra wants no sign before a group of the defaults list and before a key that exists, and a + before other groups
    (`extra_groups`, from a --config-dir). Keys of Hydra's own, and `group@package=`, stay as they are.
    """
    known = [*top_level_keys(), *extra_groups]
    result = []
    for word in words:
        key, equals, _ = word.lstrip("+~").partition("=")
        top = re.split(r"[./@\[]", key)[0]
        if not key or (not equals and not word.startswith("~")):
            message = (
                f"{word!r} is not understood: settings are written key=value. "
                'Text with spaces needs quotes around the whole word: "prompt=It is late".'
            )
            raise ConfigurationError(message)
        if top != "hydra" and top not in known:
            raise ConfigurationError(unknown_key(top, known))
        if "@" not in key and top != "hydra":
            word = word.lstrip("+")
        result.append(f"+{word}" if key in extra_groups and not word.startswith(("+", "~")) else word)
    return result


def compose(words: Sequence[str] = (), config_dir: str | None = None) -> Settings:
    """The settings that a command line would give: `compose(["backend=jax", "seed=3"])`, for tests and notebooks."""
    texts, rest = take_free_text(words)
    with opened(config_dir) as hydra:
        return check(hydra, normalise(rest, extra_groups(config_dir)), texts)[0]


@contextmanager
def opened(config_dir: str | None = None) -> Iterator[Any]:
    """Hydra's engine over conf/ and the user's --config-dir.

    The engine lies in a private module of Hydra's, because `@hydra.main` reads sys.argv and ends every mistake with a
    traceback and exit code 1. pyproject.toml keeps hydra-core below 1.4 for this.
    """
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    path = create_config_search_path(str(data_folder("conf")))
    if config_dir is not None:
        folder = Path(os.path.expanduser(config_dir)).absolute()
        if not os.path.isdir(folder):
            message = f"--config-dir is {config_dir!r}, which is not a folder."
            raise ConfigurationError(message)
        # After conf/, so that ours keep their names; Hydra wants its own "schema" to stay the last.
        path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("transformer_lab", path)
    finally:
        GlobalHydra.instance().clear()


def extra_groups(config_dir: str | None) -> list[str]:
    """Groups that a --config-dir adds to ours: its folders with YAML files in them."""
    if config_dir is None:
        return []
    folder = Path(os.path.expanduser(config_dir))
    found = {path.parent.relative_to(folder).as_posix() for path in folder.glob("*/**/*.yaml")}
    return sorted(group for group in found if group.split("/")[0] not in (*groups(), "hydra"))


def check(hydra: Any, words: Sequence[str], texts: Mapping[str, str]) -> tuple[Settings, set[str]]:
    """Composes one run without running it: every mistake that the words hold is found here, as a ConfigurationError.

    Beside the settings: the keys of fields that a part has and its file leaves out, for `adding`.
    """
    config, left_out = _compose(hydra, words)
    settings = settings_from(config, config.hydra.runtime.choices, texts)
    _refuse_replaced(settings, words)
    _refuse_unused(settings, settings.build("job"), [*words, *texts])
    settings.build("sampling")
    return settings, left_out


def adding(words: Sequence[str], keys: set[str]) -> list[str]:
    """The words with Hydra's `++` before these keys: they need not be there yet."""
    return [f"++{word.lstrip('+')}" if word.lstrip("+").partition("=")[0] in keys else word for word in words]


def _refuse_replaced(settings: Settings, words: Sequence[str]) -> None:
    """A field of a router that another word of the same line takes the place of would be passed over in silence."""
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        part, _, field = key.removeprefix("ffn.").partition(".")
        if key.startswith("ffn.") and part in ("router", "balancer") and settings.choices.get(part):
            chosen, said = f"{part}={settings.choices[part]}", ".".join(filter(None, (part, field)))
            message = f"{key} is given, and {chosen} takes the place of ffn.{part}. Say {said}=."
            raise ConfigurationError(message)


def _refuse_unused(settings: Settings, job: Any, words: Sequence[str]) -> None:
    """What the job does not look at would be passed over in silence, and stand in its record."""
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if re.split(r"[.@]", key)[0] in getattr(job, "unused", ()):
            message = f"{key} is given, and job={settings.choices['job']} does not look at it. Leave it out."
            raise ConfigurationError(message)


def check_sweep(hydra: Any, words: Sequence[str], texts: Mapping[str, str]) -> list[tuple[Settings, set[str]]]:
    """`check` for every run that `--multirun` would start. A sweep that only its own sweeper can unfold has none."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException

    try:
        overrides = OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(list(words))
        (runs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    except HydraException as error:
        if isinstance(error, OverrideParseException):
            raise _explained(hydra, error, words) from error
        return []
    return [check(hydra, run, texts) for run in runs]


def run(
    hydra: Any,
    words: Sequence[str],
    texts: Mapping[str, str],
    work: Callable[[Settings, Path, str], int],
    multirun: bool = False,
) -> int:
    """Lets Hydra make the folder of each run and calls `work(settings, folder, label)` there: the first code not 0.

    The free text travels inside the task, past Hydra's files and also into the processes of other launchers.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    def task(config: Any) -> int:
        run_of = HydraConfig.get()
        settings = settings_from(config, run_of.runtime.choices, texts)
        label = " ".join(run_of.overrides.task) if multirun else ""
        return work(settings, Path(run_of.runtime.output_dir), label)

    try:
        if not multirun:
            code: int = hydra.run(PRIMARY, task, [*words]).return_value
            return code
        batches = hydra.multirun(PRIMARY, task, [*words]) or []
    except BrokenPipeError:
        raise
    except OSError as error:  # the work answers for its own: this is the folder of the run, and Hydra's files in it
        where = shown(str(error.filename)) if error.filename else "The folder of this run"
        message = f"{where} cannot be written: {(error.strerror or str(error)).lower()}."
        raise UnavailableError(message) from error
    except HydraException as error:  # what only the chosen sweeper can tell: that it does not know an `interval(0,1)`
        raise ConfigurationError(_first_sentence(error)) from error
    return next((job.return_value for batch in batches for job in batch if job.return_value), 0)


def show(
    hydra: Any, words: Sequence[str], cfg: str | None, package: str | None, resolve: bool, info: str | None
) -> None:
    """`--cfg` and `--info`: prints the composed configuration, or where it comes from."""
    from omegaconf import OmegaConf

    config, left_out = _compose(hydra, words)  # so that a mistake is answered in our words
    words = adding(words, left_out)
    if package and OmegaConf.select(config, package) is None:
        raise ConfigurationError(unknown_key(package, top_level_keys()))
    if info:
        hydra.show_info(info, PRIMARY, [*words])
    else:
        hydra.show_cfg(PRIMARY, [*words], cfg, package, resolve)


def shell_completion(hydra: Any, words: Sequence[str]) -> None:
    """`-sc install=bash` prints the script for the shell, `-sc query=bash` what it asks for while somebody types."""
    try:
        hydra.shell_completion(PRIMARY, [*words])
    except (ValueError, KeyError) as error:
        raise ConfigurationError(_first_sentence(error)) from error


def settings_from(config: Any, choices: Mapping[str, Any], texts: Mapping[str, str]) -> Settings:
    """A composed DictConfig and the free text as Settings."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    try:
        values: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigurationError(_first_sentence(error)) from error
    for key in values:
        if key not in top_level_keys():
            raise ConfigurationError(unknown_key(key, top_level_keys()))
    chosen = {group: choices.get(group) for group in groups()}
    sections: dict[str, dict[str, Any]] = {}
    for key in [*groups(), "paths"]:
        section = values.pop(key, None)
        if isinstance(section, dict):
            sections[key] = section
        elif key == "paths":
            message = f"paths is {section!r}; set the keys in it, as in paths.runs=FOLDER."
            raise ConfigurationError(message)
        elif key not in MAY_BE_NULL:
            raise ConfigurationError(unknown_choice(key, "null" if section is None else section, names(key)))
    if any(key in texts for key in PROMPT_KEYS):  # the command line's prompt replaces that of a configuration file
        values |= dict.fromkeys(PROMPT_KEYS)
    for key, text in texts.items():
        section_name, _, field = key.rpartition(".")
        (sections[section_name] if section_name else values)[field] = (
            None if key in PATH_KEYS and text == "null" else text
        )
    settings: Settings = construct(Settings, {"choices": chosen, "sections": sections, **values})
    return settings


def _compose(hydra: Any, words: Sequence[str]) -> tuple[Any, set[str]]:
    """(the configuration, the keys that had to be added to it)."""
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException
    from yaml import MarkedYAMLError

    try:
        return hydra.compose_config(PRIMARY, list(words), RunMode.RUN), set()
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{mark.name}, line {mark.line + 1}" if mark else "A configuration file"
        message = f"{where}, is not YAML: {error.problem}."
        raise ConfigurationError(message) from error
    except RecursionError as error:
        message = "A value is nested too deeply."
        raise ConfigurationError(message) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if left_out := _left_out(hydra, words):
            config, more = _compose(hydra, adding(words, left_out))
            return config, left_out | more
        raise _explained(hydra, error, words) from error
    except OSError as error:  # a name too long for a file, a folder that may not be read
        message = f"A configuration file cannot be read: {(error.strerror or str(error)).lower()}: {error.filename!r}."
        raise ConfigurationError(message) from error


def _left_out(hydra: Any, words: Sequence[str]) -> set[str]:
    """Keys of fields that a part takes, though its file does not list them."""
    from hydra.errors import HydraException

    try:
        overrides = _parsed(words)
    except HydraException:
        return set()
    chosen = _of_the_choices(hydra, overrides)
    found = set()
    for override in overrides:
        parent, _, field = override.key_or_group.rpartition(".")
        section = _part_of(chosen, parent) if parent and not override.is_add() else None
        if isinstance(section, dict) and "_target_" in section and field not in section:
            takes = field in signature(import_target(section["_target_"], parent)).parameters
            found |= {override.key_or_group} if takes else set()
    return found


def _is_choice(hydra: Any, override: Any) -> bool:
    name = override.key_or_group
    return "." not in name and hydra.config_loader.get_group_options(name) != []


def _of_the_choices(hydra: Any, overrides: Sequence[Any]) -> Any:
    """What the choices of the groups alone compose, as plain values: what the other words may name. {} if they fail."""
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    choices = [override.input_line for override in overrides if _is_choice(hydra, override)]
    try:
        return OmegaConf.to_container(hydra.compose_config(PRIMARY, choices, RunMode.RUN))
    except Exception:  # then one of the choices is at fault
        return {}


def _part_of(values: Any, key: str) -> Any:
    """What lies there; None if nothing does."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _parsed(words: Sequence[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return list(OverridesParser.create().parse_overrides(list(words)))


def _explained(hydra: Any, error: Exception, words: Sequence[str]) -> ConfigurationError:
    """What Hydra refused, in our words: it speaks of structs, appending and primary configs."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        message = (
            f"{error.override[:80]!r} cannot be read. A list is written [1,2]; "
            "a text with commas, brackets or quotes in it needs quotes of its own, as in key='\"a, b\"'."
        )
        return ConfigurationError(message)
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return ConfigurationError(unknown_choice(group, name, error.options))
    overrides = _parsed(words)
    for override in overrides:
        if override.is_sweep_override():
            message = f"{override.input_line} gives several values for one run; add -m to run each of them."
            return ConfigurationError(message)
    for override in overrides:
        if _is_choice(hydra, override) and not isinstance(override.value(), str) and not override.is_delete():
            options = hydra.config_loader.get_group_options(override.key_or_group)
            return ConfigurationError(unknown_choice(override.key_or_group, override.get_value_string(), options))
    chosen = _of_the_choices(hydra, overrides)
    for override in overrides if chosen else []:  # else Hydra's sentence is about a choice
        key = override.key_or_group
        parent, _, last = key.rpartition(".")
        siblings = _part_of(chosen, parent) if parent else chosen
        if _is_choice(hydra, override) or (isinstance(siblings, dict) and last in siblings):
            continue
        group = parent.removeprefix("ffn.")
        if siblings is None and group in ("router", "balancer", "residency"):
            message = (
                f"{key} is given, and there is no {parent} that it belongs to. Choose one with it, {group}=NAME "
                f"{group}.{last}=..., of: {', '.join(names(group))}."
            )
            return ConfigurationError(message)
        return ConfigurationError(unknown_key(key, _known(siblings, parent)))
    return ConfigurationError(_first_sentence(error))


def _known(section: Any, where: str) -> list[str]:
    """The settings that a section has, with those that its file leaves out."""
    if not isinstance(section, dict):
        return []
    keys = [key for key in section if key != "_target_"]
    if "_target_" in section:
        keys += [key for key in signature(import_target(section["_target_"], where)).parameters if key not in keys]
    return [f"{where}.{key}" if where else key for key in keys]


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."
