"""What the recipes of families share: how a size is named, and what their debug sizes have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from ml_collections import ConfigDict

from data.tokenizer_config import BpeTokenizer
from train.config import defaults

Size = TypeVar("Size")


def chosen(sizes: Mapping[str, Size], arg: str | None, debug: Iterable[str] = ("debug",)) -> Size:
    """The size that `FILE.py:arg` names; ValueError naming those there are, the `debug` ones first."""
    if arg not in sizes:
        names = ", ".join((*debug, *sizes))
        raise ValueError(f"the size is {arg or 'missing'}, must be one of {names}, as in FILE.py:{next(iter(sizes))}")
    return sizes[arg]


def debug_defaults(vocab_size: int = 512) -> ConfigDict:
    """The defaults of a debug size: rows of 64 tokens of the embedded corpus, 20 steps, seconds on one core."""
    config = defaults()
    config.model.vocab_size = vocab_size
    config.data.tokenizer = BpeTokenizer(vocab_size=vocab_size)
    config.data.length = 64
    config.optim.learning_rate = 1e-3
    config.optim.schedule.warmup = "10%"
    config.train.steps = 20
    config.checkpoint.every = 10
    config.eval.every = 10
    config.eval.batches = 4
    return config
