"""A small tree of declared parameters, of every kind, stacked and not, to try optimizers and meshes on."""

import jax
import numpy as np

from model.parameters import Declaration

LAYERS = 3

# One layer, unstacked. The query bias has rank 2, so a rule that looked at ranks would take it for a kernel.
LAYER = {
    "attention": {
        "query": {
            "kernel": Declaration((8, 4, 2), ("embed", "heads", "head_dim"), "kernel", (0,), (1, 2)),
            "bias": Declaration((4, 2), ("heads", "head_dim"), "bias"),
        },
        "key": {"kernel": Declaration((8, 2, 2), ("embed", "kv_heads", "head_dim"), "kernel", (0,), (1, 2))},
        "output": {"kernel": Declaration((4, 2, 8), ("heads", "head_dim", "embed"), "kernel", (0, 1), (2,))},
    },
    "feed_forward": {"up": {"kernel": Declaration((8, 24), ("embed", "hidden"), "kernel", (0,), (1,))}},
    "norm": {"scale": Declaration((8,), ("norm",), "scale")},
}


def stacked(declaration: Declaration) -> Declaration:
    shape, axes = (LAYERS, *declaration.shape), ("layers", *declaration.axes)
    return Declaration(shape, axes, declaration.kind, declaration.inputs, declaration.outputs)


DECLARATIONS = {
    "embedding": {
        "token": Declaration((256, 8), ("vocab", "embed"), "embedding"),
        "position": Declaration((16, 8), ("positions", "embed"), "table"),
    },
    "final_norm": {"scale": Declaration((8,), ("norm",), "scale")},
    "head": Declaration((8, 256), ("embed", "vocab"), "kernel", (0,), (1,)),
    "stack": {"0": jax.tree.map(stacked, LAYER)},
}


def draw(declarations, seed: int, scale: float = 1.0) -> dict:
    """Normal float32 arrays of the declared shapes."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda declaration: (scale * generator.standard_normal(declaration.shape)).astype(np.float32),
        declarations,
    )
