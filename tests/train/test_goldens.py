"""What review should see when it changes: the first losses of two architectures, and what their optimizers decay."""

import hashlib
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from data.prepare import prepare
from data.source_config import TextSource
from data.tokenizer_config import ByteTokenizer
from model.config import Layer, Llama3Scaling
from model.transformer import Transformer
from tests.helpers import drawn, replaced, train
from tests.references.numpy_decoder import mean_loss, row_logits
from train.assembly import assemble
from train.checkpoint import leaf_dict
from train.checks import load
from train.config import Log, Mesh
from train.metrics import read_metrics
from train.optim import merge
from train.session import Feed

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ("gpt2", "llama")


def recipe(name: str, directory):
    """The debug size on the text in tests/text, as raw bytes, without dropout, on one device."""
    source = TextSource(paths=(f"{ROOT}/tests/text/*.txt",), document="line")
    changes = {
        "model.dropout": 0.0,
        "model.attention.dropout": 0.0,
        "data.source": source,
        "data.tokenizer": ByteTokenizer(),
        "data.cache_dir": str(directory / "cache"),
        "mesh": Mesh(data=1),
        "log": Log(tensorboard=False),
    }
    return replaced(load(f"{ROOT}/configs/{name}.py:debug"), changes)


@pytest.fixture(scope="module", params=RECIPES)
def trained(request, tmp_path_factory):
    """(name, config, losses of its 20 steps)."""
    directory = tmp_path_factory.mktemp(request.param)
    config = recipe(request.param, directory)
    train(config, directory / "run")
    records = read_metrics(directory / "run" / "metrics.jsonl")
    return request.param, config, [record["loss"] for record in records if "loss" in record]


def test_the_first_losses_are_the_golden_ones(trained, request):
    """Within 1e-4: float32 sums in another order, as on another CPU, differ by 1e-7 and grow over 20 updates."""
    name, _, losses = trained
    path = Path(__file__).parent / "golden" / f"{name}_debug_losses.txt"
    if request.config.getoption("--update-goldens"):
        path.write_text("".join(f"{step} {loss:.6f}\n" for step, loss in enumerate(losses, 1)))
    expected = [float(line.split()[1]) for line in path.read_text().splitlines()]
    assert len(losses) == len(expected) == 20
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)


def test_the_first_of_them_is_what_another_program_computes(trained):
    """The golden file is not our own word alone: a float64 forward pass, written apart, gives its first line."""
    _, config, losses = trained
    assembly = assemble(config)
    state = assembly.fresh()
    params = {path: np.asarray(leaf) for path, leaf in leaf_dict(merge(state.params, state.frozen)).items()}
    batch = jax.device_get(Feed.make(assembly, prepare(config.data)).batch(0))
    assert batch["segment_ids"].max() > 1 and batch["positions"].max() > 20  # packed rows
    expected = mean_loss(config.model, params, batch)
    assert losses[0] == pytest.approx(expected, abs=2e-6)
    # The difference of initial values to zeros, a loss of ln 512, is what the architecture says; it is seen.
    assert abs(expected - np.log(config.model.vocab_size)) > 1e-3


@pytest.mark.parametrize("name", RECIPES)
def test_that_program_and_ours_agree_where_every_part_is_heard(name, tmp_path):
    """Initial weights are so small that an activation or a rotation can be wrong unnoticed: here they are not."""
    config = recipe(name, tmp_path)
    if name == "llama":  # the scaling of long wavelengths, brought within reach of a row
        scaling = Llama3Scaling(original_length=32)
        config = replaced(config, {"model.pattern": (Layer(rotary_base=100.0, rotary_scaling=scaling),)})
    assembly = assemble(config)
    params = jax.tree.map(lambda leaf: 5 * leaf, drawn(assembly).params)
    batch = jax.device_get(Feed.make(assembly, prepare(config.data)).batch(0))
    logits = nn.apply(lambda model: model.logits(model(batch)[0]), Transformer(config.model))
    found = jax.device_get(jax.jit(logits)({"params": params}))
    named = {path: np.asarray(leaf) for path, leaf in leaf_dict(params).items()}
    for index in range(3):
        expected = row_logits(config.model, named, {key: value[index] for key, value in batch.items()})
        assert np.abs(expected).mean() > 1
        np.testing.assert_allclose(found[index][:, : config.model.vocab_size], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_what_decays_is_what_the_golden_list_says(name, golden):
    config = load(f"{ROOT}/configs/{name}.py:debug")
    golden(f"{name}_debug_optimizer.txt", assemble(replaced(config, {"mesh": Mesh(data=1)})).optimizer.describe())


def test_the_text_is_the_one_that_goldens_were_made_of():
    texts = sorted((ROOT / "tests" / "text").glob("*.txt"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in texts)).hexdigest()
    assert 95_000 < sum(path.stat().st_size for path in texts) < 105_000
    assert digest.startswith("ccae2d1317335ed2")
