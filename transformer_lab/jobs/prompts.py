"""The prompt of a run: from the command line, a file, standard input, token ids, or several texts at once."""

import json
import sys
from functools import cache
from typing import Any

from transformer_lab.checkpoints.regular_file import open_regular
from transformer_lab.config import Settings
from transformer_lab.errors import ConfigurationError, InputFileError, shown
from transformer_lab.paths import expanded

STANDARD_INPUT = "-"
LARGEST_PROMPT_BYTES = 64 * 2**20  # far above any context; a wrong file is refused before it fills the memory

Prompt = str | list[int] | list[str] | list[dict[str, Any]]


def chosen_prompt(settings: Settings, default: str) -> Prompt:
    """What to continue: a text, the ids of one, a list of texts, or the messages of a chat. Raises for several keys."""
    sources = {
        "prompt": settings.prompt,
        "prompt_file": settings.prompt_file,
        "prompt_ids": settings.prompt_ids,
        "prompts": settings.prompts,
        "chat": settings.chat,
    }
    given = [key for key, value in sources.items() if value is not None]
    if len(given) > 1:
        message = f"{' and '.join(given)} are given together; one of them is the prompt."
        raise ConfigurationError(message)
    if settings.prompt_file is not None:
        return _read_file(settings.prompt_file)
    if settings.prompt_ids is not None:
        return _items("prompt_ids", settings.prompt_ids, int)
    if settings.prompts is not None:
        return [_checked_text("prompts", text) for text in _items("prompts", settings.prompts, str)]
    if settings.chat is not None:
        return _messages(settings.chat)
    if settings.prompt == STANDARD_INPUT:
        return _read_standard_input()
    return _checked_text("prompt", default if settings.prompt is None else settings.prompt)


def chosen_stop(settings: Settings) -> list[str] | None:
    """The stop strings: `stop=TEXT`, or a list of them in JSON, `stop=["\\n\\n", "END"]`; `stop=[END]` is a text."""
    stop = settings.stop
    if isinstance(stop, str):
        listed = _json(stop)
        stop = listed if isinstance(listed, list) else [stop]
    return stop if stop is None else [_checked_text("stop", text) for text in _items("stop", stop, str)]


def _messages(chat: str | list[Any]) -> list[dict[str, Any]]:
    """A list of messages in JSON, or what a user says, as text."""
    if isinstance(chat, str):
        listed = _json(chat)
        chat = listed if isinstance(listed, list) else [{"role": "user", "content": _checked_text("chat", chat)}]
    return chat


def _json(text: str) -> Any:
    """The value in a text of JSON; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _items(key: str, value: Any, kind: type) -> list[Any]:
    """A list that a configuration file gave as a list, or the command line as text: JSON, or YAML's looser form."""
    if isinstance(value, str):
        import yaml

        try:
            value = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            value = None
    right = isinstance(value, list) and len(value) > 0 and all(type(item) is kind for item in value)
    if not right:
        expected = "token ids, as in [1,2,3]" if kind is int else 'texts in quotes, as in ["one", "two"]'
        message = f"{key} cannot be read; it must be a list of {expected}."
        raise ConfigurationError(message)
    return list(value)


def _checked_text(key: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # Python keeps such bytes of a command line as half characters
        message = f"{key} is {shown(text)}, which is not valid UTF-8."
        raise ConfigurationError(message) from None
    return text


def _read_file(name: str) -> str:
    with open_regular(expanded(name)) as file:
        return _decoded(file.read(LARGEST_PROMPT_BYTES + 1), f"The prompt file {name}")


@cache  # the runs of a sweep share it
def _read_standard_input() -> str:
    if sys.stdin is None:
        message = "prompt=- reads standard input, which is closed."
        raise InputFileError(message)
    return _decoded(sys.stdin.buffer.read(LARGEST_PROMPT_BYTES + 1), "Standard input")


def _decoded(content: bytes, what: str) -> str:
    if len(content) > LARGEST_PROMPT_BYTES:
        message = f"{what} is larger than {LARGEST_PROMPT_BYTES // 2**20} MiB, so it is not taken for a prompt."
        raise InputFileError(message)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{what} is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}."
        raise InputFileError(message) from error
