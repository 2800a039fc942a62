"""Every bug of the corpus changes a result, begins where it says, and leaves nothing behind.

The judge, `lab.compare`, is not asked here: what it says about these bugs is another matter.
"""

import sys
from fnmatch import fnmatchcase

import pytest
from corpus import ALL, probes
from corpus.form import all_modules
from injected_bugs import BUGS

from transformer_lab.config import component

# What rounding alone never makes of these models, by the largest number of the result.
LEAST = {"float32": 1e-6, "float64": 1e-9}
# How far results may part before the bug where a compiler sees another program.
BEFORE = {"float32": 1e-6, "float64": 1e-13}
COUNTS = {
    "implementations": 12,
    "definition": 9,
    "checkpoint_maps": 9,
    "caches_and_decoding": 12,
    "gradients_and_loss": 10,
    "data_dependent": 8,
    "slight": 8,
}


def sound(wrong):
    """The backend as it is without the bug."""
    return component("backend", wrong.name, precision=wrong.precision, ops=getattr(wrong, "choice", "fused"))


def bindings():
    """What every name of every module and class of the package stands for."""
    all_modules()
    found = {}
    for title, module in list(sys.modules.items()):
        if title.split(".")[0] == "transformer_lab":
            found |= {(title, name): value for name, value in vars(module).items()}
            kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == title]
            found |= {(title, kind.__name__, name): value for kind in kinds for name, value in vars(kind).items()}
            found |= {
                (title, name, "items"): dict(value) for name, value in vars(module).items() if type(value) is dict
            }
    return {key: value for key, value in found.items() if not key[1].startswith("__")}


def changed(before, after):
    return [
        key
        for key in before.keys() | after.keys()
        if not (before.get(key) is after.get(key) or (key[-1] == "items" and before.get(key) == after.get(key)))
    ]


def first_that_differs(found, expected, least):
    return next((tap for tap in expected if probes.difference([found[tap]], [expected[tap]]) > least), None)


@pytest.mark.parametrize("bug", ALL, ids=lambda bug: f"{bug.kind}: {bug.name}")
def test_a_bug_changes_a_result_and_begins_where_it_says(bug):
    probe = probes.taps if bug.probe is probes.logits else bug.probe  # all taps, of which the logits are the last
    with bug.plant() as given:
        wrong = given["backends"][-1]
        found = probe(given["source"], wrong, given["prompts"])
    expected = probe(given["source"], sound(wrong), given["prompts"])
    if probe is not probes.taps:
        assert probes.difference(found, expected) > LEAST[wrong.precision]
        return
    ends = [[taps["logits"] for taps in side] for side in (found, expected)]
    assert probes.difference(*ends) > LEAST[wrong.precision]
    both = zip(found, expected, strict=True)
    first = next(tap for pair in both if (tap := first_that_differs(*pair, BEFORE[wrong.precision])))
    # What a fused attention does not show is first seen behind it.
    assert fnmatchcase(first, bug.place) or (bug.place.endswith("attn.scores") and first.endswith("attn.out"))


@pytest.mark.parametrize("bug", ALL, ids=lambda bug: f"{bug.kind}: {bug.name}")
def test_a_bug_leaves_nothing_behind(bug):
    before = bindings()
    with pytest.raises(ZeroDivisionError), bug.plant() as given:
        during = changed(before, bindings())
        assert bool(during) == (not any("choice" in vars(type(backend)) for backend in given["backends"]))
        raise ZeroDivisionError
    assert not changed(before, bindings())


def test_names_are_new_and_every_class_is_large_enough():
    names = [bug.name for bug in ALL]
    assert len(set(names)) == len(names) >= 66
    assert not set(names) & {bug.name for bug in BUGS}
    for kind, least in COUNTS.items():
        assert sum(bug.kind == kind for bug in ALL) >= least
