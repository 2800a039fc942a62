"""A model that is loaded and ready: its backend, configuration, parameters and tokenizer, and what can be asked of it.

This is where the parts meet. It converts between what people hold (text, lists, NumPy) and what backends compute on,
and checks what it is given; the work itself is done in `model`, `generation` and `backends`.

Reading order: language_model, request, forward_passes, loading; the rest is small and named after what it is about.
"""

from transformer_lab.language_model.changed_parts import with_parts
from transformer_lab.language_model.fitting_tokenizer import require_fitting
from transformer_lab.language_model.language_model import LanguageModel
from transformer_lab.language_model.loading import assemble, load_model
from transformer_lab.language_model.prompts import Prompt, several_prompts
from transformer_lab.language_model.text_stream import TextStream

__all__ = [
    "LanguageModel",
    "Prompt",
    "TextStream",
    "assemble",
    "load_model",
    "require_fitting",
    "several_prompts",
    "with_parts",
]
