"""What a run would be, said before it exists: sizes, FLOPs, memory, batch and mesh. Reads no data, compiles nothing."""

from __future__ import annotations

import math

import jax

from train import flops, mesh
from train.assembly import assemble
from train.checks import known_steps
from train.config import Config
from train.objective_checks import target_length
from train.ramp import batches_of


def describe(config: Config) -> str:
    """A page of text. ConfigError where the configuration does not fit this machine."""
    assembly = assemble(config)
    model, train, length = config.model, config.train, config.data.length
    tokens = train.batch_size * length
    per_token = flops.of_training(config, assembly.declarations)
    per_row = per_token * target_length(config)
    steps = known_steps(config, train.steps, None)
    read = None if steps is None else batches_of(config).before(steps) * length
    count = flops.parameter_count(assembly.declarations)
    state = {name: bytes_per_device(getattr(assembly.abstract, name)) for name in ("params", "opt_state", "ema")}
    gradients = state["params"]
    batch = {key: (train.batch_size, *shape) for key, (shape, _, _) in assembly.task.spec.items()}
    layers = f"{model.num_layers} layers"
    if model.generator_layers:
        layers = f"a generator of {model.generator_layers} layers beside a discriminator of {layers}"
    lines = [
        f"model       {count:,} parameters, {layers} x {model.embed_dim}, "
        f"{model.attention.num_heads} heads x {model.head_dim}, {model.num_kv_heads} key-value heads, "
        f"vocabulary {model.vocab_size:,} stored as {model.padded_vocab_size:,}",
        f"batch       {train.batch_size} rows x {length} = {tokens:,} tokens a step, "
        f"{train.accumulate} micro-batches; " + ", ".join(f"{key} {list(shape)}" for key, shape in batch.items()),
        f"run         {steps if steps is not None else train.steps} steps"
        + (f", {read:,} tokens" if read is not None else ""),
        f"FLOPs       {per_token:.4g} a token, {per_row * train.batch_size:.4g} a step"
        + (f", {per_row * read / length:.4g} the run" if read is not None else ""),
        "memory      bytes a device: "
        + ", ".join(f"{name} {size:,}" for name, size in state.items())
        + f", gradients {gradients:,}; activations depend on the compiler",
        *mesh.describe(assembly.declarations, mesh.RULES, assembly.mesh).splitlines(),
        *assembly.optimizer.describe().splitlines(),
    ]
    return "\n".join(lines)


def bytes_per_device(tree) -> int:
    """Bytes that one device holds of a tree of ShapeDtypeStructs with shardings."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
