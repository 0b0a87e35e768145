"""Each objective trains on the models there are, on its own targets; what none of them reads is refused."""

import numpy as np
import pytest

from data.errors import ConfigError
from data.objective_config import (
    FimObjective,
    PrefixObjective,
    ReplacedTokenObjective,
    SpanCorruptionObjective,
    Ul2Objective,
)
from data.objectives import objective_rows
from data.prepare import prepare
from data.tokenizer_config import ByteTokenizer, WordPieceTokenizer
from tests import helpers
from train.checks import check
from train.metrics import read_metrics

SPECIAL = ("<extra_id_{0..9}>", "[NLU]", "[S2S]", "[NLG]", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
PREFIX = {"model.attention.prefix": True}
TRAINED = {
    "span_corruption": (SpanCorruptionObjective(arrangement="decoder"), {}),
    "prefix_lm": (PrefixObjective(), PREFIX),
    "ul2": (Ul2Objective(arrangement="prefix_decoder"), PREFIX),
    "fim": (FimObjective(segments=2), {}),
    "ul2_encoder_decoder": (Ul2Objective(), {"model.encoder_layers": 1}),
}


def config(directory, objective, changes=None):
    return helpers.tiny(
        directory,
        {
            "data.objective": objective,
            "data.tokenizer": ByteTokenizer(special_tokens=SPECIAL),
            "data.packing": "concat",
            "data.length": 32,
            "model.vocab_size": 280,
            "train.steps": 2,
            **(changes or {}),
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_an_objective_trains(tmp_path, name):
    """The tokens counted are the targets with weight, and no loss claims to code the text."""
    wanted = config(tmp_path, *TRAINED[name])
    helpers.train(wanted, tmp_path / "run")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    assert len(steps) == 2 and all(np.isfinite(record["loss"]) and record["skipped"] == 0 for record in steps)
    assert abs(steps[0]["loss"] - np.log(280)) < 0.5
    assert "eval/validation/loss" in records[-1] and not any("bits_per_byte" in key for key in records[-1])
    whole = objective_rows(wanted.data, prepare(wanted.data).train, wanted.train.seed)
    weights = whole.rows(range(len(whole)))["weights"].sum(axis=1)
    size = wanted.train.batch_size
    assert 2 * size * weights.min() <= steps[-1]["tokens"] <= 2 * size * weights.max()


REPLACED = ReplacedTokenObjective(max_predictions=5)
ENCODER = {"model.attention.causal": False, "data.tokenizer": WordPieceTokenizer(vocab_size=279, max_characters=100)}


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        (SpanCorruptionObjective(), {}, "encoder_layers is 0, .*span_corruption has sources.*arrangement=decoder"),
        (Ul2Objective(), {}, "model.encoder_layers is 0, .*ul2 has sources.*arrangement=decoder"),
        (FimObjective(), {"model.encoder_layers": 2}, "encoder_layers is 2, but batches of .*fim hold no sources"),
        (REPLACED, ENCODER, "model.generator_layers is 0, but data.objective replaced_token needs a generator"),
        (FimObjective(), {"model.generator_layers": 1}, "model.generator_layers is 1, but the model is no encoder"),
        (PrefixObjective(), {}, "model.attention.prefix is false, but .*prefix_lm.*set it to true"),
        (FimObjective(), PREFIX, "model.attention.prefix is true, but .*fim.*set it to false"),
        (FimObjective(), {"model.attention.causal": False}, "model.attention.causal is false, but .*fim would show"),
        (SpanCorruptionObjective(arrangement="prefix_decoder"), {}, "model.attention.prefix is false"),
        (FimObjective(), {"data.tokenizer": ByteTokenizer()}, r"data.tokenizer.special_tokens lack <\|fim_prefix\|>"),
    ],
    ids=str,
)
def test_what_no_model_reads_is_refused(tmp_path, objective, changes, message):
    with pytest.raises(ConfigError, match=message):
        check(config(tmp_path, objective, changes))


@pytest.mark.parametrize("name", TRAINED)
def test_what_trains_is_not_refused(tmp_path, name):
    check(config(tmp_path, *TRAINED[name]))
