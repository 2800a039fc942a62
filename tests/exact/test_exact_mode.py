"""precision=exact: one hash on every backend, cached or not, in a batch or alone, in pieces or at once, on any threads.

Every comparison is `==` on bytes. Seeds, ids and cuts come from hypothesis: nobody chose them.
"""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_models import BACKENDS, GPT2, LLAMA, save_gpt2, save_llama

import transformer_lab as lab
from transformer_lab.backends.readings.exact import operations as exact
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.none import NoCache
from transformer_lab.model.decoder import forward

VOCAB, CONTEXT = GPT2["vocab_size"], GPT2["n_positions"]
FOLDERS = {
    "gpt2": (save_gpt2, {}),
    "odd sizes": (save_gpt2, {"n_embd": 30, "n_head": 3, "n_inner": 50, "activation_function": "gelu"}),
    "silu, untied": (save_gpt2, {"activation_function": "silu", "tie_word_embeddings": False}),
    "llama": (save_llama, {}),
}
QUICK = ("gpt2", "llama")  # JAX compiles each model for some seconds
some_examples = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = {}
    for seed, (name, (save, fields)) in enumerate(FOLDERS.items()):
        made[name] = tmp_path_factory.mktemp("exact") / "model"
        save(made[name], seed=seed, **fields)
    return made


@pytest.fixture(scope="session")
def models(folders):
    """(folder name, backend) -> the model in exact mode, loaded once."""
    loaded = {}

    def get(folder, backend="numpy"):
        if (folder, backend) not in loaded:
            loaded[folder, backend] = lab.load_model(folders[folder], backend=backend, precision="exact")
        return loaded[folder, backend]

    return get


def draw_ids(data, shape):
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    return np.random.default_rng(seed).integers(0, VOCAB, shape)


@pytest.mark.parametrize("folder", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in FOLDERS])
def test_the_same_bits_on_every_backend(models, folder):
    @some_examples
    @given(st.data())
    def check(data):
        ids = draw_ids(data, (2, CONTEXT))  # one shape: JAX compiles it once
        logits = {backend: models(folder, backend).logits(ids) for backend in BACKENDS}
        assert logits["numpy"].dtype == np.float32
        assert logits["torch"].tobytes() == logits["numpy"].tobytes()
        assert logits["jax"].tobytes() == logits["numpy"].tobytes()

    check()


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_batch_length_and_pieces_change_no_bit(models, folder, backend):
    model = models(folder, backend)
    ops, config, policy = model.backend, model.config, Contiguous()

    def in_pieces(ids, cuts):
        cache = policy.allocate(ops, config, len(ids), CONTEXT)
        results = []
        for first, last in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
            start = ops.asarray(np.full(len(ids), first))
            logits, cache = forward(ops, config, model.params, ops.asarray(ids[:, first:last]), start, cache)
            results.append(ops.to_numpy(logits))
        return np.concatenate(results, axis=1)

    @some_examples
    @given(st.data())
    def check(data):
        ids = draw_ids(data, (3, data.draw(st.integers(2, CONTEXT), label="length")))
        whole = model.logits(ids)
        for row in range(3):
            assert model.logits(ids[row]).tobytes() == whole[row : row + 1].tobytes()
        shorter = data.draw(st.integers(1, ids.shape[1]), label="shorter")
        assert model.logits(ids[:, :shorter]).tobytes() == np.ascontiguousarray(whole[:, :shorter]).tobytes()
        cuts = sorted(data.draw(st.sets(st.integers(1, ids.shape[1] - 1), max_size=4), label="cuts"))
        assert in_pieces(ids, cuts).tobytes() == whole.tobytes()

    check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_decoding_gives_the_hashes_of_single_passes(models, folders, backend):
    """Cached equals uncached, a batch of unequal lengths equals its rows alone: by the hash of every logit row."""
    model = models("gpt2", backend)
    prompts = [[1, 2, 3], [5, 6, 7, 8, 9, 10, 11], [99]]
    batch = model.generate(prompts, max_new_tokens=9)
    numpy_batch = models("gpt2", "numpy").generate(prompts, max_new_tokens=9)
    for prompt, row, on_numpy in zip(prompts, batch, numpy_batch, strict=True):
        full = model.logits(prompt + row.token_ids)[0]
        rows = full[len(prompt) - 1 : len(prompt) + 8]
        assert row.logits_sha256 == hashlib.sha256(rows.astype("<f4").tobytes()).hexdigest()
        assert row.logits_sha256 == on_numpy.logits_sha256
        assert row.token_ids == on_numpy.token_ids
        assert row.logprobs == on_numpy.logprobs
    if backend != "jax":  # each length of the uncached pass would be compiled
        uncached = lab.load_model(folders["gpt2"], backend=backend, precision="exact", cache=NoCache())
        assert [r.logits_sha256 for r in uncached.generate(prompts, max_new_tokens=9)] == [
            r.logits_sha256 for r in batch
        ]
        assert [model.generate(p, max_new_tokens=9).logits_sha256 for p in prompts] == [r.logits_sha256 for r in batch]


