"""Runs one chat template, in a process whose memory and time are bounded. `chat_template.py` begins it.

{"template": text, "values": object} comes in on standard input, the text goes out; or {"by", "why"} and exit code 1 if
there is none: by "template" if the template itself refuses the messages, by "jinja" if it is wrong. Needs no more than
the standard library and Jinja, so that it begins fast.
"""

import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError, ext, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, MEMORY, LONGEST = 5, 2**30, 10_000_000  # of processor time; bytes; characters that come out


class Generation(ext.Extension):
    """{% generation %} marks what the model wrote, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as the templates expect it: with the settings, filters and functions that transformers gives them."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **settings)

    now: Callable[[str], str] = lambda form: datetime.now().strftime(form)  # noqa: E731
    jinja = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    jinja.filters["tojson"] = tojson
    jinja.globals |= {"raise_exception": refuse, "strftime_now": now}
    return jinja


def bound() -> None:
    """From here on no more than MEMORY and SECONDS."""
    try:
        import resource
    except ImportError:  # not on Windows, where who began this process waits only so long
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


def main() -> int:
    """The exit code: 0 with the text, 1 with a reason, 2 for too much."""
    asked = json.loads(sys.stdin.buffer.read())
    jinja = environment()
    bound()
    try:
        text = jinja.from_string(asked["template"]).render(asked["values"])
    except MemoryError:
        return 2
    except Exception as error:
        wrong = isinstance(error, TemplateSyntaxError | UndefinedError | SecurityError)
        by = "template" if isinstance(error, TemplateError) and not wrong else "jinja"
        why = str(error) or type(error).__name__
        sys.stdout.buffer.write(json.dumps({"by": by, "why": why[:1000]}).encode())
        return 1
    if len(text) > LONGEST:
        return 2
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
