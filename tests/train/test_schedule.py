"""Each schedule is its closed form, at every step, on the host and traced, however long the run."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import ConfigError
from train import config as cfg
from train import schedule

PEAK = 3e-4
LONGEST = 2**31 - 1

GOLDEN = """\
step       constant    linear    cosine       wsd  inverse_sqrt
   0         0.2500    0.2500    0.2500    0.2500        0.2500
   1         0.5000    0.5000    0.5000    0.5000        0.5000
   2         0.7500    0.7500    0.7500    0.7500        0.7500
   3         1.0000    1.0000    1.0000    1.0000        1.0000
   4         1.0000    0.9000    0.9780    1.0000        0.8944
   5         1.0000    0.8000    0.9141    1.0000        0.8165
   6         1.0000    0.7000    0.8145    1.0000        0.7559
   7         1.0000    0.6000    0.6891    1.0000        0.7071
   8         1.0000    0.5000    0.5500    1.0000        0.6667
   9         1.0000    0.4000    0.4109    1.0000        0.6325
  10         1.0000    0.3000    0.2855    0.7500        0.6030
  11         1.0000    0.2000    0.1859    0.5000        0.5774
  12         1.0000    0.1000    0.1220    0.2500        0.5547
  13         1.0000    0.0000    0.1000    0.0000        0.5345
  14         1.0000    0.0000    0.1000    0.0000        0.5345
"""


def schedules(warmup, decay=4):
    return (
        cfg.Constant(warmup=warmup),
        cfg.Linear(warmup=warmup),
        cfg.Linear(warmup=warmup, final=0.25),
        cfg.Cosine(warmup=warmup),
        cfg.WarmupStableDecay(warmup=warmup, decay=decay),
        cfg.WarmupStableDecay(warmup=warmup, decay=decay, final=0.1),
        cfg.InverseSqrt(warmup=warmup),
        cfg.InverseSqrt(warmup=warmup, hold=12),
        cfg.InverseSqrt(warmup=warmup, hold=3),
    )


def built(config, total, peak=1.0):
    return schedule.build(config, peak, total, lambda duration, **_: duration)


def closed_form(config, total, step):
    """The share of the peak, in Python's float64, written from the papers and the conventions alone."""
    warmup, last = config.warmup, total - 1
    step = min(step, last)
    if step < warmup:
        return (step + 1) / warmup
    top = max(warmup, 1) - 1  # the step of the peak
    if config.name == "constant" or step == top:
        return 1.0
    if config.name == "inverse_sqrt":
        return min(1.0, math.sqrt(max(warmup, config.hold, 1) / (step + 1)))
    if config.name == "wsd":
        top = max(top, last - config.decay)
        if step <= top:
            return 1.0
    progress = (step - top) / (last - top)
    if config.name == "cosine":
        return config.final + (1 - config.final) * (1 + math.cos(math.pi * progress)) / 2
    return 1 - (1 - config.final) * progress


@pytest.mark.parametrize("warmup", (0, 1, 7))
@pytest.mark.parametrize("index", range(len(schedules(0))))
def test_every_step_is_the_closed_form(index, warmup):
    config, total = schedules(warmup)[index], 41
    rate = built(config, total, PEAK)
    steps = np.arange(total + 5)
    expected = [PEAK * closed_form(config, total, int(step)) for step in steps]
    traced = jax.jit(jax.vmap(rate))(jnp.asarray(steps, jnp.int32))
    assert traced.dtype == jnp.float32
    # Float32 rounds a share four times or so: 4 * 2**-24 of the peak.
    np.testing.assert_allclose(traced, expected, rtol=0, atol=2.5e-7 * PEAK)
    on_host = rate(int(steps[9]))
    assert on_host.dtype == jnp.float32 and on_host.shape == ()
    np.testing.assert_allclose(on_host, expected[9], rtol=0, atol=2.5e-7 * PEAK)


def test_the_inverse_root_is_the_law_of_vaswani_et_al():
    """Their equation 3, of steps from 1: d^-0.5 min(step^-0.5, step warmup^-1.5), its peak being (d warmup)^-0.5."""
    embed, warmup, steps = 512, 4000, np.array((1, 2, 1000, 3999, 4000, 4001, 20_000, 100_000))
    law = embed**-0.5 * np.minimum(steps**-0.5, steps * warmup**-1.5)
    rate = jax.jit(jax.vmap(built(cfg.InverseSqrt(warmup=warmup), 100_000, (embed * warmup) ** -0.5)))
    np.testing.assert_allclose(rate(jnp.asarray(steps - 1)), law, rtol=5e-7)


def test_a_held_inverse_root_is_the_law_of_raffel_et_al():
    """Their section 3.1.2: 1 / sqrt(max(n, k)) of steps n, k being ten thousand."""
    steps = np.array((1, 2, 9_999, 10_000, 10_001, 20_000, 2**19))
    rate = jax.jit(jax.vmap(built(cfg.InverseSqrt(warmup=0, hold=10_000), 2**19, 0.01)))
    np.testing.assert_allclose(rate(jnp.asarray(steps - 1)), 1 / np.sqrt(np.maximum(steps, 1e4)), rtol=5e-7)


