"""The tokens of a GGUF file, with their kinds and roles. How a text is cut into them is known elsewhere."""

from functools import cached_property
from typing import Any, NoReturn

from transformer_lab.checkpoints.gguf.file import GGUFFile
from transformer_lab.errors import InputFileError

UNKNOWN, CONTROL, OWN, BYTE = 2, 3, 4, 6  # kinds of tokens; 1 is an ordinary one, 5 one that is not used


class Vocabulary:
    def __init__(self, file: GGUFFile) -> None:
        self.file = file

    def get(self, name: str, usual: Any = None) -> Any:
        return self.file.values.get(f"tokenizer.ggml.{name}", usual)

    @cached_property
    def tokens(self) -> list[str]:
        return self.texts("tokens")

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: id_ for id_, token in enumerate(self.tokens)}

    @cached_property
    def kinds(self) -> list[int]:
        """One for each token."""
        return self._numbers("token_type", int)

    def scores(self) -> list[float]:
        """One for each token."""
        return self._numbers("scores", float)

    def texts(self, name: str) -> list[str]:
        found = self.get(name)
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            self._refuse(name, "must be a list of texts")
        return found

    def special(self, role: str) -> str | None:
        """The token of a role: bos, eos, padding, unknown."""
        id_ = self.get(f"{role}_token_id")
        return self.tokens[id_] if type(id_) is int and 0 <= id_ < len(self.tokens) else None

    def added_tokens(self) -> list[dict[str, Any]]:
        """Those that are found in a text before it is cut: special ones, and the file's own."""
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        special = {CONTROL} if self.get("model") == "gpt2" else {CONTROL, UNKNOWN}
        return [
            {"id": id_, "content": token, "special": kind in special} | plain
            for id_, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if (kind in special or kind == OWN) and token.strip(" ")
        ]

    def _numbers(self, name: str, kind: type) -> list[Any]:
        found = self.get(name)
        if not isinstance(found, list) or len(found) != len(self.tokens) or any(type(one) is not kind for one in found):
            self._refuse(name, "must have a number for each token")
        return found

    def _refuse(self, name: str, reason: str) -> NoReturn:
        message = f"{self.file.path} is not a usable GGUF file: tokenizer.ggml.{name} {reason}."
        raise InputFileError(message)
