"""A configuration assembled for a machine: everything that is known before data is read or anything compiled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from model.parameters import declarations
from train import mesh as meshes
from train.checks import check_devices
from train.config import Config
from train.optim import Optimizer, build
from train.state import State, initial_state
from train.task import Task, make_task

INITIAL_STREAM = 0  # folded into the seed's key; see train.step


@dataclass(frozen=True)
class Assembly:
    config: Config
    mesh: Mesh
    task: Task
    declarations: dict  # of the whole parameter tree
    optimizer: Optimizer
    abstract: State  # ShapeDtypeStructs with shardings

    def fresh(self) -> State:
        """The state before the first step, made on the devices it belongs to."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        return jax.jit(partial(_fresh, self), out_shardings=shardings)()

    def from_params(self, params: dict) -> State:
        """The state before the first step of a run whose weights come from elsewhere."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        keep_ema = self.config.optim.ema_decay is not None
        return jax.jit(lambda whole: initial_state(whole, self.optimizer, keep_ema), out_shardings=shardings)(params)

    @property
    def abstract_params(self) -> dict:
        """ShapeDtypeStructs, with shardings, of the whole parameter tree."""
        shardings = meshes.param_shardings(self.declarations, meshes.RULES, self.mesh)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=sharding),
            self.declarations,
            shardings,
        )

    def batch_shardings(self) -> dict:
        spec = {key: (None, dtype, axes) for key, (_, dtype, axes) in self.task.spec.items()}
        return meshes.batch_shardings(spec, meshes.RULES, self.mesh)

    def eval_rows(self) -> int:
        """Rows of an evaluation batch: as configured, rounded up to what the mesh divides."""
        shards = math.prod(self.mesh.shape[axis] for axis in meshes.mesh_axes("batch", meshes.RULES))
        return -(-(self.config.eval.batch_size or self.config.train.batch_size) // shards) * shards


def _fresh(assembly: Assembly) -> State:
    return _initial(assembly.config, assembly.task, assembly.optimizer)


def _initial(config: Config, task: Task, optimizer: Optimizer) -> State:
    key = jax.random.fold_in(jax.random.key(config.train.seed), INITIAL_STREAM)
    params = nn.meta.unbox(task.init(key))
    return initial_state(params, optimizer, config.optim.ema_decay is not None)


def assemble(config: Config, devices=None) -> Assembly:
    """Mesh, task, declarations, optimizer and abstract state; ConfigError where they do not fit one another."""
    devices = jax.devices() if devices is None else devices
    check_devices(config, len(devices))
    mesh = meshes.make_mesh(config.mesh, devices)
    task = make_task(config, meshes.constrainer(meshes.RULES, mesh))
    declared = declarations(jax.eval_shape(task.init, jax.random.key(0)))
    optimizer = build(config.optim, declared)
    meshes.check_mesh(declared, config.train.batch_size // config.train.accumulate, meshes.RULES, mesh)
    shapes = jax.eval_shape(partial(_initial, config, task, optimizer))
    shardings = meshes.state_shardings(shapes, declared, meshes.RULES, mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    return Assembly(config, mesh, task, declared, optimizer, abstract)
