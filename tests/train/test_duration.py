"""Durations cover what they say with the fewest whole steps, computed without rounding errors."""

from fractions import Fraction

import pytest

from data.errors import ConfigError
from data.schema import split_duration
from train.duration import to_steps

RUN = {"total_steps": 1000, "tokens_per_step": 2048, "rows_per_step": 8, "rows_per_epoch": 100}


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
    assert to_steps("100000000000000000001 tokens", **{**RUN, "tokens_per_step": 10}) == 10**19 + 1
    assert to_steps("70%", **{**RUN, "total_steps": 10**17 + 10}) == 7 * 10**16 + 7


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
