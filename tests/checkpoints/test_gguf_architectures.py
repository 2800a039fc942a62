"""Every architecture that is read from GGUF, judged three times: by the model of transformers that was written, by
transformers where it reads such files, too, and by llama.cpp itself where it is installed (pip install
llama-cpp-python). The last one also judges how the files are written.
"""

import json
import math

import numpy as np
import pytest
from gguf_writer import random_model, torch, transformers, write_gguf
from tolerances import LLAMA_CPP, LOGITS_FLOAT32

import transformer_lab as lab
from transformer_lab.checkpoints import inspect_folder
from transformer_lab.checkpoints.gguf.architectures import ARCHITECTURES
from transformer_lab.cli import main

IDS = np.random.default_rng(3).integers(0, 300, (1, 21))
FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 1.5, "attention_factor": 1.2}
LONG |= {"original_max_position_embeddings": 48, "short_factor": np.linspace(1, 2, 8).tolist()}
GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 6}
GEMMA3_ROPE = {FULL: LINEAR | {"rope_theta": 1e6}, SLIDING: {"rope_type": "default", "rope_theta": 1e4}}
THEY, CPP = "transformers", "llama.cpp"
# title -> (class of transformers, what it is changed in, who reads the file beside us)
CASES = {
    "llama": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}, (THEY, CPP)),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, (CPP,)),
    "llama, heads of another size": ("Llama", {"head_dim": 24}, (THEY, CPP)),
    "llama, divisors": ("Llama", {"rope_parameters": LLAMA3}, (CPP,)),
    "llama, linear": ("Llama", {"rope_parameters": LINEAR}, (CPP,)),
    "qwen2": ("Qwen2", {}, (THEY, CPP)),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}, (THEY, CPP)),
    "qwen2, yarn": ("Qwen2", {"rope_parameters": YARN}, (CPP,)),
    "qwen3": ("Qwen3", {"head_dim": 128}, (THEY, CPP)),
    "qwen3, heads of another size": ("Qwen3", {"head_dim": 32}, (CPP,)),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}, (CPP,)),
    "granite": (
        "Granite",
        {"attention_multiplier": 0.2, "residual_multiplier": 0.3, "embedding_multiplier": 6.0, "logits_scaling": 4.0},
        (CPP,),
    ),
    "olmo": ("Olmo", {}, (CPP,)),
    "olmo, clipped": ("Olmo", {"clip_qkv": 0.5}, (CPP,)),
    "olmo2": ("Olmo2", {}, (CPP,)),
    "gemma": ("Gemma", {"head_dim": 32}, (CPP,)),
    "gemma2": ("Gemma2", GEMMA, (THEY, CPP)),
    "gemma2, other heads and caps": (
        "Gemma2",
        GEMMA
        | {"head_dim": 32, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        (CPP,),
    ),
    "gemma2, the largest": (
        "Gemma2",
        {"head_dim": 12, "query_pre_attn_scalar": 16, "num_hidden_layers": 46, "initializer_range": 0.05},
        (CPP,),
    ),
    "gemma3": ("Gemma3Text", GEMMA | {"num_hidden_layers": 7}, (THEY, CPP)),
    "gemma3, linear": (
        "Gemma3Text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 6,
            "num_hidden_layers": 7,
            "rope_parameters": GEMMA3_ROPE,
        },
        (CPP,),
    ),
    "gemma3, the largest": (
        "Gemma3Text",
        {"head_dim": 12, "query_pre_attn_scalar": 16, "num_hidden_layers": 62, "initializer_range": 0.05},
        (CPP,),
    ),
    "phi2": ("Phi", {}, (CPP,)),
    "phi3": ("Phi3", {"sliding_window": None}, (THEY, CPP)),
    "phi3, longrope": (
        "Phi3",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 48,
            "rope_parameters": LONG | {"long_factor": LONG["short_factor"]},
        },
        (CPP,),
    ),
    "phi3, a window": ("Phi3", {"sliding_window": 6}, ()),  # which llama.cpp passes over, with a warning
    "stablelm": ("StableLm", {}, (THEY, CPP)),
    "stablelm, in parallel": ("StableLm", {"use_parallel_residual": True, "use_qkv_bias": True}, (THEY, CPP)),
    "starcoder2": ("Starcoder2", {}, (THEY, CPP)),
    "gptneox": ("GPTNeoX", {}, (CPP,)),
    "gptneox, one after the other": ("GPTNeoX", {"use_parallel_residual": False}, (CPP,)),
    "command-r": ("Cohere", {"logit_scale": 0.25}, (CPP,)),
    "gpt2": ("GPT2", {"n_inner": None, "n_positions": 1024}, (THEY, CPP)),
    "gpt2, another network": ("GPT2", {"n_inner": 96}, (CPP,)),
    "starcoder": ("GPTBigCode", {}, (CPP,)),
    "bloom": ("Bloom", {"seq_length": 64}, (THEY, CPP)),
}


