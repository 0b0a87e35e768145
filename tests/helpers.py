"""Runs small enough for a test: a tiny decoder on a few kilobytes of text, and what is compared of them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data.config import Data
from data.loader import Loader
from data.source_config import TextSource
from data.tokenizer_config import ByteTokenizer
from model.config import Attention, FeedForward, Model
from train import checkpoint, flops, inspect, loop
from train.assembly import Assembly
from train.config import Checkpoint, Config, Constant, Eval, Log, Mesh, Optim, Train
from train.metrics import read_metrics
from train.state import State

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("step_seconds", "tokens_per_second", "mfu", "time")  # what may differ between equal runs
# Paragraphs of 1 to 90 bytes, so that rows of 16 hold anything from a part of one to several.
TEXT = "\n\n".join(
    f"{'Counting ' * (number % 7)}{number}: {number * number} is odd{' or even' * (number % 3)}."[number % 5 :]
    for number in range(60)
)
TINY = Config(
    model=Model(
        vocab_size=257,
        num_layers=2,
        embed_dim=32,
        attention=Attention(num_heads=8, head_dim=8),
        feed_forward=FeedForward(hidden_dim=64),
    ),
    data=Data(tokenizer=ByteTokenizer(), length=16, packing="unpacked", timeout=60.0),
    optim=Optim(learning_rate=0.01, schedule=Constant()),
    train=Train(steps=6, batch_size=8, hang_timeout=120.0),
    mesh=Mesh(data=1),
    checkpoint=Checkpoint(every=100, keep=9),
    eval=Eval(every=100),
    log=Log(tensorboard=False),
)


def replaced(config: Any, changes: Mapping[str, Any]) -> Any:
    """`config` with the fields at dotted paths replaced: `{"train.steps": 3}`."""
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        new = replaced(getattr(config, name), {rest: value}) if rest else value
        config = replace(config, **{name: new})
    return config


def tiny(directory: Path, changes: Mapping[str, Any] = {}) -> Config:
    """TINY on TEXT, which is written below `directory`; one device, AdamW at a constant rate, unpacked rows."""
    text = directory / "text.txt"
    if not text.exists():
        text.write_text(TEXT)
    source = TextSource(paths=(str(text),), document="paragraph", validation_fraction=0.2)
    places = {"data.source": source, "data.cache_dir": str(directory / "cache")}
    return replaced(TINY, {**places, **changes})


def drawn(assembly: Assembly, seed: int = 0) -> State:
    """A state of small random parameters, on the devices it belongs to, without compiling their initial values."""
    generator = np.random.default_rng(seed)

    def zeros(leaf):
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    def draw(leaf):
        return jax.device_put((0.1 * generator.standard_normal(leaf.shape)).astype(leaf.dtype), leaf.sharding)

    state = jax.tree.map(zeros, assembly.abstract)
    return state.replace(params=jax.tree.map(draw, assembly.abstract.params))


class StopAfter:
    """In place of a StopSignal: a request to stop that arrives during a launch's `steps`-th step."""

    def __init__(self, steps: int):
        self._left = steps

    def __enter__(self) -> StopAfter:
        return self

    def __exit__(self, *_) -> None:
        pass

    @property
    def requested(self) -> str | None:
        self._left -= 1
        return "SIGTERM" if self._left <= 0 else None


def train(config: Config, run: Path, stop_after: int | None = None) -> None:
    """`train.loop.train` in this process, with no time spent on measuring the machine's peak."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flops, "peak_flops", lambda *_: (1e12, "of a test"))
        if stop_after is not None:
            patch.setattr(loop, "StopSignal", lambda: StopAfter(stop_after))
        loop.train(config, run)


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
    """What a command of this repository, started anywhere, sees: `devices` simulated ones, the tests' caches."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices), **variables}


def digests(run: Path, step: int | None = None) -> dict:
    """What a run has come to: SHA-256 of its newest (or given) checkpoint's parts, and its counters."""
    folder, saved = inspect.chosen(run / "checkpoints", step)
    leaves = dict(inspect.stored_leaves(folder, saved, {name: name for name in saved.leaves}))
    parts: dict[str, list] = {}
    for name, leaf in sorted(leaves.items()):
        parts.setdefault(name.partition("/")[0], []).append((name, leaf))
    counters = {name: saved.metadata[name] for name in ("tokens", "skipped", "bad_streak")}
    return {part: inspect.digest_leaves(named) for part, named in parts.items()} | {"counters": counters}


def lines(run: Path) -> list[str]:
    """metrics.jsonl without what a clock says: equal for equal runs, digit for digit."""
    records = read_metrics(run / "metrics.jsonl")
    return [json.dumps({name: value for name, value in record.items() if name not in TIMES}) for record in records]


def steps(run: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return checkpoint.steps(run / "checkpoints")


@contextlib.contextmanager
def spoilt(*steps: int, key: str = "weights", value: float = np.inf):
    """Every loader's batches of `steps`, counted from 0, hold one `value` that makes their loss not finite."""
    original = Loader.batch

    def batch(self, step: int, *rows):
        found = original(self, step, *rows)
        if step in steps:
            found[key][0, 0] = value
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loader, "batch", batch)
        yield
