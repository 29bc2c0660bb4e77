"""Where the cells of a network's last feature map look, found by sending coordinates through the network.

Images whose pixels hold their own row, or column, pass through the network with every layer in place of which only its placement is
left: a convolution or pooling averages what its kernel covers, borders go on as they were going, norms and activations let pass, gates
and attention add nothing. What comes out at a cell is the middle of what that cell sees, whatever the network's size, borders or padding.
This is exact where all layers place alike, as they are meant to; where what comes out is no even grid, the geometry says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

GRID_TOLERANCE_PX = 1e-3
"""Float32's error over some hundred layers is a hundredth of this; a cell out of place is off by 0.5 or more."""
SPAN = (0.4, 1.5)
"""Cells times stride, of the input's side: Inception-v3, which pads nothing in its stem, has 0.86 at 299 pixels and 0.5 at 128. A
network that mixes all cells in each layer (MLP-Mixer) has a thousandth: each mixing halves the distance between what its cells see."""


@dataclass(frozen=True)
class Geometry:
    """Cell i of the last feature map is centred on input pixel `cell_offset + cell_stride * i`, along both axes."""

    cell_stride: float
    cell_offset: float
    exact: bool = True
    """False: it could not be found by measuring, and is that of cells which share the input evenly."""


def centred_geometry(side: int, cells: int) -> Geometry:
    """Cells that share an input of `side` pixels evenly: what is assumed where measuring fails."""
    stride = side / cells
    return Geometry(stride, (stride - 1) / 2, exact=False)


def measured_geometry(
    net: nn.Module, features: Callable[[nn.Module, torch.Tensor], torch.Tensor], channels: int, shape: Sequence[int]
) -> tuple[Geometry, ...]:
    """The geometry along each axis of inputs of `shape` (rows, columns; or depth, rows, columns), of the map that `features` gives.

    The map needs two cells at least along each axis. `net` is left as it is. ArithmeticError where the cells are on no even grid; whatever
    else the network's code raises at inputs that it does not expect.
    """
    ramps = [_ramp(axis, shape) for axis in range(len(shape))]
    inputs = torch.stack([*ramps, torch.ones(tuple(shape))]).unsqueeze(1)
    inputs = inputs.expand(-1, channels, *shape).contiguous()
    nothing = {name: torch.zeros(()).expand(parameter.shape) for name, parameter in net.named_parameters()}
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad(), _Placement():
            found = functional_call(
                _Called(net, features), {f"net.{name}": nought for name, nought in nothing.items()}, inputs
            )
    finally:
        net.train(was_training)
    found = found.mean(dim=1)
    places = found[:-1] / found[-1]
    return tuple(_even_grid(places[axis], axis, shape[axis]) for axis in range(len(shape)))


