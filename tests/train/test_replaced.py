"""Replaced-token detection: both losses from their formulas, branches that do not touch, samples of rows alone."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import ConfigError
from data.objective_config import MaskedObjective, ReplacedTokenObjective
from data.tokenizer_config import WordPieceTokenizer
from model.config import Attention, DroplessExperts, Heads, Layer, LearnedPositions, Norm
from model.replaced import TABLES, discriminator, generator, initialise_both, merged
from model.transformer import Transformer
from tests.helpers import drawn, replaced, tiny
from tests.model.small import close, jit
from train import config as cfg
from train.assembly import assemble
from train.checks import check
from train.evaluate import evaluate, make_eval_step
from train.flops import flops_per_token, of_training
from train.optim import clip_by_global_norm
from train.replaced import content_keys, sample
from train.step import Step

ROWS, LENGTH, SLOTS, VOCABULARY = 8, 24, 4, 300
COEFFICIENT, RATE = 7.0, 0.1
SMALL_RTD = {
    "model.vocab_size": VOCABULARY,
    "model.num_layers": 2,
    "model.generator_layers": 1,
    "model.attention": Attention(num_heads=2, head_dim=8, causal=False),
    "model.norm": Norm(name="layernorm", placement="post", epsilon=1e-7, bias=True),
    "model.positions": LearnedPositions(length=LENGTH),
    "model.token_types": 2,
    "model.embedding_norm": True,
    "model.head_transform": True,
    "model.head_bias": True,
    "model.heads": Heads(replaced=True),
    "data.tokenizer": WordPieceTokenizer(vocab_size=VOCABULARY, max_characters=100),
    "data.objective": ReplacedTokenObjective(max_predictions=SLOTS),
    "data.length": LENGTH,
    "train.replaced_coefficient": COEFFICIENT,
    "optim.optimizer": cfg.Sgd(),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("replaced")


@pytest.fixture(scope="module")
def made(directory):
    """(assembly, a state of parameters that are heard) under SGD."""
    assembly = assemble(tiny(directory, SMALL_RTD))
    state = jax.tree.map(np.array, drawn(assembly))
    # A generator that is often right, so that both kinds of samples are there: its head's bias likes few tokens.
    state.params["generator"]["head_bias"][5:9] += 5
    return assembly, state


def rtd_batch(counts=(4, 2, None, 3, 1, 4, 0, 2), seed=0):
    """Rows of two texts each, with `counts` predictions; a row of None is padding, and texts end before the row."""
    generator = np.random.default_rng(seed)
    real = np.array([count is not None for count in counts])
    lengths = np.where(real, generator.integers(12, LENGTH, len(counts)), 0)
    cuts = lengths // 3
    places = np.arange(LENGTH)[None, :]
    inside, second = places < lengths[:, None], places >= cuts[:, None]
    weights = np.arange(SLOTS) < np.array([count or 0 for count in counts])[:, None]
    masked = np.stack([np.sort(generator.permutation(11)[:SLOTS]) for _ in counts]) * weights
    targets = generator.integers(5, 9, (len(counts), SLOTS)) * weights
    tokens = generator.integers(9, VOCABULARY, inside.shape) * inside
    for row, slot in zip(*np.nonzero(weights), strict=True):
        tokens[row, masked[row, slot]] = 4
    batch = {
        "tokens": tokens,
        "token_types": second * inside,
        "segment_ids": (1 + second) * inside,
        "positions": np.where(second, places - cuts[:, None], places) * inside,
        "masked_positions": masked,
        "targets": targets,
        "weights": weights,
        "label_weights": inside,
    }
    return {key: value.astype(np.float32 if "weights" in key else np.int32) for key, value in batch.items()}


@pytest.fixture(scope="module")
def gradients(made):
    """(loss, metrics, gradients) of a step on `rtd_batch()`."""
    assembly, state = made
    return jax.device_get(jit(Step(assembly.task, assembly.optimizer, None, 0).gradients)(state, rtd_batch()))


def states(model, params, batch):
    return jit(lambda batch: Transformer(model).apply({"params": params}, batch)[0])(batch)


def predictions(model, params, batch):
    """The generator's logits `[rows, slots, stored vocabulary]`."""

    def run(model):
        hidden = model(batch)[0]
        return model.logits(jnp.take_along_axis(hidden, batch["masked_positions"][..., None], axis=1))

    return jit(nn.apply(run, Transformer(model)))({"params": params})


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max(-1) - np.log(np.exp(x - x.max(-1)).sum(-1))


def layer_norm(x, params, epsilon=1e-7):
    x = np.asarray(x, np.float64)
    return (x - x.mean()) / np.sqrt(x.var() + epsilon) * params["scale"] + params["bias"]


