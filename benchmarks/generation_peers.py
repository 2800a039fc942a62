"""Other engines that generate with GPT-2 124M and random weights: each loader gives generate(prompts, new tokens).

    pip install -c constraints.txt llama-cpp-python==0.3.36 gguf ctranslate2==4.8.5
    pip install --no-deps keras==3.15.1 keras-hub==0.32.0 namex optree absl-py h5py

llama-cpp-python compiles llama.cpp for this processor (about five minutes on two cores). keras-hub is installed without
its dependencies, which would bring TensorFlow. Everything runs in its default settings, but for the number of threads.
"""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Generate = Callable[[list[list[int]], int], object]
VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 50257, 768, 12, 12, 1024
THREADS = os.cpu_count() or 1
TOKENIZER = Path(__file__).resolve().parents[1] / "resources" / "tokenizer_data" / "gpt2"


def load_transformers(_: str) -> Generate:
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def generate(prompts: list[list[int]], count: int) -> object:
        with torch.inference_mode():
            return model.generate(torch.tensor(prompts), max_new_tokens=count, min_new_tokens=count, do_sample=False)

    return generate


def write_gguf(path: str, kind: str) -> None:
    """A GPT-2 with random weights in llama.cpp's own format; matrices in `kind`, the rest in float32."""
    import gguf

    draw = np.random.default_rng(0)
    quantised = {"f32": None, "f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}[kind]
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(4 * WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(VOCABULARY)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = (draw.standard_normal((rows, columns)) * 0.02).astype(np.float32)
        if quantised is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)

    def norm(name: str) -> None:
        writer.add_tensor(name + ".weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(name + ".bias", np.zeros(WIDTH, np.float32))

    matrix("token_embd.weight", VOCABULARY, WIDTH)
    writer.add_tensor("position_embd.weight", (draw.standard_normal((CONTEXT, WIDTH)) * 0.01).astype(np.float32))
    for block in (f"blk.{i}." for i in range(LAYERS)):
        norm(block + "attn_norm")
        norm(block + "ffn_norm")
        shapes = {"attn_qkv": (3, 1), "attn_output": (1, 1), "ffn_up": (4, 1), "ffn_down": (1, 4)}
        for name, (rows, columns) in shapes.items():
            matrix(f"{block}{name}.weight", rows * WIDTH, columns * WIDTH)
            writer.add_tensor(f"{block}{name}.bias", np.zeros(rows * WIDTH, np.float32))
    norm("output_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_llama_cpp(kind: str) -> Generate:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/gpt2.gguf"
        write_gguf(path, kind)
        return load_gguf(path, VOCABULARY)


def load_gguf(path: str, vocabulary: int) -> Generate:
    """llama.cpp with the model in a file."""
    import llama_cpp as llama

    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_seq_max = 8 * CONTEXT, 2048, 8
    settings.n_threads = settings.n_threads_batch = THREADS
    context = llama.llama_init_from_model(model, settings)

    def generate(prompts: list[list[int]], count: int) -> object:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        batch = llama.llama_batch_init(sum(map(len, prompts)), 0, 1)
        found: list[list[int]] = [[] for _ in prompts]
        pieces, position = prompts, 0
        for _ in range(count):
            last = []
            batch.n_tokens = 0
            for row, piece in enumerate(pieces):
                for offset, token in enumerate(piece):
                    at = batch.n_tokens
                    batch.token[at], batch.pos[at] = token, position + offset
                    batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
                    batch.logits[at] = offset == len(piece) - 1
                    batch.n_tokens += 1
                last.append(batch.n_tokens - 1)
            if llama.llama_decode(context, batch):
                message = "llama_decode failed"
                raise RuntimeError(message)
            position += len(pieces[0])
            for row, at in enumerate(last):
                logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, at), shape=(vocabulary,))
                found[row].append(int(logits.argmax()))
            pieces = [row[-1:] for row in found]
        llama.llama_batch_free(batch)
        return found

    return generate


def load_ctranslate2(kind: str) -> Generate:
    import ctranslate2
    import torch
    import transformers

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(f"{folder}/model")
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(TOKENIZER / name, f"{folder}/model")
        ctranslate2.converters.TransformersConverter(f"{folder}/model").convert(
            f"{folder}/converted", quantization=kind
        )
        model = ctranslate2.Generator(f"{folder}/converted", compute_type=kind, intra_threads=THREADS, inter_threads=1)
    words = {index: word for word, index in json.loads((TOKENIZER / "vocab.json").read_text()).items()}

    def generate(prompts: list[list[int]], count: int) -> object:
        return model.generate_batch(
            [[words[i] for i in prompt] for prompt in prompts],
            max_length=count,
            min_length=count,
            include_prompt_in_result=False,
            end_token=[],
        )

    return generate


def load_keras_hub(_: str) -> Generate:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        VOCABULARY, LAYERS, HEADS, WIDTH, 4 * WIDTH, dropout=0.0, max_sequence_length=CONTEXT
    )
    model = keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)
    model.compile(sampler="greedy")

    def generate(prompts: list[list[int]], count: int) -> object:
        rows, length = len(prompts), len(prompts[0])
        ids = np.zeros((rows, length + count), np.int32)
        ids[:, :length] = prompts
        given = np.arange(length + count)[None, :] < np.full((rows, 1), length)
        return model.generate({"token_ids": ids, "padding_mask": given}, stop_token_ids=None)

    return generate


def load_stream(_: str) -> Generate:
    """Not an engine: NumPy reads each weight matrix once per token, and nothing else. A rate that can be had."""
    shapes = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)] * LAYERS
    matrices = [np.ones(shape, np.float32) for shape in [*shapes, (VOCABULARY, WIDTH)]]
    vectors = {WIDTH: np.ones(WIDTH, np.float32), 4 * WIDTH: np.ones(4 * WIDTH, np.float32)}

    def generate(prompts: list[list[int]], count: int) -> object:
        for _ in range(count):
            for matrix in matrices:
                matrix @ vectors[matrix.shape[1]]
        return None

    return generate


# participant -> (the package that it needs, loader, its argument)
PEERS: dict[str, tuple[str, Callable[[str], Generate], str]] = {
    "transformers": ("transformers", load_transformers, ""),
    "llama.cpp f32": ("llama_cpp", load_llama_cpp, "f32"),
    "llama.cpp f16": ("llama_cpp", load_llama_cpp, "f16"),
    "llama.cpp q8_0": ("llama_cpp", load_llama_cpp, "q8_0"),
    "ctranslate2 f32": ("ctranslate2", load_ctranslate2, "float32"),
    "ctranslate2 int8": ("ctranslate2", load_ctranslate2, "int8"),
    "keras-hub jax": ("keras_hub", load_keras_hub, ""),
    "stream": ("numpy", load_stream, ""),
}


def installed(name: str) -> bool:
    return importlib.util.find_spec(PEERS[name][0]) is not None
