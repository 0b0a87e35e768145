"""One step: the same numbers however the batch is divided, and an old state where they are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.parameters import Declaration
from tests.helpers import drawn, tiny
from train import config as cfg
from train import inspect, optim
from train.assembly import assemble
from train.state import initial_state
from train.step import Step, split_batch
from train.task import Task

DECLARATIONS = {
    "w": Declaration((4,), ("embed",), "kernel", (0,), ()),
    "b": Declaration((4,), ("embed",), "bias"),
}
COEFFICIENTS = {"error": 1.0, "energy": 0.3}
RATE = 0.1


def sums(params, batch, key, row_keys):
    """Weighted squared errors of positions, and the energy of the rows that are flagged."""
    score_BxL = jnp.einsum("bld,d->bl", batch["x"], params["w"]) + jnp.sum(params["b"])
    if key is not None:
        score_BxL = score_BxL * jax.random.uniform(key, score_BxL.shape)
    error = jnp.sum(batch["weights"] * jnp.square(score_BxL - batch["goal"]))
    energy = jnp.sum(batch["flags"] * jnp.square(jnp.mean(score_BxL, axis=1)))
    return {"error": error, "energy": energy}, {"loss": error, "energy": energy}


def weights(batch):
    return {"error": jnp.sum(batch["weights"]), "energy": jnp.sum(batch["flags"])}


LINEAR = Task({}, lambda key: {}, weights, sums, COEFFICIENTS, {"loss": "error", "energy": "energy"})


def made(task=LINEAR, optimizer=None, groups=(), ema=False, **options):
    """(a step of `task`, the state before it)."""
    built = optim.build(cfg.Optim(optimizer=optimizer or cfg.Sgd(), groups=groups), DECLARATIONS)
    options = {"schedule": lambda step: jnp.float32(RATE), "seed": 0, **options}
    params = {"w": jnp.asarray([1.0, -2.0, 0.5, 3.0]), "b": jnp.asarray([0.25, 0.0, 0.0, -1.0])}
    return Step(task, built, **options), initial_state(params, built, ema)


def uneven_batch(rows=8, length=10):
    """A row with 1 target, one with 9, two without any; three rows are flagged."""
    generator = np.random.default_rng(0)
    counts = [1, 9, 0, 4, 10, 0, 2, 7]
    return {
        "x": generator.standard_normal((rows, length, 4)).astype(np.float32),
        "goal": generator.standard_normal((rows, length)).astype(np.float32),
        "weights": (np.arange(length) < np.array(counts)[:, None]).astype(np.float32),
        "flags": np.array([1, 0, 0, 0, 0.5, 0, 0, 2], np.float32),
    }


def by_hand(batch, params):
    """(loss, gradient of the loss in w and in the sum of b), float64, from the definition over the whole batch."""
    batch = {key: value.astype(np.float64) for key, value in batch.items()}
    w, b = (np.asarray(params[name], np.float64) for name in ("w", "b"))
    score = batch["x"] @ w + b.sum()
    residual = batch["weights"] * (score - batch["goal"])
    mean, flags = score.mean(1), batch["flags"]
    total, flagged = batch["weights"].sum(), flags.sum()
    loss = (residual * (score - batch["goal"])).sum() / total + 0.3 * (flags * mean**2).sum() / flagged
    d_w = 2 * np.einsum("bl,bld->d", residual, batch["x"]) / total
    d_w += 0.3 * 2 * np.einsum("b,bd->d", flags * mean, batch["x"].mean(1)) / flagged
    d_b = 2 * residual.sum() / total + 0.3 * 2 * (flags * mean).sum() / flagged
    return loss, d_w, d_b


def same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("accumulate", (1, 2, 4, 8))
def test_any_division_of_the_batch_gives_the_loss_and_the_gradient_of_its_definition(accumulate):
    batch = uneven_batch()
    step, state = made(accumulate=accumulate)
    loss, d_w, d_b = by_hand(batch, state.params)
    value, metrics, grads = jax.jit(step.gradients)(state, batch)
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"] + 0.3 * metrics["energy"], loss, rtol=1e-6)
    np.testing.assert_allclose(grads["w"], d_w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads["b"], np.full(4, d_b), rtol=1e-5, atol=1e-6)
    after, metrics = jax.jit(step)(state, batch)
    np.testing.assert_allclose(after.params["w"], state.params["w"] - RATE * d_w, rtol=1e-6, atol=1e-6)
    assert int(metrics["targets"]) == 33 and (int(after.step), int(after.skipped)) == (1, 0)


def causal_batch(rows=8, length=16, seed=1):
    """Packed rows of 1 to 15 targets, of which two rows have none, and one a padded end."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 256, (rows, length + 1)).astype(np.int32)
    counts = np.array([1, 9, 0, 15, 3, 0, 12, 6])[:rows]
    weighted = np.arange(length)[None] < counts[:, None]
    segments = np.where(np.arange(length)[None] < length // 2, 1, 2) * np.ones((rows, 1), np.int64)
    segments[-1, -3:] = 0
    positions = np.tile(np.arange(length // 2), 2)[None] * np.ones((rows, 1), np.int64)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": weighted.astype(np.float32),
        "segment_ids": segments.astype(np.int32),
        "positions": positions.astype(np.int32),
    }


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """(assembly, a state) of a tiny decoder with z-loss under SGD."""
    changes = {"train.z_loss": 0.1, "optim.optimizer": cfg.Sgd(), "model.num_layers": 1, "model.embed_dim": 16}
    assembly = assemble(tiny(tmp_path_factory.mktemp("causal"), changes))
    return assembly, drawn(assembly)


def test_a_decoder_with_two_losses_does_not_see_how_its_batch_is_divided(causal):
    assembly, state = causal

    def stepped(accumulate):
        step = Step(assembly.task, assembly.optimizer, lambda _: jnp.float32(0.1), 0, accumulate)
        after, metrics = jax.jit(step)(state, causal_batch())
        return jax.device_get((after.params, metrics))

    whole, metrics = stepped(1)
    assert metrics["z_loss"] > 1.0 and metrics["loss"] > 1.0  # both take part
    for accumulate in (2, 4):
        divided, found = stepped(accumulate)
        # Sums of a few dozen float32 terms in another order.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), divided, whole)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), found, metrics)


def test_the_z_loss_of_a_decoder_is_in_its_gradient_and_not_in_its_loss(causal):
    assembly, state = causal
    batch = causal_batch()
    params = {**state.params, **state.frozen}
    terms, metrics = jax.jit(lambda params, batch: assembly.task.sums(params, batch, None))(params, batch)
    np.testing.assert_allclose(terms["tokens"], metrics["loss"] + 0.1 * metrics["z_loss"], rtol=1e-6)


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def test_one_micro_batch_takes_no_loop(causal):
    def loops(step, state, batch):
        return [name for name in primitives(jax.make_jaxpr(step)(state, batch).jaxpr) if name in ("scan", "while")]

    step, state = made(accumulate=1)
    assert loops(step, state, uneven_batch()) == []
    step, state = made(accumulate=2)
    assert loops(step, state, uneven_batch()) == ["scan"]
    assembly, state = causal
    step = Step(assembly.task, assembly.optimizer, lambda _: jnp.float32(0.1), 0)
    assert len(loops(step, state, causal_batch())) == 2  # the stack of layers, forward and backward


def test_a_micro_batch_takes_rows_in_strides():
    parts = split_batch({"rows": np.arange(8)}, 2)["rows"]
    np.testing.assert_array_equal(parts, [[0, 2, 4, 6], [1, 3, 5, 7]])


@pytest.mark.parametrize("accumulate", (1, 4))
def test_the_gradient_is_clipped_once_after_accumulation_and_logged_before(accumulate):
    batch = uneven_batch()
    _, d_w, d_b = by_hand(batch, made()[1].params)
    norm = np.sqrt((d_w**2).sum() + 4 * d_b**2)
    assert norm > 0.5
    step, state = made(accumulate=accumulate, clip_norm=0.5)
    after, metrics = jax.jit(step)(state, batch)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(after.params["w"], state.params["w"] - RATE * d_w * 0.5 / norm, rtol=1e-5)


def test_the_average_stays_near_the_old_weights():
    step, state = made(ema=True, ema_decay=0.9)
    after, _ = jax.jit(step)(state, uneven_batch())
    old, new = np.asarray(state.params["w"]), np.asarray(after.params["w"])
    np.testing.assert_allclose(after.ema["w"], 0.9 * old + 0.1 * new, rtol=1e-6)
    assert np.abs(after.ema["w"] - old).max() < np.abs(after.ema["w"] - new).max()
    same_bits(made(ema=False)[1].ema, {})


def test_frozen_parameters_are_neither_differentiated_nor_changed():
    """They stand in no gradient and no optimizer state, and the other ones learn as if they were constants."""
    groups = (cfg.Group("^b$", freeze=True),)
    step, state = made(optimizer=cfg.AdamW(), groups=groups, ema=True, ema_decay=0.5)
    assert set(state.params) == set(state.ema) == set(state.opt_state) == {"w"} and set(state.frozen) == {"b"}
    grads = jax.eval_shape(step.gradients, state, uneven_batch())[2]
    assert set(grads) == {"w"}
    after, metrics = jax.jit(step)(state, uneven_batch())
    same_bits(after.frozen, state.frozen)
    _, d_w, _ = by_hand(uneven_batch(), {**state.params, **state.frozen})
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt((d_w**2).sum()), rtol=1e-5)


@pytest.mark.parametrize("accumulate", (1, 2))
def test_a_batch_without_targets_has_loss_0_and_moves_nothing(accumulate, causal):
    batch = uneven_batch()
    batch["weights"][:], batch["flags"][:] = 0, 0
    step, state = made(accumulate=accumulate)
    after, metrics = jax.jit(step)(state, batch)
    assert (float(metrics["loss"]), float(metrics["energy"]), float(metrics["grad_norm"])) == (0, 0, 0)
    same_bits(after.params, state.params)
    assert (int(after.step), int(after.skipped), int(metrics["targets"])) == (1, 0, 0)
    assembly, state = causal
    batch = causal_batch()
    batch["weights"][:] = 0
    loss, metrics, grads = jax.jit(Step(assembly.task, assembly.optimizer, None, 0).gradients)(state, batch)
    assert float(loss) == float(metrics["z_loss"]) == 0 and all(not np.any(g) for g in jax.tree.leaves(grads))


def test_a_term_without_weight_leaves_the_others_alone():
    batch = uneven_batch()
    batch["flags"][:] = 0
    step, state = made()
    after, metrics = jax.jit(step)(state, batch)
    assert float(metrics["energy"]) == 0 and np.isfinite(metrics["loss"]) and int(after.skipped) == 0


POISONS = {
    "an infinite weight": lambda batch: batch["weights"].__setitem__((4, 0), np.inf),
    "a NaN in the input": lambda batch: batch["x"].__setitem__((7, 9, 0), np.nan),
    # Its square overflows in the gradient's norm, not in the loss.
    "a gradient that overflows": lambda batch: batch["x"].__setitem__((0, 0, 0), 1e19),
}


@pytest.mark.parametrize("accumulate", (1, 2, 8))
@pytest.mark.parametrize("poison", POISONS)
def test_a_step_that_is_not_finite_leaves_the_state_to_the_byte(poison, accumulate):
    """Wherever the poison sits, also in the last micro-batch alone; the next batch is learned from as ever."""
    step, state = made(optimizer=cfg.AdamW(), ema=True, ema_decay=0.9, accumulate=accumulate, clip_norm=1.0)
    step = jax.jit(step)
    state, _ = step(state, uneven_batch())  # the moments are not zeros
    bad = uneven_batch()
    POISONS[poison](bad)
    after, metrics = step(state, bad)
    assert not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]))
    same_bits((after.params, after.opt_state, after.ema), (state.params, state.opt_state, state.ema))
    assert (int(after.step), int(after.skipped), int(metrics["skipped"])) == (2, 1, 1)
    learned, metrics = step(after, uneven_batch())
    assert np.isfinite(metrics["loss"]) and (int(learned.step), int(learned.skipped)) == (3, 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(learned))
    assert np.any(learned.params["w"] != state.params["w"])


