"""What declares that it is exact: in exact mode cached decoding has the bits of one pass, on every backend."""

from dataclasses import replace

import numpy as np
import pytest
from cache_models import BACKENDS, CONFIGS, CONTEXT, fed, ids, model, uncached
from reference_models import deviations
from tolerances import LOGITS_FLOAT64
from watchful_backends import PoisoningNumpy, ReadOnlyNumpy, StrictBackend

from transformer_lab.block.mixture_of_depths import MixtureOfDepths
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.growing import Growing
from transformer_lab.cache.int4 import Int4
from transformer_lab.cache.int8 import Int8
from transformer_lab.cache.paged import Paged
from transformer_lab.cache.prefix import Prefix
from transformer_lab.cache.window import Window

POLICIES = {
    "contiguous": Contiguous(),
    "growing": Growing(4),
    "paged": Paged(4),
    "prefix": Prefix(4),
    "window": Window(),
    "window with slack": Window(slack=6),
}


@pytest.fixture(scope="module")
def expected():
    """The bits of each model, once."""
    known = {}

    def of(name, prompts, after):
        key = (name, str(prompts), str(after))
        if key not in known:
            known[key] = uncached(model(CONFIGS[name], Contiguous()), prompts, after)
        return known[key]

    return of


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CONFIGS)
def test_cached_is_uncached(expected, name, policy):
    built = model(CONFIGS[name], POLICIES[policy])
    for prompts in ([ids(1, 11)], [ids(1, 11), ids(2, 3), ids(3, 1)]):
        after = [ids(9 + row, 14) for row in range(len(prompts))]
        assert (fed(built, prompts, after) == expected(name, prompts, after)).all()


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("policy", POLICIES)
def test_on_every_backend(expected, policy, backend):
    for name in ("learned", "two windows and none"):
        built = model(CONFIGS[name], POLICIES[policy], backend)
        prompts, after = [ids(1, 11), ids(2, 3)], [ids(9, 6), ids(10, 6)]
        assert (fed(built, prompts, after) == expected(name, prompts, after)).all()


@pytest.mark.parametrize("kind", [ReadOnlyNumpy, PoisoningNumpy, StrictBackend])
@pytest.mark.parametrize("policy", [*POLICIES.values(), Int8(), Int4(recent=5)], ids=repr)
def test_watchful_backends_see_nothing_wrong(policy, kind):
    """What is consumed is not used again, and no more is used than the array API standard has."""
    prompts, after = [ids(1, 11), ids(2, 3)], [ids(9, 9), ids(10, 9)]
    config = CONFIGS["two windows and none"]
    expected = fed(model(config, policy, precision="float64", ops="manual"), prompts, after)
    found = fed(model(config, policy, kind(precision="float64")), prompts, after)
    assert deviations(found, expected) < LOGITS_FLOAT64


@pytest.mark.parametrize("policy", POLICIES)
def test_the_context_is_filled_to_its_last_place(expected, policy):
    built = model(CONFIGS["learned"], POLICIES[policy])
    prompts, after = [ids(1, CONTEXT - 3), ids(2, 5)], [ids(3, 3), ids(4, 3)]
    assert (fed(built, prompts, after) == expected("learned", prompts, after)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_generations_at_once(backend):
    """They share a pool, whose arrays each pass consumes."""
    for policy in POLICIES.values():
        built = model(CONFIGS["rotary, shared keys"], policy, backend, "float32")
        alone = [built.generate(ids(seed, 9), 8).token_ids for seed in (1, 2)]
        prompts = [ids(seed, 9) for seed in (1, 2)]
        under_way = [built.engine.begin([prompt], 8) for prompt in prompts]
        found = [[int(np.argmax(one.logits[0]))] for one in under_way]
        for _ in range(7):
            for one, tokens in zip(under_way, found, strict=True):
                one.feed(tokens[-1:])
                tokens.append(int(np.argmax(one.logits[0])))
        assert found == alone


def test_growing_grows_by_half():
    built = model(CONFIGS["learned"], Growing(4), precision="float32")
    sequences, sizes = built.engine.begin([ids(1, 3)], CONTEXT - 3), []
    for token in ids(2, CONTEXT - 4):
        sequences.feed([token])
        sizes.append(sequences.cache[0].capacity)
    assert sorted(set(sizes)) == [4, 6, 9, 13, 19, 28, 42, 63]


@pytest.mark.parametrize("backend", BACKENDS)
def test_marks_grow_with_their_block(backend):
    rotary = CONFIGS["rotary, shared keys"]
    first = rotary.blocks[0]
    config = replace(rotary, blocks=(first, MixtureOfDepths(first.attention, first.ffn, first.norm)))
    prompts, after = [ids(1, 11), ids(2, 3)], [ids(9, 14), ids(10, 14)]
    found = [fed(model(config, policy, backend), prompts, after) for policy in (Contiguous(), Growing(4))]
    assert (found[0] == found[1]).all()
