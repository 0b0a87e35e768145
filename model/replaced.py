"""Replaced-token detection: an encoder that finds the tokens which a smaller one has put in, and what they share.

Clark et al. 2020 (arXiv 2003.10555); He et al. 2021 (DeBERTa v3, arXiv 2111.09543), section 3. The parameters of both
are one tree, `{"generator": ..., "discriminator": ...}`. Embeddings are shared and gradients disentangled
(section 3.3): where the generator has a table E_G the discriminator has a difference, 0 at first, and reads
E_D = stop_gradient(E_G) + difference, so that what it learns never pulls at the generator's table.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from model import config as cfg
from model.parameters import is_declared
from model.transformer import Transformer, initialise

GENERATOR, DISCRIMINATOR = BRANCHES = ("generator", "discriminator")
TABLES = ("token", "position", "token_type")  # those that model.layers.Embedding may have, by their names


def generator(config: cfg.Model) -> cfg.Model:
    """The encoder that predicts masked tokens: `generator_layers` layers of the same width, and the language head."""
    return replace(config, num_layers=config.generator_layers, generator_layers=0, heads=cfg.Heads())


def discriminator(config: cfg.Model) -> cfg.Model:
    """The encoder that is kept, without the language head and what decodes masks for it; itself, of a lone model."""
    if not config.generator_layers:
        return config
    positions = config.positions
    if isinstance(positions, cfg.DisentangledPositions):
        positions = replace(positions, mask_decoder_passes=0, absolute_length=cfg.DisentangledPositions.absolute_length)
    headless = {"language_head": False, "head_transform": False, "head_bias": False}
    return replace(config, generator_layers=0, positions=positions, **headless)


def initialise_both(config: cfg.Model, key) -> dict:
    """The tree of `Declared` float32 arrays of both; the discriminator's tables are differences of 0."""
    keys = dict(zip(BRANCHES, jax.random.split(key), strict=True))
    found = {
        GENERATOR: initialise(Transformer(generator(config)), keys[GENERATOR]),
        DISCRIMINATOR: initialise(Transformer(discriminator(config)), keys[DISCRIMINATOR]),
    }
    embedding = found[DISCRIMINATOR]["embedding"]
    for name in set(TABLES) & set(embedding):
        embedding[name] = jax.tree.map(_zero, embedding[name], is_leaf=is_declared)
    return found


def initialise_whole(config: cfg.Model, key) -> dict:
    """The tree of `Declared` that a run of the configuration trains: of both, or of a lone model."""
    return initialise_both(config, key) if config.generator_layers else initialise(Transformer(config), key)


def _zero(declared):
    return declared.replace(value=jnp.zeros_like(declared.value))


def shared(path: str) -> bool:
    """Whether the tree holds a difference where the discriminator has a parameter, `path`: `embedding/token`."""
    group, _, name = path.rpartition("/")
    return group == "embedding" and name in TABLES


def merged(params: dict) -> dict:
    """The discriminator's parameters as its model reads them, of the tree of both."""
    own, tables = params[DISCRIMINATOR], params[GENERATOR]["embedding"]
    read = {
        name: jax.lax.stop_gradient(tables[name]) + leaf if name in TABLES else leaf
        for name, leaf in own["embedding"].items()
    }
    return {**own, "embedding": read}
