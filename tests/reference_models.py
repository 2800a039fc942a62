"""Random models of transformers, saved as folders: what the loaded models are compared with.

They are small, few shapes are used, and their weights are large, so that logits differ clearly from token to token.
"""

import numpy as np
import torch
import transformers

torch.set_num_threads(1)  # these models are too small for more, and waiting for a busy core takes longer than the work

BACKENDS = ("numpy", "torch", "jax")
OPS = ("manual", "fused")

GPT2 = {"vocab_size": 101, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
LLAMA = {
    "vocab_size": 101,
    "max_position_embeddings": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def save_gpt2(folder, seed=0, **fields):
    """Saves a random GPT-2 in float32 and returns it in float64, with attention that shows its weights."""
    fields = {"initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None} | GPT2 | fields
    return _save(transformers.GPT2LMHeadModel, transformers.GPT2Config(**fields), folder, seed)


def save_llama(folder, seed=0, **fields):
    fields = {"initializer_range": 0.2, "bos_token_id": None, "eos_token_id": None} | LLAMA | fields
    return _save(transformers.LlamaForCausalLM, transformers.LlamaConfig(**fields), folder, seed)


def _save(kind, config, folder, seed):
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms start as zeros and ones, which would hide a mistake
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)
    for module in model.modules():
        if getattr(module, "reorder_and_upcast_attn", False):
            module.reorder_and_upcast_attn = False  # the same function, and the only form that runs in float64
    return model.double().eval()


def reference_logits(model, token_ids):
    """float64 [B, T, V] of transformers. Norms and softmax of its Llama round to float32 on the way."""
    ids = torch.as_tensor(np.atleast_2d(token_ids))
    with torch.no_grad():
        return model(ids).logits.numpy()


def random_ids(shape, vocab_size, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, shape)


def deviations(logits, reference):
    """The largest difference, in standard deviations of the reference."""
    assert logits.shape == reference.shape
    return float(np.abs(logits - reference).max() / reference.std())
