"""The judge itself, held against what shares no line with it: its values against mpmath, its gradients against central
differences. A few elements, each time that it runs; where one differs, nothing that it says can be relied on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transformer_lab.backends.readings.bounded.pairs import Decided
from transformer_lab.backends.readings.bounded.witness import Witness
from transformer_lab.comparison.judging.central_differences import STEP, contradicted
from transformer_lab.comparison.judging.gradient_calls import Call
from transformer_lab.comparison.judging.gradients import TrueGradients, expected_gradients
from transformer_lab.language_model import LanguageModel
from transformer_lab.language_model.placing import add_derived
from transformer_lab.model.decoder import forward

TOKENS = 32
SLACK = 1e-4  # of a gradient: their own error is some 1e-9 of it, but where the function is strongly curved


@dataclass(frozen=True)
class SelfCheck:
    """values, gradients: how many elements of each function were looked at. wrong: those that differ, in sentences."""

    values: dict[str, int]
    gradients: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """What was looked at, and what came of it."""
        said = "The judge shares the definition of the decoder with the participants that are ours. While it ran, "
        said += f"{_counted(self.values)} of its values were computed again by mpmath"
        if self.gradients:
            said += f", and {_counted(self.gradients)} of its gradients by central differences"
        return f"{said}: {f'{len(self.wrong)} differ' if self.wrong else 'none differs beyond its bound'}."


@np.errstate(all="ignore")  # what is not finite is left out
def check_judge(truth: LanguageModel, token_ids: np.ndarray, gradients: TrueGradients | None) -> SelfCheck:
    """Runs the first TOKENS of token_ids [T]. gradients: the truth's, where they are asked for."""
    witness: Any = Witness()
    params = witness.parameters(truth.params)
    add_derived(truth.config, witness, params)
    ids = np.asarray(token_ids, np.int64)[None, :TOKENS]
    logits, _ = forward(witness, truth.config, params, ids, np.zeros(1, np.int64), tap=_taken_over)
    witness.cross_entropy(logits, ids)
    looked: dict[str, int] = {}
    wrong = list(dict.fromkeys(witness.wrong))
    last = {call.function: call for call in gradients.calls} if gradients is not None else {}
    for call in last.values():
        for name, place, found, slope in _slopes(truth.backend, call):
            looked[call.function] = looked.get(call.function, 0) + 1
            if slope is not None:
                where = f"{call.function} ({name}, {list(place)})"
                wrong.append(f"the gradient of {where} is {found!r} in the judge, and its slope is {slope!r}")
    return SelfCheck(dict(witness.checked), looked, wrong)


def _taken_over(name: str, x: Any) -> Any:
    """As a comparison does with what is shown: a choice is the one that was made."""
    return x.value if isinstance(x, Decided) else x


def _slopes(ops: Any, call: Call) -> Iterator[tuple[str, tuple[int, ...], float, float | None]]:
    """(input, place, the judge's gradient there, its slope if that is another) for the largest element of each."""
    for name, part, expected in expected_gradients(call, call.inputs, np.asarray(call.cotangent), "float64"):
        x = call.inputs[name]
        if name not in call.learned or not isinstance(x, np.ndarray) or not expected.value.size:
            continue
        gradient = np.full(x.shape, np.nan)
        gradient[part] = expected.value
        if not np.isfinite(expected.value).all():
            continue
        place = tuple(int(i) for i in np.unravel_index(int(np.nanargmax(np.abs(gradient))), x.shape))
        found = float(gradient[place])

        def moved(step: float, name: str = name, x: np.ndarray = x, place: tuple[int, ...] = place) -> np.ndarray:
            x = x.copy()
            x[place] += step
            found = np.asarray(call.run(ops, call.inputs | {name: x}))
            return np.where(call.cotangent == 0.0, 0.0, found * call.cotangent)  # where it is hidden, it is infinite

        size, slack = abs(float(x[place])), SLACK * abs(found) + 1e-12
        slope = contradicted(moved, found, STEP * max(1.0, size), slack)
        # The function may live at numbers as small as this one.
        if slope is not None and 0.0 < size < 1.0 and contradicted(moved, found, STEP * size, slack) is None:
            slope = None
        yield name, place, found, slope


def _counted(elements: dict[str, int]) -> str:
    return f"{sum(elements.values()):,} elements ({', '.join(elements)})"
