"""Durations cover what they say with the fewest whole steps, computed without rounding errors."""

from fractions import Fraction

import pytest

from data.errors import ConfigError
from data.schema import split_duration
from train.config import LinearRamp, NoRamp
from train.duration import to_steps
from train.ramp import Batches

RUN = {"total_steps": 1000, "batches": Batches(8, NoRamp(), 256), "rows_per_epoch": 100}
# Steps of 2, 2, 4, 6 and then 8 rows of 10 tokens.
RAMPED = {**RUN, "batches": Batches(8, LinearRamp(start=2, increment=2, duration="120 tokens"), 10)}


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        (0, 0),
        (500, 500),
        ("500 steps", 500),
        ("1 step", 1),
        ("5e2steps", 500),
        ("2048 tokens", 1),
        ("2049 tokens", 2),
        ("1e6 tokens", 489),
        ("1 epoch", 13),
        ("2 epochs", 25),
        ("0.5 epochs", 7),
        ("10%", 100),
        ("0.1 %", 1),
        ("0.01%", 1),
        ("0%", 0),
        ("100%", 1000),
    ],
)
def test_a_duration_in_steps(duration, steps):
    assert to_steps(duration, **RUN) == steps


def test_large_numbers_stay_exact():
    """In floating point 1e20 + 1 tokens would be 1e20, and 70 % of 1e17 + 10 steps would round."""
    assert to_steps("100000000000000000001 tokens", **{**RUN, "batches": Batches(1, NoRamp(), 10)}) == 10**19 + 1
    assert to_steps("70%", **{**RUN, "total_steps": 10**17 + 10}) == 7 * 10**16 + 7


@pytest.mark.parametrize(
    ("duration", "start", "end", "steps"),
    [
        ("20 tokens", 0, None, 1),
        ("21 tokens", 0, None, 2),
        ("40 tokens", 0, None, 2),
        ("41 tokens", 0, None, 3),
        ("140 tokens", 0, None, 4),
        ("141 tokens", 0, None, 5),
        ("100 tokens", 2, None, 2),
        ("101 tokens", 2, None, 3),
        ("80 tokens", 0, 3, 3),
        ("60 tokens", 0, 3, 2),
        ("61 tokens", 0, 3, 3),
        ("1e3 tokens", 0, 3, 3),
        ("0.2 epochs", 0, None, 5),
        (5, 3, None, 5),
        ("10%", 3, None, 100),
    ],
)
def test_a_duration_under_a_ramp(duration, start, end, steps):
    """Tokens are those that steps of their own sizes read, wherever the counting begins or ends."""
    assert to_steps(duration, **RAMPED, start=start, end=end) == steps


def test_a_share_of_itself_is_refused():
    with pytest.raises(ConfigError, match=r"train.steps is '10%'"):
        to_steps("10%", **{**RUN, "total_steps": None})
    assert to_steps("2 epochs", **{**RUN, "total_steps": None}) == 25


@pytest.mark.parametrize(
    "text", ["", "steps", "-1 steps", "1.5 steps", "1e6", "3 minutes", "1e999 tokens", "10 % of it", "nan%", True, -1]
)
def test_another_shape_is_refused(text):
    with pytest.raises(ValueError, match="must be"):
        split_duration(text)
    with pytest.raises(ConfigError, match="must be"):
        to_steps(text, **RUN)


def test_amounts_are_exact():
    assert split_duration("0.1%") == (Fraction(1, 10), "%")
    assert split_duration("2.5e9 tokens") == (Fraction(2_500_000_000), "tokens")
