"""One decoder on NumPy, PyTorch and JAX: is a difference between two frameworks noise or a bug?

The public names are listed here and imported when they are first used, so that `import transformer_lab` costs little
and loads no framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_lab.comparison.study import compare
    from transformer_lab.config import available_backends
    from transformer_lab.contracts.study import verify_cache
    from transformer_lab.errors import ConfigurationError, InputFileError, LabError, UnavailableError
    from transformer_lab.generation.continuation import Generation
    from transformer_lab.language_model import LanguageModel, load_model
    from transformer_lab.language_model.upcycling import upcycled
    from transformer_lab.routes.split import routing_split
    from transformer_lab.routes.study import routing
    from transformer_lab.sources import load_tokenizer
    from transformer_lab.tokenizers import train_tokenizer

    __version__: str

# Public name -> the module that defines it.
_HOME = {
    "ConfigurationError": "transformer_lab.errors",
    "Generation": "transformer_lab.generation.continuation",
    "InputFileError": "transformer_lab.errors",
    "LabError": "transformer_lab.errors",
    "LanguageModel": "transformer_lab.language_model",
    "UnavailableError": "transformer_lab.errors",
    "available_backends": "transformer_lab.config",
    "compare": "transformer_lab.comparison.study",
    "load_model": "transformer_lab.language_model",
    "load_tokenizer": "transformer_lab.sources",
    "routing": "transformer_lab.routes.study",
    "routing_split": "transformer_lab.routes.split",
    "train_tokenizer": "transformer_lab.tokenizers",
    "upcycled": "transformer_lab.language_model.upcycling",
    "verify_cache": "transformer_lab.contracts.study",
}

__all__ = [
    "ConfigurationError",
    "Generation",
    "InputFileError",
    "LabError",
    "LanguageModel",
    "UnavailableError",
    "__version__",
    "available_backends",
    "compare",
    "load_model",
    "load_tokenizer",
    "routing",
    "routing_split",
    "train_tokenizer",
    "upcycled",
    "verify_cache",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        message = f"module 'transformer_lab' has no attribute {name!r}"
        raise AttributeError(message)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version; a bare checkout is in no package list, so there pyproject.toml is asked."""
    from importlib.metadata import PackageNotFoundError, version
    from pathlib import Path

    pyproject = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if pyproject.is_file():
        import tomllib

        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "transformer_lab":
            return str(project["version"])
    try:
        return version("transformer_lab")
    except PackageNotFoundError:
        return "unknown"
