"""Families with experts: where their tensors lie, which experts a token goes to, and what config.json says of both."""

import json
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from family_models import CASES, save_family  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from tolerances import LOGITS_FLOAT32  # noqa: E402
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func  # noqa: E402

import transformer_lab as lab  # noqa: E402
from transformer_lab.checkpoints import inspect_folder, to_hf  # noqa: E402
from transformer_lab.config import component  # noqa: E402
from transformer_lab.ffn.losses import balance, used  # noqa: E402

IDS = np.random.default_rng(3).integers(0, 101, (2, 21))
SPARSE = [title for title in CASES if title.startswith(("mixtral", "olmoe")) or "_moe" in title]
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture(scope="module", params=SPARSE)
def saved(request, tmp_path_factory):
    """(title, folder, transformers' model)."""
    folder = tmp_path_factory.mktemp("experts")
    return request.param, folder, save_family(request.param, folder)


def rewritten(folder, tmp_path, tensors=None, **fields):
    """A copy of the folder with other tensors or fields."""
    told = json.loads((folder / CONFIG).read_text()) | fields
    (tmp_path / CONFIG).write_text(json.dumps({name: value for name, value in told.items() if value is not ...}))
    save_file(load_file(folder / WEIGHTS) if tensors is None else tensors, tmp_path / WEIGHTS)
    return tmp_path


def sparse_layers(config):
    return [layer for layer, block in enumerate(config.blocks) if hasattr(block.ffn, "experts")]


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_the_same_experts_as_in_transformers(saved, backend):
    _, folder, model = saved
    with torch.no_grad():
        routers = model(torch.as_tensor(IDS), output_router_logits=True).router_logits
    loaded = lab.load_model(folder, backend)
    layers = sparse_layers(loaded.config)
    assert len(layers) == len(routers)
    for layer, theirs in zip(layers, routers, strict=True):
        k = loaded.config.blocks[layer].ffn.router.k
        top = torch.topk(torch.softmax(theirs.double(), -1), min(k + 1, theirs.shape[-1])).values
        assert top.diff().abs().min() > 1e-6, "the test is about experts that are not a matter of rounding"
        expected = torch.topk(theirs, k).indices.numpy().reshape(*IDS.shape, k)
        found = loaded.record(IDS, f"blocks.{layer}.ffn.router.expert_ids")
        np.testing.assert_array_equal(found[f"blocks.{layer}.ffn.router.expert_ids"], expected)


def test_routers_stand_beside_those_of_transformers(saved):
    from transformer_lab.comparison.participants.transformers import Transformers

    title, folder, _ = saved
    report = lab.compare(
        folder, IDS[0].tolist(), ("torch",), participants=[Transformers(folder)], exact=False, new_tokens=0
    )
    assert report.status == "sound", report.verdict
    rows = {row["tap"]: row for row in report.table if row["participant"].startswith("transformers")}
    layers = sparse_layers(lab.load_model(folder).config)
    assert {f"blocks.{layer}.ffn.{tap}" for layer in layers for tap in ("router.logits", "out")} <= set(rows), title


