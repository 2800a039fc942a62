"""The command line: words -> Settings -> a job, and an exit code for every way this can end.

Knows no job and no option by name. composition.py makes the settings, jobs/ does the work, jobs/record.py keeps it.
"""

import argparse
import os
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from transformer_lab.config import Settings, groups, names
from transformer_lab.errors import ConfigurationError, LabError, TierWarning, printable, shortened
from transformer_lab.memory import is_out_of_memory

PACKAGE = os.path.dirname(__file__) + os.sep
HELP = """\
transformer-lab [job=NAME] [backend=NAME] [group=option] [key=value] ...     (or: python -m transformer_lab ...)

One decoder on NumPy, PyTorch and JAX. Without any word: generates text with the embedded model on NumPy.

  prompt="Once upon a time"     free text; prompt=- reads standard input, prompt_file=PATH a file
  prompt_ids=[1,2,3]            token ids; prompts=["one","two"] several texts in one batch
  chat="Hello"                  what a user says to a model with a chat template
  max_new_tokens=64 seed=0 stop=TEXT sampling.temperature=0.8
  model.source=FOLDER           a model of your own, in Hugging Face layout
  job=train data.path=FILE model=new            trains one; job=evaluate data.path=FILE tells how good it is

Groups and their options; a leading + changes nothing:
{groups}

  -m, --multirun          run every combination: -m backend=numpy,torch,jax
  -cd, --config-dir DIR   a folder with options of your own, such as DIR/ffn/my_ffn.yaml
  -c, --cfg job           print the composed configuration and run nothing; -p KEY only that part, --resolve resolves it
  -i, --info defaults     where the configuration comes from
  -sc, --shell-completion install=bash     tab completion: eval "$(transformer-lab -sc install=bash)"
  --debug                 print the traceback of an error (or set TRANSFORMER_LAB_DEBUG=1)
  --version, -h, --help

Every run writes result.json into its folder under outputs/ (or $TRANSFORMER_LAB_RUNS).
Exit codes: 0 done, 2 a wrong option, 3 a bad file, 4 not available here, 1 a bug, 130 interrupted;
job=compare: 5 a defect, 6 not judged."""


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = f"{message[:1].upper()}{message[1:]}. See --help."
        raise ConfigurationError(message)


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line `words` (without the program's name; by default that of the process): the exit code."""
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words or os.environ.get("TRANSFORMER_LAB_DEBUG", "0") not in ("", "0")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as in `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as the process lives
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a letter that the terminal lacks is no reason to stop
    try:
        code = _main(words, debug)
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be answered
        return code
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    except BaseException as error:
        return report(error, debug)


def _main(words: list[str], debug: bool) -> int:
    from transformer_lab import composition

    texts, words = composition.take_free_text(words)
    flags, words = _read_flags(words)
    if flags.help:
        print(HELP.format(groups=_group_lines()))
        return 0
    if flags.version:
        import transformer_lab

        print(f"transformer_lab {transformer_lab.__version__}")
        return 0
    if flags.config_dir is not None:  # modules of the user's own: never before ours in the search order
        sys.path += [os.getcwd(), os.path.abspath(os.path.expanduser(flags.config_dir))]
    with composition.opened(flags.config_dir) as hydra:
        if flags.shell_completion:
            composition.shell_completion(hydra, words)
            return 0
        words = composition.normalise(words, composition.extra_groups(flags.config_dir))
        if flags.cfg or flags.info:
            composition.show(hydra, words, cfg=flags.cfg, package=flags.package, resolve=flags.resolve, info=flags.info)
            return 0
        multirun = flags.multirun or "hydra.mode=MULTIRUN" in words
        checked = composition.check_sweep(hydra, words, texts) if multirun else [composition.check(hydra, words, texts)]
        words = composition.adding(words, {key for _, left_out in checked for key in left_out})
        return composition.run(hydra, words, texts, partial(_run_job, debug=debug), multirun=multirun)


def _run_job(settings: Settings, folder: Path, label: str, debug: bool) -> int:
    """One run: the job, its result.json in `folder`, its exit code. `label` tells the runs of a sweep apart."""
    from transformer_lab.jobs import record

    if label:
        print(f"{label}:", file=sys.stderr)
    try:
        with warnings.catch_warnings():  # NaN and infinities are answered in words where they matter
            warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"(transformer_lab|numpy)\.")
            warnings.filterwarnings("always", category=TierWarning)
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            result = settings.build("job").run(replace(settings, folder=folder))
        sys.stdout.flush()
        record.write(folder, record.finished(settings, result))
        return result.exit_code
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
            error = error.__context__  # rich ends the program when nobody reads its table any more
        code = report(error, debug)
        record.write_failure(folder, settings, error, code)
        if isinstance(error, Exception) and not isinstance(error, BrokenPipeError):
            return code  # the other runs of a sweep go on
        raise SystemExit(code) from error


def _show_warning(otherwise: Any, message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
    """Ours in a line, without the place in the source; others as Python shows them."""
    if issubclass(category, TierWarning):
        print(f"Warning: {printable(str(message))}", file=sys.stderr)
    else:
        otherwise(message, category, *where, **more)


def _in_a_part_of_the_users(error: BaseException) -> str | None:
    """FILE, line N, if what failed is neither this package nor a library: a component that came in from outside."""
    libraries = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib"))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(PACKAGE):
            return None
        if not frame.filename.startswith(("<", *libraries)):
            return f"{frame.filename}, line {frame.lineno},"
    return None


def report(error: BaseException, debug: bool = False) -> int:
    """Says on standard error what happened, and returns the exit code that belongs to it."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has seen enough
        _forget_standard_output()
        return 0
    if isinstance(error, LabError):
        message, code = f"Error: {error}", error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        message, code = "Interrupted.", 130
    elif is_out_of_memory(error):
        message = "Error: there is not enough memory for this. Take a smaller model, shorter texts or fewer of them."
        code = 4
    elif isinstance(error, OSError):
        where = f": {str(error.filename)!r}" if error.filename else ""
        message, code = f"Error: {shortened(f'{error.strerror or error}{where}')}.", 4
    elif (place := _in_a_part_of_the_users(error)) is not None:
        said = f"{type(error).__name__}: {shortened(printable(str(error)))}"
        message, code = f"Error: {place} fails: {said}. It does not belong to transformer_lab.", 2
    else:
        said = f"{type(error).__name__}: {shortened(printable(str(error)))}"
        message = f"This is a bug in transformer_lab, not a mistake of yours: {said}"
        message += "" if debug else "\nRun it again with --debug for the traceback, and please report it."
        code = 1
    with suppress(OSError):  # nobody reads it, or the disk under it is full: the exit code must do
        if debug:
            traceback.print_exception(error)
        print(message, file=sys.stderr, flush=True)
    return code


def _forget_standard_output() -> None:
    """Python flushes standard output once more when it ends; that must not complain about the closed pipe again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _read_flags(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = _Flags(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-c", "--cfg", choices=["job", "hydra", "all"])
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-i", "--info", choices=["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"])
    parser.add_argument("-sc", "--shell-completion", action="store_true")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--version", action="store_true")
    flags, rest = parser.parse_known_args(words)
    for word in rest:
        if word.startswith("-"):
            known = [option for action in parser._actions for option in action.option_strings]
            near = get_close_matches(word.split("=")[0], known, 1, cutoff=0.7)
            message = f"There is no flag {word}." + (f" Did you mean {near[0]}?" if near else " See --help.")
            raise ConfigurationError(message)
    return flags, rest


def _group_lines() -> str:
    return "\n".join(f"  {group:12} {', '.join(names(group))}" for group in groups())
