"""What a model's folder says beside the weights and beyond a ModelConfig, kept so that saving gives it back.

config.json has fields that nothing here needs (`attention_dropout`, `transformers_version`), and generation_config.json
how its authors would generate: end tokens, which are honoured, and sampling values, which are shown and never applied
by themselves, because the same words must mean the same for every model.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.config_file import CONFIG, LARGEST_CONFIG, read_family
from transformer_lab.checkpoints.json_file import read_object
from transformer_lab.checkpoints.regular_file import is_there
from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.model.config import ModelConfig
from transformer_lab.paths import expanded

GENERATION_CONFIG = "generation_config.json"
# Of generation_config.json, those that are offered here, under the same names.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# Fields of config.json that say again, in older words, what is written anew.
_RENAMED = ("torch_dtype",)


@dataclass(frozen=True)
class Original:
    """fields: of config.json. generation: of generation_config.json, None if there is none.

    end_of_text_ids: every id that ends a text. As in transformers, generation_config.json decides where there is one,
    also if it names none, and config.json otherwise.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] | None = None
    end_of_text_ids: tuple[int, ...] = ()

    def suggested_sampling(self) -> dict[str, Any]:
        """The sampling values of generation_config.json that would change something here, if it asks for sampling."""
        values = self.generation or {}
        if values.get("do_sample") is not True:
            return {}
        numbers = {name: values[name] for name in _SAMPLING if type(values.get(name)) in (int, float)}
        neutral = {"top_k": 0, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
        return {name: value for name, value in numbers.items() if neutral.get(name) != value}


def read_original(folder: str | Path) -> Original:
    """Raises InputFileError for a damaged file, and for end tokens that are no ids."""
    folder = expanded(folder)
    family, fields = read_family(folder)
    path = folder / GENERATION_CONFIG
    if not is_there(path):
        return Original(fields.values, None, family.SIZES.end_ids(fields))
    generation = read_object(path, LARGEST_CONFIG)
    vocab_size = family.config_from(fields).vocab_size
    ends = Fields(path, {"eos_token_id": None} | generation).token_ids("eos_token_id", 0, vocab_size)
    return Original(fields.values, generation, ends)


def completed(fields: Mapping[str, Any], original: Original, family: Any, config: ModelConfig) -> dict[str, Any]:
    """Those of the original, or ours with those beside them, or ours alone: the first that still mean `config`."""
    if original.fields.get("model_type") == fields["model_type"]:
        kept = {name: value for name, value in original.fields.items() if name not in _RENAMED}
        ends = {name: kept[name] for name in ("eos_token_id",) if name in kept}  # several, where ours has the first
        for tried in (kept, kept | dict(fields) | ends, kept | dict(fields)):
            with suppress(InputFileError, ConfigurationError):
                if family.config_from(Fields(Path(CONFIG), tried)) == config:
                    return tried
    return dict(fields)