def architecture_of(title):
    return title.partition(",")[0]


@pytest.fixture(scope="module", params=CASES)
def written(request, tmp_path_factory):
    """(title, file, transformers' model, its logits of IDS in float64)."""
    kind, changes, _ = CASES[request.param]
    path, model = tmp_path_factory.mktemp("gguf") / "model.gguf", random_model(kind, **changes)
    write_gguf(path, model, architecture_of(request.param))
    return request.param, path, model, logits(model.double())


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        yield


def logits(model):
    with torch.no_grad():
        return model(torch.as_tensor(IDS)).logits.double().numpy()


def apart(found, expected):
    return np.abs(found - expected).max() / expected.std()


def test_every_architecture_is_here():
    assert {architecture_of(title) for title in CASES} == set(ARCHITECTURES)


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_logits(written, backend):
    _, path, _, expected = written
    assert expected.std() > 0.1
    assert apart(lab.load_model(path, backend).logits(IDS), expected) < LOGITS_FLOAT32


def test_logits_of_transformers_own_reading(written):
    title, path, model, expected = written
    if THEY not in CASES[title][2]:
        pytest.skip("transformers does not read this one")
    options = {"gguf_file": path.name, "dtype": torch.float32, "attn_implementation": "eager"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options).eval()
    assert type(theirs) is type(model)
    assert apart(logits(theirs), expected) < LOGITS_FLOAT32
    assert apart(lab.load_model(path).logits(IDS), logits(theirs.double())) < LOGITS_FLOAT32


def test_logits_of_llama_cpp(written):
    llama_cpp = pytest.importorskip("llama_cpp")
    title, path, _, _ = written
    if CPP not in CASES[title][2]:
        pytest.skip("llama.cpp does otherwise here")
    with np.errstate(all="ignore"):
        model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, type_k=0, type_v=0, verbose=False, n_threads=1)
    model.eval(IDS[0].tolist())
    theirs = np.array(model.scores[: IDS.size], np.float64)
    model.close()
    assert apart(lab.load_model(path).logits(IDS)[0], theirs) < LLAMA_CPP


def test_the_folder_is_one_of_the_family(written):
    """transformers reads what was unpacked, as the model that it was."""
    title, path, model, expected = written
    folder = lab.load_model(path).folder
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert type(again) is type(model)
    assert apart(logits(again.double()), expected) < LOGITS_FLOAT32
    assert (
        json.loads((folder / "config.json").read_text())["model_type"] == ARCHITECTURES[architecture_of(title)].family
    )


def test_inspection(written):
    title, path, model, _ = written
    found = inspect_folder(path)
    assert found.loads and found.model_type == ARCHITECTURES[architecture_of(title)].family
    assert found.tokenizer_files == ("tokenizer.json", "tokenizer_config.json")
    counted = sum(math.prod(tensor.shape) for tensor in found.tensors if not tensor.name.startswith("rope_"))
    assert counted == sum(parameter.numel() for parameter in model.parameters())


