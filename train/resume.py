"""What may change when a run goes on: each field of the configuration is free, schedule or fixed.

Free fields say how the work is done, not what is computed. Schedule fields are the run's plan from here on:
changing one is printed and kept in the run's history. Everything else is fixed, above all the architecture,
the tokenizer, the data and their order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from data.errors import ConfigError
from data.schema import entry_path, flatten, from_plain, to_plain
from train.config import Config

FREE, SCHEDULE, FIXED = "free", "schedule", "fixed"

# Kind by dotted prefix. What is not listed is fixed.
KINDS = {
    "model.attention.kernel": FREE,
    "model.remat": FREE,
    "model.unroll": FREE,
    # Where the text lies. That it is the same text is what the store's fingerprint says.
    "data.source.paths": FREE,
    "data.source.validation_paths": FREE,
    "data.source.directory": FREE,
    "data.source.path": FREE,
    "data.source.validation_path": FREE,
    "data.source.components.*.source.paths": FREE,
    "data.source.components.*.source.validation_paths": FREE,
    "data.source.components.*.source.directory": FREE,
    "data.source.components.*.source.path": FREE,
    "data.source.components.*.source.validation_path": FREE,
    "data.tokenizer.path": FREE,
    "data.cache_dir": FREE,
    "data.prefetch": FREE,
    "data.timeout": FREE,
    "data.verify": FREE,
    "data.workers": FREE,
    "optim.optimizer.weight_decay": SCHEDULE,
    "optim.learning_rate": SCHEDULE,
    "optim.schedule": SCHEDULE,
    "optim.clip_norm": SCHEDULE,
    "train.steps": SCHEDULE,
    "train.accumulate": SCHEDULE,
    "train.max_bad_steps": SCHEDULE,
    "train.loss_chunks": FREE,
    "train.init_from": FREE,  # read at the very first start only
    "train.deterministic": FREE,
    "train.hang_timeout": FREE,
    "mesh": FREE,
    "checkpoint": FREE,
    "eval": FREE,
    "log": FREE,
}
ABSENT = object()  # a field that the other variant of a choice, or a longer list, has


@dataclass(frozen=True)
class Change:
    path: str
    saved: Any  # plain value, or ABSENT
    given: Any
    kind: str  # free, schedule, fixed


def kind(path: str) -> str:
    """How the field at a dotted path may change on resume."""
    spelt = f"{entry_path(path)}."
    listed = (found for prefix, found in KINDS.items() if spelt.startswith(f"{prefix}."))
    return next(listed, FIXED)


def changes(saved: dict, given: dict) -> list[Change]:
    """The fields that differ between two plain trees of a configuration, in the order of declaration."""
    before, after = flatten(saved), flatten(given)
    paths = dict.fromkeys((*after, *before))
    pairs = ((path, before.get(path, ABSENT), after.get(path, ABSENT)) for path in paths)
    return [Change(path, old, new, kind(path)) for path, old, new in pairs if old != new]


def check_resume(saved: dict, given: dict) -> list[str]:
    """Lines `path: old -> new` for the schedule fields that a resumed run changes.

    `saved` is the plain tree that the run began with, perhaps written by an earlier version: fields it lacks
    count as their defaults. Raises ConfigError naming path, saved and given value of every fixed field.
    """
    found = changes(to_plain(from_plain(Config, saved)), given)
    fixed = [change for change in found if change.kind == FIXED]
    if fixed:
        listed = "; ".join(f"{change.path} was {_shown(change.saved)}, now {_shown(change.given)}" for change in fixed)
        raise ConfigError(
            f"this run cannot go on with another configuration: {listed}. Give the saved values again, or "
            "start a new run with another --workdir (train.init_from takes over the weights)"
        )
    return [
        f"{change.path}: {_shown(change.saved)} -> {_shown(change.given)}"
        for change in found
        if change.kind == SCHEDULE
    ]


def _shown(value: Any) -> str:
    return "absent" if value is ABSENT else json.dumps(value)
