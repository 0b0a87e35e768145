"""A decoder that is trained on answers alone gives them back, and stops; its prompts it has never learnt."""

import json

import pytest

from data.objective_config import Seq2SeqObjective, SupervisedObjective
from data.source_config import JsonlSource
from model.config import LearnedPositions
from tests import helpers
from train import generate
from train.checks import check
from train.metrics import read_metrics

PAIRS = {"zwei?": " 2", "drei?": " three", "Hi": "!", "Who are you?": " A model.", "fünf?": " 五"}


def config(directory, **changes):
    path = directory / "records.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "answer": a}) + "\n" for p, a in PAIRS.items()))
    return helpers.tiny(
        directory,
        {
            "data.source": JsonlSource(paths=(str(path),), validation_fraction=0.0),
            "data.objective": SupervisedObjective(),
            "data.packing": "best_fit",
            "data.length": 32,
            **changes,
        },
    )


def test_sources_without_an_encoder_are_refused(tmp_path):
    with pytest.raises(
        generate.ConfigError, match="encoder_layers is 0, but data.objective seq2seq has sources for an"
    ):
        check(config(tmp_path, **{"data.objective": Seq2SeqObjective()}))


def test_a_table_that_the_decoders_rows_do_not_fit_is_refused(tmp_path):
    changes = {"data.objective": Seq2SeqObjective(target_length=40), "model.encoder_layers": 1}
    check(config(tmp_path, **changes, **{"model.positions": LearnedPositions(length=40)}))
    with pytest.raises(generate.ConfigError, match="model.positions.length is 39, but the rows of the decoder have 40"):
        check(config(tmp_path, **changes, **{"model.positions": LearnedPositions(length=39)}))


@pytest.mark.slow
def test_a_trained_run_gives_its_answers_back(tmp_path):
    path = tmp_path / "run"
    helpers.train(config(tmp_path, **{"train.steps": 150, "train.batch_size": 4}), path)
    records = read_metrics(path / "metrics.jsonl")
    predicted = sum(len(answer.encode()) + 1 for answer in PAIRS.values())  # answers and their ends, in an epoch
    assert records[-1]["tokens"] / 150 == pytest.approx(2 * predicted, rel=0.02)  # an epoch has two rows
    assert records[-1]["loss"] < 0.05 < records[0]["loss"]
    run = generate.load_run(path)
    found = generate.continue_texts(run, list(PAIRS), 12, generate.Sampling(temperature=0.0), seed=0)
    assert {one["prompt"]: one["text"] for one in found} == PAIRS
    assert all(one["ended"] for one in found)
