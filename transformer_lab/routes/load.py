"""How unequally experts are used: numbers that say it of a load, [E], how many tokens each expert has."""

import numpy as np


def max_over_mean(load: np.ndarray) -> float:
    """The largest load over the mean, from 1 (all alike) to E; NaN if there is no load. MaxVio (Wang et al. 2024, arXiv
    2408.15664, section 4) is this less 1."""
    mean = np.mean(load, dtype=np.float64)
    return float(np.max(load) / mean) if mean > 0.0 else np.nan


def normalised_entropy(load: np.ndarray) -> float:
    """The entropy of the load as a distribution over log E: 1 where all are used alike, 0 where one has all."""
    total = np.sum(load, dtype=np.float64)
    if total <= 0.0:
        return np.nan
    share = load[load > 0] / total
    # + 0.0: no minus zero. One expert alone is used as evenly as can be.
    return float(-np.sum(share * np.log(share)) / np.log(len(load)) + 0.0) if len(load) > 1 else 1.0


def dead(load: np.ndarray) -> list[int]:
    """The numbers of the experts that no token goes to."""
    return np.flatnonzero(np.asarray(load) <= 0).tolist()