def gelu(x):
    return np.asarray(jax.nn.gelu(x, approximate=False))


def judge(head, hidden, first) -> float:
    """The logit that a token was replaced, from its state and that of its text's first token."""
    x = layer_norm(hidden + first, head["norm"])
    x = np.asarray(jax.nn.silu(x @ head["dense"]["kernel"] + head["dense"]["bias"]), np.float64)
    return float((x @ head["output"]["kernel"] + head["output"]["bias"])[0])


def swapped(batch, samples):
    """(what the discriminator reads, its labels), by a loop over the predictions."""
    tokens, labels = batch["tokens"].copy(), np.zeros_like(batch["tokens"])
    for row, slot in zip(*np.nonzero(batch["weights"]), strict=True):
        place, token = batch["masked_positions"][row, slot], samples[row, slot]
        tokens[row, place] = token
        labels[row, place] = token != batch["targets"][row, slot]
    return tokens, labels


def test_both_losses_are_those_of_loops_over_the_formulas(made, gradients):
    assembly, state = made
    model, batch, params = assembly.config.model, rtd_batch(), state.params
    logits = np.asarray(predictions(generator(model), params["generator"], batch))
    row_keys = Step(assembly.task, assembly.optimizer, None, 0).row_keys(0, ROWS)
    noise = np.stack([jax.random.gumbel(key, logits.shape[1:]) for key in row_keys])
    tokens, labels = swapped(batch, (logits + noise).argmax(-1))
    own = dict(params["discriminator"])
    tables = {name: params["generator"]["embedding"][name] + own["embedding"][name] for name in TABLES}
    own["embedding"] = {**own["embedding"], **tables}
    hidden = np.asarray(states(discriminator(model), own, {**batch, "tokens": tokens}), np.float64)
    found = {"loss": 0.0, "masked_accuracy": 0.0, "replaced_loss": 0.0, "replaced_accuracy": 0.0}
    for row, slot in zip(*np.nonzero(batch["weights"]), strict=True):
        logs, target = log_softmax(logits[row, slot, :VOCABULARY]), batch["targets"][row, slot]
        found["loss"] -= logs[target] / batch["weights"].sum()
        found["masked_accuracy"] += (logs.argmax() == target) / batch["weights"].sum()
    count = (batch["segment_ids"] > 0).sum()
    for row, place in zip(*np.nonzero(batch["segment_ids"]), strict=True):
        first = np.flatnonzero(batch["segment_ids"][row] == batch["segment_ids"][row, place])[0]
        logit = judge(own["heads"]["replaced"], hidden[row, place], hidden[row, first])
        chance = 1 / (1 + np.exp(-logit))
        label = labels[row, place]
        found["replaced_loss"] -= (np.log(chance) if label else np.log(1 - chance)) / count
        found["replaced_accuracy"] += ((chance > 0.5) == label) / count
    share = labels.sum() / count
    assert 0 < labels.sum() < batch["weights"].sum()  # some samples are right, and some wrong
    loss, metrics, _ = gradients
    assert set(metrics) == {*found, "replaced_share"} == set(assembly.task.metrics)
    assert next(iter(assembly.task.metrics)) == "loss"
    for name, value in {**found, "replaced_share": share}.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, found["loss"] + COEFFICIENT * found["replaced_loss"], rtol=1e-5)


def alone(made):
    """Gradients of the generator by itself, then of the discriminator with the generator's embeddings held fixed."""
    assembly, state = made
    model, batch = assembly.config.model, rtd_batch()
    fixed = state.params["generator"]
    held = {name: jnp.asarray(fixed["embedding"][name]) for name in TABLES}

    def masked_loss(params):
        logits = predictions_traced(generator(model), params, batch)[..., :VOCABULARY]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1)[..., 0]
        return -jnp.sum(batch["weights"] * chosen) / batch["weights"].sum()

    logits = predictions(generator(model), fixed, batch)
    samples = np.asarray(sample(logits, Step(assembly.task, assembly.optimizer, None, 0).row_keys(0, ROWS)))
    tokens, labels = swapped(batch, samples)

    def replaced_loss(params):
        tables = {name: held[name] + params["embedding"][name] for name in TABLES}

        def run(model):
            hidden = model({**batch, "tokens": tokens})[0]
            firsts = jnp.take_along_axis(hidden, (np.arange(LENGTH) - batch["positions"])[..., None], axis=1)
            return model.heads.replaced_logits(hidden, firsts)

        whole = {**params, "embedding": {**params["embedding"], **tables}}
        logits = nn.apply(run, Transformer(discriminator(model)))({"params": whole})
        nll = -jnp.where(labels > 0, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))
        return COEFFICIENT * jnp.sum(batch["label_weights"] * nll) / batch["label_weights"].sum()

    return {
        "generator": jit(jax.grad(masked_loss))(fixed),
        "discriminator": jit(jax.grad(replaced_loss))(state.params["discriminator"]),
    }


