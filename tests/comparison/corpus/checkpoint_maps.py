"""A checkpoint is read wrongly: the folder is sound, but our backends and the truth get other weights than it holds.

Shapes fit in every case, so that no check of the loader can object.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from small_models import changed

from corpus.form import Bug, Plant, everywhere, method, shared
from corpus.models import HEADS, HIDDEN, SHORT
from transformer_lab.checkpoints import config_fields
from transformer_lab.checkpoints.tensor_names import Stored

bug = partial(Bug, kind="checkpoint_maps", needs="transformers")
LLAMA, GPT2 = "transformer_lab.checkpoints.families.llama", "transformer_lab.checkpoints.families.gpt2"
LOADING = "transformer_lab.checkpoints.loading"


def planted(model: str, *patches: Any) -> Plant:
    return shared(*patches, model=model, prompts=SHORT, transformers=True, more={"new_tokens": 0})


def where_it_lies(end: str, change: Callable[[Stored], Stored], family: str = LLAMA) -> Any:
    """Another place in the file for our parameters whose names end so."""

    def wrong(right: Any, self: Any, config: Any) -> dict[str, Stored]:
        return {name: change(form) if name.endswith(end) else form for name, form in right(self, config).items()}

    return method("transformer_lab.checkpoints.tensor_names", "TensorNames", "stored", wrong)


def what_is_read(part: str, change: Callable[[np.ndarray], Any]) -> Any:
    """change(array as it is stored) for what is read from tensors with `part` in the name."""

    def wrong(right: Any, stored: Stored, *rest: Any) -> Any:
        array = right(stored, *rest)
        if not any(part in name for name, _ in stored.parts):
            return array
        found = np.ascontiguousarray(change(np.array(array.T if stored.transposed else array)), array.dtype)
        return found.T if stored.transposed else found

    return everywhere(LOADING, "_read", wrong)


def renamed(change: Callable[[str], str]) -> Any:
    """Each tensor is read from where change(name) is."""

    def wrong(right: Any, stored: Stored, *rest: Any) -> Any:
        parts = tuple((change(name), shape) for name, shape in stored.parts)
        return right(replace(stored, parts=parts), *rest)

    return everywhere(LOADING, "_read", wrong)


def exchanged(first: str, second: str) -> Callable[[str], str]:
    def change(name: str) -> str:
        return name.replace(first, "?").replace(second, first).replace("?", second)

    return change


def configured(family: str, **fields: Any) -> Any:
    return everywhere(family, "config_from", lambda right, given: changed(right(given), **fields))


def keys_permuted_for_all_heads(rows: np.ndarray) -> np.ndarray:
    """The order of Meta's files, undone with the number of key heads and done with the number of query heads."""
    keys = rows[HIDDEN : HIDDEN + HIDDEN // 2]
    halves = keys.reshape(HEADS // 2, 2, -1, HIDDEN).transpose(0, 2, 1, 3)  # pairs side by side
    pairs = halves.reshape(HEADS, -1, 2, HIDDEN).transpose(0, 2, 1, 3)
    rows[HIDDEN : HIDDEN + HIDDEN // 2] = pairs.reshape(keys.shape)
    return rows


def pairs_side_by_side(rows: np.ndarray) -> np.ndarray:
    """Queries and keys in the order of Meta's files."""
    turned = rows[: 2 * HIDDEN].reshape(2 * HEADS, 2, -1, HIDDEN).transpose(0, 2, 1, 3)
    return np.concatenate([turned.reshape(2 * HIDDEN, HIDDEN), rows[2 * HIDDEN :]])


def by_head(columns: np.ndarray) -> np.ndarray:
    """The columns as query, key and value of head 0, of head 1, ..."""
    apart = columns.reshape(*columns.shape[:-1], HEADS, 3, -1)
    return apart.swapaxes(-2, -3).reshape(columns.shape)


def keys_without_bias(bias: np.ndarray) -> np.ndarray:
    if bias.ndim == 1:
        bias[HIDDEN : HIDDEN + HIDDEN // 2] = 0.0
    return bias


@contextmanager
def exact_gelu_taken_for_the_other() -> Iterator[None]:
    with patch.dict(config_fields.ACTIVATIONS, {"gelu": "gelu_tanh"}):
        yield


BUGS = (
    bug(
        "query and key projections exchanged",
        says="The packed kernel is joined as key, query, value; without groups all shapes fit.",
        place="blocks.*.attn.q",
        plant=planted(
            "llama without groups",
            where_it_lies(
                "attn.qkv.kernel",
                lambda form: Stored((form.parts[1], form.parts[0], form.parts[2]), form.transposed),
            ),
        ),
    ),
    bug(
        "output projection not transposed",
        says="o_proj is square, so a missing transposition fits: the oldest mistake of ports from Linear to Conv1D.",
        place="blocks.*.attn.out",
        plant=planted("llama", where_it_lies("attn.out.kernel", lambda form: replace(form, transposed=False))),
    ),
    bug(
        "gate and up exchanged",
        says="gate_proj is read as up_proj and the other way round, as with fused gate_up kernels of another order.",
        place="blocks.*.ffn.pre",
        plant=planted("llama", renamed(exchanged("gate_proj", "up_proj"))),
    ),
    bug(
        "norms of a block exchanged",
        says="post_attention_layernorm is taken for the norm before the attention, as its name might say.",
        place="blocks.*.norm_1",
        plant=planted("llama", renamed(exchanged("input_layernorm", "post_attention_layernorm"))),
    ),
    bug(
        "norms of two layers exchanged",
        says="The norms before the attention of layers 0 and 1 are exchanged.",
        place="blocks.0.norm_1",
        plant=planted("llama", renamed(exchanged("layers.0.input_layernorm", "layers.1.input_layernorm"))),
    ),
    bug(
        "final norm from the last block",
        says="A pattern for norm.weight finds the last block's second norm before the final one.",
        place="final_norm",
        plant=planted(
            "llama",
            renamed(lambda name: "layers.2.post_attention_layernorm.weight" if name == "norm.weight" else name),
        ),
    ),
    bug(
        "bias of the keys missing",
        says="Of the three biases that are joined the one of the keys stays zero. A bias of the keys has no influence "
        "without rotary positions, so it is easy to think that it never has.",
        place="blocks.*.attn.k",
        plant=planted("llama with biases", what_is_read("self_attn.k_proj.bias", keys_without_bias)),
    ),
    bug(
        "rows of the keys permuted for the number of query heads",
        says="Converters turn the rotary order of the rows head by head; with grouped heads the keys have fewer heads. "
        "llama.cpp's converter had to learn it for Llama 2 70B.",
        place="blocks.*.attn.k",
        plant=planted("llama", what_is_read("k_proj.weight", keys_permuted_for_all_heads)),
    ),
    bug(
        "rotary order of the rows not undone",
        says="Queries and keys stay in the order of pairs side by side, and are turned as halves.",
        place="blocks.*.attn.q",
        plant=planted("llama without groups", what_is_read("q_proj.weight", pairs_side_by_side)),
    ),
    bug(
        "epsilon of the norms not read",
        says="The file says 1e-5, but the reader looks for another name and takes its default, 1e-6.",
        place="blocks.*.norm_1",
        plant=planted("llama, quiet", configured(LLAMA, norm_epsilon=1e-6)),
    ),
    bug(
        "norm weights taken as offsets from 1",
        says="1 is added to each norm weight while it is read, as for Gemma, whose files hold them so.",
        place="blocks.*.norm_1",
        plant=planted("llama", what_is_read("norm.weight", lambda weight: weight + 1.0)),
    ),
    bug(
        "rotary base in rope_parameters not found",
        says="The reader knows rope_theta at the top of config.json alone, and takes 10000.",
        place="blocks.*.attn.q",
        plant=planted("llama with base 500000", configured(LLAMA, rotary_base=10000.0)),
    ),
    bug(
        "a head of its own thrown away",
        says="tie_word_embeddings is false, but the reader ties every head and never looks at lm_head.weight.",
        place="logits",
        plant=planted(
            "llama",
            configured(LLAMA, tied_head=True),
            everywhere("transformer_lab.checkpoints.tied_head", "head_differs", lambda right, *given: False),
        ),
    ),
    bug(
        "gelu read as the tanh form",
        says="'gelu' in config.json is the exact one; it is mapped to the approximation. With Gemma it was the other "
        "way round.",
        place="blocks.*.ffn.act",
        plant=planted("gpt2 with the exact GELU", exact_gelu_taken_for_the_other),
    ),
    bug(
        "packed columns read head by head",
        says="c_attn is read as query, key and value of each head in turn, as GPT-NeoX and BLOOM pack them.",
        place="blocks.*.attn.q",
        plant=planted("gpt2", what_is_read("c_attn", by_head)),
    ),
    bug(
        "scaling by the layer's number not read",
        says="scale_attn_by_inverse_layer_idx is passed over.",
        place="blocks.1.attn.scores",
        plant=planted("gpt2 scaled by layer", configured(GPT2, attention_scale_by_layer=False)),
    ),
)
