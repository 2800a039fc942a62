"""A conversation as one text, by the template that a chat model was trained with (Jinja, as transformers writes it).

A template is a program in a stranger's file. It runs in Jinja's sandbox, and in a process of its own
(`chat_template_process.py`) whose memory and time are bounded, since within the sandbox it may still repeat a letter a
thousand million times.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformer_lab.errors import ConfigurationError, InputFileError, UnavailableError, shown
from transformer_lab.tokenizers.tokenizer_config import TOKEN_ROLES

_PROCESS = Path(__file__).with_name("chat_template_process.py")
_SECONDS = 15.0  # for a process that does not end although its own time is up


def chat_text(
    files: Mapping[str, bytes], messages: Any, tools: Sequence[Mapping[str, Any]] | None = None, answer: bool = True
) -> str:
    """What the template in a tokenizer's files makes of the messages.

    messages: [{"role": "user", "content": "..."}, ...], with whatever else the template knows. tools: descriptions of
    functions that the model may call. answer: whether the beginning of the model's answer is put behind them.

    Raises ConfigurationError for what is no list of messages, and for messages that the template refuses (roles that
    do not alternate, say), InputFileError if there is no template or it is damaged, UnavailableError if it wants more
    than 5 seconds, 1 GB or ten million characters.
    """
    _require_messages(messages)
    config = _config(files)
    template = _template(files, config, bool(tools))
    roles = {role: text for role in TOKEN_ROLES if (text := _role(config, role)) is not None}
    values = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": answer, **roles}
    try:
        asked = json.dumps({"template": template, "values": values})
    except (TypeError, ValueError) as error:
        message = f"The messages hold something else than text, numbers, lists and objects: {error}."
        raise ConfigurationError(message) from None
    return _run(asked)


def _run(asked: str) -> str:
    try:
        command = [sys.executable, "-P", str(_PROCESS)]
        done = subprocess.run(command, input=asked.encode(), capture_output=True, timeout=_SECONDS, check=False)
        code, text = done.returncode, done.stdout.decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        code, text = None, ""
    except OSError as error:
        message = f"The chat template runs in a process of its own, which could not begin: {error.strerror}."
        raise UnavailableError(message) from error
    if code == 0:
        return text
    if code == 1 and text.startswith("{"):
        answer = json.loads(text)
        if answer["by"] == "template":
            message = f"The chat template refuses these messages: {shown(answer['why'])}."
            raise ConfigurationError(message)
        message = f"The chat template cannot be used: {shown(answer['why'])}."
        raise InputFileError(message)
    message = "The chat template takes too much time or memory, or writes too much."
    raise UnavailableError(message)


def _require_messages(messages: object) -> None:
    right = isinstance(messages, list | tuple) and len(messages) > 0
    if right and all(isinstance(one, Mapping) and isinstance(one.get("role"), str) for one in messages):  # type: ignore[attr-defined]
        return
    message = 'A chat is a list of messages such as {"role": "user", "content": "Hello"}, and not empty.'
    raise ConfigurationError(message)


def _config(files: Mapping[str, bytes]) -> dict[str, Any]:
    """special_tokens_map.json and tokenizer_config.json together; they were read when the tokenizer was loaded."""
    values: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if name in files:
            values |= json.loads(files[name].removeprefix(b"\xef\xbb\xbf"))
    return values


def _template(files: Mapping[str, bytes], config: Mapping[str, Any], with_tools: bool) -> str:
    """A file of its own counts before the field; of several named ones "tool_use" is for tools, else "default"."""
    try:
        found: object = files["chat_template.jinja"].decode() if "chat_template.jinja" in files else None
        if found is None and "chat_template.json" in files:
            found = json.loads(files["chat_template.json"])["chat_template"]
    except (ValueError, KeyError, TypeError, RecursionError):
        message = "The tokenizer's file chat_template holds no template."
        raise InputFileError(message) from None
    found = config.get("chat_template") if found is None else found
    if isinstance(found, list):
        entries = [one for one in found if isinstance(one, dict) and isinstance(one.get("name"), str)]
        named = {one["name"]: one.get("template") for one in entries}
        found = named.get("tool_use" if with_tools and "tool_use" in named else "default")
    if not isinstance(found, str):
        message = (
            "This tokenizer has no chat template: no chat_template.jinja, no chat_template in tokenizer_config.json."
        )
        raise InputFileError(message)
    return found


def _role(config: Mapping[str, Any], role: str) -> str | None:
    token = config.get(role)
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
