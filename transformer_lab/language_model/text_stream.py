"""A generation under way as its text, piece by piece: what `LanguageModel.stream` returns."""

from collections.abc import Iterator

from transformer_lab.generation.continuation import Generation
from transformer_lab.generation.generate import Decoding
from transformer_lab.language_model.forward_passes import THIS_CALL
from transformer_lab.memory import enough_memory


class TextStream:
    """An iterator over pieces of text. `result` is the Generation of what has come, complete when it is exhausted."""

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._pieces = (pieces[0] for pieces in decoding if pieces[0])

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with enough_memory(THIS_CALL):
            return next(self._pieces)

    @property
    def result(self) -> Generation:
        return self._decoding.rows[0].result(self._decoding.timing())
