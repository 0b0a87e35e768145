"""Where arrays live: a named mesh, a table from logical axes to mesh axes, and one function between them.

Everything is resolved before compiling, by `spec`, which raises; Flax's own logical rules are not used, since
they are silent where a name is misspelt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data.errors import ConfigError
from model.parameters import path_name
from model.placement import Anywhere
from train import config as cfg
from train.checks import mesh_sizes

Rules = Mapping[str, str | tuple[str, ...] | None]

AXES = ("data", "fsdp", "expert", "tensor")  # outermost first: neighbours on the last talk most

# Logical axis -> the mesh axes that divide it. Fully sharded data parallelism (`fsdp`) divides parameters on
# their embedding axis and the batch on its rows; `tensor` divides heads, hidden units and vocabulary; `expert` divides
# the batch too, and experts among its devices (Lepikhin et al. 2020, section 3).
RULES: Rules = {
    "batch": ("data", "fsdp", "expert"),
    "length": None,
    "predictions": None,
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "hidden": "tensor",
    "experts": "expert",
    "vocab": "tensor",
    "positions": None,
    "token_types": None,
    "classes": None,
    "norm": None,
    "router": None,  # the outputs of a router, which every device reads whole
    "buckets": None,
    "width": None,
    "activation_embed": None,
    "activation_heads": "tensor",
    "activation_kv_heads": "tensor",
    "activation_hidden": "tensor",
    "activation_vocab": "tensor",
    "activation_experts": "expert",
    "exchanged_batch": ("data", "fsdp"),  # rows whose tokens have gone to the devices of their experts
}


def make_mesh(config: cfg.Mesh, devices=None) -> Mesh:
    """The mesh of `config` over the first of `devices` (None: all of the run's), in JAX's order.

    Raises ConfigError where the axes do not fit the devices, or would leave a process without one.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(config, len(devices))
    shape, types = tuple(sizes[axis] for axis in AXES), (AxisType.Auto,) * len(AXES)
    mesh = jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    idle = {device.process_index for device in devices} - {d.process_index for d in mesh.devices.flat}
    if idle:
        raise ConfigError(
            f"The mesh {_mesh(mesh)} leaves processes {sorted(idle)} without a device; start fewer, or give "
            "one axis -1: the rest of the devices."
        )
    return mesh


def mesh_axes(name: str, rules: Rules) -> tuple[str, ...]:
    """The mesh axes that divide logical axis `name`; ValueError where no rule names it."""
    if name not in rules:
        near = get_close_matches(name, rules, n=1, cutoff=0.0)[0]
        raise ValueError(f"logical axis {name!r} has no rule; the nearest name that has one is {near!r}")
    axes = rules[name]
    return () if axes is None else (axes,) if isinstance(axes, str) else axes


def spec(names: tuple[str, ...], rules: Rules, mesh: Mesh, shape: tuple[int, ...] | None = None) -> PartitionSpec:
    """The partition of an array whose axes have these logical names, one entry an axis.

    Raises ValueError on a name without a rule, a rule for an axis that the mesh lacks, a mesh axis used
    twice, a rank that differs from `shape`'s; ConfigError on a dimension of `shape` that does not divide.
    """
    if shape is not None and len(shape) != len(names):
        raise ValueError(f"shape {shape} has {len(shape)} axes, but {len(names)} are named: {names}")
    used, entries = {}, []
    for name in names:
        axes = mesh_axes(name, rules)
        for axis in axes:
            if axis not in mesh.shape:
                raise ValueError(f"logical axis {name!r} goes to {axis!r}, which is none of {tuple(mesh.shape)}")
            if axis in used:
                raise ValueError(f"mesh axis {axis!r} divides both {used[axis]!r} and {name!r} of {names}")
            used[axis] = name
        entries.append(axes[0] if len(axes) == 1 else axes or None)
    if shape is not None:
        clashes = undivided(names, shape, rules, mesh)
        if clashes:
            raise ConfigError(f"an array {_shape(shape)} does not fit the mesh: {'; '.join(clashes)}.")
    return PartitionSpec(*entries)


def undivided(names: tuple[str, ...], shape: tuple[int, ...], rules: Rules, mesh: Mesh) -> list[str]:
    """Each dimension that its mesh axes do not divide, in words; empty when all divide."""
    clashes = []
    for name, size in zip(names, shape, strict=True):
        axes = mesh_axes(name, rules)
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            clashes.append(f"{name} {size} does not divide by mesh.{' x mesh.'.join(axes)} = {parts}")
    return clashes


class Named(Anywhere):
    """`constrain` without a mesh, which only checks the names."""

    def __init__(self, rules: Rules):
        self.rules = rules

    def __call__(self, x, names):
        for name in names:
            mesh_axes(name, self.rules)
        return x


class Placed(Anywhere):
    """`constrain` on a mesh: x, held to the sharding of its axes."""

    def __init__(self, rules: Rules, mesh: Mesh):
        self.rules, self.mesh = rules, mesh

    def __call__(self, x, names):
        sharding = NamedSharding(self.mesh, spec(names, self.rules, self.mesh, x.shape))
        return jax.lax.with_sharding_constraint(x, sharding)

    def by_rows(self, function, rows, whole):
        divided = PartitionSpec(mesh_axes("batch", self.rules))
        specs = (*(divided for _ in rows), *(PartitionSpec() for _ in whole))
        # Without types for what varies: not every primitive has a rule for them.
        run = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=divided, check_vma=False)
        return run(*rows, *whole)


