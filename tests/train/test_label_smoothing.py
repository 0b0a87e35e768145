"""Training under label smoothing has the smoothed loss as its objective, and logs the unsmoothed one."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

from model.transformer import Transformer
from tests.helpers import drawn, tiny
from tests.model.small import jit
from tests.train.test_masked import SMALL_BERT, drawn_batch
from train.assembly import assemble
from train.step import Step

SMOOTHING = 0.3


def packed(rows: int = 4, length: int = 16) -> dict:
    """Rows of one text each, some of whose tokens have no weight."""
    generator = np.random.default_rng(0)
    weights = generator.integers(0, 2, (rows, length)).astype(np.float32)
    tokens, targets = generator.integers(0, 257, (2, rows, length)).astype(np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return {
        "tokens": tokens,
        "targets": targets,
        "weights": weights,
        "positions": positions,
        "segment_ids": np.ones_like(tokens),
    }


def of_predictions(model, batch):
    """Logits of what a batch predicts: of every token, or of the masked ones."""
    hidden, _, _ = model(batch)
    if "masked_positions" in batch:
        hidden = jax.numpy.take_along_axis(hidden, batch["masked_positions"][..., None], axis=1)
    return model.logits(hidden)


@pytest.mark.parametrize("objective", ("causal", "masked"))
def test_the_objective_is_smoothed_and_the_logged_loss_is_not(objective, tmp_path):
    changes = {"model.num_layers": 1} if objective == "causal" else SMALL_BERT
    batch = packed() if objective == "causal" else drawn_batch([4, 2, None, 3], rows=4)
    found = {}
    for smoothing in (0.0, SMOOTHING):
        assembly = assemble(tiny(tmp_path, {**changes, "train.label_smoothing": smoothing}))
        state = drawn(assembly)
        found[smoothing] = jit(Step(assembly.task, assembly.optimizer, None, 0).gradients)(state, batch)
    (plain, plain_metrics, _), (smoothed, metrics, _) = found.values()
    model = assembly.config.model
    run = jit(partial(nn.apply(of_predictions, Transformer(model)), {"params": state.params}))
    logs = jax.nn.log_softmax(run(batch)[..., : model.vocab_size])
    chosen = np.take_along_axis(np.asarray(logs), batch["targets"][..., None], axis=-1)[..., 0]
    difference = chosen - np.mean(logs, axis=-1)  # of the target from the mean of the vocabulary
    expected = SMOOTHING * np.sum(batch["weights"] * difference) / np.sum(batch["weights"])
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(smoothed - plain, expected, rtol=1e-3)
    np.testing.assert_allclose(metrics["loss"], plain_metrics["loss"], rtol=1e-6)