def test_inspect_shows_the_kinds_of_numbers_and_what_is_wrong(tmp_path, capsys):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model("Gemma", head_dim=32), "gemma", "Q8_0", values={"gemma.magic": 1})
    assert main(["job=inspect", f"model.source={path}", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "loads here no" in shown and "gemma.magic" in shown and "Q8_0" in shown and "F32" in shown


def test_both_tokens_that_end_a_text_are_kept(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model("Gemma", head_dim=32), "gemma", values={"tokenizer.ggml.eot_token_id": 7})
    model = lab.load_model(path)
    assert model.config.end_of_text_id == 1 and model.config.begin_of_text_id == 0
    assert json.loads((model.folder / "config.json").read_text())["eos_token_id"] == [1, 7]


@pytest.mark.parametrize(
    ("architecture", "values", "words"),
    [
        ("llama", {"llama.expert_count": 8}, "'llama.expert_count' is 8, which is not known here"),
        ("llama", {"llama.block_count": None}, "'llama.block_count' is missing"),
        ("llama", {"llama.block_count": "two"}, "'llama.block_count' is 'two'"),
        ("llama", {"llama.block_count": 2**31}, "'llama.block_count' is 2147483648"),
        ("llama", {"llama.block_count": 9000}, "do not fit the header. Missing: 'blk.10."),
        ("llama", {"llama.embedding_length": 0}, "'llama.embedding_length' is 0"),
        ("llama", {"llama.attention.head_count": 0}, "'llama.attention.head_count' is 0"),
        ("llama", {"llama.attention.head_count": [4, 4]}, "'llama.attention.head_count' is a list"),
        ("llama", {"llama.attention.head_count": 5}, "head_count_kv' is 2, which does not divide"),
        (
            "qwen2",
            {"qwen2.attention.head_count": 5},
            "'qwen2.attention.head_count' is 5, which does not divide the embedding, 64",
        ),
        ("llama", {"llama.attention.head_count_kv": 3}, "'llama.attention.head_count_kv' is 3"),
        ("llama", {"llama.attention.value_length": 8}, "'llama.attention.value_length' is 8"),
        ("llama", {"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_epsilon' is nan"),
        ("llama", {"llama.attention.layer_norm_rms_epsilon": "small"}, "rms_epsilon' is 'small'"),
        ("llama", {"llama.context_length": 99_000_000}, "'llama.context_length' is 99000000"),
        ("llama", {"llama.feed_forward_length": 97}, "Wrong shape: .*ffn_gate"),
        ("llama", {"llama.rope.dimension_count": 8}, "'llama.rope.dimension_count' is 0.5"),
        ("llama", {"llama.rope.freq_base": -1.0}, "'llama.rope.freq_base' is -1.0"),
        ("llama", {"llama.rope.scaling.type": "magic"}, "'llama.rope.scaling.type' is 'magic'"),
        ("llama", {"llama.rope.scaling.type": "linear"}, "'llama.rope.scaling.factor' is missing"),
        ("llama", {"llama.rope.scaling.attn_factor": 2.0}, "'llama.rope.scaling.attn_factor' is 2.0"),
        ("llama", {"split.count": 2}, "'split.count' is 2; join the parts first"),
        ("llama", {"general.architecture": "mamba"}, "'general.architecture' is 'mamba'; read are llama, qwen2"),
        ("llama", {"general.architecture": 3}, "'general.architecture' is 3"),
        ("llama", {"tokenizer.ggml.bos_token_id": "x"}, "'tokenizer.ggml.bos_token_id' is 'x'"),
        ("llama", {"tokenizer.ggml.eot_token_id": ["x"]}, "'tokenizer.ggml.eos_token_id' is a list"),
        ("gpt2", {"gpt2.embedding_length": "x"}, "'gpt2.embedding_length' is 'x'"),
        ("gpt2", {"gpt2.rope.freq_base": 1e4}, "'gpt2.rope.freq_base' is 10000.0, which is not known here"),
        ("phi3", {"phi3.attention.sliding_window": "x"}, "'phi3.attention.sliding_window' is 'x'"),
        ("gemma2", {"gemma2.attention.sliding_window": 0}, "'gemma2.attention.sliding_window' is 0"),
        ("gemma3", {"gemma3.attention.sliding_window": None}, "'gemma3.attention.sliding_window' is missing"),
        ("granite", {"granite.attention.scale": None}, "'granite.attention.scale' is missing"),
        ("granite", {"granite.logit_scale": 0.0}, "'granite.logit_scale' is 0.0"),
        ("olmo", {"olmo.attention.clamp_kqv": -8.0}, "'olmo.attention.clamp_kqv' is -8.0"),
        ("olmo", {"olmo.attention.layer_norm_epsilon": 1e-6}, "'olmo.attention.layer_norm_epsilon' is 1e-06"),
        ("bloom", {"bloom.feed_forward_length": 96}, "'bloom.feed_forward_length' is 96"),
    ],
)
def test_what_is_not_offered_is_named(architecture, values, words, tmp_path):
    kind, changes, _ = CASES[architecture]
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(kind, **changes), architecture, values=values)
    with pytest.raises(lab.InputFileError, match=rf"model\.gguf: .*{words}"):
        lab.load_model(path)
