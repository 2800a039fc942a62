"""The class LanguageModel: everything that can be asked of a model, each in a few lines. The work is done elsewhere."""

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab import checkpoints
from transformer_lab.errors import ConfigurationError
from transformer_lab.generation.continuation import Continuation, Generation
from transformer_lab.generation.engine import Engine
from transformer_lab.generation.generate import Decoding
from transformer_lab.language_model.arguments import arguments_of
from transformer_lab.language_model.forward_passes import THIS_CALL, ForwardPasses
from transformer_lab.language_model.placing import placed
from transformer_lab.language_model.prompts import Prompt, begun_and_fitting, given_ids, require_possible
from transformer_lab.language_model.request import Request
from transformer_lab.language_model.text_stream import TextStream
from transformer_lab.language_model.token_ids import checked_ids
from transformer_lab.memory import enough_memory
from transformer_lab.model.causality import TokensCompete, not_in_pieces
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import active, count, flatten, nest, shapes
from transformer_lab.tokenizers import TOKENIZER_FILES, Tokenizer, chat_text


class LanguageModel:
    """What `load_model` returns. `config`, `tokenizer` (or None) and `backend` are there to be read.

    source: what load_model was given; folder: where the weights lie, or None; adapter: the folder of a LoRA adapter
    that was added to them, or None; load_seconds: how long loading took.
    end_of_text_ids: every id that ends a generation; generation_config.json and config.json may list several.
    original: what else the folder says, which `save` gives back. experts: the `ResidentExperts`, if not all are in
    memory.
    """

    source = ""
    folder: Path | None = None
    adapter: Path | None = None
    load_seconds = 0.0
    original = checkpoints.Original()
    experts: Any = None

    def __init__(self, backend: Any, config: ModelConfig, params: Any, tokenizer: Tokenizer | None, cache: Any) -> None:
        self.backend, self.config, self.params, self.tokenizer = backend, config, params, tokenizer
        self.end_of_text_ids: tuple[int, ...] = () if config.end_of_text_id is None else (config.end_of_text_id,)
        self.engine = Engine(backend, config, params, cache)
        self._passes = ForwardPasses(backend, config)

    @property
    def parameters_count(self) -> int:
        """How many numbers were learned; a tied head is counted once."""
        return count(self.config)

    @property
    def active_parameters_count(self) -> int:
        """How many of them take part in each token: all, but for the experts that it does not go to."""
        return active(self.config)

    def weights_sha256(self) -> str | None:
        """sha256 over the weight files, or None for random weights."""
        return checkpoints.weights_sha256(self.folder, self.adapter) if self.folder else None

    # --- numbers ----------------------------------------------------------------------------------------------------

    def logits(self, token_ids: Any) -> np.ndarray:
        """token_ids: integers [T] or [B, T] -> the logits of every position, [B, T, V]; [T] gives B = 1.

        float32, or float64 if precision=float64. Raises ConfigurationError for ids outside the vocabulary or a T
        that is not from 1 to context_length.
        """
        ids = checked_ids(token_ids, self.config.vocab_size, 1, self.config.context_length)
        return self._passes.logits(self.params, ids)

    def loss(self, token_ids: Any) -> float:
        """Mean next-token cross-entropy in nats of 2 to context_length + 1 ids ([T], or [B, T] averaged over all)."""
        return float(self.token_losses(token_ids).mean(dtype=np.float64))

    def token_losses(self, token_ids: Any) -> np.ndarray:
        """The cross-entropy in nats of each id but the first, given those before it: [B, T + 1] -> [B, T]."""
        ids = checked_ids(token_ids, self.config.vocab_size, 2, self.config.context_length + 1)
        return self._passes.losses(self.params, ids)

    def record(
        self, token_ids: Any, names: str | Sequence[str] | None = None, patches: Mapping[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """{tap name: NumPy array} of one uncached pass over token_ids [T] or [B, T]; see `model.decoder` for the taps.

        names: the taps to keep, or one; None is all that the bound operations show. patches: {tap name: array of its
        shape}, what takes the place of its value from there on, such as a route that was recorded. Raises
        ConfigurationError for an unknown name, for one inside a fused operation, and for another shape.
        """
        ids = checked_ids(token_ids, self.config.vocab_size, 1, self.config.context_length)
        return self._passes.taps(self.params, ids, names, patches)

    # --- text -------------------------------------------------------------------------------------------------------

    @arguments_of(Request)
    def generate(self, request: Request) -> Generation | list[Generation]:
        """The continuation of a prompt (text or token ids), or a list of them for a list of prompts.

        Several prompts run as one batch, and each draws from a generator of its own: its text does not depend on its
        neighbours. seed: one number for all, or one per prompt (to draw several texts from one prompt). stop: a text
        or several at which to end. The sampling options are explained at `Sampling`. An empty text starts from the
        model's begin-of-text token. hash_logits fills Generation.logits_sha256; exact mode always does.
        prompt_special: whether the texts of special tokens in a prompt mean those tokens; else they are ordinary text.
        prompt_template: whether the tokenizer's own template is put around a text (`<s>` before it, say), as
        transformers does.

        Raises ConfigurationError for options out of range, ids outside the vocabulary, text without a tokenizer, or
        more tokens than the context holds.
        """
        decoding = self._decoding(request)
        with enough_memory(THIS_CALL):
            for _ in decoding:
                pass
        results = [row.result(decoding.timing()) for row in decoding.rows]
        return results if request.several else results[0]

    @arguments_of(Request)
    def stream(self, request: Request) -> TextStream:
        """The same for one prompt, as an iterator over pieces of text; its `result` is the Generation so far."""
        if request.several:
            message = "stream takes one prompt; use generate for a list of prompts."
            raise ConfigurationError(message)
        self._needed_tokenizer("stream text")
        return TextStream(self._decoding(request))

    def _decoding(self, request: Request) -> Decoding:
        if (why := not_in_pieces(self.config)) is not None:
            warnings.warn(why, TokensCompete, stacklevel=4)
        stops = request.stop_strings()
        if stops:
            self._needed_tokenizer("look for stop strings")
        hashing = request.hash_logits or self.backend.precision == "exact"
        special, template = request.prompt_special, request.prompt_template
        limit, end, tokenizer = request.max_new_tokens, self.end_of_text_ids, self.tokenizer
        rows = [
            Continuation(self.prompt_ids(prompt, limit, special, template), limit, seed, end, tokenizer, stops, hashing)
            for prompt, seed in zip(request.prompts, request.seeds(), strict=True)
        ]
        return Decoding(self.engine, rows, request)

    def chat(self, messages: Sequence[Mapping[str, Any]], max_new_tokens: int = 64, **options: Any) -> Generation:
        """The model's answer to messages such as {"role": "user", "content": "Hello"}; options as for `generate`.

        The messages become a text by the tokenizer's chat template, in which special tokens are special. Raises
        ConfigurationError for messages that the template refuses, InputFileError for a tokenizer without a template.
        """
        answer = self.generate(self.chat_ids(messages), max_new_tokens, **options)
        assert isinstance(answer, Generation)
        return answer

    def chat_ids(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The token ids of the messages and of the beginning of an answer. tools: functions that may be called."""
        tokenizer = self._needed_tokenizer("read a chat")
        text = chat_text(tokenizer.original_files, messages, tools)
        require_possible(text, self.config.context_length)
        return tokenizer.encode(text, allow_special=True)

    def prompt_ids(
        self, prompt: Prompt, max_new_tokens: int = 0, special: bool = False, template: bool = True
    ) -> list[int]:
        """The token ids of a prompt, after which so many new ones are to fit; an empty one starts from begin-of-text.

        special, template: as `prompt_special` and `prompt_template` of `generate`; they say nothing about token ids.
        Raises ConfigurationError for text without a tokenizer, ids outside the vocabulary and too many tokens.
        """
        if isinstance(prompt, str):
            tokenizer = self._needed_tokenizer("read text")
            require_possible(prompt, self.config.context_length)
            ids = tokenizer.encode(prompt, allow_special=special)
            ids = tokenizer.template.around(ids) if template else ids
        else:
            ids = given_ids(prompt, self.config.vocab_size)
        return begun_and_fitting(ids, self.config, max_new_tokens)

    def _needed_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            message = (
                f"This model has no tokenizer, so it cannot {what}; looked in {self.folder or self.source} for "
                f"{', '.join(TOKENIZER_FILES)}. Token ids work without one."
            )
            raise ConfigurationError(message)
        return self.tokenizer

    # --- weights and files ------------------------------------------------------------------------------------------

    def replace_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """New values of every parameter: dotted name -> NumPy array, kernels [in, out]. What is compiled stays.

        Experts that lie in files do so again, under the same budgets, and are counted anew. Raises UnavailableError if
        they cannot; the weights are then those before.
        """
        experts = None if self.experts is None else self.experts.anew()
        params = placed(self.config, self.backend, arrays, experts and experts.place)
        if experts is not None:
            experts.settle()
        self.params = params
        self.engine.take(params)
        if experts is not None:
            self.take_experts(experts)

    def take_experts(self, experts: Any) -> None:
        """The `ResidentExperts` of the present weights; guesses, if they are asked for, are made for these."""
        self.experts = experts
        if experts.policy.prefetch:
            self.engine.look.tap = experts.looking_ahead(self.config, self.params)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes config.json, model.safetensors and the tokenizer's files, which transformers loads too.

        float64 weights are stored as float32. What was there under these names is replaced only when all is written.
        """
        wanted = shapes(self.config)
        arrays = {
            name: self.backend.recover(name, parameter) for name, parameter in flatten(self.params) if name in wanted
        }
        checkpoints.save_folder(Path(folder), self.config, nest(arrays), original=self.original)
        if self.tokenizer is not None:
            self.tokenizer.save(folder)
