"""Every kind of numbers in a GGUF file, through the whole path, from random bytes.

They are held against what transformers makes of the same bytes, which is written anew there, else against the package
gguf; what is in float32, float16 and bfloat16 against torch.
"""

import sys

import numpy as np
import pytest
from gguf_writer import gguf, quants, random_model, torch, transformers, write_gguf
from safetensors.numpy import load_file
from tolerances import LOGITS_FLOAT32

import transformer_lab as lab
from transformer_lab.checkpoints.gguf.folder import unpacked

dequant = pytest.importorskip("transformers.integrations.gguf.dequant")
IDS = np.random.default_rng(3).integers(0, 300, (2, 21))
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}  # k-quants have blocks of 256
KINDS = sorted(kind.name for kind in quants._type_traits)
NAMES = {"attn_output.weight": "self_attn.o_proj", "ffn_down.weight": "mlp.down_proj", "ffn_up.weight": "mlp.up_proj"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def numbers(data, kind):
    """Bytes of rows -> float32, by somebody else."""
    if kind.name == "BF16":
        return torch.from_numpy(data.copy()).view(torch.bfloat16).float().numpy()
    if int(kind) in dequant.GGML_BLOCK:
        flat = dequant.dequantize(torch.from_numpy(data.reshape(-1).copy()), int(kind)).numpy()
        return flat.reshape(data.shape[0], -1)
    return quants.dequantize(data, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes_of_every_quantised_kind(kind, tmp_path):
    path, draw, written = tmp_path / "model.gguf", np.random.default_rng(0), {}
    kept = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[kept]

    def pack(name, matrix):
        written[name] = draw.integers(0, 256, (matrix.shape[0], matrix.shape[1] // block * size), np.uint8)
        return written[name]

    write_gguf(path, random_model(**WIDE), "llama", kind, pack=pack)
    found = load_file(unpacked(path) / "model.safetensors")
    for there, here in NAMES.items():
        with np.errstate(all="ignore"):  # some random scales are no numbers
            expected = numbers(written[f"blk.0.{there}"], kept)
        ours = found[f"model.layers.0.{here}.weight"]
        sound = np.isfinite(expected)
        assert sound.mean() > 0.5
        np.testing.assert_allclose(ours[sound], expected[sound], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_logits(kind, tmp_path):
    """Those that the package can also write: the model beside transformers' own reading."""
    path, model = tmp_path / "model.gguf", random_model()
    write_gguf(path, model, "llama", kind)
    options = {"gguf_file": path.name, "dtype": torch.float64, "attn_implementation": "eager"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options).eval()
    with torch.no_grad():
        expected, plain = (one(torch.as_tensor(IDS)).logits.double().numpy() for one in (theirs, model))
    for backend in ("numpy", "torch", "jax"):
        found = lab.load_model(path, backend).logits(IDS)
        assert np.abs(found - expected).max() < LOGITS_FLOAT32 * expected.std()
    changed = np.abs(expected - plain).max() / expected.std()
    assert (changed > LOGITS_FLOAT32) == (kind != "F32"), "and quantising changed something"


def test_without_the_package(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(), "llama", "Q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(lab.UnavailableError, match="need the package gguf"):
        lab.load_model(path)
    write_gguf(path, random_model(), "llama", "F16")
    assert lab.load_model(path).logits(IDS).shape == (2, 21, 300)


@pytest.mark.parametrize("kind", [9, 15, 24, 99])  # Q8_1 and Q8_K, which are never stored, I8, and none
def test_a_kind_that_is_not_read_is_named(kind, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(), "llama", "Q8_0")
    data, name = bytearray(path.read_bytes()), b"blk.0.ffn_up.weight"
    place = data.index(name) + len(name) + 4 + 2 * 8
    assert data[place] == 8
    data[place] = kind
    path.write_bytes(data)
    with pytest.raises(lab.InputFileError, match=rf"holds 'blk\.0\.ffn_up\.weight' as ggml's type {kind}"):
        lab.load_model(path)