def fused(model):
    """The tensors as transformers 5 holds them."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items() if name in owners(model)}


def owners(model):
    tied = model.config.tie_word_embeddings
    return {name for name in model.state_dict() if not (tied and name == "lm_head.weight")}


def test_experts_in_one_tensor_are_the_same_model(saved, tmp_path):
    _, folder, model = saved
    tensors = fused(model)
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in tensors)
    rewritten(folder, tmp_path, tensors)
    np.testing.assert_array_equal(lab.load_model(tmp_path).logits(IDS), lab.load_model(folder).logits(IDS))
    found = inspect_folder(tmp_path)
    assert found.loads, found.problems
    assert found.total_parameters == inspect_folder(folder).total_parameters
    lab.load_model(tmp_path).save(tmp_path / "again")
    theirs, ours = load_file(folder / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert {name: array.tobytes() for name, array in ours.items()} == {
        name: array.tobytes() for name, array in theirs.items()
    }


def test_bfloat16_in_one_tensor(tmp_path):
    save_family("qwen3_moe", tmp_path / "first")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "first", dtype=torch.bfloat16)
    from safetensors.torch import save_file as save_torch

    save_torch({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text((tmp_path / "first" / CONFIG).read_text())
    model.save_pretrained(tmp_path / "apart")
    one, other = (lab.load_model(path).logits(IDS) for path in (tmp_path, tmp_path / "apart"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("title", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("wrong", ["shape", "both", "type"])
def test_one_tensor_that_cannot_be(title, wrong, tmp_path):
    model = save_family(title, tmp_path / "first")
    tensors = fused(model)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    if wrong == "shape":  # the same bytes; nothing but the names tells what an axis is
        tensors[name] = np.ascontiguousarray(tensors[name].swapaxes(1, 2))
    elif wrong == "both":
        apart = load_file(tmp_path / "first" / WEIGHTS)
        tensors |= {name: array for name, array in apart.items() if re.search(r"1\..*experts\.2\.(w1|gate)", name)}
        assert len(tensors) == len(fused(model)) + 1
    else:
        tensors[name] = tensors[name].astype(np.int32)
    rewritten(tmp_path / "first", tmp_path, tensors)
    words = {"shape": "experts of the configuration", "both": "has both", "type": "is I32, not"}[wrong]
    with pytest.raises(lab.InputFileError, match=words):
        lab.load_model(tmp_path)


def test_square_experts_are_told_apart_by_their_names_alone(tmp_path):
    """E == 2 F == D: every axis has the same size, and only what is read where can tell."""
    config = transformers.MixtralConfig(
        vocab_size=31,
        hidden_size=8,
        intermediate_size=4,
        num_local_experts=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM._from_config(config).eval()
    model.save_pretrained(tmp_path / "apart")
    rewritten(tmp_path / "apart", tmp_path, fused(model))
    ids = IDS[:, :9] % 31
    with torch.no_grad():
        expected = model(torch.as_tensor(ids)).logits.numpy()
    for folder in (tmp_path, tmp_path / "apart"):
        np.testing.assert_allclose(lab.load_model(folder).logits(ids), expected, atol=1e-4)


def test_adapters_on_experts(tmp_path):
    """Of one expert, of a router and of the shared network; added to files of either kind."""
    model = save_family("qwen2_moe", tmp_path / "apart")
    rewritten(tmp_path / "apart", tmp_path, fused(model))
    rng, tensors = np.random.default_rng(1), load_file(tmp_path / "apart" / WEIGHTS)
    modules = ["mlp.experts.3.down_proj", "mlp.gate", "mlp.shared_expert.up_proj", "mlp.shared_expert_gate"]
    factors, merged = {}, dict(tensors)
    for module in modules:
        name = f"model.layers.1.{module}"
        out, inner = tensors[f"{name}.weight"].shape
        a, b = (rng.standard_normal(shape, np.float32) for shape in ((2, inner), (out, 2)))
        factors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        merged[f"{name}.weight"] = (tensors[f"{name}.weight"] + 2.0 * (b.astype(np.float64) @ a)).astype(np.float32)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(factors, adapter / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(tmp_path / "apart")}
    (adapter / "adapter_config.json").write_text(json.dumps(told))
    (tmp_path / "merged").mkdir()
    expected = lab.load_model(rewritten(tmp_path / "apart", tmp_path / "merged", merged)).logits(IDS)
    np.testing.assert_array_equal(lab.load_model(adapter).logits(IDS), expected)
    (adapter / "adapter_config.json").write_text(json.dumps(told | {"base_model_name_or_path": str(tmp_path)}))
    np.testing.assert_array_equal(lab.load_model(adapter).logits(IDS), expected)
    (adapter / "adapter_config.json").write_text(json.dumps(told | {"target_parameters": ["mlp.experts.down_proj"]}))
    with pytest.raises(lab.InputFileError, match="target_parameters"):
        lab.load_model(adapter)


def test_how_many_parameters_a_token_uses(saved):
    """Counted in transformers' model: everything but the experts that a token does not go to."""
    _, folder, model = saved
    loaded = lab.load_model(folder)
    tied = {id(parameter): parameter for parameter in model.parameters()}
    assert loaded.parameters_count == sum(parameter.numel() for parameter in tied.values())
    experts = [parameter for name, parameter in model.named_parameters() if ".experts." in name]
    k = model.config.num_experts_per_tok
    idle = sum(parameter.numel() - k * parameter[0].numel() for parameter in experts)
    assert loaded.active_parameters_count == loaded.parameters_count - idle
    assert inspect_folder(folder).active_parameters == loaded.active_parameters_count
    assert idle or k == model.config.num_local_experts


