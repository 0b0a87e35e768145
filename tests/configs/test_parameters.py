"""Every published size has exactly the parameters that its publishers, or another program, count."""

import math
from pathlib import Path

import jax
import pytest

from model.config import Model
from model.parameters import path_name
from tests.configs.test_recipes import SPECS
from tests.model.small import declared
from train.checks import load

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = Path(__file__).parent / "golden" / "parameters.txt"
COUNTS = [line.split() for line in PUBLISHED.read_text().splitlines() if line and not line.startswith("#")]
FAST = (
    *("bert:base-chinese", "gpt2:124m", "gpt3:1.3b", "gpt3:13b", "llama:2-70b", "llama:smollm2-135m"),
    *(
        "deberta:v1-base",
        "deberta:v2-xxlarge",
        "transformer:base",
        "t5:11b",
        "t5:1.1-xxl",
        "gshard:2048e-36l",
        "switch:base-8",
        "qwen:2-0.5b",
        "qwen:3-8b",
        "mistral:7b-v0.1",
        "mixtral:8x7b",
        "gemma:1-7b",
        "gemma:2-27b",
        "gemma:3-270m",
    ),
)
# What the published counts of encoders leave out.
PRE_TRAINING = ("head_transform", "head_bias", "heads/next_sentence", "heads/replaced", "mask_decoder")


def count(model: Model) -> int:
    """Parameters without the rows that round the vocabulary up; nothing is allocated."""
    total = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(declared(model))[0]:
        if not path_name(path).startswith(PRE_TRAINING):
            pairs = zip(leaf.axes, leaf.shape, strict=True)
            total += math.prod(model.vocab_size if axis == "vocab" else size for axis, size in pairs)
    return total


@pytest.mark.parametrize(
    ("spec", "expected"),
    [pytest.param(*pair, id=pair[0], marks=() if pair[0] in FAST else pytest.mark.slow) for pair in COUNTS],
)
def test_a_published_size_has_its_parameters(spec, expected):
    name, size = spec.split(":")
    assert f"{count(load(f'{ROOT}/configs/{name}.py:{size}').model):,}" == expected


def test_every_published_size_is_counted():
    counted = {spec for spec, _ in COUNTS}
    assert counted == {f"{name}:{size}" for name, size in SPECS if size and not size.startswith("debug")}
