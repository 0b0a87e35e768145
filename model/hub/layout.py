"""How a parameter of ours lies in a tensor of a published checkpoint, both ways, in numpy.

A checkpoint has a tensor for each layer, and may have one for each expert: our leading axes, of which a tensor holds
one entry. Each axis of the tensor is a run of our other axes, flattened. So a part of our parameter is a choice of
tensors and of places on their axes, and reading never needs a whole one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

VOCAB_AXIS = "vocab"  # the logical axis that is stored rounded up; checkpoints hold `vocab_size` rows
Groups = tuple[tuple[int, ...], ...]  # our axes behind each axis of the checkpoint's tensor


class Tensor(NamedTuple):
    """Where a parameter stands: `name`, in which `{}` is the layer's index and a second one the expert's, `layout`,
    and which of equal parts.
    """

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


def per_expert(name: str) -> Tensor:
    """`linear` of each expert, a tensor of its own (Mixtral as it was published)."""
    return Tensor(name, "per_expert")


def stacked_experts(name: str, part: int = 0, parts: int = 1) -> Tensor:
    """`linear` of all experts in one tensor, `[experts, outputs, inputs]`, of which `part` of `parts` equal ones."""
    return Tensor(name, "stacked_experts", part, parts)


def row(name: str) -> Tensor:
    """A bias as the one row of a matrix (Marian's final_logits_bias)."""
    return Tensor(name, "row")


def leading(declaration, layout: str) -> tuple[int, ...]:
    """Sizes of our leading axes, each entry of which stands in a tensor of its own: layers, and experts."""
    return declaration.shape[: declaration.stacked + (layout == "per_expert")]


def single(declaration, layout: str):
    """What one tensor holds, as a `model.parameters` declaration: without the leading axes."""
    first, apart = len(leading(declaration, layout)), int(layout == "per_expert")
    ways = {way: tuple(axis - apart for axis in getattr(declaration, way)) for way in ("inputs", "outputs")}
    return replace(declaration, shape=declaration.shape[first:], axes=declaration.axes[first:], **ways)


def groups(declaration, layout: str) -> Groups:
    """Our axes behind each axis of the tensor; `declaration` is `single`."""
    axes = tuple(range(len(declaration.shape)))
    if declaration.kind == "kernel":
        return {
            "linear": (declaration.outputs, declaration.inputs),
            "per_expert": (declaration.outputs, declaration.inputs),
            "stacked_experts": ((0,), declaration.outputs, declaration.inputs),
            "interleaved": (declaration.outputs, declaration.inputs),
            "convolution": tuple((axis,) for axis in reversed(axes)),
            "conv1d": (declaration.inputs, declaration.outputs),
        }[layout]
    if layout == "row":
        return (), axes
    return (axes,) if declaration.kind in ("bias", "scale") else tuple((axis,) for axis in axes)


def output_axis(declaration, layout: str) -> int:
    """The tensor's axis on which parts stand."""
    return 1 if declaration.kind == "kernel" and layout in ("conv1d", "stacked_experts") else 0


def sizes(declaration, vocab_size: int) -> tuple[int, ...]:
    """Sizes of our axes as checkpoints hold them."""
    pairs = zip(declaration.axes, declaration.shape, strict=True)
    return tuple(vocab_size if name == VOCAB_AXIS else size for name, size in pairs)


def tensor_shape(declaration, tensor: Tensor, vocab_size: int) -> tuple[int, ...]:
    """Shape of each tensor of the checkpoint that holds a parameter's."""
    declaration = single(declaration, tensor.layout)
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
    """The float32 part at `index` (slices, without the leading axes) of one tensor's share of a parameter.

    `take(*selectors)` gives the checkpoint's tensor at a slice or an array of places on each of its axes. Rows of
    the stored vocabulary that checkpoints do not have are zero.
    """
    declaration = single(declaration, tensor.layout)
    held = sizes(declaration, vocab_size)
    wanted = [range(*part.indices(size)) for part, size in zip(index, declaration.shape, strict=True)]
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
    """One tensor's share of a parameter as the tensor holds it, before parts are joined: `read_part`'s inverse."""
    declaration = single(declaration, tensor.layout)
    held, layout = sizes(declaration, vocab_size), groups(declaration, tensor.layout)
    value = value[tuple(slice(0, size) for size in held)]
    order = [a for group in layout for a in group]
    return value.transpose(order).reshape([math.prod(held[a] for a in group) for group in layout])


def join(parts: list[np.ndarray], declaration, tensor: Tensor) -> np.ndarray:
    """The checkpoint's tensor of what `write_part` gives of all its parameters, in the order of their parts."""
    declaration = single(declaration, tensor.layout)
    if tensor.layout != "interleaved":
        return parts[0] if len(parts) == 1 else np.concatenate(parts, output_axis(declaration, tensor.layout))
    heads = declaration.shape[declaration.outputs[0]]
    by_head = [part.reshape(heads, -1, part.shape[1]) for part in parts]
    return np.concatenate(by_head, axis=1).reshape(-1, parts[0].shape[1])
