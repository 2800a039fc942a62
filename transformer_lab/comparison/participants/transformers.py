"""Hugging Face transformers as a participant: its own forward pass, with its internals under the names of our taps.

Every number is one that transformers computed; no formula of it is written here a second time. Hooks read what goes
into its modules and what comes out. Queries, keys, values and scores exist inside its attention alone, so its eager
attention is run under a name of ours, by a function that looks on.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from transformer_lab.checkpoints import families, read_config
from transformer_lab.checkpoints.config_file import read_family
from transformer_lab.checkpoints.loading import require_loadable
from transformer_lab.comparison.judging.semantics import transformers_config, transformers_fields
from transformer_lab.comparison.participants.participant import in_order
from transformer_lab.errors import ConfigurationError, InputFileError, LabError, UnavailableError
from transformer_lab.memory import enough_memory
from transformer_lab.sources import model_files

try:
    import torch
    import transformers
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode
    from transformers.masking_utils import eager_mask
except ImportError as error:
    message = (
        "A comparison with transformers needs transformers and PyTorch, which are not installed. "
        "Run: pip install 'transformer_lab[transformers]'"
    )
    raise UnavailableError(message) from error

PRECISIONS = ("float32", "float64", "bfloat16")
ATTENTION = "transformer_lab"  # what transformers calls the attention that looks on
_OBSERVERS: list[Callable[[int, dict[str, Any]], None]] = []  # not all models hand an argument through to it


class Modules(NamedTuple):
    """The modules of a family: its blocks, its last norm, and tap -> the module inside a block whose result it is, or
    that it goes into."""

    blocks: str
    final_norm: str
    results: dict[str, str]
    inputs: dict[str, str]


def modules_of(family: ModuleType) -> Modules:
    """As the tensors are named after the modules that they are in, the names of a checkpoint say where the taps are."""
    inside = {part: module for part, module in family.NAMES.inside.items() if isinstance(module, str)}
    norms = {part: inside[part] for part in ("norm_1", "norm_2", "post_norm_1", "post_norm_2") if part in inside}
    # The projections and not what they are in: that may add the stream already (BLOOM).
    results = norms | {"attn.out": inside["attn.out"]}
    results |= {"ffn.out": inside["ffn.down"]} if "ffn.down" in inside else {}
    first = inside.get("ffn.gate", inside.get("ffn.up"))
    results |= {} if first is None else {"ffn.pre": first}
    results |= family.NAMES.results
    inputs = {"ffn.act": inside["ffn.down"]} if "ffn.down" in inside else {}
    inputs["resid_mid"] = inside["norm_2"] if "norm_2" in inside else inside["ffn.down"].rpartition(".")[0]
    start = f"{family.PREFIX}{family.NAMES.layer}"
    return Modules(start, f"{family.PREFIX}{family.NAMES.outside['final_norm']}", results, inputs)


class Transformers:
    """Takes part with a folder in Hugging Face layout, run by transformers, or with a model that it has built.

    source: what load_model takes; the weights are loaded at the first run. precision: "float32", "float64" or
    "bfloat16". model: instead of a source, one of a known family with its head, in whatever state it is; it
    keeps its own precision and device, and is not changed. config: what transformers' own configuration amounts to, by
    the names of our fields (`semantics.py`), or None if they cannot say it. All taps of one prompt are held at once.

    In float64 all is float64: norms, softmax and rotary angles of Llama round to float32 in transformers whatever its
    weights are, and these places are widened. Attention is the eager one, since others do not show their scores.
    In bfloat16 every value is rounded, which our backends do with products alone.

    Raises ConfigurationError, InputFileError or UnavailableError, in words.
    """

    kind = "transformers"
    version: str | None = transformers.__version__
    device: str | None = "cpu"

    def __init__(
        self,
        source: str | PathLike[str] | None = None,
        precision: str | None = None,
        *,
        model: Any = None,
        name: str | None = None,
    ) -> None:
        if (source is None) == (model is None):
            message = "Transformers takes one of them: a model's folder, or a model that transformers has built."
            raise ConfigurationError(message)
        if model is None:
            self._folder, adapter = model_files(source)  # type: ignore[arg-type]  # one of them
            if adapter is not None:
                message = (
                    f"transformers cannot take part in a comparison of {source} here. It would read the LoRA adapter "
                    "with peft, or pass over it: load the model here, save it, and compare the saved folder."
                )
                raise ConfigurationError(message)
            require_loadable(self._folder, ours := read_config(self._folder))
            family = read_family(self._folder)[0]
            if family.ARCHITECTURE is None:
                message = (
                    f"transformers does not know the model type of {source}, which is our own: it cannot take part."
                )
                raise ConfigurationError(message)
            theirs = _reading(self._folder, transformers.AutoConfig.from_pretrained)
            tied, own = ours.tied_head, precision or "float32"
        else:
            theirs = getattr(model, "config", None)
            known = [name for name in families.names() if name != families.OURS]
            found = families.find(str(getattr(theirs, "model_type", None)))
            if found is None or found.ARCHITECTURE is None or getattr(model, "lm_head", None) is None:
                message = (
                    f"The taps of a {type(model).__name__} are not known here; those of transformers' "
                    f"{', '.join(known)} with a language-model head are."
                )
                raise ConfigurationError(message)
            family = found
            self._model, self.device = model, str(model.device)
            tied = model.lm_head.weight is model.get_input_embeddings().weight
            own = str(model.dtype).removeprefix("torch.")
        if own not in PRECISIONS or precision not in (None, own):
            message = (
                f"transformers cannot take part in {own if precision is None else precision} here. A folder can be run "
                f"in {', '.join(PRECISIONS)}; a built model is run in what it has, which model.double() changes."
            )
            raise ConfigurationError(message)
        self.precision = own
        self.name = name or f"transformers {own}"
        self._modules = modules_of(family)
        self.config = _in_our_words(theirs, tied)
        self._taps = _taps(theirs)

    @cached_property
    def _model(self) -> Any:
        dtype = getattr(torch, self.precision)
        return _reading(self._folder, transformers.AutoModelForCausalLM.from_pretrained, dtype=dtype).eval()

    def taps(self, token_ids: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """token_ids [T] -> (tap name, array with B = 1), in the order of the computation."""
        model, kept = self._model, dict[str, np.ndarray]()

        def keep(tap: str, value: Any) -> None:
            value = value[0] if isinstance(value, tuple) else value
            value = value[None] if value.ndim == 2 else value  # the rows of all tokens, which some modules work on
            wide = torch.float64 if value.dtype == torch.float64 else torch.float32
            kept[tap] = value.detach().to("cpu", wide).numpy().copy()

        def keep_attention(layer: int, values: dict[str, Any]) -> None:
            for tap, value in values.items():
                keep(f"blocks.{layer}.{tap}", value)

        with ExitStack() as stack:
            for hook in _hooked(model, self._modules, self._taps, keep):
                stack.callback(hook.remove)
            stack.enter_context(_looked_on(model))
            stack.enter_context(torch.no_grad())
            stack.enter_context(enough_memory(self.name))
            wide = self.precision == "float64"
            angles = _wide_angles(model) if wide else {}
            stack.enter_context(Widened() if wide else nullcontext())
            ids = torch.as_tensor(np.asarray(token_ids, np.int64)[None], device=model.device)
            stack.enter_context(_observing(keep_attention))
            found = torch.func.functional_call(model, angles, (ids,), {"use_cache": False})
            keep("logits", found.logits)
        for tap, _ in list(in_order(kept, self.name)):
            yield tap, kept.pop(tap)


def _hooked(model: Any, modules: Modules, taps: list[set[str]], keep: Callable[[str, Any], None]) -> Iterator[Any]:
    """The handles of hooks that keep every tap that is the result of a module, or goes into one."""

    def result(module: Any, tap: str) -> Any:
        return module.register_forward_hook(lambda _, args, found: keep(tap, found))

    def given(module: Any, tap: str) -> Any:
        return module.register_forward_pre_hook(lambda _, args: keep(tap, args))

    blocks = model.get_submodule(modules.blocks)
    yield given(blocks[0], "embed")
    for layer, (block, shown) in enumerate(zip(blocks, taps, strict=True)):
        for tap, path in modules.results.items():
            if tap in shown:
                yield result(block.get_submodule(path), f"blocks.{layer}.{tap}")
        for tap, path in modules.inputs.items():
            if tap in shown:
                yield given(block.get_submodule(path), f"blocks.{layer}.{tap}")
        yield result(block, f"blocks.{layer}.resid_post")
    yield result(model.get_submodule(modules.final_norm), "final_norm")


@contextmanager
def _looked_on(model: Any) -> Iterator[None]:
    """Evaluation without dropout, by the attention that looks on; afterwards the model is as it was."""
    attention = model.config._attn_implementation
    training = [module for module in model.modules() if module.training]
    try:
        model.config._attn_implementation = ATTENTION
        model.eval()
        yield
    finally:
        model.config._attn_implementation = attention
        for module in training:
            module.training = True


def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    """The module's own eager attention, looked on: query [B, H, T, N], key and value [B, K, T, N]."""
    with Scores() as seen:
        if getattr(module, "reorder_and_upcast_attn", False) and query.dtype != torch.float64:  # which it refuses
            result = module._upcast_and_reordered_attn(query, key, value, attention_mask)
        else:
            result = _eager_attention(module)(module, query, key, value, attention_mask, **options)
    values = {"attn.k": key, "attn.v": value, "attn.pattern": result[1]}
    if getattr(module, "scaling", options.get("scaling")) == options.get("scaling"):
        values["attn.q"] = query  # OPT has scaled them already
    if seen.scores is not None:  # a mask of transformers is the lowest finite number, added
        values["attn.scores"] = seen.scores.masked_fill(
            seen.scores <= torch.finfo(seen.scores.dtype).min / 2, -torch.inf
        )
    for observe in _OBSERVERS[-1:]:
        observe(module.layer_idx, values)
    return result


