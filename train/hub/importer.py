"""Tensors of a checkpoint to parameters of ours: matched by name before anything is read, then streamed.

A parameter is made on the devices from the parts that each of them holds, so that neither the host nor a device
ever holds more than one parameter's share beside what is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import jax
import numpy as np

from data.errors import DataError
from model.config import Model
from model.hub.families import as_stored, canonical_names, family_of, from_config, is_head, of_heads, places
from model.hub.family import Family, HubError
from model.hub.layout import Tensor as Place
from model.hub.layout import leading, read_part, tensor_shape
from model.parameters import declarations, path_name
from model.transformer import Transformer, initialise
from train.hub.tensors import Tensor, equal, in_memory

LISTED = 20  # names of a kind that an error shows


@dataclass(frozen=True)
class Matched:
    """What each parameter is made of: `sources[path]` one (place, tensor) for each entry of its leading axes."""

    sources: dict[str, list[tuple[Place, Tensor]]]
    missing_heads: list[str]  # paths of parameters that are to be initialised
    unused: list[str]  # tensors of heads that the Model does not have


@cache
def declared(model: Model) -> dict:
    """The declarations of a Model's parameters; allocates nothing."""
    shapes = jax.eval_shape(lambda key: initialise(Transformer(model), key), jax.random.key(0))
    return declarations(shapes)


def by_path(tree) -> dict:
    """`{path: leaf}` of a tree of parameters."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def listing(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def match(
    family: Family, model: Model, declared: dict, tensors: Mapping[str, Tensor], heads_may_lack: bool = False
) -> Matched:
    """Find each parameter's tensors. `declared` is the tree of declarations of the Model's parameters.

    DataError listing every name that is missing, unexpected, of another shape or without floating-point
    numbers, and every alias that differs from the tensor it must equal.
    """
    try:
        names = canonical_names(family, tensors)
        family = as_stored(family, names)
        wanted = {path: places(family, model, path) for path in by_path(declared)}
    except HubError as error:
        raise DataError(f"The checkpoint cannot be read as {family.model_type}'s: {error}.") from error
    found = {name: tensors[given] for name, given in names.items()}
    expected = {place.name for held in wanted.values() for place in held}
    clashes = resolve_aliases(family, found, expected) if model.language_head else []
    missing: dict[str, str] = {}  # name: path
    for path, declaration in by_path(declared).items():
        for place in wanted[path]:
            if place.name not in found:
                missing[place.name] = path
                continue
            held, shape = found[place.name], tensor_shape(declaration, place, model.vocab_size)
            if tuple(held.shape) != shape:
                clashes.append(f"{names[place.name]} has shape {list(held.shape)}, must have {list(shape)}")
            elif not held.floating:
                clashes.append(f"{names[place.name]} does not hold floating-point numbers")
    lacking = {path for path in missing.values() if is_head(path)}
    refused = [name for name, path in missing.items() if not (heads_may_lack and path in lacking)]
    extra = set(found) - expected
    unused = sorted(names[name] for name in extra if of_heads(family, name))
    unexpected = sorted(names[name] for name in extra if not of_heads(family, name))
    refuse(family, refused, unexpected, clashes, heads=any(is_head(missing[name]) for name in refused))
    sources = {
        path: [(place, found[place.name]) for place in held] for path, held in wanted.items() if path not in lacking
    }
    return Matched(sources, sorted(lacking), unused)


def resolve_aliases(family: Family, found: dict[str, Tensor], expected: set[str]) -> list[str]:
    """Take out of `found` the second names of tensors, in place; returns what clashes.

    A file may hold only the second one: its tensor then stands for the first.
    """
    clashes = []
    for alias, name in (family.aliases or {}).items():
        if alias in expected or alias not in found:
            continue
        tensor = found.pop(alias)
        if name in expected and not equal(found.setdefault(name, tensor), tensor):
            clashes.append(f"{alias} differs from {name}, to which the model ties it")
    return clashes


def refuse(family: Family, missing: list[str], unexpected: list[str], clashes: list[str], heads: bool) -> None:
    """DataError with all that does not fit, if anything."""
    parts = [
        f"{what}: {listing(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("misshaped", clashes))
        if names
    ]
    if parts:
        fix = "; heads that the source lacks are made new with --initialise_missing_heads" if heads else ""
        raise DataError(
            f"The tensors do not fit the {family.model_type} model of the config.json: {'; '.join(parts)}{fix}."
        )


def read_params(
    matched: Matched,
    model: Model,
    declared: dict,
    shardings: dict,
    fresh: Callable[[list[str]], dict] | None = None,
) -> dict:
    """The tree of float32 parameters. `shardings`: the tree of where each belongs. `fresh(paths)` makes missing heads.

    DataError where a tensor holds a number that is not finite.
    """
    made = {} if not matched.missing_heads else fresh(matched.missing_heads)

    def parameter(path, declaration, sharding):
        name = path_name(path)
        if name in made:
            return made[name]
        sources = matched.sources[name]

        def read(index):
            return read_index(sources, declaration, model.vocab_size, index)

        return jax.make_array_from_callback(declaration.shape, sharding, read)

    return jax.tree_util.tree_map_with_path(parameter, declared, shardings)


def read_index(sources: list[tuple[Place, Tensor]], declaration, vocab_size: int, index: tuple) -> np.ndarray:
    """The part of one parameter at `index`, float32."""
    shape = [len(range(*part.indices(size))) for part, size in zip(index, declaration.shape, strict=True)]
    first = leading(declaration, sources[0][0].layout)
    chosen = np.arange(len(sources)).reshape(first)[tuple(index[: len(first)])]
    out = np.empty(shape, np.float32)
    for where, number in np.ndenumerate(chosen):
        place, tensor = sources[number]
        part = read_part(tensor.take, declaration, place, vocab_size, index[len(first) :])
        if not np.all(np.isfinite(part)):
            raise DataError(f"The tensor {place.name} holds numbers that are not finite; get another copy of the file.")
        out[where] = part
    return out


def from_memory(config: Mapping, arrays: Mapping[str, np.ndarray]) -> tuple[Model, dict]:
    """(Model, parameters on one device) of a parsed config.json and arrays by the names of its family."""
    model = from_config(config, arrays)
    tree, family = declared(model), family_of(config)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    matched = match(family, model, tree, in_memory(arrays))
    return model, read_params(matched, model, tree, jax.tree.map(lambda _: device, tree))
