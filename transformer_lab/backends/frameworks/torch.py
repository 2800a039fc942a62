"""The PyTorch backend: CPU, CUDA and MPS, eager. The only file that names torch."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from transformer_lab.backends.base import Backend, Implementation
from transformer_lab.backends.frameworks import low_precision
from transformer_lab.backends.plain import manual
from transformer_lab.errors import UnavailableError

try:
    import array_api_compat.torch as array_namespace
    import torch
    from torch.nn import functional
except ImportError as error:
    message = "The torch backend needs PyTorch, which is not installed. Run: pip install 'transformer_lab[torch]'"
    raise UnavailableError(message) from error


LARGEST_DENORMAL = 2.0**-126 - 2.0**-149  # of float32


def linear(ops: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    return functional.linear(x, kernel.T, bias)


def pack_transposed(ops: Any, kernel: np.ndarray) -> Any:
    """[in, out] as a view of a tensor stored [out, in], the form that functional.linear reads best."""
    return ops.asarray(np.ascontiguousarray(kernel.T)).T


def plain_unavailable(ops: Any) -> str | None:
    return None if ops.precision in ("float32", "float64") else "functional.linear serves float32 and float64."


def onednn_product(a: Any, b: Any) -> Any:
    """a [M, K] @ b [K, N], both strided tensors, by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")


def product_of(rows: Any) -> Callable[[Any, Any], Any]:
    """How matrices are multiplied in training with these rows [R, in].

    torch's own products of float32 reach half to four fifths of oneDNN's rate on an AMD processor. But oneDNN compiles
    for each R anew, and that of an expert is another in each step; and in bfloat16 torch's own are oneDNN's already.
    """
    fixed = rows.shape[0] % 64 == 0  # as of whole windows
    return onednn_product if fixed and rows.dtype == torch.float32 else torch.mm


class TrainableProduct(torch.autograd.Function):  # type: ignore[misc]
    """rows [R, in] times a plain kernel [in, out], for training: Y = X K, dX = dY K^T, dK = X^T dY.

    In bfloat16 all three products round their inputs and their results to bfloat16; the kernel and its gradient stay
    float32.
    """

    @staticmethod
    def forward(context: Any, rows: Any, kernel: Any, dtype: Any) -> Any:
        rows, kernel = rows.to(dtype), kernel.to(dtype)
        context.save_for_backward(rows, kernel)
        return product_of(rows)(rows, kernel).float()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, gradient: Any) -> Any:
        rows, kernel = context.saved_tensors
        gradient = gradient.to(rows.dtype)
        product = product_of(rows)
        return product(gradient, kernel.T).float(), product(rows.T, gradient).float(), None


def trainable_linear(x: Any, kernel: Any, bias: Any, dtype: Any) -> Any:
    rows = x.reshape(-1, x.shape[-1])
    y = TrainableProduct.apply(rows, kernel, dtype).reshape(*x.shape[:-1], kernel.shape[1])
    return y if bias is None else y + bias


def onednn_linear(ops: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """x times a kernel in oneDNN's own blocked layout, or a plain one that is trained."""
    if not kernel.is_mkldnn:
        return trainable_linear(x, kernel, bias, torch.float32)
    return torch.ops.mkldnn._linear_pointwise(x, kernel, bias, "none", [], "")


def onednn_pack(ops: Any, kernel: np.ndarray) -> Any:
    return torch.ops.mkldnn._reorder_linear_weight(ops.asarray(np.ascontiguousarray(kernel.T)))


def onednn_unpack(ops: Any, kernel: Any) -> np.ndarray:
    return np.asarray(kernel.to_dense().float().numpy().T)


def onednn_unavailable(ops: Any) -> str | None:
    """oneDNN's packed product is private to torch: it is used where it is there and right, and only then."""
    if ops.precision != "float32" or ops.device != "cpu":
        return "oneDNN's packed product serves float32 on the CPU."
    return _probe(ops, onednn_linear, onednn_pack, onednn_unpack)


class TiedHead(NamedTuple):
    """A head packed in fewer bits, and the embedding table [V, D] in float32 that it was made from."""

    packed: Any
    table: Any


LARGEST = 8


def largest_again(x: Any, logits: Any, table: Any) -> Any:
    """x [..., D], logits [..., V] -> logits with the few largest of each row computed again in float32.

    torch's bfloat16 and int8 products return bfloat16. Its steps are as wide as the distance between the first and the
    second token in one of seventy places of a text, so they, not the weights, would decide many a greedy token.
    """
    rows, found = x.reshape(-1, x.shape[-1]), logits.reshape(-1, logits.shape[-1])
    places = found.topk(min(LARGEST, found.shape[1])).indices  # [R, k]
    again = torch.bmm(table[places], rows[:, :, None])[:, :, 0]
    return found.scatter_(1, places, again).reshape(logits.shape)


def onednn_bfloat16_linear(ops: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """x, rounded to bfloat16, times a packed bfloat16 kernel; summed in float32, rounded to bfloat16, widened."""
    if isinstance(kernel, TiedHead):
        return largest_again(x, onednn_bfloat16_linear(ops, x, kernel.packed), kernel.table)
    if not kernel.is_mkldnn:
        return trainable_linear(x, kernel, bias, torch.bfloat16)
    y = torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), kernel, None, "none", [], "").float()
    return y if bias is None else y.add_(bias)


