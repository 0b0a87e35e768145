"""Each parameter is declared once: golden lists of shapes, axes and kinds, and the published counts."""

import math

import jax
import pytest

from model import config as cfg
from model.parameters import KINDS, STACK_AXIS, path_name
from tests.model.small import MODELS, declared, fresh
from train.checks import load
from train.flops import parameter_count

# Radford et al. 2019 as released; Llama Team 2024 and the Llama 3.2 model card.
PUBLISHED = {
    "gpt2.py:124m": 124_439_808,
    "gpt2.py:350m": 354_823_168,
    "gpt2.py:774m": 774_030_080,
    "gpt2.py:1.5b": 1_557_611_200,
    "llama.py:1b": 1_235_814_400,
    "llama.py:8b": 8_030_261_248,
    "llama.py:70b": 70_553_706_496,
}


def leaves(config: cfg.Model) -> list:
    """(path, declaration) of each parameter."""
    found = jax.tree_util.tree_leaves_with_path(declared(config))
    return [(path_name(path), declaration) for path, declaration in found]


def listed(config: cfg.Model) -> str:
    lines = []
    for path, leaf in leaves(config):
        names = leaf.axes[1:] if leaf.stacked else leaf.axes
        ways = ["x".join(names[axis] for axis in axes) for axes in (leaf.inputs, leaf.outputs)]
        way = f"  {ways[0]} -> {ways[1]}" if leaf.kind == "kernel" else ""
        lines.append(f"{path:40} {list(leaf.shape)!s:20} {leaf.kind:10} {' '.join(leaf.axes)}{way}\n")
    return "".join(lines)


@pytest.mark.parametrize("name", ("gpt2", "llama"))
def test_declarations_are_the_golden_list(name, golden):
    golden(f"{name}_debug_declarations.txt", listed(load(f"configs/{name}.py:debug").model))


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_parameters_are_as_many_as_published(recipe):
    """Counted without being allocated, the padding of the vocabulary taken out."""
    config = load(f"configs/{recipe}").model
    padding = (config.padded_vocab_size - config.vocab_size) * config.embed_dim * (1 if config.tied_head else 2)
    assert parameter_count(declared(config)) - padding == PUBLISHED[recipe]


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_declarations_describe_what_is_there(config):
    arrays = jax.tree_util.tree_leaves_with_path(fresh(config))
    assert [path_name(path) for path, _ in arrays] == [path for path, _ in leaves(config)]
    for (path, declaration), (_, array) in zip(leaves(config), arrays, strict=True):
        assert declaration.shape == array.shape and array.dtype == "float32", path
        assert len(declaration.axes) == len(declaration.shape), path
        assert declaration.kind in KINDS, path
        assert declaration.stacked == path.startswith(("stack/", "remainder/")), path
        assert declaration.axes.count(STACK_AXIS) == declaration.stacked, path


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_kernels_alone_map_inputs_to_outputs(config):
    for path, leaf in leaves(config):
        rank = len(leaf.unstacked_shape)
        if leaf.kind == "kernel":
            assert sorted(leaf.inputs + leaf.outputs) == list(range(rank)), path
            assert leaf.fan_in * leaf.fan_out == math.prod(leaf.unstacked_shape), path
        else:
            assert leaf.inputs == leaf.outputs == (), path


def test_the_vocabulary_is_stored_in_multiples_of_128():
    sizes = {1: 128, 128: 128, 129: 256, 50257: 50304, 128256: 128256}
    assert {size: cfg.Model(vocab_size=size).padded_vocab_size for size in sizes} == sizes
