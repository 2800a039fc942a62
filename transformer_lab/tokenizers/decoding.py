"""The texts of tokens to one text, as the `decoder` of a tokenizer.json says, and token by token.

A decoder is a list of steps. The `tokenizers` library applies each of them to all tokens of a text at once; here a step
takes one token at a time and gives out what no later token can change any more. So a text can be shown while it grows,
in time that grows with it, and all pieces together are what the library makes of the whole.

Some steps join the tokens (Fuse, ByteLevel). What stands behind them sees a single token, the whole text, and here that
text in pieces: hence two forms of most steps. Knows nothing of ids and vocabularies.
"""

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

from transformer_lab.errors import InputFileError, shown
from transformer_lab.tokenizers.byte_alphabet import from_stand_ins

_MOST_STEPS = 50
_LONGEST_TEXT = 1_000  # of a setting of a step, in characters
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Step(Protocol):
    """One step at work on one text. Tokens, or behind a step that joins them pieces of the text, in and out."""

    def push(self, token: str) -> list[str]:
        """What this token completes."""

    def flush(self) -> list[str]:
        """What is left when the text has ended."""


class Each:
    """A change of every token on its own, of the first one perhaps another."""

    def __init__(self, change: Callable[[str], str], change_first: Callable[[str], str] | None = None) -> None:
        self._change = change
        self._next = change_first or change

    def push(self, token: str) -> list[str]:
        change, self._next = self._next, self._change
        return [change(token)]

    def flush(self) -> list[str]:
        return []


class Bytes:
    """ByteLevel: characters that stand for bytes (`byte_alphabet.py`), joined and read as UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> list[str]:
        return [self._utf8.decode(from_stand_ins(token))]

    def flush(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


class ByteRuns:
    """ByteFallback: neighbouring tokens <0xE2> are bytes of UTF-8; if a run is not valid, each byte becomes U+FFFD.

    So nothing of a run is certain before it ends.
    """

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, token: str) -> list[str]:
        if byte := _BYTE.fullmatch(token):
            self._run.append(int(byte[1], 16))
            return []
        return [*self.flush(), token]

    def flush(self) -> list[str]:
        run, self._run = self._run, bytearray()
        try:
            return [run.decode("utf-8")] if run else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)


class WordEnds:
    """BPEDecoder: the suffix that marks the end of a word becomes a space, and nothing in the last token."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: list[str] = []

    def push(self, token: str) -> list[str]:
        before, self._held = self._held, [token]
        return [text.replace(self._suffix, " ") for text in before]

    def flush(self) -> list[str]:
        held, self._held = self._held, []
        return [text.replace(self._suffix, "") for text in held]


class Repeats:
    """CTC (Graves et al. 2006): a token that equals the one before it is left out, and so is padding."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change
        self._before: str | None = None

    def push(self, token: str) -> list[str]:
        before, self._before = self._before, token
        text = "" if token == before else self._change(token)
        return [text] if text else []

    def flush(self) -> list[str]:
        return []


class Replaced:
    """Replace on a text in pieces: its end is held as long as the searched text may begin there."""

    def __init__(self, searched: str, content: str) -> None:
        self._searched, self._content = searched, content
        self._held = ""

    def push(self, token: str) -> list[str]:
        parts = (self._held + token).split(self._searched)
        rest = parts[-1]
        kept = next(
            length
            for length in range(min(len(self._searched) - 1, len(rest)), -1, -1)
            if rest.endswith(self._searched[:length])
        )
        self._held = rest[len(rest) - kept :]
        parts[-1] = rest[: len(rest) - kept]
        return [self._content.join(parts)]

    def flush(self) -> list[str]:
        held, self._held = self._held, ""
        return [held]


class Stripped:
    """Strip on a text in pieces: at most `start` and `stop` times the character at the two ends."""

    def __init__(self, character: str, start: int, stop: int) -> None:
        self._character, self._start, self._stop = character, start, stop
        self._held = ""

    def push(self, token: str) -> list[str]:
        while self._start and token:
            if not token.startswith(self._character):
                self._start = 0
            else:
                token, self._start = token[1:], self._start - 1
        text = self._held + token
        kept = min(self._stop, len(text) - len(text.rstrip(self._character)))
        self._held = text[len(text) - kept :]
        return [text[: len(text) - kept]]

    def flush(self) -> list[str]:
        self._held = ""
        return []


class Whole:
    """Any other step on a text in pieces: it sees the text when it has ended."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._text: list[str] = []

    def push(self, token: str) -> list[str]:
        self._text.append(token)
        return []

    def flush(self) -> list[str]:
        text = "".join(self._text)
        self._text = []
        return [*self._step.push(text), *self._step.flush()] if text else []


@dataclass(frozen=True)
class Rule:
    """A step of a decoder. on_tokens and on_text make it for one text; joins: whether tokens are one text behind it."""

    on_tokens: Callable[[], Step]
    on_text: Callable[[], Step]
    joins: bool = False


