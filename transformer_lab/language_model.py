"""A model that is loaded and ready: its backend, configuration, parameters and tokenizer, and what can be asked of it.

This is where the parts meet. It converts between what people hold (text, lists, NumPy) and what backends compute on,
and checks what it is given; the work itself is done in `model`, `generation` and `backends`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab import checkpoints
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.config import component, construct
from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.generation.continuation import Continuation, Generation
from transformer_lab.generation.engine import Engine
from transformer_lab.generation.generate import Decoding
from transformer_lab.generation.sampling import Sampling
from transformer_lab.memory import enough_memory, require_bytes
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.decoder import forward, tap_names
from transformer_lab.model.init import initialise
from transformer_lab.model.parameters import count, flatten, nest, shapes
from transformer_lab.model.positions import rotary_table
from transformer_lab.paths import data_folder
from transformer_lab.sources import Progress, config_folder, model_folder
from transformer_lab.tokenizers import TOKENIZER_FILES, Tokenizer, load_tokenizer, load_tokenizer_folder
from transformer_lab.tokenizers.loading import TOKENIZER_KINDS, embedded_tokenizer_names

Prompt = str | Sequence[int]
KINDS_OF_WEIGHTS = ("pretrained", "random")
_BYTES = {"float64": 8, "bfloat16": 2, "int8": 1}  # of a parameter, at least; 4 for the others
_THIS_CALL = "this call. Take shorter texts, or fewer of them at a time"


def load_model(
    source: str | PathLike[str],
    backend: Any = "numpy",
    precision: str = "float32",
    ops: str | Mapping[str, str] = "fused",
    tokenizer: str | None = None,
    *,
    cache: Any = None,
    ffn: Any = None,
    device: str | None = None,
    revision: str | None = None,
    weights: str = "pretrained",
    seed: int = 0,
    progress: Progress | None = None,
) -> "LanguageModel":
    """Loads a model.

    source: a name under conf/model, a folder in Hugging Face layout (config.json + *.safetensors), or a hub id. What
        starts with "/", "." or "~", or names an existing folder, is always a folder.
    backend: a name under conf/backend, or a Backend that is already built (then precision, ops and device are its own).
    precision: "float32", "float64", or "exact" (docs/exact_mode.md).
    ops: "fused", "manual", or a mapping operation -> version.
    tokenizer: None or "byte_bpe" (by hand), or "huggingface" (the `tokenizers` library).
    cache: a policy of transformer_lab.cache; None is Contiguous(). device: as the backend calls it; None is the CPU.
    ffn: fields of the dense network to change ({"activation": "relu"}), or another component.
    weights: "random" takes only the shape of `source` and draws weights from `seed`; nothing is downloaded for a
        name under resources/config. progress(what, done, total) is called while loading.

    Raises ConfigurationError, InputFileError or UnavailableError; each says in words what to do.
    """
    begin = time.perf_counter()
    if isinstance(backend, str):
        backend = component("backend", backend, precision=precision, ops=ops, device=device)
    if weights not in KINDS_OF_WEIGHTS:
        message = f"weights is {weights!r}; choose one of {', '.join(KINDS_OF_WEIGHTS)}."
        raise ConfigurationError(message)
    if tokenizer is not None and tokenizer not in TOKENIZER_KINDS:
        message = f"tokenizer is {tokenizer!r}; choose one of {', '.join(TOKENIZER_KINDS)}."
        raise ConfigurationError(message)
    folder = config_folder(source, revision) if weights == "random" else model_folder(source, revision)
    config = with_feed_forward(checkpoints.read_config(folder), ffn)
    found: list[Tokenizer | None] = []

    def before_reading() -> None:
        """Whatever can be refused without the numbers is refused before they are read."""
        found.append(_tokenizer(folder, config, tokenizer or "byte_bpe"))
        if backend.device == "cpu":
            require_bytes(count(config) * _BYTES.get(backend.precision, 4), f"{source}, {count(config):,} parameters")

    with enough_memory(f"{source}: it has {count(config):,} parameters"):
        if weights == "random":
            before_reading()
            params = _random_parameters(config, backend, seed, progress)
        else:
            report = (lambda done, total: progress("weights", done, total)) if progress else None
            dtype = np.float64 if backend.precision == "float64" else np.float32
            params = checkpoints.load_parameters(folder, config, backend.place, dtype, report, before_reading)
        _add_derived(config, backend, params)
    model = LanguageModel(backend, config, params, found[0], cache or Contiguous())
    model.source, model.folder = str(source), folder if weights == "pretrained" else None
    model.end_of_text_ids = checkpoints.end_of_text_ids(folder)
    model.load_seconds = time.perf_counter() - begin
    return model


def assemble(
    config: ModelConfig, arrays: Mapping[str, np.ndarray], backend: Any, tokenizer: Tokenizer | None = None
) -> "LanguageModel":
    """A model of weights that are at hand: dotted name -> NumPy array, kernels [in, out], as `shapes(config)` says."""
    return LanguageModel(backend, config, _placed(config, backend, arrays), tokenizer, Contiguous())


def _placed(config: ModelConfig, backend: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    params = nest({name: backend.place(name, array) for name, array in arrays.items()})
    _add_derived(config, backend, params)
    return params


def _tokenizer(folder: Path, config: ModelConfig, kind: str) -> Tokenizer | None:
    """That of the folder, or for a published configuration the embedded one; it must fit the vocabulary."""
    found = load_tokenizer_folder(folder, kind)
    published = folder.parent == data_folder("resources") / "config"  # a configuration alone, without a tokenizer
    if found is None and published and folder.name in embedded_tokenizer_names():
        found = load_tokenizer(folder.name, kind)
    if found is not None:
        require_fitting(found, config.vocab_size, folder)
    return found


def require_fitting(tokenizer: Tokenizer, vocab_size: int, where: str | PathLike[str]) -> None:
    """Raises InputFileError if a model of vocab_size cannot take every id of the tokenizer found at `where`."""
    if tokenizer.vocab_size > vocab_size:
        message = (
            f"The tokenizer in {where} has {tokenizer.vocab_size} tokens and the model's vocab_size is "
            f"{vocab_size}. They do not belong together."
        )
        raise InputFileError(message)


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


def _random_parameters(config: ModelConfig, backend: Any, seed: int, progress: Progress | None) -> dict[str, Any]:
    total, placed = len(shapes(config)), {}
    for done, (name, array) in enumerate(initialise(config, seed), start=1):
        placed[name] = backend.place(name, array)
        if progress:
            progress("weights", done, total)
    return nest(placed)


def _add_derived(config: ModelConfig, backend: Any, params: dict[str, Any]) -> None:
    """What the forward pass needs beside the weights: rotary angles, and a tied head in the form that is fast."""
    if config.position == "rotary":
        params["rotary"] = {name: backend.asarray(table) for name, table in rotary_table(config).items()}
    if config.tied_head:
        params["head"] = {"kernel": backend.place_tied_head(params["embed"]["token"])}


class LanguageModel:
    """What `load_model` returns. `config`, `tokenizer` (or None) and `backend` are there to be read.

    source: what load_model was given; folder: where the weights lie, or None; load_seconds: how long loading took.
    end_of_text_ids: every id that ends a generation; config.json may list several.
    """

    source = ""
    folder: Path | None = None
    load_seconds = 0.0

    def __init__(self, backend: Any, config: ModelConfig, params: Any, tokenizer: Tokenizer | None, cache: Any) -> None:
        self.backend, self.config, self.params, self.tokenizer = backend, config, params, tokenizer
        self.end_of_text_ids: tuple[int, ...] = () if config.end_of_text_id is None else (config.end_of_text_id,)
        self.engine = Engine(backend, config, params, cache)

        # What is compiled holds on to nothing but the backend and the configuration: JAX keeps it for good, and a model
        # that is forgotten must give its weights back.
        def logits(params: Any, ids: Any, start: Any) -> Any:
            return forward(backend, config, params, ids, start)[0]

        self._logits = backend.compile(logits)
        self._losses = backend.compile(
            lambda params, ids, start, targets: backend.cross_entropy(logits(params, ids, start), targets)
        )
        self._recorders: dict[tuple[str, ...] | None, Callable[..., Any]] = {}

    @property
    def parameters_count(self) -> int:
        """How many numbers were learned; a tied head is counted once."""
        return count(self.config)

    @property
    def active_parameters_count(self) -> int:
        """How many of them take part in each token: all, in a dense model."""
        return self.parameters_count

    def weights_sha256(self) -> str | None:
        """sha256 over the weight files, or None for random weights."""
        return checkpoints.weights_sha256(self.folder) if self.folder else None

    # --- numbers ----------------------------------------------------------------------------------------------------

    def logits(self, token_ids: Any) -> np.ndarray:
        """token_ids: integers [T] or [B, T] -> the logits of every position, [B, T, V]; [T] gives B = 1.

        float32, or float64 if precision=float64. Raises ConfigurationError for ids outside the vocabulary or a T
        that is not from 1 to context_length.
        """
        ids = self._checked_ids(token_ids, 1, self.config.context_length)
        return self._run_padded(self._logits, ids).astype(self._numpy_dtype, copy=False)

    def loss(self, token_ids: Any) -> float:
        """Mean next-token cross-entropy in nats of 2 to context_length + 1 ids ([T], or [B, T] averaged over all)."""
        return float(self.token_losses(token_ids).mean(dtype=np.float64))

    def token_losses(self, token_ids: Any) -> np.ndarray:
        """The cross-entropy in nats of each id but the first, given those before it: [B, T + 1] -> [B, T]."""
        ids = self._checked_ids(token_ids, 2, self.config.context_length + 1)
        return self._run_padded(self._losses, ids[:, :-1], ids[:, 1:])

    def record(self, token_ids: Any, names: str | Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """{tap name: NumPy array} of one uncached pass over token_ids [T] or [B, T]; see `model.decoder` for the taps.

        names: the taps to keep, or one; None is all that the bound operations show. Raises ConfigurationError for an
        unknown name, and for one that lies inside a fused operation.
        """
        ids = self._checked_ids(token_ids, 1, self.config.context_length)
        wanted = None if names is None else self._checked_taps(names)
        if wanted not in self._recorders:
            backend, config = self.backend, self.config

            def recorded(params: Any, ids: Any, start: Any) -> dict[str, Any]:
                kept: dict[str, Any] = {}

                def keep(name: str, x: Any) -> Any:
                    if wanted is None or name in wanted:
                        kept[name] = x
                    return x

                forward(backend, config, params, ids, start, tap=keep)
                return kept

            self._recorders[wanted] = backend.compile(recorded)
        start = self.backend.asarray(np.zeros(len(ids), np.int64))
        with enough_memory(_THIS_CALL):
            kept = self._recorders[wanted](self.params, self.backend.asarray(ids), start)
        for name in wanted or ():
            if name not in kept:
                message = (
                    f"The tap {name} lies inside a fused operation of the {self.backend.name} backend and cannot be "
                    "recorded; load the model with ops='manual'."
                )
                raise ConfigurationError(message)
        order = [name for name in tap_names(self.config) if name in kept]
        return {name: np.array(self.backend.to_numpy(kept[name])) for name in order}

    def _run_padded(self, function: Callable[..., Any], ids: np.ndarray, *more: np.ndarray) -> np.ndarray:
        """Runs function(params, ids, start, *more) over rows [B, T] padded on the right, and cuts the padding off.

        A backend that compiles sees few lengths that way, and causality keeps the padding out of the result.
        """
        length = ids.shape[1]
        width = self.backend.bucket(length, self.config.context_length)
        padded = [self.backend.asarray(np.pad(x, ((0, 0), (0, width - length)))) for x in (ids, *more)]
        start = self.backend.asarray(np.zeros(len(ids), np.int64))
        with enough_memory(_THIS_CALL):
            result = self.backend.to_numpy(function(self.params, padded[0], start, *padded[1:]))
            return np.array(result[:, :length])

    @property
    def _numpy_dtype(self) -> Any:
        return np.float64 if self.backend.precision == "float64" else np.float32

    # --- text -------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | Sequence[int] = 0,
        stop: str | Sequence[str] | None = None,
        hash_logits: bool = False,
    ) -> Generation | list[Generation]:
        """The continuation of a prompt (text or token ids), or a list of them for a list of prompts.

        Several prompts run as one batch, and each draws from a generator of its own: its text does not depend on its
        neighbours. seed: one number for all, or one per prompt (to draw several texts from one prompt). stop: a text
        or several at which to end. The sampling options are explained at `Sampling`. An empty text starts from the
        model's begin-of-text token. hash_logits fills Generation.logits_sha256; exact mode always does.

        Raises ConfigurationError for options out of range, ids outside the vocabulary, text without a tokenizer, or
        more tokens than the context holds.
        """
        options = (max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop, hash_logits)
        several = several_prompts(prompt)
        decoding = self._decoding(list(prompt) if several else [prompt], *options)  # type: ignore[list-item, arg-type]
        with enough_memory(_THIS_CALL):
            for _ in decoding:
                pass
        results = [row.result(decoding.timing()) for row in decoding.rows]
        return results if several else results[0]

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        hash_logits: bool = False,
    ) -> "TextStream":
        """The same for one prompt, as an iterator over pieces of text; its `result` is the Generation so far."""
        if several_prompts(prompt):
            message = "stream takes one prompt; use generate for a list of prompts."
            raise ConfigurationError(message)
        if self.tokenizer is None:
            raise ConfigurationError(self._no_tokenizer("stream text"))
        options = (max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop, hash_logits)
        return TextStream(self._decoding([prompt], *options))

    def _decoding(
        self,
        prompts: list[Prompt],
        max_new_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        min_p: float | None,
        repetition_penalty: float | None,
        seed: int | Sequence[int],
        stop: str | Sequence[str] | None,
        hash_logits: bool,
    ) -> Decoding:
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        if not prompts:
            message = "The list of prompts is empty; give at least one."
            raise ConfigurationError(message)
        if not _whole(max_new_tokens) or max_new_tokens < 1:
            message = f"max_new_tokens is {max_new_tokens!r}; it must be a whole number of at least 1."
            raise ConfigurationError(message)
        stops: list[Any] = [] if stop is None else [stop]
        if isinstance(stop, Iterable) and not isinstance(stop, str):
            stops = list(stop)
        if not all(isinstance(text, str) and text for text in stops):
            message = f"stop is {stop!r}; it must be a text, or a list of texts, none of them empty."
            raise ConfigurationError(message)
        if stops and self.tokenizer is None:
            raise ConfigurationError(self._no_tokenizer("look for stop strings"))
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(prompts)
        if len(seeds) != len(prompts) or not all(_whole(number) and number >= 0 for number in seeds):
            message = f"seed is {seed!r}; it must be a whole number of at least 0, or one such number per prompt."
            raise ConfigurationError(message)
        hashing = hash_logits or self.backend.precision == "exact"
        end, tokenizer = self.end_of_text_ids, self.tokenizer
        rows = [
            Continuation(self.prompt_ids(text, max_new_tokens), max_new_tokens, number, end, tokenizer, stops, hashing)
            for text, number in zip(prompts, seeds, strict=True)
        ]
        return Decoding(self.engine, rows, sampling)

    def prompt_ids(self, prompt: Prompt, max_new_tokens: int = 0) -> list[int]:
        """The token ids of a prompt, after which so many new ones are to fit; an empty one starts from begin-of-text.

        Raises ConfigurationError for text without a tokenizer, ids outside the vocabulary and too many tokens.
        """
        context = self.config.context_length
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ConfigurationError(self._no_tokenizer("read text"))
            ids = self.tokenizer.encode(prompt)
        else:
            message = "A prompt must be a text, or whole numbers in one row."
            rows = self._checked_ids(prompt, 0, None, message)
            if len(rows) != 1:
                raise ConfigurationError(message)
            ids = rows[0].tolist()
        if not ids:
            if self.config.begin_of_text_id is None:
                message = "The prompt is empty, and this model has no begin-of-text token to start from."
                raise ConfigurationError(message)
            ids = [self.config.begin_of_text_id]
        if len(ids) + max_new_tokens > context:
            room = context - len(ids)
            cure = f"Ask for at most {room} new tokens, or shorten the prompt." if room > 0 else "Shorten the prompt."
            message = (
                f"The prompt has {len(ids)} tokens and {max_new_tokens} new ones are asked for, but the context of "
                f"this model holds {context}. {cure}"
            )
            raise ConfigurationError(message)
        return ids

    # --- weights and files ------------------------------------------------------------------------------------------

    def replace_weights(self, arrays: Mapping[str, np.ndarray]) -> None:
        """New values of every parameter: dotted name -> NumPy array, kernels [in, out]. What is compiled stays."""
        self.params = self.engine.params = _placed(self.config, self.backend, arrays)

    def save(self, folder: str | PathLike[str]) -> None:
        """Writes config.json, model.safetensors and the tokenizer's files, which transformers loads too.

        float64 weights are stored as float32. What was there under these names is replaced only when all is written.
        """
        wanted = shapes(self.config)
        arrays = {
            name: self.backend.recover(name, parameter) for name, parameter in flatten(self.params) if name in wanted
        }
        checkpoints.save_folder(Path(folder), self.config, nest(arrays))
        if self.tokenizer is not None:
            self.tokenizer.save(folder)

    # --- checks -----------------------------------------------------------------------------------------------------

    def _checked_ids(
        self,
        token_ids: Any,
        shortest: int,
        longest: int | None,
        expected: str = "token_ids must be whole numbers, [T] or [B, T] with rows of one length.",
    ) -> np.ndarray:
        """[T] or [B, T] -> int64 [B, T]."""
        try:
            ids = np.asarray(token_ids)
        except (TypeError, ValueError):  # rows of unequal lengths, or no numbers at all
            raise ConfigurationError(expected) from None
        if ids.ndim not in (1, 2) or (ids.size and ids.dtype.kind not in "iu"):  # an empty list becomes floats
            raise ConfigurationError(expected)
        ids = ids.reshape((-1, ids.shape[-1])) if ids.size else np.empty((1, 0), np.int64)
        length = ids.shape[1]
        if length < shortest or (longest is not None and length > longest):
            message = f"{length} token ids were given in a row; expected {shortest} to {longest}."
            raise ConfigurationError(message)
        wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if wrong.size:
            message = f"The token id {int(wrong[0])} is outside the vocabulary, 0 to {self.config.vocab_size - 1}."
            raise ConfigurationError(message)
        return ids.astype(np.int64)

    def _checked_taps(self, names: str | Sequence[str]) -> tuple[str, ...]:
        known = tap_names(self.config)
        names = [names] if isinstance(names, str) else names
        for name in names:
            if name not in known:
                near = get_close_matches(str(name), known, 1)
                message = f"There is no tap {name!r}{f'; did you mean {near[0]!r}?' if near else '.'}"
                raise ConfigurationError(message)
        return tuple(sorted(set(names)))

    def _no_tokenizer(self, what: str) -> str:
        return (
            f"This model has no tokenizer, so it cannot {what}; looked in {self.folder or self.source} for "
            f"{', '.join(TOKENIZER_FILES)}. Token ids work without one."
        )


class TextStream:
    """An iterator over pieces of text. `result` is the Generation of what has come, complete when it is exhausted."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._pieces = (pieces[0] for pieces in decoding if pieces[0])

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with enough_memory(_THIS_CALL):
            return next(self._pieces)

    @property
    def result(self) -> Generation:
        return self._decoding.rows[0].result(self._decoding.timing())


def several_prompts(prompt: Any) -> bool:
    """Whether this is a list of prompts: a list of texts or of lists of ids, and not one text or one list of ids."""
    if hasattr(prompt, "ndim"):  # an array of any framework
        return bool(prompt.ndim == 2)
    if not isinstance(prompt, (list, tuple)):
        return False
    return not all(_whole(item) for item in prompt)


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