def predictions_traced(model, params, batch):
    def run(model):
        hidden = model(batch)[0]
        return model.logits(jnp.take_along_axis(hidden, batch["masked_positions"][..., None], axis=1))

    return nn.apply(run, Transformer(model))({"params": params})


def test_a_step_is_one_of_the_generator_and_one_of_the_discriminator(made, gradients):
    """Under SGD the parameters after one step are those of two models stepped apart, each clipped by itself."""
    assembly, state = made
    expected = jax.device_get(alone(made))
    close(gradients[2], expected, 2e-5)
    norms = {branch: np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree))) for branch, tree in expected.items()}
    limit = (norms["generator"] * norms["discriminator"]) ** 0.5  # between the two: one is clipped, and one is not
    assert max(norms.values()) > 1.5 * min(norms.values())
    step = Step(assembly.task, assembly.optimizer, lambda _: jnp.float32(RATE), 0, clip_norm=limit)
    after, metrics = jax.device_get(jit(step)(state, rtd_batch()))
    for branch, tree in expected.items():
        scale = min(1.0, limit / norms[branch])
        wanted = jax.tree.map(lambda old, g, scale=scale: old - RATE * scale * g, state.params[branch], tree)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=2e-6), after.params[branch], wanted)
        np.testing.assert_allclose(metrics[f"grad_norm/{branch}"], norms[branch], rtol=1e-5)
        part, _ = clip_by_global_norm(gradients[2][branch], limit)
        both, _ = step.clipped(gradients[2])
        jax.tree.map(np.testing.assert_array_equal, both[branch], part)
    np.testing.assert_allclose(metrics["grad_norm"], np.hypot(*norms.values()), rtol=1e-5)


def test_neither_loss_reaches_the_other_branch_and_all_parameters_learn(made):
    assembly, state = made
    keys = Step(assembly.task, assembly.optimizer, None, 0).row_keys(0, ROWS)
    terms = jax.jacrev(lambda params, batch: assembly.task.sums(params, batch, None, keys)[0])
    both = jax.device_get(jit(terms)(state.params, rtd_batch()))
    for term, branch, other in (("masked", "generator", "discriminator"), ("replaced", "discriminator", "generator")):
        assert all(not leaf.any() for leaf in jax.tree.leaves(both[term][other])), term
        own = jax.tree_util.tree_leaves_with_path(both[term][branch])
        assert [jax.tree_util.keystr(path) for path, leaf in own if not leaf.any()] == []