def test_the_learning_rate_is_the_schedule_of_the_attempted_steps():
    """A refused step uses up its rate: the one after it is as if nothing had happened."""
    step, state = made(schedule=lambda step: 0.5 / (step + 1).astype(jnp.float32))
    bad = uneven_batch()
    bad["weights"][0, 0] = np.nan
    step, rates = jax.jit(step), []
    for number in range(4):
        state, metrics = step(state, bad if number == 1 else uneven_batch())
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [0.5, 0.25, 0.5 / 3, 0.125], rtol=1e-7)


def test_what_is_drawn_depends_on_seed_step_and_micro_batch():
    drawing = Task(**{**vars(LINEAR), "dropout": True})

    def loss(step_number, **options):
        step, state = made(drawing, **options)
        return float(jax.jit(step)(state.replace(step=jnp.int32(step_number)), uneven_batch())[1]["loss"])

    assert loss(3) == loss(3)
    assert len({loss(3), loss(4), loss(3, seed=1), loss(3, accumulate=2)}) == 4
    step, _ = made(drawing)
    keys = [jax.random.key_data(step.key(3, index)).tolist() for index in (0, 1)]
    assert keys[0] != keys[1] and made()[0].key(3, 0) is None


@pytest.mark.slow
def test_one_step_on_one_input_has_one_digest(tmp_path):
    """200 times, with dropout, accumulation and an average: what XLA computes does not depend on the day."""
    changes = {
        "model.dropout": 0.1,
        "train.accumulate": 2,
        "train.batch_size": 64,
        "data.length": 64,
        "optim.ema_decay": 0.9,
    }
    assembly = assemble(tiny(tmp_path, changes))
    generator = np.random.default_rng(0)
    batch = {
        key: generator.integers(0, 200, (64, *shape)).astype(dtype)
        for key, (shape, dtype, _) in assembly.task.spec.items()
    }
    batch["weights"] = (batch["weights"] > 50).astype(np.float32)
    batch["positions"] = np.tile(np.arange(64, dtype=np.int32), (64, 1))
    batch["segment_ids"] = np.ones((64, 64), np.int32)
    state = assembly.fresh()
    step = jax.jit(Step(assembly.task, assembly.optimizer, lambda _: jnp.float32(0.1), 0, 2, 1.0, 0.9))
    assert len({inspect.digest(step(state, batch)) for _ in range(200)}) == 1
