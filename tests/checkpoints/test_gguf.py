"""GGUF files against transformers, which reads them too: models, tokenizers, and files that are damaged."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from gguf import quants  # noqa: E402
from tolerances import LOGITS_FLOAT32  # noqa: E402

import transformer_lab as lab  # noqa: E402
from transformer_lab.checkpoints.gguf.file import read_gguf  # noqa: E402

IDS = np.random.default_rng(3).integers(0, 300, (2, 21))
KINDS = ("F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
TEXTS = ("The king said: 123 apples", " two  spaces\n\nand lines", "it's I'M we'll", "ärgerlich 日本語 🙂", "")
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def byte_level_vocabulary(size):
    """Tokens of all bytes, some merges and two of control -> (tokens, kinds, merges)."""
    from transformer_lab.tokenizers.byte_alphabet import CHARACTER_OF_BYTE

    merges = ["Ġ t", "h e", "Ġt he", "Ġ a", "i n", "1 2", "Ġ Ġ"]
    tokens = ["<|begin|>", "<|end|>", *CHARACTER_OF_BYTE, *(merge.replace(" ", "") for merge in merges)]
    kinds = [3, 3, *[1] * (len(tokens) - 2)]
    extra = size - len(tokens)
    return [*tokens, *(f"[PAD{number}]" for number in range(extra))], [*kinds, *[5] * extra], merges


def write_gguf(path, model, architecture, kind="F32", pre="smollm", **values):
    """The model of transformers as llama.cpp's converter writes it."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(size)
    writer.add_value_length(size)
    tokens, kinds, merges = byte_level_vocabulary(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, value in values.items():
        (writer.add_bool if isinstance(value, bool) else writer.add_string)(name, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            form = (heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
            array = array.reshape(form).swapaxes(1, 2).reshape(array.shape)
        kept = gguf.GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
        data = np.ascontiguousarray(array) if kept == 0 else quants.quantize(np.ascontiguousarray(array), kept)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), data, raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_model(kind="Llama", **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES | {"vocab_size": 300} | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.as_tensor(IDS)).logits.numpy()


def theirs(path):
    options = {"gguf_file": path.name, "dtype": torch.float32, "attn_implementation": "eager"}
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_numbers(kind, tmp_path):
    path = tmp_path / "model.gguf"
    model = random_model()
    write_gguf(path, model, "llama", kind)
    expected = logits(theirs(path))
    found = lab.load_model(path).logits(IDS)
    assert np.abs(found - expected).max() < LOGITS_FLOAT32 * expected.std()
    assert (np.abs(expected - logits(model)).max() > 0) == (kind != "F32"), "and quantising changed something"


@pytest.mark.parametrize(
    ("kind", "architecture", "changes"),
    [
        ("Llama", "llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
        ("Qwen2", "qwen2", {}),
        ("Qwen2", "qwen2", {"tie_word_embeddings": True}),
        ("Qwen3", "qwen3", {"head_dim": 128}),  # the one size that it takes there
    ],
)
def test_every_architecture(kind, architecture, changes, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(kind, **changes), architecture, "Q8_0")
    expected = logits(theirs(path))
    for backend in ("numpy", "torch", "jax"):
        found = lab.load_model(path, backend).logits(IDS)
        assert np.abs(found - expected).max() < LOGITS_FLOAT32 * expected.std()


def test_heads_of_another_size(tmp_path):
    """Beside the model that was written: transformers passes over the size of a head there."""
    path, model = tmp_path / "model.gguf", random_model("Qwen3", head_dim=32)
    write_gguf(path, model, "qwen3")
    expected = logits(model)
    assert np.abs(lab.load_model(path).logits(IDS) - expected).max() < LOGITS_FLOAT32 * expected.std()


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
@pytest.mark.parametrize("kind", ["byte_bpe", "huggingface"])
def test_the_tokenizer(pre, kind, tmp_path):
    """Every text comes back, and native and library agree; the splits themselves are held against published files."""
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(), "llama", pre=pre)
    model = lab.load_model(path, tokenizer=kind)
    library = lab.load_model(path, tokenizer="huggingface").tokenizer
    for text in TEXTS:
        ids = model.tokenizer.encode(text)
        assert model.tokenizer.decode(ids) == text and ids == library.encode(text)
    digits = model.tokenizer.encode("12")
    assert len(digits) == (2 if pre in ("smollm", "qwen2") else 1), "each digit alone, or not"
    assert model.tokenizer.encode("<|end|>", allow_special=True) == [1]


def test_template_and_first_token(tmp_path):
    path = tmp_path / "model.gguf"
    template = "{% for m in messages %}{{ m['content'] }};{% endfor %}"
    values = {"tokenizer.chat_template": template, "tokenizer.ggml.add_bos_token": True}
    write_gguf(path, random_model(), "llama", **values)
    model = lab.load_model(path)
    assert model.chat_ids([{"role": "user", "content": "the"}]) == model.tokenizer.encode("the;")
    assert model.tokenizer.template.around([5]) == [0, 5]
    assert model.config.end_of_text_id == 1 and model.config.begin_of_text_id == 0


def test_what_is_unpacked_is_unpacked_once(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(), "llama")
    first = lab.load_model(path)
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns
    assert lab.load_model(path).folder == first.folder
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == stamp
    path.unlink()
    write_gguf(path, random_model("Qwen2"), "qwen2")  # another file under the same name
    assert lab.load_model(path).folder != first.folder


def test_an_unknown_tokenizer_is_left_out(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(), "llama", pre="tekken")
    model = lab.load_model(path)
    assert model.tokenizer is None and model.generate([1, 2], max_new_tokens=2).token_ids


def test_what_is_not_offered_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(), "llama", **{"llama.expert_count": "8"})
    with pytest.raises(lab.InputFileError, match=r"model\.gguf: the header's llama\.expert_count is '8'"):
        lab.load_model(path)
    data = path.read_bytes()
    length = b"\x05" + bytes(7)
    path.write_bytes(data.replace(length + b"llama", length + b"mamba", 1))
    with pytest.raises(lab.InputFileError, match=r"general\.architecture is 'mamba'; read are llama, qwen2, qwen3"):
        lab.load_model(path)


def test_damaged_files_are_refused(tmp_path):
    path, damaged = tmp_path / "model.gguf", tmp_path / "damaged.gguf"
    write_gguf(path, random_model(num_hidden_layers=1), "llama", "Q8_0")
    data = path.read_bytes()
    tensors = read_gguf(path).tensors.values()
    header, end = min(tensor.start for tensor in tensors), max(tensor.start + tensor.size for tensor in tensors)
    draw = np.random.default_rng(0)
    for length in [0, 3, 4, 8, 20, 24, *draw.integers(24, header, 40), header, end - 1]:
        damaged.write_bytes(data[:length])
        with pytest.raises(lab.InputFileError, match=r"damaged\.gguf"):
            lab.load_model(damaged)
    for _ in range(150):
        changed = bytearray(data)
        place = int(draw.integers(0, header))
        changed[place : place + 8] = draw.bytes(int(draw.integers(1, 9)))
        damaged.write_bytes(changed)
        try:
            lab.load_model(damaged)
        except lab.LabError as error:
            assert len(str(error)) < 800
    for number in (2**63, 2**40, 2**32 - 1):
        for place in (8, 16):
            changed = bytearray(data)
            changed[place : place + 8] = number.to_bytes(8, "little")
            damaged.write_bytes(changed)
            with pytest.raises(lab.InputFileError, match="claims"):
                lab.load_model(damaged)
