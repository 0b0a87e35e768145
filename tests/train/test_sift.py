"""SiFT: its penalty and its step from their formulas, of masked tokens and of answers, however a batch is divided."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import ConfigError
from data.objective_config import CausalObjective
from model.config import Heads
from model.transformer import Transformer
from tests.helpers import drawn, replaced, tiny
from tests.model.small import jit
from tests.train import test_qa_run
from tests.train.test_masked import PAIRS, SMALL_BERT, drawn_batch
from train import config as cfg
from train import sift
from train.assembly import assemble
from train.checks import check
from train.evaluate import make_eval_step
from train.step import Step

SIFT = cfg.Sift(coefficient=3.0, std=0.5, step=0.3)  # so large that what they do is heard above rounding
ROWS = 8


def row_keys(seed=0, rows=ROWS):
    return jax.random.split(jax.random.key(seed), rows)


def probabilities(logits):
    logits = np.asarray(logits, np.float64)
    found = np.exp(logits - logits.max())
    return found / found.sum()


def by_loops(logits, others, weights) -> float:
    """Both divergences of the distributions of each output, term by term."""
    total = 0.0
    for place in np.ndindex(*weights.shape):
        if weights[place]:
            p, q = probabilities(logits[place]), probabilities(others[place])
            for a, b in zip(p, q, strict=True):
                if a > 0 and b > 0:
                    total += weights[place] * (a * np.log(a / b) + b * np.log(b / a))
    return total


def test_the_divergence_is_symmetric_and_that_of_loops():
    generator = np.random.default_rng(0)
    logits, others = (2 * generator.standard_normal((2, 3, 5, 7))).astype(np.float32)
    logits[0, 0], others[0, 0] = np.nan, np.inf  # of no weight
    logits[1, :, 6] = others[1, :, 6] = np.finfo(np.float32).min  # an id that is padding
    weights = np.array([[0] * 5, [1, 2, 0.5, 1, 0], [1] * 5], np.float32)
    found = sift.divergence(logits, others, weights)
    np.testing.assert_allclose(found, by_loops(logits, others, weights), rtol=1e-5)
    np.testing.assert_allclose(sift.divergence(others, logits, weights), found, rtol=1e-6)
    assert sift.divergence(logits, logits, weights) == 0


def test_noise_is_cut_at_two_deviations_and_is_each_rows_own():
    keys = row_keys(rows=50)
    noise = np.asarray(sift.noise(0.1, keys, (20, 30)))
    assert np.abs(noise).max() == np.float32(0.2)
    uncut = np.abs(noise) < 0.2
    # 4.55 % lie beyond two deviations; the variance of those within is 0.774 of the whole.
    assert abs(uncut.mean() - 0.9545) < 0.005 and abs(noise[uncut].std() / 0.1 - 0.774**0.5) < 0.01
    np.testing.assert_array_equal(sift.noise(0.1, keys[7:9], (20, 30)), noise[7:9])


def test_the_step_goes_up_the_gradient_of_each_token():
    """Of a linear model, whose gradient is known, with its largest element as long as the step."""
    generator = np.random.default_rng(1)
    kernel = generator.standard_normal((6, 4)).astype(np.float32)
    x, change = generator.standard_normal((2, 3, 5, 6)).astype(np.float32)
    change = 0.1 * change
    weights = generator.integers(0, 2, (3, 5)).astype(np.float32)

    def outputs(params, change):
        return (x + change) @ params

    clean = x @ kernel
    found = np.asarray(sift.ascended(SIFT, outputs, kernel, clean, weights, change))
    for place in np.ndindex(3, 5):
        p, q = probabilities((x + change)[place] @ kernel), probabilities(clean[place])
        logs = np.log(p / q)
        # d/dlogits of sum (p - q) log(p / q), the clean logits being constant.
        inner = p * (logs - (p * logs).sum()) + (p - q)
        gradient = weights[place] * (kernel @ inner)
        expected = change[place] + SIFT.step * gradient / (1e-6 + np.abs(gradient).max())
        np.testing.assert_allclose(found[place], expected, atol=1e-5)
    moved = np.abs(found - change).max(-1)
    np.testing.assert_allclose(moved, SIFT.step * weights, atol=1e-4)


def changed(model, params, batch, change):
    """Hidden states of a model whose embeddings are looked up, normalised, changed and scaled by hand."""
    tables, positions = params["embedding"], batch["positions"]
    x = tables["token"][batch["tokens"]] + tables["position"][positions] + tables["token_type"][batch["token_types"]]
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + model.norm.epsilon)
    # As the one table of a model without norm and other tables, whose tokens are its rows in order.
    scale, bias = (jnp.broadcast_to(tables["norm"][name], x.shape) for name in ("scale", "bias"))
    rows = (x + change) * scale + bias
    table = rows.reshape(-1, model.embed_dim)
    sizes = {"embedding_norm": False, "token_types": 0, "vocab_size": table.shape[0]}
    bare = replaced(model, {**sizes, "language_head": False, "head_transform": False, "head_bias": False})
    tokens = np.arange(table.shape[0]).reshape(batch["tokens"].shape).astype(np.int32)
    own = {"token": jnp.pad(table, ((0, -len(table) % 128), (0, 0))), "position": jnp.zeros_like(tables["position"])}
    given = {**params, "embedding": own}
    return Transformer(bare).apply({"params": given}, {**batch, "tokens": tokens})[0]


def test_embeddings_change_between_the_norm_and_its_scale(tmp_path):
    model = tiny(tmp_path, SMALL_BERT).model
    params, batch = drawn(assemble(tiny(tmp_path, SMALL_BERT))).params, drawn_batch([1, 2, 3], rows=4)
    change = 0.1 * np.random.default_rng(0).standard_normal((4, 24, model.embed_dim)).astype(np.float32)
    run = jit(lambda params, change: Transformer(model).apply({"params": params}, batch, change=change)[0])
    found = run(params, change)
    np.testing.assert_allclose(found, changed(model, params, batch, change), atol=2e-5)
    assert np.abs(found - run(params, None)).max() > 1e-2


def masked_outputs(model, batch):
    """(params, change -> logits of the predictions, their weights)."""

    def run(model, change):
        hidden = model(batch, change=change)[0]
        return model.logits(jnp.take_along_axis(hidden, batch["masked_positions"][..., None], axis=1))

    return lambda params, change: nn.apply(run, Transformer(model))({"params": params}, change), batch["weights"]


def qa_outputs(model, batch):
    """(params, change -> logits of starts and of ends over the tokens of a row, half a weight each)."""

    def run(model, change):
        logits = jnp.where(
            batch["segment_ids"][..., None] > 0, model.heads.span_logits(model(batch, change=change)[0]), -1e30
        )
        return jnp.swapaxes(logits, 1, 2)

    weights = np.repeat(batch["segment_ids"][:, :1] > 0, 2, axis=1) / np.float32(2)
    return lambda params, change: nn.apply(run, Transformer(model))({"params": params}, change), weights


def of_masked(directory):
    config = tiny(directory, {**SMALL_BERT, "data.objective": PAIRS})
    return config, drawn_batch([4, 2, None, 3, 1, 4, 0, 2], rows=ROWS), masked_outputs


def of_questions(directory):
    half = test_qa_run.drawn_batch(24)
    batch = {key: np.concatenate([value, value[::-1]]) for key, value in half.items()}
    batch["tokens"][4:] = np.where(batch["tokens"][4:] > 0, 304 - batch["tokens"][4:], 0)
    return test_qa_run.small(directory), batch, qa_outputs


@pytest.fixture(
    scope="module", params=(of_masked, pytest.param(of_questions, marks=pytest.mark.slow)), ids=("masked", "qa")
)
def made(request, tmp_path_factory):
    """(assembly, state, batch, outputs as a function of model and batch, (loss, metrics, gradients) of a step)."""
    config, batch, outputs = request.param(tmp_path_factory.mktemp("sift"))
    assembly = assemble(replaced(config, {"optim.optimizer": cfg.Sgd(), "train.sift": SIFT}))
    state = drawn(assembly)
    state = state.replace(params=jax.tree.map(lambda leaf: 4 * leaf, state.params))
    found = jax.device_get(jit(Step(assembly.task, assembly.optimizer, None, 0).gradients)(state, batch))
    return assembly, state, batch, outputs, found


def test_the_loss_and_its_gradient_are_the_tasks_and_the_penalty_s(made):
    """The penalty and its gradient are those of a changed model, and the loss that is logged is without it."""
    assembly, state, batch, outputs, (loss, metrics, gradients) = made
    model, params = assembly.config.model, state.params
    run, weights = outputs(model, batch)
    keys = Step(assembly.task, assembly.optimizer, None, 0).row_keys(0, ROWS)
    change = sift.noise(SIFT.std, keys, (24, model.embed_dim))
    clean = jit(run)(params, None)
    gradient = jit(jax.grad(lambda change: sift.divergence(run(params, change), clean, weights)))(change)
    change = change + SIFT.step * gradient / (1e-6 + jnp.abs(gradient).max(-1, keepdims=True))
    expected = by_loops(np.asarray(jit(run)(params, change)), np.asarray(clean), weights) / weights.sum()
    np.testing.assert_allclose(metrics["sift"], expected, rtol=2e-4)
    task = assemble(replaced(assembly.config, {"train.sift": cfg.Sift()}))
    plain_loss, plain, plain_gradients = jax.device_get(
        jit(Step(task.task, task.optimizer, None, 0).gradients)(state, batch)
    )
    assert "sift" not in plain and expected > 1e-4
    for name, value in plain.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6)
    np.testing.assert_allclose(loss - plain_loss, SIFT.coefficient * expected, rtol=1e-3, atol=1e-6)

    def penalty(params):  # of both, the changed and the clean outputs
        return SIFT.coefficient * sift.divergence(run(params, change), run(params, None), weights) / weights.sum()

    added = jax.device_get(jit(jax.grad(penalty))(params))
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=1e-4, atol=2e-5), gradients, plain_gradients, added
    )
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(added)) > 1e-3


@pytest.mark.slow
def test_no_division_of_the_batch_changes_it(made):
    assembly, state, batch, _, expected = made
    step = Step(assembly.task, assembly.optimizer, None, 0, 4)
    mesh = assemble(replaced(assembly.config, {"mesh": cfg.Mesh(2, 2, 2)}))
    placed = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), state, mesh.abstract)
    for gradients, arguments in (
        (step.gradients, (state, batch)),
        (Step(mesh.task, mesh.optimizer, None, 0).gradients, (placed, jax.device_put(batch, mesh.batch_shardings()))),
    ):
        found = jax.device_get(jit(gradients)(*arguments))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), found, expected)


def test_an_evaluation_has_no_penalty(made):
    assembly, state, batch, _, _ = made
    metrics, _ = jax.eval_shape(make_eval_step(assembly.task), state.params, state.frozen, batch)
    assert set(metrics) == set(assembly.task.metrics) and "sift" not in metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        (
            {"data.objective": CausalObjective(), "model.attention.causal": True, "model.token_types": 0},
            "not under causal",
        ),
        ({"model.embedding_norm": False}, "model.embedding_norm is false; set that to true"),
    ),
)
def test_what_it_cannot_regularise_is_refused(tmp_path, changes, message):
    heads = {"model.heads": Heads(), "data.objective.next_sentence": False}
    config = tiny(tmp_path, {**SMALL_BERT, **heads, "train.sift.coefficient": 1.0})
    check(config)
    with pytest.raises(ConfigError, match=f"train.sift.coefficient is 1, but SiFT .*{message}"):
        check(replaced(config, changes))


def test_a_change_that_bfloat16_would_round_away_is_refused(tmp_path):
    config = tiny(tmp_path, {**SMALL_BERT, "model.dtype": "bfloat16", "train.sift": replace(SIFT, step=2**-8)})
    check(config)
    with pytest.raises(ConfigError, match="model.dtype is bfloat16, .* train.sift.step=0.0001. Set it to float32"):
        check(replaced(config, {"train.sift.step": 1e-4}))
