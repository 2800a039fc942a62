"""Brings a model from the Hugging Face hub into huggingface_hub's own cache: configuration, safetensors, tokenizer.

Of the weights comes what a reader of the folder takes: the single file, the shards that the index names, whatever they
are called, or the factors of a LoRA adapter. Nothing is fetched that could run code. HF_HOME, HF_TOKEN, HF_ENDPOINT and
HF_HUB_OFFLINE are honoured; huggingface_hub reads them once, when it is first imported, which is here and not before.
"""

import contextlib
import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_lab.checkpoints.config_file import CONFIG
from transformer_lab.checkpoints.inspection import TOKENIZER_FILES
from transformer_lab.checkpoints.lora import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, pickled_adapter
from transformer_lab.checkpoints.weight_files import (
    INDEX,
    PICKLES,
    SINGLE,
    pickle_refusal,
    read_weight_map,
    shards_without_index,
)
from transformer_lab.errors import InputFileError, UnavailableError, listed, shown

# Of the top folder alone: what other formats lie in folders of their own stays where it is.
FILES = [CONFIG, "generation_config.json", SINGLE, INDEX, ADAPTER_CONFIG, ADAPTER_WEIGHTS, *TOKENIZER_FILES]


def download(repo_id: str, revision: str = "main", progress: bool = True, endpoint: str | None = None) -> Path:
    """The folder of `repo_id` in the cache, complete, after a download if need be.

    `revision` is a branch, a tag or, to have the same files for ever, a commit. With a full commit hash that is in the
    cache, nothing is asked over the network. Progress goes to standard error.

    Raises InputFileError if there is no such repository or revision or it has no safetensors, UnavailableError if the
    hub cannot be reached and the cache does not have it, or asks for a permission.
    """
    repository = _Repository(repo_id, f"{shown(repo_id)} at revision {shown(revision)}", progress, endpoint)
    folder = repository.fetch(FILES, revision)
    commit = folder.name  # so that all files are of one state, whatever happens on the hub meanwhile
    if os.path.exists(folder / ADAPTER_CONFIG):
        repository.require([ADAPTER_WEIGHTS], folder)
        return folder
    if not os.path.exists(folder / SINGLE):
        if os.path.exists(folder / INDEX):
            shards = sorted(set(read_weight_map(folder).values()))
        else:
            shards = _cached_shards(folder) or repository.shards_without_index(commit)
        repository.fetch([CONFIG, *map(glob.escape, shards)], commit)
        repository.require(shards, folder)
    repository.require([CONFIG], folder)
    return folder


@dataclass(frozen=True)
class _Repository:
    """One model on the hub; `name` is what messages call it."""

    repo_id: str
    name: str
    progress: bool
    endpoint: str | None

    def fetch(self, patterns: list[str], revision: str) -> Path:
        """The folder in the cache, after the files that fit the patterns were fetched, as far as there are such."""
        try:
            import huggingface_hub
            from huggingface_hub import errors, utils
        except ImportError as error:
            message = (
                f"The model {shown(self.repo_id)} would come from the Hugging Face hub, but huggingface_hub is not "
                "installed. Install it with: pip install 'transformer_lab[hub]'."
            )
            raise UnavailableError(message) from error

        tqdm: Any = getattr(utils, "tqdm")  # noqa: B009  # not exported for type checkers

        class Silent(tqdm):  # type: ignore[misc]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **(kwargs | {"disable": True}))

        try:
            path = huggingface_hub.snapshot_download(
                self.repo_id,
                revision=revision,
                allow_patterns=patterns,
                endpoint=self.endpoint,
                tqdm_class=tqdm if self.progress else Silent,
            )
        except errors.GatedRepoError as error:
            message = (
                f"The model {shown(self.repo_id)} is gated: accept its terms on its page on the hub, "
                "then set HF_TOKEN to an access token of that account."
            )
            raise UnavailableError(message) from error
        except errors.RepositoryNotFoundError as error:
            message = (
                f"The hub has no model {shown(self.repo_id)}, or it is private. Check the name; "
                "for a private model set HF_TOKEN to an access token. A folder is given with a leading ./ or /."
            )
            raise InputFileError(message) from error
        except errors.RevisionNotFoundError as error:
            message = f"The model {shown(self.repo_id)} has no revision {shown(revision)} on the hub."
            raise InputFileError(message) from error
        except errors.HFValidationError as error:
            message = f"{shown(self.repo_id)} is neither a folder nor the name of a model on the hub, like owner/name."
            raise InputFileError(message) from error
        except errors.LocalEntryNotFoundError as error:
            raise UnavailableError(_not_to_be_had(self.name)) from error
        except OSError as error:
            if error.errno is not None:  # the disk: full, read-only, no permission
                message = f"The download of {self.name} could not be stored: {error.strerror}. HF_HOME moves the cache."
                raise UnavailableError(message) from error
            raise UnavailableError(_not_to_be_had(self.name, error)) from error
        except Exception as error:
            # The network library underneath changes between versions of huggingface_hub, and its errors with it.
            library = type(error).__module__.partition(".")[0]
            if not library.startswith(("httpx", "requests", "urllib3", "huggingface_hub")):
                raise
            raise UnavailableError(_not_to_be_had(self.name, error)) from error
        return Path(path)

    def require(self, files: Iterable[str], folder: Path) -> None:
        """Raises unless the files are there. A cache may hold a part, and older versions of huggingface_hub return it
        when they are offline."""
        missing = [file for file in files if not os.path.exists(folder / file)]
        if not missing:
            return
        present = self._files(folder.name)
        if absent := [file for file in missing if file not in present]:
            message = f"The model {self.name} has no {listed([shown(file) for file in absent])}. "
            message += pickled_adapter() if absent == [ADAPTER_WEIGHTS] and ADAPTER_PICKLE in present else ""
            raise InputFileError(message.strip())
        raise UnavailableError(_not_to_be_had(self.name))

    def shards_without_index(self, commit: str) -> list[str]:
        """The shards of a repository that has neither the single file nor an index."""
        present = self._files(commit)
        if {SINGLE, INDEX} & set(present):  # but they did not come
            raise UnavailableError(_not_to_be_had(self.name))
        if shards := shards_without_index([file for file in present if "/" not in file], f"The model {self.name}"):
            return shards
        pickles = [file for file in present if file.endswith(PICKLES)]
        message = f"The model {self.name} has no {SINGLE}. " + (pickle_refusal(pickles) if pickles else "")
        raise InputFileError(message.strip())

    def _files(self, commit: str) -> list[str]:
        import huggingface_hub

        try:
            return huggingface_hub.HfApi(endpoint=self.endpoint).list_repo_files(self.repo_id, revision=commit)
        except Exception as error:
            raise UnavailableError(_not_to_be_had(self.name)) from error


def _cached_shards(folder: Path) -> list[str]:
    """The shards without an index that are in the cache, if all are, so that they are found without the network."""
    with contextlib.suppress(InputFileError, OSError):
        return shards_without_index(os.listdir(folder), str(folder))
    return []


def _not_to_be_had(name: str, error: Exception | None = None) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return f"The model {name} is not in the cache, or not all of it, and HF_HUB_OFFLINE forbids to fetch it."
    reason = f" ({type(error).__name__})" if error else ""
    return (
        f"The model {name} is not in the cache, or not all of it, and the hub did not deliver it{reason}. "
        "Check the network and try again."
    )
