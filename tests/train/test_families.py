"""The invariances of the codebase hold for every family's debug size: one recipe after another, the same tests."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from data.objective_config import MaskedObjective, ReplacedTokenObjective, special_tokens
from data.prepare import prepare
from data.source_config import TextSource
from data.tokenizer_config import ByteTokenizer, WordPieceTokenizer
from model.config import CapacityExperts, Model, NoExperts
from tests.helpers import digests, drawn, lines, replaced, train
from tests.model.small import close, draw, jit, logits, pack, sourced, tokens
from tests.model.test_generate import LENGTH, check_read
from train.assembly import assemble
from train.checks import load
from train.config import Config, Log, Mesh, NoRamp
from train.errors import Stopped
from train.metrics import read_metrics
from train.session import Feed
from train.step import Step

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
DEBUG = (
    "bert:debug",
    "deberta:debug",
    "deberta:debug-2",
    "deberta:debug-3",
    "gpt2:debug",
    "gpt3:debug",
    "llama:debug",
    "qwen:debug",
    "qwen:debug-2",
    "mistral:debug",
    "gemma:debug",
    "gemma:debug-2",
    "gemma:debug-1",
    "transformer:debug",
    "t5:debug",
    "t5:debug-1.1",
    "gshard:debug",
    "switch:debug",
    "mixtral:debug",
)
DECODERS = [spec for spec in DEBUG if not spec.startswith(("bert", "deberta"))]
specs = pytest.mark.parametrize("spec", DEBUG)


def recipe(spec: str, directory: Path) -> Config:
    """The debug size on the text in tests/text, without dropout, on one device."""
    name, size = spec.split(":")
    config = load(f"{ROOT}/configs/{name}.py:{size}")
    masked = isinstance(config.data.objective, MaskedObjective | ReplacedTokenObjective)
    words, byte = WordPieceTokenizer(vocab_size=1024, max_characters=200), ByteTokenizer(special_tokens=special(config))
    changes = {
        "model.dropout": 0.0,
        "model.output_dropout": 0.0,
        "model.attention.dropout": 0.0,
        "model.feed_forward.dropout": 0.0,
        "data.source": TextSource(paths=(f"{ROOT}/tests/text/*.txt",), document="paragraph"),
        "data.tokenizer": words if masked else byte,
        "data.cache_dir": str(directory / "cache"),
        "mesh": Mesh(data=1),
        "log": Log(tensorboard=False),
    }
    return replaced(config, changes)


def special(config: Config) -> tuple[str, ...]:
    """The special tokens that a recipe's objective puts into rows."""
    return special_tokens(config.data.objective, config.data.length)


@pytest.fixture(scope="module", params=DEBUG)
def trained(request, tmp_path_factory):
    """(recipe, configuration, the run of its 20 steps)."""
    directory = tmp_path_factory.mktemp(request.param.replace(":", "-"))
    config = recipe(request.param, directory)
    train(config, directory / "run")
    return request.param, config, directory / "run"