@pytest.mark.parametrize(("layers", "slots", "coefficient"), [(1, 2, 0.01), (2, 2, 0.001), (24, 6, 0.001), (7, 3, 0.0)])
def test_the_coefficient_of_the_balance_loss(layers, slots, coefficient):
    """Added up over the layers, ours is what transformers adds, where the layers use their experts in the same way."""
    from transformer_lab.checkpoints.expert_fields import aux_loss_coefficient, balance_loss

    experts, tokens = 6, 40
    gate = torch.as_tensor(np.random.default_rng(5).standard_normal((tokens, experts)))
    expected = coefficient * float(load_balancing_loss_func((gate,) * layers, experts, slots))
    backend = component("backend", "numpy", precision="float64", ops="manual")
    ids, probabilities = torch.topk(gate, slots).indices.numpy()[None], torch.softmax(gate, -1).numpy()[None]
    share = np.full((1, tokens), 1 / tokens)
    load = used(backend, ids, None, share, experts)
    one = balance_loss(coefficient, slots, layers) * float(balance(backend, load, probabilities, share, "step"))
    assert layers * one == pytest.approx(expected, rel=1e-6)
    uniform = balance_loss(coefficient, slots, layers) * layers
    assert uniform == pytest.approx(coefficient * slots, rel=1e-12), "k at uniform routing there, 1 here"
    assert aux_loss_coefficient(balance_loss(coefficient, slots, layers), slots, layers) == coefficient


def test_absent_fields_mean_what_they_mean_in_transformers(saved, tmp_path):
    """All that has a default there and is not needed to fit the weights."""
    title, folder, _ = saved
    removable = ("rope_parameters", "rms_norm_eps", "hidden_act", "norm_topk_prob", "router_aux_loss_coef", "qkv_bias")
    removable += ("output_router_logits", "router_jitter_noise", "decoder_sparse_step", "use_sliding_window")
    if "window" in title:
        removable = removable[:-1]
    if "qkv_bias" in title or title == "qwen2_moe":
        removable = tuple(name for name in removable if name != "qkv_bias")
    if "dense layers" in title:
        removable = tuple(name for name in removable if name != "decoder_sparse_step")
    rewritten(folder, tmp_path, **dict.fromkeys(removable, ...))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(torch.as_tensor(IDS)).logits.double().numpy()
    assert np.abs(lab.load_model(tmp_path).logits(IDS) - expected).max() < LOGITS_FLOAT32 * expected.std()