class Steps:
    """A decoder at work on one text: token by token, what is certain; at the end the rest."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._steps: list[Step] = []
        joined = False
        for rule in rules:
            self._steps.append(rule.on_text() if joined else rule.on_tokens())
            joined = joined or rule.joins

    def push(self, token: str) -> str:
        """The text that this token completes."""
        return "".join(_through(self._steps, [token]))

    def rest(self) -> str:
        """What is left if the text ends here. It may go on all the same."""
        steps = deepcopy(self._steps)
        return "".join(
            piece for number, step in enumerate(steps) for piece in _through(steps[number + 1 :], step.flush())
        )


def _through(steps: Sequence[Step], pieces: list[str]) -> list[str]:
    for step in steps:
        pieces = [given for piece in pieces for given in step.push(piece)]
    return pieces


def decoder_rules(decoder: object, where: str) -> tuple[Rule, ...]:
    """The steps of the `decoder` object of a tokenizer.json; without one (None) tokens are joined with spaces.

    where: the file, for messages. Raises InputFileError for what is no decoder of the library's version 0.23, and for
    Replace with a regular expression, which no published tokenizer has.
    """
    if decoder is None:
        return (_each(lambda token: f" {token}", str),)
    rules = tuple(_rules(decoder, where, 0))
    if len(rules) > _MOST_STEPS:
        message = f"{where}, field decoder: {len(rules)} steps; more than {_MOST_STEPS} are not read."
        raise InputFileError(message)
    return rules


def _rules(decoder: object, where: str, depth: int) -> list[Rule]:
    fields = _Fields(decoder, where)
    match fields.kind:
        case "Sequence":
            steps = fields.values.get("decoders")
            if not isinstance(steps, list) or max(len(steps), depth) > _MOST_STEPS:
                raise _refusal(fields, "decoders", f"a list of at most {_MOST_STEPS} steps")
            return [rule for step in steps for rule in _rules(step, where, depth + 1)]
        case "ByteLevel":
            return [Rule(Bytes, lambda: Whole(Bytes()), joins=True)]
        case "Fuse":
            return [Rule(lambda: Each(str), lambda: Each(str), joins=True)]
        case "ByteFallback":
            return [Rule(ByteRuns, lambda: Whole(ByteRuns()))]
        case "Metaspace":
            return [_metaspace(fields)]
        case "WordPiece":
            return [_word_piece(fields)]
        case "BPEDecoder":
            suffix = fields.text("suffix", "</w>")
            return [Rule(lambda: WordEnds(suffix), lambda: Replaced(suffix, ""))]
        case "Replace":
            pattern = fields.values.get("pattern")
            searched = _Fields(pattern, where, "decoder.pattern", None).text("String", None)
            content = fields.text("content", None, least=0)
            return [Rule(lambda: Each(lambda t: t.replace(searched, content)), lambda: Replaced(searched, content))]
        case "Strip":
            return [_strip(fields)]
        case "CTC":
            return [_ctc(fields)]
    raise _refusal(fields, "type", "a decoder that is known here")


def _each(change: Callable[[str], str], first: Callable[[str], str]) -> Rule:
    """Of a text, which is one token, everything is the first token."""
    return Rule(lambda: Each(change, first), lambda: Whole(Each(first)))


def _metaspace(fields: "_Fields") -> Rule:
    sign = fields.text("replacement", "▁")
    scheme = "always" if fields.flag("add_prefix_space", True) else "never"
    at_begin = "" if fields.text("prepend_scheme", scheme) != "never" else " "
    first: Callable[[], Step] = lambda: Each(lambda token: token.replace(sign, at_begin))  # noqa: E731
    return Rule(lambda: Each(lambda t: t.replace(sign, " "), lambda t: t.replace(sign, at_begin)), first)


def _word_piece(fields: "_Fields") -> Rule:
    prefix, clean = fields.text("prefix", "##", least=0), fields.flag("cleanup", True)
    cleaned: Callable[[str], str] = _cleaned if clean else str

    def inside(token: str) -> str:
        return cleaned(token[len(prefix) :] if token.startswith(prefix) else f" {token}")

    return _each(inside, cleaned)


def _strip(fields: "_Fields") -> Rule:
    character, start, stop = fields.text("content", None), fields.count("start"), fields.count("stop")
    if len(character) != 1:
        raise _refusal(fields, "content", "one character")

    def strip(token: str) -> str:
        step = Stripped(character, start, stop)
        return "".join([*step.push(token), *step.flush()])

    return Rule(lambda: Each(strip), lambda: Stripped(character, start, stop))


def _ctc(fields: "_Fields") -> Rule:
    pad, space = fields.text("pad_token", "<pad>"), fields.text("word_delimiter_token", "|")
    clean = fields.flag("cleanup", True)

    def change(token: str) -> str:
        text = token.replace(pad, "")
        return _cleaned(text).replace(space, " ") if clean else text

    return Rule(lambda: Repeats(change), lambda: Whole(Repeats(change)))


def _cleaned(text: str) -> str:
    """Spaces before punctuation taken out, as the library's `cleanup` does, in its order."""
    for old, new in (
        *((f" {sign}", sign) for sign in ".?!,"),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ):
        text = text.replace(old, new)
    return text


class _Fields:
    """The settings of a step, looked at one by one; what is wrong raises InputFileError."""

    def __init__(self, values: object, where: str, field: str = "decoder", kind: str | None = "type") -> None:
        self.where, self.field = where, field
        self.values: Mapping[str, Any] = values if isinstance(values, dict) else {}
        if not isinstance(values, dict):
            message = f"{where}, field {field}: expected an object, found {shown(values)}."
            raise InputFileError(message)
        self.kind = values.get(kind) if kind else None

    def text(self, name: str, default: str | None, least: int = 1) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str) or not least <= len(value) <= _LONGEST_TEXT:
            raise _refusal(self, name, f"a text of {least} to {_LONGEST_TEXT} characters")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise _refusal(self, name, "true or false")
        return value

    def count(self, name: str) -> int:
        value = self.values.get(name, 0)
        if type(value) is not int or not 0 <= value <= 1_000_000:
            raise _refusal(self, name, "a whole number of at most 1,000,000")
        return value


def _refusal(fields: _Fields, name: str, expected: str) -> InputFileError:
    given = shown(fields.values.get(name))
    return InputFileError(f"{fields.where}, field {fields.field}.{name}: {given}; expected {expected}.")
