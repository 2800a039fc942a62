"""Small models and hand-made safetensors files for the tests of the checkpoints."""

import json

import numpy as np
from small_models import small_model

from transformer_lab.ffn.dense import Dense
from transformer_lab.model.parameters import flatten, nest, shapes

GPT2 = small_model(vocab_size=20, context_length=8, hidden_size=8, num_layers=2, num_heads=2, ffn=Dense(size=8))
LLAMA = small_model(
    vocab_size=20,
    context_length=8,
    hidden_size=8,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=4,
    ffn=Dense(size=8, activation="silu", gated=True, bias=False),
    position="rotary",
    rotary_base=5000.0,
    norm="rms_norm",
    attention_bias=False,
    tied_head=False,
)


def random_parameters(config, seed=0):
    """The parameter tree, every element different; about half of the arrays are not C-contiguous."""
    rng = np.random.default_rng(seed)
    flat = {}
    for number, (name, shape) in enumerate(shapes(config).items()):
        array = rng.standard_normal(shape, dtype=np.float32)
        flat[name] = np.asfortranarray(array) if number % 2 else array
    return nest(flat)


def assert_same(tree, expected):
    tree, expected = dict(flatten(tree)), dict(flatten(expected))
    assert tree.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(tree[name], array, err_msg=name)


def write_raw(path, header, data=b""):
    """A safetensors file with this header (an object, or bytes as they are) and these bytes behind it."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def edit_json(path, **changes):
    """Changes fields of a JSON file; a value of `...` removes the field."""
    value = json.loads(path.read_text())
    for key, change in changes.items():
        value.pop(key, None)
        if change is not ...:
            value[key] = change
    path.write_text(json.dumps(value))