@pytest.mark.parametrize(
    ("title", "change", "words"),
    [
        ("mixtral", {"num_local_experts": 0}, "'num_local_experts' is 0"),
        ("mixtral", {"num_local_experts": -4}, "'num_local_experts' is -4"),
        ("mixtral", {"num_local_experts": 10**9}, "'num_local_experts' is 1000000000"),
        ("mixtral", {"num_local_experts": 60_000}, "more than 100000 in all"),
        ("mixtral", {"num_local_experts": 4.0}, "'num_local_experts' is 4.0"),
        ("mixtral", {"num_local_experts": 50_000}, "layers.0.block_sparse_moe.experts.4.w1.weight [48, 32]"),
        ("mixtral", {"num_experts": 5}, "differs"),
        ("mixtral", {"num_experts_per_tok": 5}, "'num_experts_per_tok' is 5, and there are 4"),
        ("mixtral", {"num_experts_per_tok": 0}, "'num_experts_per_tok' is 0"),
        ("mixtral", {"num_experts_per_tok": None}, "'num_experts_per_tok' is null"),
        ("mixtral", {"router_aux_loss_coef": -0.1}, "'router_aux_loss_coef' is -0.1"),
        ("mixtral", {"router_aux_loss_coef": None}, "'router_aux_loss_coef' is null"),
        ("mixtral", {"sliding_window": -3}, "sliding_window"),
        ("mixtral", {"hidden_act": "mish"}, "hidden_act"),
        ("olmoe", {"clip_qkv": 0}, "clip_qkv"),
        ("olmoe", {"norm_topk_prob": 1}, "norm_topk_prob"),
        ("qwen2_moe", {"moe_intermediate_size": 0}, "moe_intermediate_size"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size"),
        ("qwen2_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ("qwen2_moe", {"mlp_only_layers": 1}, "mlp_only_layers"),
        ("qwen2_moe", {"mlp_only_layers": [True]}, "mlp_only_layers"),
        ("qwen2_moe", {"layer_types": ["sliding_attention"] * 2}, "use_sliding_window is false"),
        ("qwen2_moe", {"num_experts_per_tok": 10**30}, "num_experts_per_tok"),
        ("qwen3_moe", {"num_experts": 7}, "differs"),
        ("qwen3_moe", {"num_local_experts": 7}, "Missing"),
        ("qwen3_moe", {"num_local_experts": 5}, "Unexpected"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "Missing"),
        ("qwen3_moe", {"moe_intermediate_size": 24}, "Wrong shape"),
    ],
)
def test_what_cannot_be_is_refused_by_name(title, change, words, tmp_path):
    save_family(title, tmp_path / "first")
    rewritten(tmp_path / "first", tmp_path, **change)
    with pytest.raises(lab.InputFileError, match=re.escape(words)):
        lab.load_model(tmp_path)
    found = inspect_folder(tmp_path)
    assert not found.loads and re.search(re.escape(words), " ".join(found.problems))


def test_what_is_a_matter_of_training_is_kept(tmp_path):
    save_family("mixtral", tmp_path / "first")
    change = {"router_jitter_noise": 0.1, "output_router_logits": True, "router_aux_loss_coef": 0.02}
    rewritten(tmp_path / "first", tmp_path, **change)
    model = lab.load_model(tmp_path)
    np.testing.assert_array_equal(model.logits(IDS), lab.load_model(tmp_path / "first").logits(IDS))
    assert model.config.blocks[0].ffn.balance_loss == 0.02  # two slots, two layers
    model.save(tmp_path / "again")
    told = json.loads((tmp_path / "again" / CONFIG).read_text())
    assert {name: told[name] for name in change} == change


def test_a_new_mixture_finds_its_family():
    """What is put together from parts is written as the family that has them, and as our own if none has."""
    from dataclasses import replace

    from transformer_lab.ffn.experts import Experts
    from transformer_lab.ffn.moe import MixtureOfExperts
    from transformer_lab.norm.rms_norm import RMSNorm
    from transformer_lab.router.mixtral import Mixtral
    from transformer_lab.router.olmoe import OLMoE

    ffn = MixtureOfExperts(Mixtral(3), Experts(5, 20), balance_loss=0.01)

    def kind(ffn, **attention):
        config = small(ffn, **attention)
        return to_hf(config)["model_type"]

    def small(ffn, **attention):
        from small_models import small_model, with_attention

        sizes = {"num_kv_heads": 2, "position": "rotary", "norm": "rms_norm", "attention_bias": False}
        config = small_model(101, 24, 32, 3, 4, ffn, **sizes)
        return replace(config, blocks=tuple(with_attention(block, **attention) for block in config.blocks))

    assert kind(ffn) == "mixtral"
    assert kind(replace(ffn, router=OLMoE(3)), norm=RMSNorm(1e-5)) == "qwen3_moe"
    assert kind(ffn, norm=RMSNorm(1e-5), norm_over="all_heads") == "olmoe"
    assert kind(replace(ffn, router=OLMoE(3))) == "transformer_lab"
    assert kind(replace(ffn, z_loss=0.1)) == "transformer_lab"
    assert kind(replace(ffn, experts=Experts(5, 20, bias=True))) == "transformer_lab"
