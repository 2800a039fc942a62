"""Brings a model from the Hugging Face hub into huggingface_hub's own cache: configuration, safetensors, tokenizer.

Nothing is fetched that could run code. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured; huggingface_hub
reads them once, when it is first imported, which is here and not before. What is in the files is not known here.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

from transformer_lab.checkpoints.config_file import CONFIG
from transformer_lab.checkpoints.inspection import TOKENIZER_FILES
from transformer_lab.checkpoints.quoted import quoted
from transformer_lab.checkpoints.weight_files import INDEX, PICKLES, SINGLE, pickle_refusal, weight_files
from transformer_lab.errors import InputFileError, UnavailableError

# Of the top folder alone: what other formats lie in folders of their own stays where it is.
PATTERNS = [CONFIG, "generation_config.json", SINGLE, "model-*.safetensors", INDEX, *TOKENIZER_FILES]


def download(repo_id: str, revision: str = "main", progress: bool = True, endpoint: str | None = None) -> Path:
    """The folder of `repo_id` in the cache, complete, after a download if need be.

    `revision` is a branch, a tag or, to have the same files for ever, a commit. With a full commit hash that is in the
    cache, nothing is asked over the network. Progress goes to standard error.

    Raises InputFileError if there is no such repository or revision or it has no safetensors, UnavailableError if the
    hub cannot be reached and the cache does not have it, or asks for a permission.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors, utils
    except ImportError as error:
        message = (
            f"The model {quoted(repo_id)} would come from the Hugging Face hub, but huggingface_hub is not installed. "
            "Install it with: pip install 'transformer_lab[hub]'."
        )
        raise UnavailableError(message) from error

    tqdm: Any = getattr(utils, "tqdm")  # noqa: B009  # not exported for type checkers

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))

    name = f"{quoted(repo_id)} at revision {quoted(revision)}"
    try:
        path = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=PATTERNS,
            endpoint=endpoint,
            tqdm_class=tqdm if progress else Silent,
        )
    except errors.GatedRepoError as error:
        message = (
            f"The model {quoted(repo_id)} is gated: accept its terms on its page on the hub, "
            "then set HF_TOKEN to an access token of that account."
        )
        raise UnavailableError(message) from error
    except errors.RepositoryNotFoundError as error:
        message = (
            f"The hub has no model {quoted(repo_id)}, or it is private. Check the name; "
            "for a private model set HF_TOKEN to an access token. A folder is given with a leading ./ or /."
        )
        raise InputFileError(message) from error
    except errors.RevisionNotFoundError as error:
        message = f"The model {quoted(repo_id)} has no revision {quoted(revision)} on the hub."
        raise InputFileError(message) from error
    except errors.HFValidationError as error:
        message = f"{quoted(repo_id)} is neither a folder nor the name of a model on the hub, like owner/name."
        raise InputFileError(message) from error
    except errors.LocalEntryNotFoundError as error:
        raise UnavailableError(_not_to_be_had(name)) from error
    except OSError as error:
        if error.errno is not None:  # the disk: full, read-only, no permission
            message = f"The download of {name} could not be stored: {error.strerror}. HF_HOME moves the cache."
            raise UnavailableError(message) from error
        raise UnavailableError(_not_to_be_had(name, error)) from error
    except Exception as error:
        # The network library underneath changes between versions of huggingface_hub, and its errors with it.
        if not type(error).__module__.partition(".")[0].startswith(("httpx", "requests", "urllib3", "huggingface_hub")):
            raise
        raise UnavailableError(_not_to_be_had(name, error)) from error
    _require_complete(Path(path), repo_id, name, endpoint)
    return Path(path)


def _not_to_be_had(name: str, error: Exception | None = None) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return f"The model {name} is not in the cache, or not all of it, and HF_HUB_OFFLINE forbids to fetch it."
    reason = f" ({type(error).__name__})" if error else ""
    return (
        f"The model {name} is not in the cache, or not all of it, and the hub did not deliver it{reason}. "
        "Check the network and try again."
    )


def _require_complete(folder: Path, repo_id: str, name: str, endpoint: str | None) -> None:
    """A cache may hold a part, and older versions of huggingface_hub return it when they are offline."""
    with contextlib.suppress(InputFileError):
        weight_files(folder)
        if (folder / CONFIG).is_file():
            return
    import huggingface_hub

    try:
        names = huggingface_hub.HfApi(endpoint=endpoint).list_repo_files(repo_id, revision=folder.name)
    except Exception as error:
        raise UnavailableError(_not_to_be_had(name)) from error
    if not {SINGLE, INDEX} & set(names):
        pickles = [file for file in names if file.endswith(PICKLES)]
        message = f"The model {name} has no {SINGLE}. " + (pickle_refusal(pickles) if pickles else "")
        raise InputFileError(message.strip())
    if CONFIG not in names:
        message = f"The model {name} has no {CONFIG}."
        raise InputFileError(message)
    raise UnavailableError(_not_to_be_had(name))
