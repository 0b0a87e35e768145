"""The masked objective: its loss is its definition, however a batch is divided; a run of it learns and resumes."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from data.errors import ConfigError
from data.objective_config import MaskedObjective
from data.tokenizer_config import WordPieceTokenizer
from model.config import Attention, Heads, LearnedPositions, Norm
from model.transformer import Transformer
from tests.helpers import digests, drawn, lines, replaced, tiny, train
from train import config as cfg
from train.assembly import assemble
from train.errors import Stopped
from train.evaluate import evaluate, make_eval_step
from train.metrics import read_metrics
from train.plan import make_plan
from train.step import Step

ROWS = 20
PAIRS = MaskedObjective(max_predictions=4, next_sentence=True, copies=2)
SMALL_BERT = {
    "model.vocab_size": 300,
    "model.num_layers": 1,
    "model.attention": Attention(num_heads=2, head_dim=8, causal=False),
    "model.norm": Norm(name="layernorm", placement="post", epsilon=1e-12, bias=True),
    "model.positions": LearnedPositions(length=24),
    "model.token_types": 2,
    "model.embedding_norm": True,
    "model.head_transform": True,
    "model.head_bias": True,
    "model.heads": Heads(pooler=True, next_sentence=True),
    "data.tokenizer": WordPieceTokenizer(vocab_size=300, max_characters=100),
    "data.objective": PAIRS,
    "data.length": 24,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("masked")


@pytest.fixture(scope="module")
def bert(directory):
    """(assembly, a state of parameters that are heard) of one layer under SGD, with a z-loss."""
    assembly = assemble(tiny(directory, {**SMALL_BERT, "optim.optimizer": cfg.Sgd(), "train.z_loss": 0.1}))
    state = drawn(assembly)
    return assembly, state.replace(params=jax.tree.map(lambda leaf: 3 * leaf, state.params))


@pytest.fixture(scope="module")
def gradients(bert):
    """(state, batch) -> (loss, metrics, gradients), compiled once for batches of ROWS."""
    return jax.jit(Step(bert[0].task, bert[0].optimizer, None, 0).gradients)


def drawn_batch(counts, rows=ROWS, length=24, slots=4, seed=0):
    """Pairs with `counts` predictions; rows of None, and those behind, are padding. Pairs end before the row does."""
    generator, counts = np.random.default_rng(seed), [*counts, *[None] * (rows - len(counts))]
    real = np.array([count is not None for count in counts])
    lengths = np.where(real, generator.integers(8, length, rows), 0)
    inside = np.arange(length) < lengths[:, None]
    weights = np.arange(slots) < np.array([count or 0 for count in counts])[:, None]
    batch = {
        "tokens": generator.integers(5, 300, (rows, length)) * inside,
        "token_types": (np.arange(length) >= lengths[:, None] // 2) * inside,
        "segment_ids": inside,
        "positions": np.arange(length) * inside,
        "masked_positions": generator.integers(1, 7, (rows, slots)) * weights,
        "targets": generator.integers(5, 300, (rows, slots)) * weights,
        "weights": weights,
        "next_sentence": generator.integers(0, 2, rows) * real,
    }
    return {key: value.astype(np.float32 if key == "weights" else np.int32) for key, value in batch.items()}


def outputs(model, params, batch):
    """(logits [rows, length, vocabulary], next-sentence logits [rows, 2]) of whole rows."""

    def run(model):
        hidden, _, _ = model(batch)
        return model.logits(hidden), model.heads.next_sentence_logits(hidden)

    logits, pairs = jax.device_get(jax.jit(nn.apply(run, Transformer(model)))({"params": params}))
    return logits[..., : model.vocab_size], pairs


def by_hand(logits, pairs, batch) -> dict[str, float]:
    """Each term and metric of its definition, float64."""

    def log_softmax(x):
        x = x.astype(np.float64)
        partition = np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) + x.max(-1, keepdims=True)
        return x - partition, partition[..., 0]

    logs, partition = log_softmax(logits)
    rows, slots = np.nonzero(batch["weights"])
    places, targets = batch["masked_positions"][rows, slots], batch["targets"][rows, slots]
    real = np.flatnonzero(batch["segment_ids"][:, 0])
    labels, choices = batch["next_sentence"][real], log_softmax(pairs[real])[0]
    return {
        "loss": -logs[rows, places, targets].mean(),
        "masked_accuracy": (logs[rows, places].argmax(-1) == targets).mean(),
        "next_sentence_loss": -choices[np.arange(real.size), labels].mean(),
        "next_sentence_accuracy": (choices.argmax(-1) == labels).mean(),
        "z_loss": (partition[rows, places] ** 2).mean(),
    }


def test_terms_and_metrics_are_their_definitions(bert, gradients):
    assembly, state = bert
    batch = drawn_batch([4, 2, None, 3, 1, 4, 0, 2])
    logits, pairs = outputs(assembly.config.model, state.params, batch)
    hits = np.take_along_axis(logits.argmax(-1), batch["masked_positions"], axis=1)
    wrong = (np.arange(4) == 0) & (batch["weights"] > 0)  # unused slots would be hits
    batch["targets"] = np.where(wrong, batch["targets"], hits).astype(np.int32)
    expected = by_hand(logits, pairs, batch)
    assert 0.1 < expected["masked_accuracy"] < 0.9
    loss, metrics, _ = gradients(state, batch)
    assert set(metrics) == set(expected) and next(iter(assembly.task.metrics)) == "loss"
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        loss, expected["loss"] + 0.1 * expected["z_loss"] + expected["next_sentence_loss"], rtol=1e-5
    )


def test_a_batch_split_one_to_nine_gives_the_same_gradient(bert, gradients):
    """Even rows, the first of two micro-batches, have 1 prediction and 1 row of 10; odd ones 9. In chunks, too."""
    assembly, state = bert
    counts = [None] * 20
    counts[0], counts[1::2] = 1, [1] * 9 + [None]
    batch = drawn_batch(counts)
    chunked = assemble(replaced(assembly.config, {"train.loss_chunks": 2})).task
    divided = jax.device_get(jax.jit(Step(chunked, assembly.optimizer, None, 0, 2).gradients)(state, batch))
    whole = jax.device_get(gradients(state, batch))
    assert whole[1]["loss"] > 1 and whole[1]["next_sentence_loss"] > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), divided, whole)


def test_padding_rows_and_unused_slots_change_nothing(bert, gradients):
    _, state = bert
    batch = drawn_batch([3, 1, 4])
    loss, _, grads = gradients(state, batch)
    batch["targets"][batch["weights"] == 0] = 9
    batch["next_sentence"][3:] = 1
    batch["tokens"][3:] = 11
    other, _, others = gradients(state, batch)
    assert float(loss) == float(other)
    jax.tree.map(np.testing.assert_array_equal, grads, others)


def test_every_parameter_learns(bert, gradients):
    grads = gradients(bert[1], drawn_batch([4] * 8))[2]
    still = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if not leaf.any()]
    assert still == []


def test_evaluation_does_not_depend_on_its_batches(bert):
    assembly, state = bert
    batch = drawn_batch([4, 2, 3, 1, 4, 0, 2, 2])
    eval_step = jax.jit(make_eval_step(assembly.task))

    def rows(first, last):
        return {key: np.concatenate([x[first:last], np.zeros_like(x[last - first :])]) for key, x in batch.items()}

    whole = evaluate(assembly.task, eval_step, state.params, state.frozen, [batch])
    parts = [rows(0, 5), rows(5, 6), rows(6, 8), rows(8, ROWS)]
    found = evaluate(assembly.task, eval_step, state.params, state.frozen, parts)
    assert found == pytest.approx(whole, rel=1e-6)


def test_the_log_counts_tokens_and_not_predictions(bert):
    batch = drawn_batch([4, 0, None, 1, 2, 3, 4, 4])
    assert int(bert[0].task.tokens(batch)) == (batch["segment_ids"] > 0).sum() > (batch["weights"] > 0).sum()


def test_dropout_is_drawn_in_training_alone(directory):
    assembly = assemble(tiny(directory, {**SMALL_BERT, "model.dropout": 0.1}))
    state, batch = drawn(assembly), drawn_batch([4] * 8, rows=8)
    assert assembly.task.dropout
    sums = jax.jit(lambda key: assembly.task.sums(state.params, batch, key)[0]["masked"])
    assert float(sums(jax.random.key(0))) != float(sums(jax.random.key(1)))


def test_only_what_an_evaluation_gives_can_be_best(directory):
    """Bits per byte are those of a code for the text, which predicting some tokens from the others is not."""
    config = tiny(directory, {**SMALL_BERT, "checkpoint.best": "eval/validation/loss"})
    make_plan(config, 100)
    with pytest.raises(ConfigError, match="checkpoint.best is 'eval/validation/bits_per_byte'"):
        make_plan(replaced(config, {"checkpoint.best": "eval/validation/bits_per_byte"}), 100)


@pytest.mark.slow
def test_a_run_learns_evaluates_and_resumes_bit_for_bit(directory):
    changes = {**SMALL_BERT, "model.dropout": 0.1, "train.steps": 12, "eval.every": 6, "checkpoint.every": 6}
    config = tiny(directory, changes)
    train(config, directory / "whole")
    with pytest.raises(Stopped):
        train(config, directory / "stopped", stop_after=6)
    train(config, directory / "stopped")
    assert digests(directory / "whole") == digests(directory / "stopped")
    assert lines(directory / "whole") == lines(directory / "stopped")
    records = read_metrics(directory / "whole" / "metrics.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0] - 0.3
    evaluated = {key for record in records for key in record if key.startswith("eval/")}
    names = ("loss", "masked_accuracy", "next_sentence_loss", "next_sentence_accuracy")
    assert evaluated == {f"eval/validation/{name}" for name in names}


@pytest.mark.parametrize(
    "sizes", [(2, 2, 2), *(pytest.param(x, marks=pytest.mark.slow) for x in ((8, 1, 1), (1, 4, 2)))]
)
def test_the_gradient_on_any_mesh_is_that_on_one_device(bert, sizes):
    """Of 8 rows: on 2x2x2 gradients came out wrong before gathered states and the transform were held together."""
    alone, state = bert
    assembly = assemble(replaced(alone.config, {"mesh": cfg.Mesh(*sizes)}))
    batch = drawn_batch([4, 2, None, 3, 1, 4, 0, 2], rows=8)
    placed = jax.tree.map(jax.device_put, (state, batch), (_shardings(assembly.abstract), assembly.batch_shardings()))
    found, expected = (
        jax.device_get(jax.jit(Step(part.task, part.optimizer, None, 0).gradients)(*arguments))
        for part, arguments in ((assembly, placed), (alone, (state, batch)))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def _shardings(abstract):
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
