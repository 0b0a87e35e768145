"""The counts of the Transformer's sizes, and its learning rates, follow from its paper, added up by hand."""

from pathlib import Path

import numpy as np
import pytest

from tests.configs.test_parameters import COUNTS
from train import schedule
from train.checks import load

GOLDEN = {spec: int(count.replace(",", "")) for spec, count in COUNTS}
RECIPE = Path(__file__).parents[2] / "configs" / "transformer.py"


@pytest.mark.parametrize(("size", "embed", "published"), [("base", 512, 65), ("big", 1024, 213)])
def test_counts_are_the_papers(size, embed, published):
    """37,000 ids, shared by both sides and the logits; biases in feed-forward networks and norms alone. In millions."""
    attention, norm = 4 * embed**2, 2 * embed
    network = 2 * embed * 4 * embed + 4 * embed + embed
    encoder = 6 * (attention + network + 2 * norm)
    decoder = 6 * (2 * attention + network + 3 * norm)
    assert GOLDEN[f"transformer:{size}"] == 37_000 * embed + encoder + decoder
    assert abs(GOLDEN[f"transformer:{size}"] / 1e6 - published) < 2


@pytest.mark.parametrize(("size", "embed"), [("base", 512), ("big", 1024)])
def test_learning_rates_are_the_law(size, embed):
    """Section 5.3, of steps from 1: d^-0.5 min(step^-0.5, step 4000^-1.5)."""
    config = load(f"{RECIPE}:{size}")
    rate = schedule.build(
        config.optim.schedule, config.optim.learning_rate, config.train.steps, lambda steps, **_: steps
    )
    for step in (1, 2000, 4000, 4001, config.train.steps):
        np.testing.assert_allclose(rate(step - 1), embed**-0.5 * min(step**-0.5, step * 4000**-1.5), rtol=1e-6)
