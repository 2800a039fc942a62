"""`job=generate`: continues a prompt. The continuation alone goes to standard output, so that it can be piped."""

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformer_lab.config import Settings
from transformer_lab.jobs.loading import in_words, load_chosen_model
from transformer_lab.jobs.prompts import Prompt, chosen_prompt, chosen_stop
from transformer_lab.jobs.record import Result, peak_memory_bytes
from transformer_lab.model.causality import TokensCompete, not_in_pieces


@dataclass(frozen=True)
class Generate:
    """default_prompt: what is continued if no prompt is given."""

    default_prompt: str

    def run(self, settings: Settings) -> Result:
        prompt = chosen_prompt(settings, self.default_prompt)
        options = asdict(settings.build("sampling")) | {
            "max_new_tokens": settings.max_new_tokens,
            "seed": settings.seed,
            "stop": chosen_stop(settings),
            "prompt_special": settings.prompt_special,
            "prompt_template": settings.prompt_template,
            "hash_logits": settings.hash_logits or settings.sections["precision"]["name"] == "exact",
        }
        model = load_chosen_model(settings)
        _say_what_is_suggested(model)
        if (why := not_in_pieces(model.config)) is not None:
            print(why, file=sys.stderr)
            warnings.simplefilter("ignore", TokensCompete)
        chat = None if settings.chat is None else prompt
        if chat is not None:
            prompt = model.chat_ids(chat)
        if isinstance(prompt, list) and isinstance(prompt[0], str):
            generations = _print_lines(model, prompt, options)
            completions = [_completion(*pair) for pair in zip(prompt, generations, strict=True)]
            output = completions[0] | {"completions": completions}
        else:
            generations = [
                _print_stream(model, prompt, options) if model.tokenizer else _print_ids(model, prompt, options)
            ]
            output = _completion(prompt, generations[0]) | ({} if chat is None else {"chat": chat})
        sys.stdout.flush()
        if (memory := model.engine.memory) is not None:
            output |= {"cache": memory.to_dict()}
        if model.experts is not None:
            output |= {"experts": model.experts.to_dict()}
        timing = asdict(generations[0].timing) | {"load_s": model.load_seconds}
        _print_table(model, timing, output.get("cache", {}))
        return Result(output=output, model=model, timing=timing)


def _say_what_is_suggested(model: Any) -> None:
    """How the model's authors would sample: shown, not applied; the same words mean the same for every model."""
    words = " ".join(f"sampling.{name}={value}" for name, value in model.original.suggested_sampling().items())
    if words:
        print(f"Not applied by itself: generation_config.json suggests {words}", file=sys.stderr)


def _print_stream(model: Any, prompt: Prompt, options: dict[str, Any]) -> Any:
    """Prints the pieces of the continuation as they come; returns the Generation."""
    stream = model.stream(prompt, **options)
    try:
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write("\n")  # what came so far stays, as a whole line
        sys.stdout.flush()
        raise
    sys.stdout.write("\n")
    return stream.result


def _print_ids(model: Any, prompt: Prompt, options: dict[str, Any]) -> Any:
    """For a model without a tokenizer: one line of token ids."""
    generation = model.generate(prompt, **options)
    print(*generation.token_ids)
    return generation


def _print_lines(model: Any, prompts: Prompt, options: dict[str, Any]) -> list[Any]:
    """Several prompts in one batch: one line of JSON for each, since a text may itself have many lines."""
    generations: list[Any] = model.generate(prompts, **options)
    for prompt, generation in zip(prompts, generations, strict=True):
        print(json.dumps({"prompt": prompt, "text": generation.text}, ensure_ascii=False))
    return generations


def _completion(prompt: Prompt | Sequence[Any], generation: Any) -> dict[str, Any]:
    return {
        "prompt": prompt if isinstance(prompt, str) else None,
        "text": generation.text,
        "prompt_token_ids": generation.prompt_token_ids,
        "token_ids": generation.token_ids,
        "finish_reason": generation.finish_reason,
        "logits_sha256": generation.logits_sha256,
    }


def _print_table(model: Any, timing: dict[str, float | None], found: dict[str, Any]) -> None:
    """found: what the cache tells, if it outlives a text."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    memory = peak_memory_bytes()
    columns = {
        "load\ns": _number(timing["load_s"], 2),
        "compile\ns": _number(timing["compile_s"], 2),
        "first token\ns": _number(timing["first_token_s"], 3),
        "prefill\ntokens/s": _number(timing["prefill_tokens_per_s"], 1),
        "decode\ntokens/s": _number(timing["decode_tokens_per_s"], 1),
        "memory\nMB": _number(None if memory is None else memory / 1e6, 0),
    }
    if (of_prompts := found.get("prompt_tokens")) is not None:
        columns["found in\nthe cache"] = f"{of_prompts['found']} of {of_prompts['asked']}"
    table = Table(title=Text(in_words(model)), box=SIMPLE_HEAD)  # Text: brackets in a path are no markup
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row(*columns.values())
    Console(stderr=True).print(table)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
