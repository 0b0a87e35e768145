"""The loss of questions is its definition, whatever the padding; an encoder learns where answers stand."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from data.errors import ConfigError
from data.objective_config import QaObjective
from data.source_config import SquadSource
from data.tokenizer_config import WordPieceTokenizer
from model.config import Attention, Heads, LearnedPositions, Norm
from model.transformer import Transformer
from tests.helpers import drawn, replaced, tiny, train
from train import config as cfg
from train.assembly import assemble
from train.checks import check
from train.metrics import read_metrics
from train.step import Step

SMALL = {
    "model.vocab_size": 300,
    "model.num_layers": 2,
    "model.attention": Attention(num_heads=2, head_dim=16, causal=False),
    "model.norm": Norm(name="layernorm", placement="post", epsilon=1e-12, bias=True),
    "model.positions": LearnedPositions(length=24),
    "model.token_types": 2,
    "model.embedding_norm": True,
    "model.heads": Heads(spans=True),
    "model.language_head": False,
    "data.tokenizer": WordPieceTokenizer(vocab_size=300, max_characters=100),
    "data.objective": QaObjective(stride=8, max_question=8),
    "data.length": 24,
}
FACTS = {"ann": "rome", "bo": "oslo", "cy": "bonn", "di": "lima"}


def small(directory, **changes):
    context = ", ".join(f"{name} is in {place}" for name, place in FACTS.items())
    questions = [
        {"id": name, "question": f"where is {name}", "answers": [{"text": place, "answer_start": context.index(place)}]}
        for name, place in FACTS.items()
    ]
    path = directory / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}))
    return tiny(directory, {**SMALL, "data.source": SquadSource(paths=(str(path),)), **changes})


def drawn_batch(length, lengths=(20, 9, 24, 0)):
    generator, inside = np.random.default_rng(0), np.arange(length) < np.array(lengths)[:, None]
    batch = {
        "tokens": generator.integers(5, 300, (len(lengths), 24))[:, :length] * inside,
        "token_types": (np.arange(length) > 4) * inside,
        "segment_ids": inside,
        "positions": np.arange(length) * inside,
        "start_positions": np.array([6, 0, 11, 0]),
        "end_positions": np.array([7, 0, 23, 0]),
    }
    return {key: value.astype(np.int32) for key, value in batch.items()}


def test_the_loss_is_its_definition_and_does_not_see_padding(tmp_path):
    config = small(tmp_path, **{"optim.optimizer": cfg.Sgd()})
    assembly = assemble(config)
    state, batch = drawn(assembly), drawn_batch(24)
    loss, metrics, _ = jax.jit(Step(assembly.task, assembly.optimizer, None, 0).gradients)(state, batch)

    def run(model):
        return model.heads.span_logits(model(batch)[0])

    logits = np.asarray(nn.apply(run, Transformer(config.model))({"params": state.params}), np.float64)
    sides = {"start_positions": [], "end_positions": []}
    for row, size in enumerate((20, 9, 24)):  # each alone, without its padding
        for side, found in enumerate(sides.values()):
            seen = logits[row, :size, side]
            found.append(seen - np.log(np.exp(seen).sum()))
    nll = [-logs[batch[key][row]] for key, found in sides.items() for row, logs in enumerate(found)]
    np.testing.assert_allclose(loss, np.mean(nll), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean(nll), rtol=1e-5)
    for key, name in (("start_positions", "start_accuracy"), ("end_positions", "end_accuracy")):
        hits = [logs.argmax() == batch[key][row] for row, logs in enumerate(sides[key])]
        np.testing.assert_allclose(metrics[name], np.mean(hits), rtol=1e-6)


@pytest.mark.parametrize(
    "changes, fault",
    [
        ({"model.heads": Heads()}, "model.heads.spans is false"),
        ({"model.token_types": 1}, "model.token_types is 1, but data.objective qa"),
        ({"model.attention.causal": True}, "model.attention.causal is true"),
        ({"train.z_loss": 0.1}, "train.z_loss is 0.1, but data.objective qa"),
        ({"train.label_smoothing": 0.1}, "train.label_smoothing is 0.1, but data.objective qa"),
    ],
)
def test_a_model_that_cannot_answer_is_refused(tmp_path, changes, fault):
    check(small(tmp_path))
    with pytest.raises(ConfigError, match=fault):
        check(replaced(small(tmp_path), changes))


@pytest.mark.slow
def test_an_encoder_learns_where_answers_stand(tmp_path):
    config = small(tmp_path, **{"train.steps": 400, "train.batch_size": 8, "optim.learning_rate": 0.002})
    train(config, tmp_path / "run")
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["start_accuracy"] == last["end_accuracy"] == 1.0 and last["loss"] < 0.1
