"""How a parameter of ours lies in a tensor of a published checkpoint, both ways, in numpy.

A tensor of a checkpoint has one or two axes; each is a run of our axes, flattened. So a part of our parameter is
a choice of rows and columns there, and reading never needs a whole tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

VOCAB_AXIS = "vocab"  # the logical axis that is stored rounded up; checkpoints hold `vocab_size` rows
Groups = tuple[tuple[int, ...], ...]  # our axes behind each axis of the checkpoint's tensor


class Tensor(NamedTuple):
    """Where a parameter stands: `name`, in which `{}` is the layer's index, `layout`, and which of equal parts."""

    name: str
    layout: str
    part: int = 0
    parts: int = 1  # several parameters side by side on the output axis (GPT-2's queries, keys and values)


def plain(name: str) -> Tensor:
    """Stored as ours; a bias or a scale as one axis."""
    return Tensor(name, "plain")


def linear(name: str) -> Tensor:
    """PyTorch's Linear: `[outputs, inputs]`."""
    return Tensor(name, "linear")


def conv1d(name: str, part: int = 0, parts: int = 1) -> Tensor:
    """GPT-2's Conv1D: `[inputs, outputs]`, of which `part` of `parts` equal ones."""
    return Tensor(name, "conv1d", part, parts)


def groups(declaration, layout: str) -> Groups:
    """Our axes, without the stack's, behind each axis of the tensor. `declaration` is a `model.parameters` one."""
    axes = tuple(range(len(declaration.unstacked_shape)))
    if declaration.kind == "kernel":
        return {
            "linear": (declaration.outputs, declaration.inputs),
            "conv1d": (declaration.inputs, declaration.outputs),
        }[layout]
    return (axes,) if declaration.kind in ("bias", "scale") else tuple((axis,) for axis in axes)


def output_axis(declaration, layout: str) -> int:
    """The tensor's axis along which parts stand side by side."""
    return 1 if declaration.kind == "kernel" and layout == "conv1d" else 0


def sizes(declaration, vocab_size: int) -> tuple[int, ...]:
    """Sizes of our axes, without the stack's, as checkpoints hold them."""
    names = declaration.axes[1:] if declaration.stacked else declaration.axes
    return tuple(
        vocab_size if name == VOCAB_AXIS else size
        for name, size in zip(names, declaration.unstacked_shape, strict=True)
    )


def tensor_shape(declaration, tensor: Tensor, vocab_size: int) -> tuple[int, ...]:
    """Shape of the checkpoint's tensor that holds one layer of a parameter."""
    held = sizes(declaration, vocab_size)
    shape = [math.prod(held[axis] for axis in group) for group in groups(declaration, tensor.layout)]
    shape[output_axis(declaration, tensor.layout)] *= tensor.parts
    return tuple(shape)


def chosen(ranges: Sequence[range], within: Sequence[int]) -> slice | np.ndarray:
    """The places of a grid of `ranges` on one flattened axis; a slice where they lie side by side."""
    grid = np.ravel_multi_index(np.ix_(*ranges), tuple(within)).reshape(-1)
    if grid.size and grid[-1] - grid[0] + 1 == grid.size and np.all(np.diff(grid) == 1):
        return slice(int(grid[0]), int(grid[-1]) + 1)
    return grid


def read_part(take: Callable, declaration, tensor: Tensor, vocab_size: int, index: Sequence[slice]) -> np.ndarray:
    """The float32 part at `index` (slices, without the stack's axis) of one layer of a parameter.

    `take(*selectors)` gives the checkpoint's tensor at a slice or an array of places on each of its axes. Rows of
    the stored vocabulary that checkpoints do not have are zero.
    """
    shape, held = declaration.unstacked_shape, sizes(declaration, vocab_size)
    wanted = [range(*part.indices(size)) for part, size in zip(index, shape, strict=True)]
    real = [range(r.start, min(r.stop, size)) for r, size in zip(wanted, held, strict=True)]
    out = np.zeros([len(r) for r in wanted], np.float32)
    if not all(len(r) for r in real):
        return out
    layout, selectors = groups(declaration, tensor.layout), []
    for axis, group in enumerate(layout):
        places = chosen([real[a] for a in group], [held[a] for a in group])
        if axis == output_axis(declaration, tensor.layout) and tensor.part:
            shift = tensor.part * math.prod(held[a] for a in group)
            places = slice(places.start + shift, places.stop + shift) if isinstance(places, slice) else places + shift
        selectors.append(places)
    order = [a for group in layout for a in group]
    block = np.asarray(take(*selectors)).astype(np.float32).reshape([len(real[a]) for a in order])
    out[tuple(slice(0, len(r)) for r in real)] = block.transpose(np.argsort(order))
    return out


def write_part(value: np.ndarray, declaration, tensor: Tensor, vocab_size: int) -> np.ndarray:
    """One layer of a parameter as the checkpoint holds it, before parts are joined: `read_part`'s inverse."""
    held, layout = sizes(declaration, vocab_size), groups(declaration, tensor.layout)
    value = value[tuple(slice(0, size) for size in held)]
    order = [a for group in layout for a in group]
    return value.transpose(order).reshape([math.prod(held[a] for a in group) for group in layout])
