"""Several sources read as one, as data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from data import source_config
from data.schema import NOT_NEGATIVE, POSITIVE, Rule, split_duration
from data.source_config import Source, TextSource

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
WHOLE = "validation"  # under which the log has the held-out text of all components together


@dataclass(frozen=True)
class Component:
    name: str = ""  # in logs, and under which its validation loss stands
    source: Source = TextSource()
    weight: float = 1.0  # its share of the rows is this over the sum of all weights
    max_epochs: float | None = None  # how often its rows are read at the most; then the others share its rows


@dataclass(frozen=True)
class Stage:
    """From a step on, other weights: a curriculum."""

    start: int | str = 0  # steps, tokens, epochs (of all rows of all components) or percent of the run
    weights: tuple[float, ...] = ()  # one a component


@dataclass(frozen=True)
class MixtureSource:
    """Rows of several sources in given shares; each source has a store and an order of its own."""

    name: str = "mixture"
    components: tuple[Component, ...] = ()
    stages: tuple[Stage, ...] = ()  # in order; before the first one the components' own weights hold


RULES = {
    "components.*.weight": NOT_NEGATIVE,
    "components.*.max_epochs": POSITIVE,
    "stages.*.weights": Rule(lambda weights: all(weight >= 0 for weight in weights), "at least 0 each"),
    **{f"components.*.source.{key}": rule for key, rule in source_config.RULES.items()},
}


def check(source: MixtureSource) -> list[tuple[str, str]]:
    """What no field's type can refuse, as (key below `data.source`, clash) pairs."""
    names = [component.name for component in source.components]
    problems = []
    for index, name in enumerate(names):
        key = f"components.{index}.name"
        if not NAME.fullmatch(name) or name == WHOLE:
            problems.append((key, f"is {name!r}, must be letters, digits, '_', '.' or '-', and not {WHOLE!r}"))
        elif name in names[:index]:
            problems.append((key, f"is {name!r}, as another component's is; give each a name of its own"))
    if source.components and not any(component.weight for component in source.components):
        problems.append(("components", "all have weight 0, so that no row has a source; raise one"))
    problems += [
        (f"components.{index}.source.{key}", clash)
        for index, component in enumerate(source.components)
        for key, clash in source_config.check(component.source)
    ]
    return problems + _check_stages(source)


def _check_stages(source: MixtureSource) -> list[tuple[str, str]]:
    problems, before = [], {}
    for index, stage in enumerate(source.stages):
        key, weights = f"stages.{index}", stage.weights
        if len(weights) != len(source.components):
            clash = f"has {len(weights)} entries for {len(source.components)} components; give one each"
            problems.append((f"{key}.weights", clash))
        elif not any(weights):
            problems.append((f"{key}.weights", "are all 0, so that no row has a source; raise one"))
        amount, unit = split_duration(stage.start)
        if amount <= before.get(unit, Fraction(0)):
            clash = f"is {stage.start!r}, must be behind the stage before it, and behind the start of the run"
            problems.append((f"{key}.start", clash))
        before[unit] = amount
    return problems


def missing(source: MixtureSource) -> list[tuple[str, str]]:
    """The text that a recipe leaves for its user to name, as (key below `data.source`, clash) pairs."""
    if not source.components:
        return [("components", "is empty, must list the sources that are mixed")]
    return [
        (f"components.{index}.source.{key}", clash)
        for index, component in enumerate(source.components)
        for key, clash in source_config.missing(component.source)
    ]