def onednn_bfloat16_pack(ops: Any, kernel: np.ndarray) -> Any:
    return torch.ops.mkldnn._reorder_linear_weight(low_precision.pack(ops, kernel))


def onednn_bfloat16_unavailable(ops: Any) -> str | None:
    if ops.precision != "bfloat16" or ops.device != "cpu":
        return "oneDNN's packed bfloat16 product serves bfloat16 on the CPU."
    return _probe(ops, onednn_bfloat16_linear, onednn_bfloat16_pack, onednn_unpack)


def int8_linear(ops: Any, x: Any, kernel: low_precision.Int8Kernel, bias: Any = None) -> Any:
    """x, rounded to bfloat16, times int8 values and their scales; the result comes in bfloat16."""
    if isinstance(kernel, TiedHead):
        return largest_again(x, int8_linear(ops, x, kernel.packed), kernel.table)
    if kernel.values.shape[1] % 16:  # there torch's product reads past the rows, and is wrong or ends the process
        return low_precision.linear(ops, x, kernel, bias)
    rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
    y = torch._weight_int8pack_mm(rows, kernel.values, kernel.scales).float().reshape(*x.shape[:-1], -1)
    return y if bias is None else y.add_(bias)


def int8_pack(ops: Any, kernel: np.ndarray) -> low_precision.Int8Kernel:
    values, scales = low_precision.pack(ops, kernel)
    return low_precision.Int8Kernel(values, scales.to(torch.bfloat16))  # exactly: see low_precision.quantise


def int8_unpack(ops: Any, kernel: low_precision.Int8Kernel) -> np.ndarray:
    return np.asarray((kernel.values.float() * kernel.scales.float()[:, None]).numpy().T)


def int8_unavailable(ops: Any) -> str | None:
    if ops.precision != "int8" or ops.device != "cpu":
        return "torch's int8 product serves int8 on the CPU."
    return _probe(ops, int8_linear, int8_pack, int8_unpack)


def _probe(ops: Any, run: Any, pack: Any, unpack: Any) -> str | None:
    """Whether a private product of torch is there, and right: None, or why not."""
    try:
        values = np.random.default_rng(0).standard_normal((3, 48, 32)).astype(np.float32)
        x, kernel, bias = values[0, :4], values[1, :32, :16], values[2, 0, :16]
        packed = pack(ops, kernel)
        stored = unpack(ops, packed).astype(np.float64)
        # Products in bfloat16 keep 8 bits: of x, and of the result.
        tolerance = 1e-4 if ops.precision == "float32" else 0.1
        np.testing.assert_allclose(stored, kernel, rtol=0, atol=0.02 if ops.precision != "float32" else 0)
        with torch.no_grad():
            for rows in (x, x[:1]):
                y = run(ops, ops.asarray(rows), packed, ops.asarray(bias)).numpy()
                np.testing.assert_allclose(y, rows @ stored + bias, rtol=0, atol=tolerance)
    except (AttributeError, RuntimeError, TypeError, AssertionError) as error:
        return f"this torch does not offer it ({str(error).strip().splitlines()[0]})."
    return None