@contextmanager
def _observing(observe: Callable[[int, dict[str, Any]], None]) -> Iterator[None]:
    """While this holds, `observe` is told the layer and the values of every attention."""
    _OBSERVERS.append(observe)
    try:
        yield
    finally:
        _OBSERVERS.pop()


def _eager_attention(module: Any) -> Callable[..., Any]:
    """What transformers takes for attn_implementation="eager": a function beside the module's class."""
    homes = (sys.modules[kind.__module__] for kind in type(module).__mro__)
    return next(home.eager_attention_forward for home in homes if hasattr(home, "eager_attention_forward"))


transformers.AttentionInterface.register(ATTENTION, attend)
transformers.AttentionMaskInterface.register(ATTENTION, eager_mask)


class Scores(TorchFunctionMode):  # type: ignore[misc]
    """Sees what softmax is given."""

    scores: Any = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (functional.softmax, torch.softmax, torch.Tensor.softmax):
            self.scores = args[0]
        return function(*args, **(kwargs or {}))


class Widened(TorchFunctionMode):  # type: ignore[misc]
    """Wherever float32 is asked for by name, it is float64."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return function(*args, **kwargs)


def _wide_angles(model: Any) -> dict[str, Any]:
    """The frequencies of rotary positions in float64, by their names in the model: computed by its own module.

    Only where the model holds what that module gives in float32: what somebody has changed is left as it is.
    """
    found = {}
    for path, module in model.named_modules():
        if "inv_freq" in dict(module.named_buffers(recurse=False)):
            held, kind = module.inv_freq, type(module)
            if torch.equal(kind(module.config).inv_freq, held.float().cpu()):
                with Widened():
                    found[f"{path}.inv_freq"] = kind(module.config).inv_freq.to(held.device)
    return found


def _taps(theirs: Any) -> list[set[str]]:
    """For each block the taps that the definition has: a parallel one has nothing between attention and network."""
    with suppress(LabError):
        config, _ = transformers_config(theirs)
        if config is not None:
            return [set(block.taps) for block in config.blocks]
    every = {"norm_1", "attn.out", "resid_mid", "norm_2", "ffn.pre", "ffn.act", "ffn.out"}
    return [every] * theirs.num_hidden_layers


def _in_our_words(theirs: Any, tied: bool) -> dict[str, Any] | None:
    """transformers' configuration, with all its defaults filled in, in our fields; None if they cannot say it."""
    try:
        return transformers_fields(theirs) | {"tied_head": tied}
    except LabError:
        return None


def _reading(folder: Path, load: Callable[..., Any], **options: Any) -> Any:
    """What transformers loads from the folder, without its bars and messages."""
    log = transformers.logging
    bars, verbosity = log.is_progress_bar_enabled(), log.get_verbosity()
    try:
        log.disable_progress_bar()
        log.set_verbosity_error()
        with enough_memory(f"the model in {folder}"):
            return load(folder, local_files_only=True, **options)
    except (OSError, ValueError, TypeError, KeyError) as error:
        message = f"transformers cannot read {folder}: {error}."
        raise InputFileError(message) from error
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
