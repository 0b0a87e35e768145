"""A run of DeBERTa v3's kind, from its text to a fine-tuned export: it learns, resumes, answers, and is converted."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from data.cli import exit_code
from data.objective_config import QaObjective, ReplacedTokenObjective
from data.tokenizer_config import FileTokenizer, WordPieceTokenizer
from model.config import Attention, DisentangledPositions, FeedForward, Heads, Norm
from model.replaced import generator
from model.transformer import Transformer
from tests.helpers import digests, lines, replaced, tiny, train
from tests.train.test_qa_run import small
from train import convert, encode, generate, inspect
from train.config import Config
from train.dry_run import describe
from train.errors import Stopped
from train.metrics import read_metrics

pytestmark = pytest.mark.slow
LENGTH, VOCABULARY = 24, 300
V3 = {
    "model.vocab_size": VOCABULARY,
    "model.num_layers": 2,
    "model.generator_layers": 1,
    "model.attention": Attention(num_heads=2, causal=False, qkv_bias=True, output_bias=True, dropout=0.1),
    "model.feed_forward": FeedForward(hidden_dim=64, activation="gelu", gated=False, bias=True),
    "model.norm": Norm(name="layernorm", placement="post", epsilon=1e-7, bias=True),
    "model.positions": DisentangledPositions(
        span=16, buckets=8, shared_projections=True, norm=True, mask_decoder_passes=2, absolute_length=LENGTH
    ),
    "model.embedding_norm": True,
    "model.head_transform": True,
    "model.head_bias": True,
    "model.dropout": 0.1,
    "model.heads": Heads(replaced=True, pooler_activation="gelu"),
    "data.tokenizer": WordPieceTokenizer(vocab_size=VOCABULARY, max_characters=100),
    "data.objective": ReplacedTokenObjective(max_predictions=4),
    "data.length": LENGTH,
    "train.steps": 24,
    "train.accumulate": 2,
    "eval.every": 12,
    "checkpoint.every": 6,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(configuration, directory of its run)."""
    directory = tmp_path_factory.mktemp("v3")
    config = tiny(directory, V3)
    train(config, directory / "run")
    return config, directory / "run"


def test_both_models_learn_and_are_evaluated(made):
    records = read_metrics(made[1] / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.3 and steps[-1]["replaced_loss"] < steps[0]["replaced_loss"] - 0.05
    assert all(record["skipped"] == 0 and 0 < record["replaced_share"] < 0.3 for record in steps)
    for record in steps:
        norms = [record[f"grad_norm/{branch}"] for branch in ("generator", "discriminator")]
        assert record["grad_norm"] == pytest.approx(np.hypot(*norms), rel=1e-5)
    evaluated = {key for record in records for key in record if key.startswith("eval/")}
    names = ("loss", "masked_accuracy", "replaced_loss", "replaced_accuracy", "replaced_share")
    assert evaluated == {f"eval/validation/{name}" for name in names}


def test_stopped_and_resumed_is_not_stopped(made, tmp_path):
    config, run = made
    for stop in (3, 8):
        with pytest.raises(Stopped):
            train(config, tmp_path / "run", stop)
    train(config, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(run)
    assert lines(tmp_path / "run") == lines(run)


def saved(run) -> tuple[dict, dict]:
    """(what `train.inspect` says of a run, its parameters by path)."""
    folder, manifest = inspect.chosen(run / "checkpoints", None)
    paths = inspect.merged_paths(manifest, ("params", "frozen"))
    return inspect.report(run, None), dict(inspect.stored_leaves(folder, manifest, paths))


def test_the_discriminator_embeds_and_the_generator_fills(made, capsys):
    """The embedding that is read is the generator's and the difference, which has been learned."""
    config, run = made
    report, leaves = saved(run)
    difference = leaves["discriminator/embedding/token"]
    assert np.abs(difference).max() > 1e-3
    assert report["parameter_count"] == sum(leaf.size for leaf in leaves.values())
    model, params, _ = generate.load_run(run)
    assert model.config.num_layers == 2 and not model.config.language_head
    expected = leaves["generator/embedding/token"] + difference
    np.testing.assert_array_equal(params["embedding"]["token"], expected)
    assert exit_code(generate.main, ["--run", str(run), "--embed", "--prompt", "Counting 3", "--json"]) == 0
    vector = json.loads(capsys.readouterr().out)["embedding"]
    assert np.linalg.norm(vector) == pytest.approx(1, rel=1e-5)
    assert exit_code(generate.main, ["--run", str(run), "--fill", "Counting [MASK]", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    model, params, tokenizer = generate.load_run(run, predicts=True)
    assert model == Transformer(generator(config.model))
    assert encode.fill((model, params, tokenizer), ["Counting [MASK]"]) == [found]
    assert exit_code(generate.main, ["--run", str(run), "--prompt", "Counting"]) == 2
    assert "this run is an encoder" in capsys.readouterr().err


def test_a_dry_run_counts_both_models(made):
    config, run = made
    assert f"{saved(run)[0]['parameter_count']:,} parameters" in describe(config)
    assert "a generator of 1 layers beside a discriminator" in describe(config)


def test_the_discriminator_is_exported_imported_and_fine_tuned(made, tmp_path, capsys):
    """With its embeddings added up it is a DeBERTa of the second kind; a run on questions begins from it."""
    config, run = made
    assert exit_code(convert.main, ["export", "--run", str(run), "--hf", str(tmp_path / "hf")]) == 0
    published = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert published["model_type"] == "deberta-v2" and published["num_hidden_layers"] == 2
    asked = ["import", "--hf", str(tmp_path / "hf"), "--workdir", str(tmp_path / "spans")]
    assert exit_code(convert.main, [*asked, "--config.model.generator_layers=1"]) == 2
    assert "model.generator_layers is 1, but a published model comes without" in capsys.readouterr().err
    assert exit_code(convert.main, [*asked[:-1], str(tmp_path / "again")]) == 0
    text = ["Counting 3 is odd"]
    first, second = (encode.embed(generate.load_run(path), text)[0] for path in (run, tmp_path / "again"))
    assert first["tokens"] == second["tokens"]
    np.testing.assert_allclose(second["embedding"], first["embedding"], rtol=0, atol=1e-6)
    heads = ["--config.model.heads.replaced=false", "--config.model.heads.spans=true", "--initialise_missing_heads"]
    assert exit_code(convert.main, [*asked, *heads]) == 0
    imported = json.loads((tmp_path / "spans" / "config.json").read_text())["model"]
    tokenizer = FileTokenizer(path=str(run / "tokenizer.json"))
    questions = {"data.objective": QaObjective(stride=8, max_question=8), "data.tokenizer": tokenizer}
    model = replaced(config.model, {"generator_layers": 0, "heads.replaced": False, "heads.spans": True})
    tuned = replace(small(tmp_path, **questions), model=generate.from_plain(Config, {"model": imported}).model)
    assert tuned.model.embed_dim == model.embed_dim
    tuned = replaced(
        tuned, {"train.init_from": str(tmp_path / "spans"), "train.steps": 2, "train.sift.coefficient": 1.0}
    )
    train(tuned, tmp_path / "tuned")
    steps = [record for record in read_metrics(tmp_path / "tuned" / "metrics.jsonl") if "loss" in record]
    assert len(steps) == 2 and all(np.isfinite(record["loss"]) and record["sift"] > 0 for record in steps)
    token = jax.device_get(generate.load_run(tmp_path / "tuned")[1]["embedding"]["token"])
    assert 0 < np.abs(token - generate.load_run(run)[1]["embedding"]["token"]).max() < 0.1