def constrainer(rules: Rules, mesh: Mesh | None) -> Anywhere:
    """The `constrain` of a model on a mesh; without one it only checks the names."""
    return Named(rules) if mesh is None else Placed(rules, mesh)


def param_shardings(declarations, rules: Rules, mesh: Mesh):
    """A NamedSharding for each declared parameter, tree for tree."""

    def sharding(declaration):
        return NamedSharding(mesh, spec(declaration.axes, rules, mesh, declaration.shape))

    return jax.tree.map(sharding, declarations)


def state_shardings(abstract_state, declarations, rules: Rules, mesh: Mesh):
    """A NamedSharding for each leaf of a state, whose fields hold trees of parameters or of optimizer states.

    A leaf at or below a parameter's path in its field (`params`, `frozen`, `ema`, `opt_state`) lies as the
    parameter does if it has its shape; everything else is on every device. `abstract_state` is a tree of
    arrays or ShapeDtypeStructs; `declarations` has trained and frozen parameters.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    leaves, _ = jax.tree_util.tree_flatten_with_path(declarations)
    declared = {path_name(path): declaration for path, declaration in leaves}

    def sharding(path, leaf):
        keys = path_name(path).split("/")[1:]
        for length in range(1, len(keys) + 1):
            name = "/".join(keys[:length])
            if name in declared and declared[name].shape == leaf.shape:
                return NamedSharding(mesh, spec(declared[name].axes, rules, mesh, leaf.shape))
        return replicated

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def batch_shardings(batch_spec: Mapping, rules: Rules, mesh: Mesh) -> dict[str, NamedSharding]:
    """A NamedSharding for each key of an objective's `{key: (shape or None, dtype, logical axes)}`."""
    return {key: NamedSharding(mesh, spec(axes, rules, mesh, shape)) for key, (shape, _, axes) in batch_spec.items()}


def check_mesh(declarations, rows: int, rules: Rules, mesh: Mesh) -> None:
    """Refuse, before anything compiles, what does not divide: `rows` of a micro-batch and every parameter.

    Raises ConfigError with one sentence for each clash, naming the parameters that share it.
    """
    clashes: dict[str, list[str]] = {}
    for clash in undivided(("batch",), (rows,), rules, mesh):
        clashes[clash] = ["rows of a micro-batch"]
    for path, declaration in jax.tree_util.tree_flatten_with_path(declarations)[0]:
        for clash in undivided(declaration.axes, declaration.shape, rules, mesh):
            clashes.setdefault(clash, []).append(path_name(path))
    if clashes:
        listed = "; ".join(f"{clash} ({', '.join(where)})" for clash, where in clashes.items())
        raise ConfigError(f"The mesh {_mesh(mesh)} does not fit: {listed}. Choose mesh sizes that divide these.")


def describe(declarations, rules: Rules, mesh: Mesh) -> str:
    """The shardings as text: a line for each parameter with path, shape, logical axes and mesh axes."""
    lines = [f"mesh {_mesh(mesh)}"]
    for path, declaration in jax.tree_util.tree_flatten_with_path(declarations)[0]:
        partition = spec(declaration.axes, rules, mesh, declaration.shape)
        placed = " ".join("-" if entry is None else str(entry) for entry in partition)
        axes = " ".join(declaration.axes)
        lines.append(f"{path_name(path):<48}  {_shape(declaration.shape):<24}  {axes:<32}  {placed}")
    return "\n".join(lines) + "\n"


def local_rows(sharding: NamedSharding, rows: int) -> tuple[int, int]:
    """(start, stop) of the rows of a global batch that this process must supply.

    The smallest range that holds every row of its devices; where the devices of a process do not lie side by
    side on the mesh, the range also holds rows between, which `global_batch` leaves out.
    """
    by_rows = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    slices = [index[0].indices(rows) for index in by_rows.addressable_devices_indices_map((rows,)).values()]
    return min(start for start, _, _ in slices), max(stop for _, stop, _ in slices)


def global_batch(local: Mapping[str, np.ndarray], shardings: Mapping[str, NamedSharding], rows: int) -> dict:
    """The global batch of `rows` rows from this process's part, a `jax.Array` for each key.

    `local[key]` holds the rows of `local_rows(shardings[key], rows)`. A process with devices whose rows do
    not lie side by side passes more than its own, so each device's part is cut out by its index.
    """
    return {key: _global_array(part, shardings[key], rows) for key, part in local.items()}


def _global_array(part: np.ndarray, sharding: NamedSharding, rows: int):
    first, stop = local_rows(sharding, rows)
    if len(part) != stop - first:
        raise ValueError(f"this process supplies rows {first} to {stop} of the batch, but has {len(part)} rows")

    def cut(index):
        start, stop, _ = index[0].indices(rows)
        return part[(slice(start - first, stop - first), *index[1:])]

    return jax.make_array_from_callback((rows, *part.shape[1:]), sharding, cut)


def any_process(mesh: Mesh, flag: bool) -> jax.Array:
    """Boolean scalar, the same in every process: whether `flag` is true in any. Every process of the mesh calls it."""
    everywhere = NamedSharding(mesh, PartitionSpec(AXES))
    flags = jax.make_array_from_callback((mesh.size,), everywhere, lambda _: np.full(1, flag))
    return _any(flags)


_any = jax.jit(jnp.any)


def _mesh(mesh: Mesh) -> str:
    return " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"
