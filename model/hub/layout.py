"""How a parameter of ours lies in a tensor of a published checkpoint, both ways, in numpy.

Each axis of a checkpoint's tensor is a run of our axes, flattened. So a part of our parameter is a choice of places
on its axes, and reading never needs a whole tensor.
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
    parts: int = 1  # several parameters on the output axis (GPT-2's queries, keys and values)


def plain(name: str) -> Tensor:
    """Stored as ours; a bias or a scale as one axis."""
    return Tensor(name, "plain")


def linear(name: str) -> Tensor:
    """PyTorch's Linear: `[outputs, inputs]`."""
    return Tensor(name, "linear")


def conv1d(name: str, part: int = 0, parts: int = 1) -> Tensor:
    """GPT-2's Conv1D: `[inputs, outputs]`, of which `part` of `parts` equal ones."""
    return Tensor(name, "conv1d", part, parts)


def interleaved(name: str, part: int, parts: int) -> Tensor:
    """`linear` of several parameters, those of the first head before all of the second (DeBERTa v1's in_proj)."""
    return Tensor(name, "interleaved", part, parts)


def convolution(name: str) -> Tensor:
    """PyTorch's Conv1d, `[outputs, inputs, width]`; our kernel is `[width, inputs, outputs]`."""
    return Tensor(name, "convolution")


def row(name: str) -> Tensor:
    """A bias as the one row of a matrix (Marian's final_logits_bias)."""
    return Tensor(name, "row")


def groups(declaration, layout: str) -> Groups:
    """Our axes, without the stack's, behind each axis of the tensor. `declaration` is a `model.parameters` one."""
    axes = tuple(range(len(declaration.unstacked_shape)))
    if declaration.kind == "kernel":
        return {
            "linear": (declaration.outputs, declaration.inputs),
            "interleaved": (declaration.outputs, declaration.inputs),
            "convolution": tuple((axis,) for axis in reversed(axes)),
            "conv1d": (declaration.inputs, declaration.outputs),
        }[layout]
    if layout == "row":
        return (), axes
    return (axes,) if declaration.kind in ("bias", "scale") else tuple((axis,) for axis in axes)


def output_axis(declaration, layout: str) -> int:
    """The tensor's axis on which parts stand."""
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
        ranges, within = [real[a] for a in group], [held[a] for a in group]
        if axis == output_axis(declaration, tensor.layout):
            behind = 1 if tensor.layout == "interleaved" else 0  # heads, or nothing
            ranges.insert(behind, range(tensor.part, tensor.part + 1))
            within.insert(behind, tensor.parts)
        selectors.append(chosen(ranges, within))
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


def join(parts: list[np.ndarray], declaration, tensor: Tensor) -> np.ndarray:
    """The checkpoint's tensor of what `write_part` gives of all its parameters, in the order of their parts."""
    if tensor.layout != "interleaved":
        return parts[0] if len(parts) == 1 else np.concatenate(parts, output_axis(declaration, tensor.layout))
    heads = declaration.unstacked_shape[declaration.outputs[0]]
    by_head = [part.reshape(heads, -1, part.shape[1]) for part in parts]
    return np.concatenate(by_head, axis=1).reshape(-1, parts[0].shape[1])
