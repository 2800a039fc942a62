"""Checkpoints in Hugging Face layout, in and out: config.json, safetensors, one two-way name map per model family."""

from transformer_lab.checkpoints.config_file import read_config, to_hf
from transformer_lab.checkpoints.fingerprint import weights_sha256
from transformer_lab.checkpoints.hub import download
from transformer_lab.checkpoints.inspection import Inspection, inspect_folder
from transformer_lab.checkpoints.loading import load_parameters
from transformer_lab.checkpoints.lora import holds_adapter, named_base
from transformer_lab.checkpoints.original import Original, read_original
from transformer_lab.checkpoints.saving import save_folder
from transformer_lab.checkpoints.weight_files import has_weights, weight_files

__all__ = [
    "Inspection",
    "Original",
    "download",
    "has_weights",
    "holds_adapter",
    "inspect_folder",
    "load_parameters",
    "named_base",
    "read_config",
    "read_original",
    "save_folder",
    "to_hf",
    "weight_files",
    "weights_sha256",
]
