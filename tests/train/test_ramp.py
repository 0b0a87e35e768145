"""A growing batch reads every row once, at rates that its tokens say, and stopping inside the ramp changes nothing."""

from itertools import accumulate, pairwise

import jax
import numpy as np
import pytest

from data.errors import ConfigError
from data.loader import Loader
from data.prepare import prepare
from tests.helpers import TINY, digests, drawn, lines, replaced, tiny, train
from tests.model.small import jit
from train import schedule
from train.assembly import assemble
from train.checks import check
from train.config import Cosine, InverseSqrt, Linear, LinearRamp, Mesh, WarmupStableDecay
from train.errors import Stopped
from train.loop import compile_step
from train.metrics import read_metrics
from train.plan import make_plan
from train.ramp import Batches
from train.session import Feed
from train.step import Step

# Of 8 rows in micro-batches of 2: steps of 2, 2, 2, 4, 4, 6 and then 8 rows.
RAMP = {
    "train.accumulate": 4,
    "train.batch_ramp": LinearRamp(start=2, increment=2, duration="272 tokens"),
    "train.steps": 10,
}
SIZES = (2, 2, 2, 4, 4, 6, 8, 8, 8, 8)
BEFORE = (0, *accumulate(SIZES))


@pytest.mark.parametrize(("start", "increment", "growths"), ((2, 2, 3), (4, 3, 7), (1, 1, 40), (16, 16, 99)))
@pytest.mark.parametrize("tokens", (0, 1, 16, 1000, 65536, 10**9 + 7))
def test_rows_grow_in_proportion_to_the_rows_before(start, increment, growths, tokens):
    """The table of levels against the rule, step by step; and its inverses against their definitions."""
    ramp = LinearRamp(start=start, increment=increment, duration=f"{tokens} tokens")
    batches, whole, before = Batches(start + growths * increment, ramp, 16), -(-tokens // 16), 0
    for step in range(500):
        grown = growths if before >= whole else before * growths // whole
        assert (batches.before(step), batches.rows(step)) == (before, start + grown * increment)
        before += start + grown * increment
    for rows in (0, 1, 2, 17, 333, 10**6):
        count = batches.steps(rows, start=5)
        assert batches.before(5 + count) - batches.before(5) >= rows
        assert count == 0 or batches.before(4 + count) - batches.before(5) < rows
        count = batches.last_steps(rows, end=100)
        assert count == 100 or batches.before(100) - batches.before(100 - count) >= rows
        assert count == 0 or batches.before(100) - batches.before(101 - count) < rows


def test_far_steps_are_found_at_once():
    batches = Batches(1600, LinearRamp(start=16, increment=16, duration="12e9 tokens"), 2048)
    far = 10**15
    assert batches.rows(far) == 1600 and batches.steps(batches.before(far)) == far
    last = batches.levels[-1]
    assert sum(after.row - before.row for before, after in pairwise(batches.levels)) == last.row
    assert 0 <= last.row * 2048 - 12e9 < 1600 * 2048  # over within a step of what it was to take


def stream(feed: Feed, steps):
    """Rows of the stream by position in it, as the batches of `steps` hold them, and each batch's padding."""
    loader, found = feed.loader, []
    for step in steps:
        batch = loader.batch(step)
        real = batch["segment_ids"][:, 0] > 0
        assert real.sum() == SIZES[step]
        assert all((value[~real] == 0).all() for value in batch.values())
        # The micro-batches that are used are the first ones, and whole.
        assert (real == (np.arange(8) % 4 < SIZES[step] // 2)).all()
        found += list(batch["tokens"][real])
    return np.array(found)


@pytest.fixture(scope="module")
def ramped(tmp_path_factory):
    """(configuration, its uninterrupted run)."""
    directory = tmp_path_factory.mktemp("ramped")
    config = tiny(directory, RAMP)
    train(config, directory / "run")
    return config, directory / "run"


def test_every_row_is_read_once_and_in_order(ramped):
    config, _ = ramped
    feed = Feed.make(assemble(config), prepare(config.data))
    plain = Loader(feed.loader.sources, BEFORE[-1], config.train.seed, config.data.shuffle)
    np.testing.assert_array_equal(stream(feed, range(10)), plain.batch(0)["tokens"])
    np.testing.assert_array_equal(stream(feed, (3, 4)), plain.batch(0, BEFORE[3], BEFORE[5])["tokens"])
    whole = feed.loader.batch(4)
    for start, stop in ((0, 8), (0, 3), (3, 8), (5, 6)):  # the rows that one process of several takes
        part = feed.loader.batch(4, start, stop)
        assert all((part[key] == whole[key][start:stop]).all() for key in whole)


def test_the_log_counts_what_was_read(ramped):
    config, run = ramped
    rows = Feed.make(assemble(config), prepare(config.data)).loader
    targets = [rows.batch(step)["weights"].sum() for step in range(10)]
    records = [record for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
    assert [record["tokens"] for record in records] == list(accumulate(targets))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("stops", ((1, 4), pytest.param((3, 2), marks=SLOW), pytest.param((5, 1), marks=SLOW)))
def test_stopping_inside_the_ramp_changes_nothing(stops, ramped, tmp_path):
    config, run = ramped
    for stop in stops:
        with pytest.raises(Stopped):
            train(config, tmp_path / "run", stop)
    train(config, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(run)
    assert lines(tmp_path / "run") == lines(run)


@pytest.mark.slow
def test_more_micro_batches_divide_the_same_rows(ramped, tmp_path):
    """What a step reads follows from the ramp alone, so that a run may go on with other micro-batches."""
    config, run = ramped
    train(replaced(config, {"train.accumulate": 8}), tmp_path / "run")
    expected, found = (
        [record["loss"] for record in read_metrics(path / "metrics.jsonl") if "loss" in record]
        for path in (run, tmp_path / "run")
    )
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@pytest.fixture(scope="module")
def whole(ramped):
    """(state, batch) -> (loss, metrics, gradients) of all rows at once, on one device."""
    assembly = assemble(ramped[0])
    return jit(Step(assembly.task, assembly.optimizer, None, 0).gradients)


@pytest.mark.parametrize("sizes", ((1, 1, 1), pytest.param((2, 1, 2), marks=SLOW)))
def test_a_step_is_that_of_its_rows_in_one_batch(sizes, ramped, whole):
    """Loss and gradient, by one program for all steps; what stands in the micro-batches of padding is never seen."""
    assembly, plan = assemble(replaced(ramped[0], {"mesh": Mesh(*sizes)})), make_plan(ramped[0], 100)
    feed, micro_batches = Feed.make(assembly, prepare(ramped[0].data)), schedule.micro_batches(plan.batches, 4)
    run = jit(Step(assembly.task, assembly.optimizer, None, 0, 4, micro_batches=micro_batches).gradients)
    for step in (0, 4, 9):
        assert micro_batches(np.int32(step)) == SIZES[step] // 2
        state, padded = drawn(assembly).replace(step=np.int32(step)), feed.loader.batch(step)
        used = padded["segment_ids"][:, :1] > 0
        unseen = {**padded, "tokens": np.where(used, padded["tokens"], 10**9).astype(np.int32)}
        found = jax.device_get(run(state, jax.device_put(unseen, assembly.batch_shardings())))
        expected = jax.device_get(whole(jax.device_get(state), padded))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6), found, expected)
    assert run._cache_size() == 1


def test_the_step_compiles_once_and_computes_only_what_is_used(ramped):
    """One program has a loop whose end is a value; without a ramp there is none."""
    config, _ = ramped

    def text(config):
        assembly = assemble(config)
        session = type("Session", (), {"assembly": assembly, "plan": make_plan(config, 100)})
        batch = {key: jax.ShapeDtypeStruct((8, *shape), dtype) for key, (shape, dtype, _) in assembly.task.spec.items()}
        return compile_step(session).lower(assembly.abstract, batch).as_text()

    plain = replaced(config, {"train.batch_ramp": TINY.train.batch_ramp})
    assert text(config) != text(plain)
    finished = replaced(config, {"train.batch_ramp": LinearRamp(start=2, increment=2, duration="0 tokens")})
    assert text(finished) == text(plain)


SCHEDULES = (
    Linear(warmup="160 tokens"),
    Cosine(warmup="160 tokens", decay="288 tokens"),
    Linear(warmup=0, final=0.2, decay="321 tokens"),
    WarmupStableDecay(warmup="3 steps", decay="256 tokens"),
    InverseSqrt(warmup="160 tokens"),
    InverseSqrt(warmup=0, hold="160 tokens"),
)


def share(config, tokens, total):
    """Of the peak, when `tokens` have been read: written from the papers, with tokens for time."""
    warmup = 160 if config.warmup != 0 else 32
    if config.name == "wsd":
        warmup, start, end = 96, total - 256, total  # three steps of 2 rows; the last two of 8
    elif config.name == "inverse_sqrt":
        if config.hold != 0:
            return min(1.0, (160 / tokens) ** 0.5)
        return tokens / warmup if tokens < warmup else (warmup / tokens) ** 0.5
    else:
        start, end = warmup, total if config.decay is None else {288: 448, 321: 448}[int(config.decay.split()[0])]
    if tokens <= warmup:
        return tokens / warmup
    left = min(max((end - tokens) / (end - start), 0), 1)
    shape = (1 - np.cos(np.pi * left)) / 2 if config.name == "cosine" else left
    return config.final + (1 - config.final) * shape


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda config: config.name)
def test_the_learning_rate_is_what_the_tokens_say(config):
    """A warm-up of 160 tokens ends with the fourth step, which has read them; and so on."""
    plan = make_plan(replaced(TINY, {**RAMP, "optim.schedule": config}), 100)
    rate = schedule.build(config, 1.0, plan.total_steps, plan.resolve, plan.batches)
    read = 16 * np.array(BEFORE[1:])
    expected = [share(config, tokens, read[-1]) for tokens in read]
    np.testing.assert_allclose(jax.jit(jax.vmap(rate))(np.arange(10, dtype=np.int32)), expected, rtol=0, atol=3e-7)
    np.testing.assert_allclose([rate(step) for step in range(10)], expected, rtol=0, atol=3e-7)
    assert rate(10**6) == rate(9)


def test_the_rates_of_a_run_are_those(ramped):
    records = [record for record in read_metrics(ramped[1] / "metrics.jsonl") if "loss" in record]
    assert {record["learning_rate"] for record in records} == {np.float32(0.01).item()}


def test_intervals_in_tokens_are_tokens():
    """256 tokens are 16 rows: whole with the sixth step (20 rows), and then with every second or so."""
    plan = make_plan(replaced(TINY, {**RAMP, "eval.every": "256 tokens", "checkpoint.every": 4}), 100)
    assert plan.batches.levels[-1].step == 6
    assert [step for step in range(1, 11) if plan.eval_due(step)] == [6, 8, 10]
    assert [step for step in range(1, 11) if plan.save_due(step)] == [4, 8, 10]


def test_steps_of_a_run_given_in_tokens():
    assert make_plan(replaced(TINY, {**RAMP, "train.steps": "832 tokens"}), 100).total_steps == 10
    assert make_plan(replaced(TINY, {**RAMP, "train.steps": "833 tokens"}), 100).total_steps == 11
    assert make_plan(replaced(TINY, {**RAMP, "train.steps": "0.2 epochs"}), 100).total_steps == 6


def ramp(**changes):
    return {f"train.batch_ramp.{name}": value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"train.accumulate": 1}, "train.batch_ramp.start is 2, no multiple of a micro-batch of 8 rows"),
        (ramp(increment=3), "train.batch_ramp.increment is 3, no multiple of a micro-batch of 2 rows"),
        (ramp(start=4, increment=6), "start is 4, from which steps of .*increment 6 do not lead to train.batch_size 8"),
        (ramp(start=8), "start is 8, from which steps of .* do not lead to train.batch_size 8"),
        (ramp(duration=100), 'train.batch_ramp.duration is 100, must be in tokens, such as "4e9 tokens"'),
        (ramp(duration="10%"), 'train.batch_ramp.duration is "10%", must be in tokens'),
        (ramp(start=0), "train.batch_ramp.start is 0, must be at least 1"),
        ({"checkpoint.keep_every": "9 tokens"}, "checkpoint.keep_every is .* give it in steps"),
        ({"optim.schedule": Cosine(warmup="10%", decay="900 tokens")}, "decay is .* does not fit after the warm-up"),
    ),
)
def test_what_cannot_grow_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check(replaced(TINY, {**RAMP, **changes}))


def test_other_sizes_on_resume_are_refused(ramped, tmp_path):
    """The rows that were read could not be told any more."""
    config, _ = ramped
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", 2)
    with pytest.raises(ConfigError, match="train.batch_ramp.increment was 2, now 6"):
        train(replaced(config, {"train.batch_ramp.increment": 6}), tmp_path / "run")