def test_values_are_the_golden_ones():
    configs = (
        cfg.Constant(warmup=4),
        cfg.Linear(warmup=4),
        cfg.Cosine(warmup=4),
        cfg.WarmupStableDecay(warmup=4, decay=4),
        cfg.InverseSqrt(warmup=4),
    )
    rates = [built(config, 14) for config in configs]
    lines = ["step       constant    linear    cosine       wsd  inverse_sqrt"]
    for step in range(15):
        values = [f"{float(rate(step)):.4f}" for rate in rates]
        lines.append(f"{step:>4}     {values[0]:>10}{values[1]:>10}{values[2]:>10}{values[3]:>10}{values[4]:>14}")
    assert "\n".join(lines) + "\n" == GOLDEN


@pytest.mark.parametrize("total", (60, 1000, LONGEST))
@pytest.mark.parametrize("warmup", (0, 1, 49))
def test_peak_and_end_are_exact(warmup, total):
    """49 / 49 is 1 even where a compiler multiplies by 1 / 49; a final share of 0.1 is float32's 0.1."""
    for config in schedules(warmup):
        rate = jax.jit(built(config, total, PEAK))
        assert rate(max(warmup - 1, 0)) == np.float32(PEAK), config
        assert rate(0) > 0, config
        if config.name in ("linear", "cosine", "wsd"):
            for step in (total - 1, total, LONGEST):
                assert rate(min(step, LONGEST)) == np.float32(PEAK) * np.float32(config.final), config


def test_peak_is_reached_once():
    for config in (cfg.Linear(warmup=5), cfg.Cosine(warmup=5), cfg.InverseSqrt(warmup=5)):
        values = jax.vmap(built(config, 1000))(jnp.arange(1000))
        assert int(jnp.sum(values == 1.0)) == 1 and int(jnp.argmax(values)) == 4, config


def test_stable_part_begins_after_the_warmup_and_ends_before_the_decay():
    warmup, decay, total = 10, 20, 100
    values = jax.vmap(built(cfg.WarmupStableDecay(warmup=warmup, decay=decay), total))(jnp.arange(total))
    stable = np.flatnonzero(np.asarray(values) == 1.0)
    assert (stable[0], stable[-1], len(stable)) == (warmup - 1, total - 1 - decay, total - decay - warmup + 1)


def test_longest_run_has_no_jump():
    """Float32 cannot tell steps beyond 2**24 apart; distances to both ends are taken in integers."""
    total = LONGEST
    warmup = 2**30
    near = [
        0,
        1,
        warmup - 2,
        warmup - 1,
        warmup,
        2**24,
        2**24 + 1,
        2**30 + 2**29,
        total - 3,
        total - 2,
        total - 1,
    ]
    for config in schedules(warmup, decay=2**29):
        rate = jax.jit(built(config, total))
        for step in near:
            np.testing.assert_allclose(rate(step), closed_form(config, total, step), rtol=0, atol=2.5e-7)
    end = np.asarray([jax.jit(built(cfg.Linear(warmup=warmup), total))(total - back) for back in range(1, 9)])
    np.testing.assert_allclose(end * (total - warmup), np.arange(8), rtol=2.5e-7)
    dense = jax.jit(jax.vmap(built(cfg.Cosine(warmup=0), total)))(jnp.arange(0, total - 1, 2**14, dtype=jnp.int32))
    assert np.diff(np.asarray(dense)).max() <= 1e-7  # never upwards by more than a rounding


def test_warmup_longer_than_the_run_is_cut():
    for config in schedules(100):
        values = jax.vmap(built(config, 10))(jnp.arange(12))
        np.testing.assert_allclose(values, [*np.arange(1, 11) / 100, 0.1, 0.1], rtol=2.5e-7)


def test_decay_longer_than_the_run_begins_at_the_peak():
    long, line = cfg.WarmupStableDecay(warmup=5, decay=500), cfg.Linear(warmup=5)
    steps = jnp.arange(50)
    np.testing.assert_array_equal(jax.vmap(built(long, 50))(steps), jax.vmap(built(line, 50))(steps))


def test_durations_are_resolved_by_the_run():
    asked = []

    def resolve(duration, **_):
        asked.append(duration)
        return {"10%": 10, "2 epochs": 30}[duration]

    rate = schedule.build(cfg.WarmupStableDecay(warmup="10%", decay="2 epochs"), 1.0, 100, resolve)
    assert asked == ["10%", "2 epochs"]
    assert (rate(4), rate(9), rate(69), rate(99)) == (0.5, 1.0, 1.0, 0.0)


def test_runs_without_steps_or_beyond_int32_are_refused():
    for total in (0, -1, 2**31):
        with pytest.raises(ConfigError, match=f"train.steps comes to {total} "):
            built(cfg.Constant(), total)
