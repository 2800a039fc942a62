"""Bugs that were chosen by somebody who does not know the judge: one file per class.

They follow what really went wrong in ports of decoders, kernels, samplers and checkpoint converters. `ALL` has every
one; form.py says what a bug is, probes.py how each is seen without the judge, and test_corpus_bites.py asks them.
"""

from corpus import (
    caches_and_decoding,
    checkpoint_maps,
    data_dependent,
    definition,
    gradients_and_loss,
    implementations,
    slight,
)
from corpus.form import Bug

ALL: tuple[Bug, ...] = (
    *implementations.BUGS,
    *definition.BUGS,
    *checkpoint_maps.BUGS,
    *caches_and_decoding.BUGS,
    *gradients_and_loss.BUGS,
    *data_dependent.BUGS,
    *slight.BUGS,
)