def layer_norm(ops: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    return functional.layer_norm(x, (x.shape[-1],), weight, bias, epsilon)


def rms_norm(ops: Any, x: Any, weight: Any, epsilon: float) -> Any:
    return functional.rms_norm(x, (x.shape[-1],), weight, epsilon)


def attention(
    ops: Any,
    query: Any,
    key: Any,
    value: Any,
    start: Any,
    scale: float,
    window: int | None = None,
    tap: Any = manual.identity,
    places: Any = None,
) -> Any:
    """torch's scaled_dot_product_attention; it shows neither scores nor pattern."""
    queries, keys = query.shape[2], key.shape[2]
    # start + T <= S always holds, so S = T says that every row starts at 0.
    causal = queries == keys and (window is None or keys <= window) and places is None
    mask = None if causal else manual.visible_keys(ops, start, queries, keys, window, places)[:, None]
    return functional.scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


def cross_entropy(ops: Any, logits: Any, targets: Any) -> Any:
    rows = logits.reshape(-1, logits.shape[-1])
    return functional.cross_entropy(rows, targets.reshape(-1), reduction="none").reshape(targets.shape)


class TorchBackend(Backend):
    """PyTorch. device: "cpu", "cuda", "cuda:1", "mps", ..."""

    name = "torch"
    piece = 1 << 17  # shared between the cores
    precisions = ("float32", "float64", "exact", "bfloat16", "int8")
    implementations: ClassVar[Mapping[str, Mapping[str, Implementation]]] = {
        "linear": {
            "onednn": Implementation(onednn_linear, onednn_unavailable, onednn_pack, onednn_unpack),
            "onednn_bfloat16": Implementation(
                onednn_bfloat16_linear, onednn_bfloat16_unavailable, onednn_bfloat16_pack, onednn_unpack
            ),
            "int8": Implementation(int8_linear, int8_unavailable, int8_pack, int8_unpack),
            "torch": Implementation(linear, plain_unavailable, pack_transposed),
        },
        "layer_norm": {"torch": Implementation(layer_norm)},
        "rms_norm": {"torch": Implementation(rms_norm)},
        "gelu_tanh": {"torch": Implementation(lambda ops, x: functional.gelu(x, approximate="tanh"))},
        "gelu_erf": {"torch": Implementation(lambda ops, x: functional.gelu(x))},
        "relu": {"torch": Implementation(lambda ops, x: functional.relu(x))},
        "silu": {"torch": Implementation(lambda ops, x: functional.silu(x))},
        "softmax": {"torch": Implementation(lambda ops, x: functional.softmax(x, dim=-1))},
        "attention": {"sdpa": Implementation(attention)},
        "cross_entropy": {"torch": Implementation(cross_entropy)},
    }
    xp = array_namespace

    def open_device(self, device: str) -> None:
        self.version = torch.__version__
        try:
            self.array_device = torch.device(device)
            torch.zeros(1, device=self.array_device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            message = f"torch has no device {device!r} on this machine ({reason}). Use backend.device=cpu."
            raise UnavailableError(message) from error
        self.float_dtype: Any = torch.float64 if self.precision == "float64" else torch.float32
        self.index_dtype: Any = torch.int64

    def place_tied_head(self, table: Any) -> Any:
        packed = super().place_tied_head(table)
        return TiedHead(packed, table) if self.ops["linear"] in ("onednn_bfloat16", "int8") else packed

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        tensor = x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x, copy=None, order="C"))
        if dtype is None:
            dtype = self.float_dtype if tensor.dtype.is_floating_point else self.index_dtype
        return tensor.to(device=self.array_device, dtype=dtype)

    def to_numpy(self, x: Any) -> np.ndarray:
        result: np.ndarray = x.detach().cpu().numpy()
        return result

    def cast(self, x: Any, dtype: Any) -> Any:
        return x.to(dtype)

    def wait(self, x: Any) -> Any:
        if self.array_device.type == "cuda":
            torch.cuda.synchronize(self.array_device)
        return x

    def slice_update(self, target: Any, update: Any, start: Any, axis: int) -> Any:
        length = update.shape[axis]
        if target.shape[0] == 1:
            positions = start if length == 1 else start + torch.arange(length, device=start.device)
            return target.index_copy_(axis, positions, update)
        # One index for each row and position, laid over the other axes by scatter.
        positions = start[:, None] + torch.arange(length, device=start.device)
        shape = [update.shape[0]] + [1] * (update.ndim - 1)
        shape[axis] = length
        return target.scatter_(axis, positions.reshape(shape).expand(update.shape), update)

    def scatter_add(self, target: Any, index: Any, update: Any) -> Any:
        return target.index_add_(0, index, update)

    def erfc(self, x: Any) -> Any:
        return torch.special.erfc(x)

    def flush(self, x: Any) -> Any:
        return functional.hardshrink(x, LARGEST_DENORMAL)

    def power_of_two_above(self, x: Any) -> Any:
        exponents = torch.frexp(x).exponent.to(torch.int64)
        return ((exponents + 1023) << 52).view(torch.float64)  # the bits of 2^exponent

    def compile(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        def eager(*arguments: Any) -> Any:
            with torch.no_grad():  # and not inference_mode, whose results cannot be trained any further
                return function(*arguments)

        return eager

    def value_and_grad(self, function: Callable[..., Any], extra: bool = False) -> Callable[..., tuple[Any, Any]]:
        def both(params: Any, *arguments: Any) -> tuple[Any, Any]:
            leaves, structure = torch.utils._pytree.tree_flatten(params)
            with torch.enable_grad():
                leaves = [leaf.detach().requires_grad_() for leaf in leaves]
                found = function(torch.utils._pytree.tree_unflatten(leaves, structure), *arguments)
                value = found[0] if extra else found
                gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
            found = torch.utils._pytree.tree_map(lambda leaf: leaf.detach(), found)
            return found, torch.utils._pytree.tree_unflatten(list(gradients), structure)

        return both
