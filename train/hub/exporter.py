"""Parameters of ours to the tensors of a published family, a group of parameters at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from model.config import Model
from model.hub.families import exported_name, expressing, places
from model.hub.family import Family
from model.hub.layout import join, leading, tensor_shape, write_part
from train.hub.importer import by_path, declared


def tensor_shapes(family: Family, model: Model, tree: dict) -> dict[str, tuple[int, ...]]:
    """`{name: shape}` of an export's tensors, in the order in which `export_tensors` gives them."""
    return {
        exported_name(family, model, place.name): tensor_shape(tree[paths[0]], place, model.vocab_size)
        for paths in groups(family, model, tree)
        for place in places(family, model, paths[0])
    }


def groups(family: Family, model: Model, tree: dict) -> list[list[str]]:
    """The paths of parameters that stand in the same tensors, together."""
    together: dict[tuple[str, ...], list[str]] = {}
    for path in tree:
        together.setdefault(tuple(place.name for place in places(family, model, path)), []).append(path)
    return list(together.values())


def export_tensors(
    family: Family, model: Model, tree: dict, leaf: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """`(name, float32 array)` of every tensor. `tree` is `{path: declaration}`; `leaf(path)` reads one, once."""
    for paths in groups(family, model, tree):
        leaves = [leaf(path) for path in paths]
        held = [places(family, model, path) for path in paths]
        for number, place in enumerate(held[0]):
            where, parts = np.unravel_index(number, leading(tree[paths[0]], place.layout)), []
            for path, value, own in sorted(zip(paths, leaves, held, strict=True), key=lambda item: item[2][0].part):
                parts.append(write_part(np.asarray(value[where]), tree[path], own[number], model.vocab_size))
            yield exported_name(family, model, place.name), join(parts, tree[paths[0]], place)


def to_memory(model: Model, params: dict, length: int) -> tuple[dict, dict[str, np.ndarray]]:
    """(config.json as a dict, float32 arrays by name) in the first family that expresses the Model."""
    tree, leaves = by_path(declared(model)), by_path(params)
    family, config = expressing(model, length, tree)
    return config, dict(export_tensors(family, model, tree, leaves.__getitem__))
