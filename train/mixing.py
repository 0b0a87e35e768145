"""A mixture of sources, its stages in rows: what of the plan of a run its data needs."""

from __future__ import annotations

from data.errors import ConfigError
from data.kinds import ObjectiveRows
from data.mixture import Mixture, supplies_of
from data.mixture_config import MixtureSource
from train.config import Config
from train.plan import Plan


def mixture_of(config: Config, sources: dict[str, ObjectiveRows], plan: Plan) -> Mixture | None:
    """The mixture of a run's rows; None where it has one source.

    Raises ConfigError where a stage does not begin behind the one before it, or where the sources are read as
    often as they may before the run ends.
    """
    source = config.data.source
    if not isinstance(source, MixtureSource):
        return None
    starts = [(0, [component.weight for component in source.components])]
    for index, stage in enumerate(source.stages):
        step = plan.resolve(stage.start)
        row = plan.batches.before(step)
        if row <= starts[-1][0]:
            raise ConfigError(
                f"data.source.stages.{index}.start is {stage.start!r}, which comes to step {step} of this run; it must "
                "be behind the stage before it, and behind the start of the run"
            )
        starts.append((row, stage.weights))
    mixture = Mixture(supplies_of(source, sources.values()), starts, config.train.seed)
    wanted, there = plan.batches.before(plan.total_steps), mixture.num_rows
    if there is not None and there < wanted:
        raise ConfigError(
            f"the mixture ends after {there:,} rows, in step {plan.batches.steps(there)} of {plan.total_steps}: "
            "every component with a weight has then been read data.source.components.*.max_epochs times. Raise these, "
            "lower train.steps, or add text"
        )
    return mixture


def stages_in_rows(mixture: Mixture) -> str:
    """Where stages begin, for a checkpoint's metadata: a run goes on only where they lie as they did."""
    return ", ".join(f"{list(weights)} from row {row}" for row, weights in mixture.stages)
