"""A model's configuration with another feed-forward network: the `ffn` of `load_model`, and of the command line."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from transformer_lab.config import construct
from transformer_lab.model.config import ModelConfig


def with_feed_forward(config: ModelConfig, ffn: Any) -> ModelConfig:
    """The configuration with some fields of its feed-forward network changed (a mapping), or with another one.

    A wrong name of a field is answered with the nearest one.
    """
    if ffn is None:
        return config
    if isinstance(ffn, Mapping):
        own = {field.name: getattr(config.ffn, field.name) for field in fields(config.ffn)}
        ffn = construct(type(config.ffn), own | dict(ffn), "ffn")
    return replace(config, ffn=ffn)