@pytest.mark.slow
@pytest.mark.parametrize("parts", (2, 4))
def test_a_batch_split_into_micro_batches_draws_the_same_samples(made, gradients, parts):
    assembly, state = made
    found = jax.device_get(jit(Step(assembly.task, assembly.optimizer, None, 0, parts).gradients)(state, rtd_batch()))
    np.testing.assert_allclose(found[1]["replaced_share"], gradients[1]["replaced_share"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, gradients)


@pytest.mark.parametrize(
    "sizes", [(2, 2, 2), *(pytest.param(x, marks=pytest.mark.slow) for x in ((8, 1, 1), (1, 4, 2)))]
)
def test_the_step_on_any_mesh_is_that_on_one_device(made, gradients, sizes):
    assembly = assemble(replaced(made[0].config, {"mesh": cfg.Mesh(*sizes)}))
    state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), made[1], assembly.abstract)
    batch = jax.device_put(rtd_batch(), assembly.batch_shardings())
    found = jax.device_get(jit(Step(assembly.task, assembly.optimizer, None, 0).gradients)(state, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, gradients)


def test_steps_and_seeds_draw_other_samples(made):
    assembly, state = made
    logits = predictions(generator(assembly.config.model), state.params["generator"], rtd_batch())
    drawn = [
        np.asarray(sample(logits, Step(assembly.task, assembly.optimizer, None, seed).row_keys(step, ROWS)))
        for seed, step in ((0, 0), (0, 1), (1, 0))
    ]
    assert (drawn[0] != drawn[1]).any() and (drawn[0] != drawn[2]).any()


def test_evaluation_draws_of_a_row_alone_and_the_same_every_time(made):
    """However rows stand together, in whatever length, what the discriminator reads of them is the same."""
    assembly, state = made
    batch, eval_step = rtd_batch(), jit(make_eval_step(assembly.task))

    def rows(*chosen):
        return {
            key: np.concatenate([x[list(chosen)], np.zeros_like(x[: ROWS - len(chosen)])]) for key, x in batch.items()
        }

    found = [
        evaluate(assembly.task, eval_step, state.params, state.frozen, parts)
        for parts in ([batch], [batch], [rows(4, 2, 1), rows(0), rows(7, 3, 6, 5)])
    ]
    assert found[0] == found[1] == pytest.approx(found[2], rel=1e-6)
    padded = np.pad(batch["tokens"], ((0, 0), (0, 5)))
    np.testing.assert_array_equal(*(jax.random.key_data(content_keys(tokens)) for tokens in (batch["tokens"], padded)))
    keys = {tuple(key) for key in np.asarray(jax.random.key_data(content_keys(batch["tokens"])))}
    assert len(keys) == ROWS


def test_samples_have_the_chances_of_the_softmax():
    """Of 20000 draws each share lies within five standard deviations; padding ids are never drawn."""
    logits = np.array([0.0, 2.0, -1.0, 1.0, np.finfo(np.float32).min], np.float32)
    rows, slots = 200, 100
    keys = jax.random.split(jax.random.key(3), rows)
    drawn = np.asarray(sample(jnp.broadcast_to(logits, (rows, slots, 5)), keys))
    assert drawn.dtype == np.int32
    chances = np.exp(log_softmax(logits))
    shares = np.bincount(drawn.ravel(), minlength=5) / drawn.size
    assert (np.abs(shares - chances) <= 5 * np.sqrt(chances * (1 - chances) / drawn.size)).all() and shares[4] == 0


def test_the_discriminator_begins_with_the_embeddings_of_the_generator(made):
    model = made[0].config.model
    params = nn.meta.unbox(jit(partial(initialise_both, model))(jax.random.key(0)))
    read = merged(params)
    for name in TABLES:
        assert not params["discriminator"]["embedding"][name].any()
        np.testing.assert_array_equal(read["embedding"][name], params["generator"]["embedding"][name])
    kernels = [params[branch]["stack"]["0"]["attention"]["query"]["kernel"][0] for branch in params]
    assert np.abs(kernels[0] - kernels[1]).max() > 0
    left = {"head_transform", "head_bias"}
    assert set(params["generator"]) - set(params["discriminator"]) == left and "heads" not in params["generator"]


def test_flops_are_those_of_both_models(made):
    assembly = made[0]
    model, declared = assembly.config.model, assembly.declarations
    found = of_training(assembly.config, declared)
    parts = [flops_per_token(generator(model), declared["generator"], LENGTH, SLOTS)]
    parts.append(flops_per_token(discriminator(model), declared["discriminator"], LENGTH, 0))
    assert found == sum(parts)
    embed = model.embed_dim
    unread = flops_per_token(replaced(discriminator(model), {"heads": Heads()}), {}, LENGTH, 0)
    head = flops_per_token(discriminator(model), {"heads": declared["discriminator"]["heads"]}, LENGTH, 0)
    assert head - unread == 6 * (embed * embed + embed)  # of every token


REFUSED = {
    "no generator": ({"model.generator_layers": 0}, "model.generator_layers is 0, but .* needs a generator"),
    "no head": ({"model.heads": Heads()}, "model.generator_layers is 1, but the model is no encoder that finds"),
    "no head of the generator": (
        {"model.language_head": False, "model.head_transform": False, "model.head_bias": False},
        "model.language_head is false, but data.objective replaced_token predicts tokens",
    ),
    "nothing to replace": (
        {"data.objective": MaskedObjective(max_predictions=SLOTS)},
        "model.generator_layers is 1, but data.objective masked has nothing to replace",
    ),
    "experts": (
        {"model.experts": DroplessExperts(num_experts=2, top_k=1), "model.pattern": (Layer(experts=True),)},
        "model.experts.name is dropless, but data.objective replaced_token trains two models without",
    ),
    "a head that nothing trains": (
        {"model.heads": Heads(replaced=True, spans=True)},
        "model.heads.spans is set, but .* only heads.replaced and language_head are trained",
    ),
    "chunks": ({"train.loss_chunks": 3}, "train.loss_chunks is 3, which does not divide data.objective.max_pred"),
    "SiFT": ({"train.sift.coefficient": 1.0}, "train.sift.coefficient is 1, but SiFT .* not under replaced_token"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused(directory, name):
    changes, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        check(tiny(directory, {**SMALL_RTD, **changes}))
