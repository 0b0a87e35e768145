"""A T5 that has read a text for a minute puts back, token for token, whatever spans are cut out of it."""

from pathlib import Path

import jax
import numpy as np
import pytest

from data.config import Data
from data.objectives import objective_rows
from data.prepare import prepare
from data.source_config import TextSource
from model.generate import Sampling, generate
from tests.helpers import replaced, train
from train.checks import load
from train.config import AdamW, Config, Linear, Log, Mesh
from train.generate import load_run

pytestmark = pytest.mark.slow
ROOT, ROWS = Path(__file__).resolve().parents[2], 30
# Short enough for one row, long enough for two spans in it: of one alone T5's rule makes the text's end.
TEXT = (
    "Before sunrise three quiet fishermen pushed their green boat across cold sand, raised one patched sail and "
    "steered north until every lamp behind them had gone out; nobody spoke while grey gulls circled above, but first "
    "light touched distant cliffs."
)


def recipe(directory: Path) -> Config:
    text = directory / "text.txt"
    text.write_text("\n\n".join([TEXT] * 30))
    changes = {
        "data.source": TextSource(paths=(str(text),), document="paragraph", validation_fraction=0.0),
        "data.cache_dir": str(directory / "cache"),
        "data.length": 48,
        "data.packing": "unpacked",
        "optim.optimizer": AdamW(weight_decay=0.0),
        "optim.learning_rate": 0.005,
        "optim.schedule": Linear(warmup=20),
        "train.steps": 600,
        "train.batch_size": 32,
        "checkpoint.every": 600,
        "mesh": Mesh(data=1),
        "log": Log(tensorboard=False),
    }
    return replaced(load(f"{ROOT}/configs/t5.py:debug-1.1"), changes)


def corrupted(data: Data) -> tuple[dict, np.ndarray]:
    """(a batch of rows whose spans no run of seed 0 has drawn, the tokens of text that they are made of)."""
    rows = objective_rows(data, prepare(data).train, seed=1)
    indices = np.arange(ROWS)
    return rows.rows(indices), rows.inputs.rows(indices)["tokens"]


def rebuilt(inputs: list[int], outputs: list[int], sentinels: set[int], end: int) -> list[int]:
    """The inputs with what stands behind each sentinel of the outputs in its place, both without their ends."""
    spans, held = {}, []
    for token in outputs[: outputs.index(end)] if end in outputs else outputs:
        if token in sentinels:
            held = spans.setdefault(token, [])
        else:
            held.append(token)
    return sum((spans.get(token, []) if token in sentinels else [token] for token in inputs[:-1]), [])


def test_inputs_and_greedy_outputs_are_the_text(tmp_path):
    config = recipe(tmp_path)
    train(config, tmp_path / "run")
    model, params, tokenizer = load_run(tmp_path / "run")
    batch, clean = corrupted(config.data)
    real = batch["source_segment_ids"] > 0
    source = batch["source_tokens"], real.sum(axis=1).astype(np.int32)
    begun = np.full((ROWS, 1), tokenizer.end_of_text, np.int32), np.ones((ROWS,), np.int32)
    keys = jax.random.split(jax.random.key(0), ROWS)
    most = batch["targets"].shape[1] + 8
    written, _ = generate(model, params, *begun, keys, most, tokenizer.stop, Sampling(temperature=0.0), source)
    sentinels = {tokenizer.id_of(f"<extra_id_{i}>") for i in range(8)}
    cut = {tuple(row) for row in batch["targets"].tolist()}
    assert len(cut) > ROWS // 2  # spans in many places
    for row, outputs in enumerate(np.asarray(written).tolist()):
        inputs = batch["source_tokens"][row][real[row]].tolist()
        assert len(sentinels & set(inputs)) >= 2
        found = rebuilt(inputs, outputs, sentinels, tokenizer.stop)
        assert found == clean[row][: len(found)].tolist() and tokenizer.decode(found[1:]) == TEXT
