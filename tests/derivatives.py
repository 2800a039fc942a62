"""Derivatives by other ways than ours: central differences, and how far two gradients lie apart."""

import numpy as np

STEP = 1e-6


def central_differences(function, arrays, places=12):
    """For each array its derivatives of function(arrays) -> number: NaN but at up to `places` places, drawn at random.

    arrays: a dict of float64 arrays. The function is computed forward alone, on plain arrays.
    """
    found = {}
    for name, array in arrays.items():
        found[name] = np.full(array.shape, np.nan)
        for place in np.random.default_rng(2).permutation(array.size)[:places]:
            moved = array.copy(), array.copy()
            moved[0].reshape(-1)[place] += STEP
            moved[1].reshape(-1)[place] -= STEP
            high, low = (float(function({**arrays, name: copy})) for copy in moved)
            found[name].reshape(-1)[place] = (high - low) / (2 * STEP)
    return found


def apart(found, expected):
    """The largest difference of two dicts of gradients, where the expected one is known, by its largest magnitude.

    A gradient that is nothing but rounding (that of a bias that softmax takes off again) is measured by the largest of
    all of them.
    """
    assert found.keys() == expected.keys()
    known = {name: np.isfinite(array) for name, array in expected.items()}
    overall = max(np.abs(expected[name][known[name]]).max(initial=0.0) for name in expected)
    worst = 0.0
    for name, array in expected.items():
        assert found[name].shape == array.shape, name
        assert np.isfinite(found[name]).all(), name
        largest = np.abs(array[known[name]]).max(initial=0.0)
        largest = overall if largest < 1e-9 * overall else largest
        worst = max(worst, np.abs(found[name] - array)[known[name]].max(initial=0.0) / (largest or 1.0))
    return worst


def flattened(tree, prefix=""):
    """A tree of dicts and lists -> {dotted name: leaf}."""
    if isinstance(tree, (dict, list)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {path: leaf for key, item in items for path, leaf in flattened(item, f"{prefix}.{key}").items()}
    return {prefix[1:]: tree}
