"""Evaluation: every example once, weighted by tokens, whatever the batch; training does not notice."""

import itertools

import jax
import numpy as np
import pytest

from data.loader import evaluation_batches
from data.packing import make_rows
from data.prepare import prepare
from tests.helpers import drawn, lines, replaced, tiny, train
from train import evaluate as evaluation
from train.assembly import assemble
from train.config import Mesh
from train.evaluate import bits_per_byte, evaluate, make_eval_step
from train.metrics import read_metrics
from train.session import Feed
from train.task import Task


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(config, a state on one device, loss of every validation row summed one by one in float64)."""
    config = tiny(tmp_path_factory.mktemp("evaluated"), {"train.z_loss": 0.01})
    assembly = assemble(config)
    state = drawn(assembly)
    rows = make_rows(prepare(config.data).validation, config.data.length, config.data.packing)
    alone = jax.jit(make_eval_step(assembly.task))
    total = weight = 0.0
    for index in range(len(rows)):
        metrics, weights = alone(state.params, state.frozen, rows.rows([index]))
        total += float(metrics["loss"])
        weight += float(weights["tokens"])
    assert weight == rows.num_targets == rows.store.num_tokens
    return config, jax.device_get(state), total / weight


def evaluated(config, state) -> dict[str, float]:
    assembly = assemble(config)
    feed = Feed.make(assembly, prepare(config.data))
    state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, assembly.abstract)
    step = jax.jit(make_eval_step(assembly.task))
    first, again = (
        evaluate(assembly.task, step, state.params, state.frozen, feed.validation_batches("text", lambda: None))
        for _ in range(2)
    )
    assert first == again and step._cache_size() == 1
    return first


@pytest.mark.parametrize(
    ("rows", "sizes"),
    (
        (3, (1, 1, 1)),
        (50, (1, 1, 1)),
        (3, (2, 2, 2)),  # on a mesh rounded up to 4
        pytest.param(1, (1, 1, 1), marks=pytest.mark.slow),
        pytest.param(8, (8, 1, 1), marks=pytest.mark.slow),
    ),
)
def test_evaluation_is_the_sum_over_rows_for_every_batch_size(rows, sizes, made):
    config, state, expected = made
    found = evaluated(replaced(config, {"eval.batch_size": rows, "mesh": Mesh(*sizes)}), state)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-6)
    assert set(found) == {"loss", "z_loss"}


def counting(numbers) -> tuple[Task, list]:
    """A task whose loss is the sum of a batch's numbers, weighted, and batches of two of them."""
    task = Task(
        spec={},
        init=None,
        weights=lambda batch: {"tokens": batch["weights"].sum()},
        sums=lambda params, batch, key, row_keys: ({}, {"loss": (batch["number"] * batch["weights"]).sum()}),
        coefficients={"tokens": 1.0},
        metrics={"loss": "tokens"},
    )
    return task, [{"number": np.float32([a]), "weights": np.float32([b])} for a, b in numbers]


def test_the_mean_is_over_tokens_and_not_over_batches():
    """Sums of 2 over 1 token and of 90 over 9 are 9.2 a token; the mean of the two means would be 6."""
    task, batches = counting([(2, 1), (10, 9)])
    assert evaluate(task, make_eval_step(task), {}, {}, batches) == {"loss": pytest.approx(9.2)}


def test_totals_grow_beyond_what_float32_counts():
    task, batches = counting([(0, 2**24), (1, 1), (1, 1)])
    assert evaluate(task, make_eval_step(task), {}, {}, batches)["loss"] == 2 / (2**24 + 2)


def test_nothing_to_evaluate_is_0():
    task, batches = counting([(1, 0)])
    assert evaluate(task, make_eval_step(task), {}, {}, batches) == {"loss": 0.0}


def test_every_row_comes_once_and_padding_has_no_weight(made):
    rows = make_rows(prepare(made[0].data).validation, 16, "unpacked")
    for size, limit in ((1, None), (7, None), (100, None), (7, 2)):
        batches = list(evaluation_batches(rows, size, limit))
        found = np.concatenate([batch["tokens"] for batch in batches])
        count = len(rows) if limit is None else size * limit
        np.testing.assert_array_equal(found[:count], rows.rows(range(count))["tokens"])
        assert sum(batch["weights"].sum() for batch in batches) == rows.rows(range(count))["weights"].sum()


def test_bits_per_byte_of_a_known_text():
    """A uniform guess over 256 bytes costs 8 bits each; the end of the text is paid for, too."""
    assert bits_per_byte(np.log(256), tokens=100, text_bytes=100) == pytest.approx(8.0)
    assert bits_per_byte(np.log(256), tokens=101, text_bytes=100) == pytest.approx(8.08)
    assert pytest.approx(np.log(2)) == evaluation.NATS_PER_BIT


def test_evaluation_draws_no_dropout(tmp_path):
    config = tiny(tmp_path, {"model.dropout": 0.5})
    assembly = assemble(config)
    batch = next(Feed.make(assembly, prepare(config.data)).validation_batches("text", lambda: None))
    state = drawn(assembly)
    with_dropout, _ = jax.jit(make_eval_step(assembly.task))(state.params, state.frozen, batch)
    plain = assemble(replaced(config, {"model.dropout": 0.0})).task
    without, _ = jax.jit(make_eval_step(plain))(state.params, state.frozen, batch)
    assert float(with_dropout["loss"]) == float(without["loss"])


def test_a_run_evaluates_when_due_and_at_its_end(tmp_path):
    """The log has what `evaluate` finds of the state at that step; `eval.batches` looks at the first ones only."""
    config = tiny(tmp_path, {"eval.every": 4})
    train(config, tmp_path / "run")
    records = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" not in record]
    assert [record["step"] for record in records] == [4, 6]
    assert all({"eval/validation/loss", "eval/validation/bits_per_byte"} <= set(record) for record in records)
    store = prepare(config.data).validation
    for record in records:
        nats = record["eval/validation/loss"] * store.num_tokens
        assert record["eval/validation/bits_per_byte"] == pytest.approx(nats / np.log(2) / store.text_bytes)
    some = Feed.make(assemble(replaced(config, {"eval.batches": 2, "eval.batch_size": 3})), prepare(config.data))
    assert len(list(some.validation_batches("text", lambda: None))) == 2


def test_a_run_without_validation(tmp_path):
    config = tiny(tmp_path, {"data.source.validation_fraction": 0.0, "eval.every": 2})
    train(config, tmp_path / "run")
    assert len(lines(tmp_path / "run")) == 6 and not any("eval/" in line for line in lines(tmp_path / "run"))
    assert prepare(config.data).validation is None


def test_each_batch_of_an_evaluation_is_progress(made):
    """A long evaluation is no hang: the watchdog hears of every batch."""
    feed, count = Feed.make(assemble(made[0]), prepare(made[0].data)), itertools.count()
    assert len(list(feed.validation_batches("text", lambda: next(count)))) == next(count) > 1


def test_text_that_is_dropped_has_no_bits_per_byte(tmp_path):
    """How many bytes it had is not known, and those of the whole store would be too many."""
    changes = {"data.packing": "best_fit", "data.long_documents": "drop", "data.length": 64, "eval.every": 6}
    train(tiny(tmp_path, changes), tmp_path / "run")
    (record,) = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" not in record]
    assert "eval/validation/loss" in record and "eval/validation/bits_per_byte" not in record