class _Called(nn.Module):
    """Makes a function of a module a module of its own."""

    def __init__(self, net: nn.Module, features: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.net, self.features = net, features

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.features(self.net, inputs)


def _ramp(axis: int, shape: Sequence[int]) -> torch.Tensor:
    along = [1] * len(shape)
    along[axis] = -1
    return torch.arange(shape[axis], dtype=torch.float32).view(along).expand(tuple(shape))


def _even_grid(places: torch.Tensor, axis: int, side: int) -> Geometry:
    """Stride and offset of `places` (cells along each axis), where the cells of the map look along `axis`."""
    cells = places.movedim(axis, 0).flatten(1).double()
    if not bool(torch.isfinite(cells).all()) or len(cells) < 2:
        raise ArithmeticError("cells of no place, or a single one")
    stride = float((cells[-1] - cells[0]).mean()) / (len(cells) - 1)
    offset = float(cells[0].mean())
    grid = offset + stride * torch.arange(len(cells), dtype=torch.float64)
    if float((cells - grid[:, None]).abs().max()) > GRID_TOLERANCE_PX:
        raise ArithmeticError("cells on no even grid")
    if not SPAN[0] <= stride * len(cells) / side <= SPAN[1]:
        raise ArithmeticError("cells that do not span the image")
    return Geometry(_whole(stride), _whole(offset))


def _whole(value: float) -> float:
    """Strides and offsets are multiples of halves; what is within the tolerance of one is it."""
    near = round(value * 2) / 2
    return near if abs(near - value) < GRID_TOLERANCE_PX else value


class _Placement(TorchDispatchMode):
    """Runs a network's operations with only their placement left."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _RULES:
            return _RULES[name](func, *args, **kwargs)
        if name in _LET_PASS:
            return args[0].clone()
        if name.removesuffix("_") in _LET_PASS:
            return args[0]
        if name.startswith(_SILENT):
            return tree_map(_silence, func(*args, **kwargs))
        return func(*args, **kwargs)


_LET_PASS = frozenset(
    (
        *(
            "relu",
            "silu",
            "gelu",
            "hardtanh",
            "hardswish",
            "leaky_relu",
            "elu",
            "sigmoid",
            "hardsigmoid",
            "tanh",
            "mish",
        ),
        *("softplus", "clamp", "clamp_min", "_prelu_kernel", "celu", "threshold"),
    )
)
"""Activations: what is more stays more, where it is."""

_SILENT = (
    "mean",
    "var",
    "std",
    "amax",
    "amin",
    "linalg_vector_norm",
    "_adaptive_avg_pool",
    "adaptive_max_pool",
    "_softmax",
    "bmm",
    "baddbmm",
    "_scaled_dot_product",
)
"""What gathers from the whole image (pooling of gates, statistics, attention) says nothing about places: it becomes 0."""


def _silence(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _normalised(func: Any, x: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
    """Batch, layer and group norm give three tensors, of which a forward pass uses the first."""
    nothing = x.new_zeros(0)
    return x.clone(), nothing, nothing


def _batch_norm_with_reserve(func: Any, x: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
    return *_normalised(func, x), x.new_zeros(0)


def _larger(func: Any, a: Any, b: Any, **kwargs: Any) -> torch.Tensor:
    """A product or quotient of an image and a gate (or a scale) is the image: the operand of more numbers."""
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor) or 0 in (a.ndim, b.ndim):
        return func(a, b, **kwargs)
    kept = a if a.numel() > b.numel() or (a.numel() == b.numel() and _weight(a) >= _weight(b)) else b
    return kept.expand(torch.broadcast_shapes(a.shape, b.shape)).clone()


def _larger_in_place(func: Any, a: torch.Tensor, b: Any) -> torch.Tensor:
    if isinstance(b, torch.Tensor) and b.ndim and a.ndim:
        return a.copy_(_larger(func, a, b))
    return func(a, b)


def _weight(x: torch.Tensor) -> float:
    return float(x.abs().amax()) if x.numel() else 0.0


def _linear(func: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(n, in) @ (in, out): the mean over what comes in, for each that goes out."""
    return x.mean(dim=1, keepdim=True).expand(len(x), weight.shape[1]).contiguous()


def _linear_with_bias(func: Any, bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, **_: Any) -> torch.Tensor:
    return _linear(func, x, weight)


def _convolved(
    func: Any,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> torch.Tensor:
    """Each group's channels are averaged over the kernel; borders go on."""
    if transposed:
        raise NotImplementedError("a transposed convolution")
    kernel, dims = weight.shape[2:], weight.ndim - 2
    averaged = x.unflatten(1, (groups, -1)).mean(dim=2)
    for axis, width in enumerate(_each(padding, dims)):
        averaged = _went_on(averaged, 2 + axis, width, width)
    for axis in range(dims):
        averaged = _box(averaged, 2 + axis, kernel[axis], _each(stride, dims)[axis], _each(dilation, dims)[axis])
    return averaged.repeat_interleave(weight.shape[0] // groups, dim=1)


def _pooled(
    func: Any,
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    *rest: Any,
) -> torch.Tensor:
    """Average and max pooling; the size is that of the real operation (ceil_mode rounds it up)."""
    real = func(x, kernel, stride, padding, *rest)
    shape = (real[0] if isinstance(real, tuple) else real).shape
    dims = len(shape) - 2
    kernels, strides, paddings = _each(kernel, dims), _each(stride or kernel, dims), _each(padding, dims)
    for axis in range(dims):
        at = 2 + axis
        needed = (shape[at] - 1) * strides[axis] + kernels[axis] - paddings[axis] - x.shape[at]
        x = _went_on(x, at, paddings[axis], max(needed, 0))
        x = _box(x, at, kernels[axis], strides[axis], 1).narrow(at, 0, shape[at])
    return x.contiguous()


def _max_pooled(func: Any, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    found = _pooled(func, *args)
    return found, torch.zeros_like(found, dtype=torch.int64)


def _padded(func: Any, x: torch.Tensor, widths: Sequence[int], *_: Any) -> torch.Tensor:
    """Padding of any kind, last axis first as torch has it."""
    if min(widths) < 0:
        return func(x, widths, *_)
    for number in range(len(widths) // 2):
        x = _went_on(x, x.ndim - 1 - number, widths[2 * number], widths[2 * number + 1])
    return x.contiguous()


def _went_on(x: torch.Tensor, axis: int, before: int, after: int) -> torch.Tensor:
    """Widened along `axis` by going on as it went: linearly."""
    if not before and not after:
        return x
    size = x.shape[axis]
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, size - 1, 1)
    step = (last - first) / max(size - 1, 1)
    shape = [1] * x.ndim
    shape[axis] = -1
    left = first - step * torch.arange(before, 0, -1, dtype=x.dtype).view(shape)
    right = last + step * torch.arange(1, after + 1, dtype=x.dtype).view(shape)
    return torch.cat([left, x, right], dim=axis)


def _box(x: torch.Tensor, axis: int, kernel: int, stride: int, dilation: int) -> torch.Tensor:
    """Mean over a kernel along one axis."""
    if kernel == 1 and stride == 1:
        return x
    windows = x.unfold(axis, (kernel - 1) * dilation + 1, stride)
    return windows[..., ::dilation].mean(dim=-1)


def _each(values: Sequence[int] | int, dims: int) -> list[int]:
    listed = [values] if isinstance(values, int) else list(values)
    return listed * dims if len(listed) == 1 else listed


_RULES: dict[str, Callable[..., Any]] = {
    "convolution": _convolved,
    "mm": _linear,
    "addmm": _linear_with_bias,
    "mul": _larger,
    "div": _larger,
    "mul_": _larger_in_place,
    "div_": _larger_in_place,
    "avg_pool2d": _pooled,
    "avg_pool3d": _pooled,
    "max_pool2d_with_indices": _max_pooled,
    "max_pool3d_with_indices": _max_pooled,
    "constant_pad_nd": _padded,
    "reflection_pad2d": _padded,
    "replication_pad2d": _padded,
    "native_batch_norm": _normalised,
    "_native_batch_norm_legit_no_training": _normalised,
    "native_layer_norm": _normalised,
    "native_group_norm": _normalised,
    "_fused_rms_norm": _normalised,
    "_batch_norm_with_update": _batch_norm_with_reserve,
}