def test_the_first_losses_are_the_golden_ones(trained, request):
    """Within 1e-4, as in test_goldens.py; what another program makes of the same weights, tests/references says."""
    spec, _, run = trained
    losses = [record["loss"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
    path = Path(__file__).parent / "golden" / f"families_{spec.replace(':', '_')}_losses.txt"
    if request.config.getoption("--update-goldens"):
        path.write_text("".join(f"{step} {loss:.6f}\n" for step, loss in enumerate(losses, 1)))
    expected = [float(line.split()[1]) for line in path.read_text().splitlines()]
    assert len(losses) == len(expected) == 20
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)


def test_it_learns_and_is_evaluated(trained):
    _, config, run = trained
    found = {
        record["step"]: record["eval/validation/loss"]
        for record in read_metrics(run / "metrics.jsonl")
        if "eval/validation/loss" in record
    }
    assert list(found) == [10, 20]
    assert found[20] < found[10] < np.log(config.model.vocab_size) + 0.2


def test_stopped_and_resumed_is_not_stopped(trained, tmp_path):
    _, config, run = trained
    for stop in (3, 9):
        with pytest.raises(Stopped):
            train(config, tmp_path / "run", stop)
    train(config, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(run)
    assert lines(tmp_path / "run") == lines(run)


def gradients(config: Config, state=None, batch=None):
    """(loss, metrics, gradients) of a step from weights that are heard; and the state and the batch, by rows."""
    assembly = assemble(config)
    state = jax.device_get(drawn(assembly)) if state is None else state
    batch = Feed.make(assembly, prepare(config.data)).loader.batch(0) if batch is None else batch
    placed = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, assembly.abstract)
    step = Step(assembly.task, assembly.optimizer, None, 0, config.train.accumulate)
    found = jit(step.gradients)(placed, jax.device_put(batch, assembly.batch_shardings()))
    return jax.device_get(found), state, batch


@specs
def test_a_batch_may_be_divided_in_any_way(spec, tmp_path):
    """Among micro-batches, rows with unequally many targets in each, or among devices: loss and gradients are equal."""
    config = replaced(recipe(spec, tmp_path), {"train.batch_ramp": NoRamp(), "train.accumulate": 1})
    # As the tolerance is absolute, the loss of replaced tokens counts as much as others do.
    changes = {"train.batch_size": 8, "data.packing": "unpacked", "train.replaced_coefficient": 1.0}
    config = replaced(config, changes)
    expected, state, batch = gradients(config)
    tensor = 1 if config.model.num_kv_heads == 1 else 2
    divided = [{"train.accumulate": parts} for parts in (2, 4)]
    divided += [{"mesh": Mesh(*sizes)} for sizes in ((8, 1, 1), (2, 4 // tensor, tensor))]
    if not isinstance(config.model.experts, NoExperts):
        divided += [{"mesh": Mesh(*sizes)} for sizes in ((1, 1, 1, 8), (2, 1, 1, 4), (1, 2, 2, 2))]
    for changes in divided:
        found, _, _ = gradients(replaced(config, changes), state, batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6), found, expected)


def short(spec: str, tmp_path: Path) -> Model:
    """The model of a recipe with windows within reach of a row of 12 tokens, and at least two periods and a layer.

    Its experts have room for every token: where they have not, a token depends on those beside it.
    """
    model = recipe(spec, tmp_path).model
    pattern = tuple(replace(layer, window=layer.window and 5) for layer in model.pattern)
    encoder = model.encoder_layers and 2 * len(pattern) + 1
    model = replace(model, pattern=pattern, num_layers=2 * len(pattern) + 1, encoder_layers=encoder)
    if isinstance(model.experts, CapacityExperts):
        room = {"capacity_factor": float(model.experts.num_experts), "eval_capacity_factor": None}
        model = replace(model, experts=replace(model.experts, **room, groups=1))
    return model


@specs
def test_a_packed_text_is_the_text_alone_and_layers_may_be_unrolled(spec, tmp_path):
    model = short(spec, tmp_path)
    texts = (tokens(7, 1), tokens(5, 2))
    batch = pack([*texts], [texts[1]], [texts[0]])
    batch = sourced({**batch, "token_types": np.zeros_like(batch["tokens"])})
    params = draw(model)
    found = np.asarray(logits(model)(params, batch))[..., : model.vocab_size]
    close(found[0, 7:], found[1, :5], 2e-5)
    close(found[0, :7], found[2, :7], 2e-5)
    assert np.abs(found).mean() > 0.1
    unrolled = np.asarray(logits(replace(model, unroll=3))(params, batch))[..., : model.vocab_size]
    real = batch["segment_ids"] > 0
    close(unrolled[real], found[real], 2e-5)


@pytest.mark.parametrize("spec", DECODERS)
def test_decoding_with_a_cache_is_the_full_forward_pass(spec, tmp_path):
    model = short(spec, tmp_path)
    check_read(model, LENGTH * [(1, (1, 1))])
    check_read(model, [(4, (4, 2)), (4, (3, 4)), (4, (1, 4)), (4, (4, 2))], capacity=LENGTH + 4)