def test_every_tap_is_the_same(models):
    ids = np.random.default_rng(3).integers(0, VOCAB, (2, CONTEXT))
    recorded = {backend: models("gpt2", backend).record(ids) for backend in BACKENDS}
    assert "blocks.1.attn.pattern" in recorded["numpy"]
    for name, expected in recorded["numpy"].items():
        for backend in BACKENDS:
            assert recorded[backend][name].tobytes() == expected.tobytes(), (backend, name)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_threads_change_no_bit(folders, backend):
    """One process per number of threads; the product is large enough to be shared between them."""
    program = (
        "import hashlib, sys, numpy as np, transformer_lab as lab\n"
        "model = lab.load_model(sys.argv[1], backend=sys.argv[2], precision='exact')\n"
        "ids = np.random.default_rng(5).integers(0, model.config.vocab_size, (8, model.config.context_length))\n"
        "print(hashlib.sha256(model.logits(ids).tobytes()).hexdigest())\n"
    )
    found = set()
    for threads in ("1", "2"):
        environment = os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads
        )
        command = [sys.executable, "-c", program, "storybook", backend]
        found.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(found) == 1


def test_a_wrong_definition_changes_the_hash(folders, models):
    ids = np.arange(CONTEXT)
    expected = models("gpt2").logits(ids).tobytes()
    wrong = lab.load_model(folders["gpt2"], precision="exact", ffn={"activation": "gelu_erf"})
    assert wrong.logits(ids).tobytes() != expected
    plain = lab.load_model(folders["gpt2"])
    assert plain.logits(ids).tobytes() != expected  # and float32 is not exact mode


def test_without_the_second_look_a_bit_differs(folders, monkeypatch):
    """Trusting float64 alone is noticed: a hard product, 1 + 2^-24 + 2^-70, comes out rounded down."""
    ops = lab.load_model(folders["gpt2"], precision="exact").backend
    kernel = ops.place("hard.kernel", np.array([[1.0], [2.0**-24], [2.0**-70]]))
    x = ops.asarray(np.ones((1, 3), np.float32))
    assert ops.to_numpy(ops.linear(x, kernel)).item() == 1.0 + 2.0**-23
    monkeypatch.setattr(exact, "GAMMA", 0.0)
    assert ops.to_numpy(ops.linear(x, kernel)).item() == 1.0


def test_the_certificate_counts(folders):
    model = lab.load_model(folders["gpt2"], precision="exact")
    model.logits(np.arange(CONTEXT))
    certificate = model.backend.certificate
    assert certificate.roundings > 10_000
    assert 0 <= certificate.doubtful < certificate.roundings / 1000


def test_the_command_line_gives_one_hash(tmp_path):
    hashes = {}
    for backend in BACKENDS:
        folder = tmp_path / backend
        words = [f"backend={backend}", "precision=exact", "max_new_tokens=3", "prompt=Once", f"hydra.run.dir={folder}"]
        subprocess.run([sys.executable, "-m", "transformer_lab", *words], check=True, capture_output=True)
        result = json.loads((folder / "result.json").read_text())
        assert result["backend"]["precision"] == "exact"
        hashes[backend] = result["output"]["logits_sha256"]
    assert hashes["numpy"] is not None
    assert len(set(hashes.values())) == 1


def test_an_explicit_version_is_refused(folders):
    with pytest.raises(lab.ConfigurationError, match="precision=exact"):
        lab.load_model(folders["gpt2"], backend="torch", precision="exact", ops={"attention": "sdpa"})


@pytest.mark.full
@pytest.mark.parametrize("seed", [0, 1])
def test_gpt2_of_124_million_with_200_tokens(seed):
    ids = np.random.default_rng(seed).integers(0, 50257, 200)
    hashes = {
        backend: hashlib.sha256(
            lab.load_model("gpt2", backend=backend, precision="exact", weights="random", seed=seed)
            .logits(ids)
            .tobytes()
        ).hexdigest()
        for backend in BACKENDS
    }
    assert len(set(hashes.values())) == 1


assert LLAMA["vocab_size"] == VOCAB
assert LLAMA["max_position_embeddings"] == CONTEXT
