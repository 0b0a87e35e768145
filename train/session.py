"""What surrounds the steps of a run: its data, its counters, its records, its saves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax

from data.errors import ConfigError, UserError
from data.kinds import ObjectiveRows
from data.loader import DATA_ORDER_VERSION, Fill, Loader, evaluation_batches
from data.mixture_config import WHOLE
from data.objectives import check_tokenizer, objective_rows
from data.prepare import Prepared
from data.schema import config_hash, to_plain
from train import flops, mesh
from train.assembly import Assembly
from train.checkpoint import Checkpointer
from train.config import Config
from train.errors import DivergedError
from train.evaluate import added, bits_per_byte, means, sums
from train.metrics import Writers
from train.mixing import mixture_of
from train.plan import Plan, make_plan
from train.progress import BarProgress, NoProgress, PlainProgress
from train.ramp import batches_of
from train.state import State, all_finite

NO_DATA = "none: the weights were imported"  # in place of a store's fingerprint in the metadata of such a run


@dataclass
class Counters:
    """Python integers, which do not overflow; they travel in the checkpoint's metadata."""

    tokens: int = 0  # as the task counts them, over all attempted steps
    skipped: int = 0
    bad_streak: int = 0  # non-finite steps in a row up to now


def check_trained(metadata: dict, workdir: Path) -> None:
    """ConfigError where a checkpoint holds imported weights alone: there is no training to go on with."""
    if metadata["store_fingerprint"] == NO_DATA:
        raise ConfigError(
            f"{workdir} was made by train.convert or train.average and holds weights alone, no training to go on with. "
            f"Begin a run from them: another --workdir, and --config.train.init_from={workdir}"
        )


def saved_counters(metadata: dict, fingerprints: dict[str, str]) -> Counters:
    """The counters of a checkpoint; ConfigError where its data, of the `fingerprints` now, was other data."""
    for name, value in {"data_order": DATA_ORDER_VERSION, **fingerprints}.items():
        if metadata[name] != value:
            raise ConfigError(
                f"this run cannot go on with other data: its {name} was {metadata[name]}, now {value}. Restore the "
                "text and the tokenizer it began with, or start a new run with another --workdir"
            )
    return Counters(*(metadata[name] for name in vars(Counters())))


@dataclass(frozen=True)
class Feed:
    """Batches of a run on its devices, as pure functions of the step."""

    assembly: Assembly
    loader: Loader
    validation: dict[str, ObjectiveRows]  # by source; empty where nothing is held out

    @staticmethod
    def make(assembly: Assembly, prepared: Prepared) -> Feed:
        """ConfigError where the tokenizer and the objective do not fit one another, or the mixture and the run."""
        config = assembly.config
        data, seed = config.data, config.train.seed
        check_tokenizer(data, prepared.tokenizer, config.model.vocab_size)
        sources = {name: objective_rows(data, stores.train, seed) for name, stores in prepared.sources.items()}
        validation = {
            name: objective_rows(data, stores.validation, seed, held_out=True)
            for name, stores in prepared.sources.items()
            if stores.validation is not None
        }
        mixture = mixture_of(config, sources, make_plan(config, rows_of_epoch(sources)))
        loader = Loader(sources, config.train.batch_size, seed, data.shuffle, filling(config), mixture)
        return Feed(assembly, loader, validation)

    @property
    def rows_per_epoch(self) -> int:
        return rows_of_epoch(self.loader.sources)

    def batch(self, step: int) -> dict:
        """The global batch of `step`, each process having made its own rows."""
        rows = self.loader.batch_size
        return self._place(self.loader.batch(step, *self._local(rows)), rows)

    def validation_batches(self, source: str, beat: Callable[[], None]) -> Iterator[dict]:
        """The batches of one evaluation on the held-out text of a source, `beat` called before each."""
        rows = self.assembly.eval_rows()
        limit = self.assembly.config.eval.batches
        for batch in evaluation_batches(self.validation[source], rows, limit, *self._local(rows)):
            beat()
            yield self._place(batch, rows)

    def _local(self, rows: int) -> tuple[int, int]:
        return mesh.local_rows(self.assembly.batch_shardings()["tokens"], rows)

    def _place(self, batch: dict, rows: int) -> dict:
        return mesh.global_batch(batch, self.assembly.batch_shardings(), rows)


def rows_of_epoch(sources: dict[str, ObjectiveRows]) -> int:
    """The rows of one pass over all sources."""
    return sum(map(len, sources.values()))


def filling(config: Config) -> Callable[[int], Fill]:
    """What of each step's batch holds rows: of each turn of the micro-batches, those that the step takes."""
    batches, parts = batches_of(config), config.train.accumulate

    def fill(step: int) -> Fill:
        return Fill(batches.before(step), batches.rows(step) * parts // batches.batch_size, parts)

    return fill


@dataclass
class Session:
    assembly: Assembly
    plan: Plan
    feed: Feed
    eval_step: Callable
    writers: Writers
    progress: BarProgress | PlainProgress | NoProgress
    checkpointer: Checkpointer
    fingerprints: dict[str, str]
    peak: float  # FLOP/s of all devices
    counters: Counters = field(default_factory=Counters)
    asked: jax.Array | None = None  # whether any process was asked to stop, as of the last step
    mark: float = field(default_factory=time.monotonic)  # when the last step was seen to end

    def record(self, step: int, metrics: dict) -> None:
        """Wait for a step's metrics and write them. DivergedError after too many refused steps in a row."""
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        seconds, self.mark = now - self.mark, now
        counters, targets = self.counters, values.pop("targets")
        refused = values["skipped"] > counters.skipped
        counters.tokens += targets
        counters.skipped = values["skipped"]
        counters.bad_streak = counters.bad_streak + 1 if refused else 0
        rate = targets / seconds
        config = self.assembly.config
        per_token = flops.of_training(config, self.assembly.declarations)
        record = {
            "step": step,
            **values,
            "tokens": counters.tokens,
            "tokens_per_second": rate,
            "step_seconds": seconds,
            "mfu": rate * per_token / self.peak,
            **self._consumed(step),
            "time": time.time(),
        }
        self.writers.write(record)
        self.progress.update(record)
        if refused:
            self.progress.message(f"step {step}: loss or gradient not finite; the update was refused")
        if counters.bad_streak >= config.train.max_bad_steps:
            raise DivergedError(self._diverged(step))

    def _consumed(self, step: int) -> dict[str, float]:
        """Of a mixture, the rows that the steps up to `step` have taken of each source, and its epochs."""
        loader, found = self.feed.loader, {}
        if loader.mixture is not None:
            for name, rows in loader.consumed(step).items():
                found |= {f"data/{name}/rows": rows, f"data/{name}/epochs": rows / len(loader.sources[name])}
        return found

    def _diverged(self, step: int) -> str:
        loader = self.feed.loader
        source, epoch, row = loader.place(loader.fill(step - 1).first)
        seed = self.assembly.config.train.seed
        return (
            f"the loss or its gradient was not finite for {self.counters.bad_streak} steps in a row, up to step {step} "
            f"(train.max_bad_steps). Its batch is loader.batch({step - 1}) under seed {seed}, "
            f"beginning with row {row} of epoch {epoch} of {source}. The last checkpoint is sound; lower "
            "optim.learning_rate or look at the data"
        )

    def evaluate(self, step: int, state: State, beat: Callable[[str], None]) -> dict[str, float]:
        """Validation metrics under their names in the log; changes nothing in training. Each batch calls `beat`.

        Of a mixture those of each source as well; `validation` is the held-out text of all of them.
        """
        if not self.feed.validation:
            return {}
        task, params = self.assembly.task, state.ema if self.assembly.config.eval.ema else state.params
        totals, found = {}, {}
        for name in self.feed.validation:
            batches = self.feed.validation_batches(name, lambda: beat(f"evaluation after step {step}"))
            totals[name] = sums(task, self.eval_step, params, state.frozen, batches)
        if self.feed.loader.mixture is not None:
            for name, total in totals.items():
                found |= self._evaluated(name, total, [self.feed.validation[name]])
        found |= self._evaluated(WHOLE, added(task, totals.values()), list(self.feed.validation.values()))
        self.writers.write({"step": step, **found})
        # What is told layer by layer, as of experts, is for the log.
        shown = "  ".join(f"{name} {value:.4f}" for name, value in found.items() if "/experts/" not in name)
        self.progress.message(f"step {step}  {shown}")
        return found

    def _evaluated(self, name: str, totals: dict[str, float], parts: list[ObjectiveRows]) -> dict[str, float]:
        """The metrics of the held-out text of `parts` by their names in the log, from their totals."""
        task = self.assembly.task
        found = means(task, totals)
        # Of what is dropped there is no telling how many bytes it had.
        if task.codes_text and all(rows.store.text_bytes and not rows.dropped for rows in parts):
            tokens, size = (
                sum(counts) for counts in zip(*((r.num_targets, r.store.text_bytes) for r in parts), strict=True)
            )
            found["bits_per_byte"] = bits_per_byte(found["loss"], tokens, size)
        return {f"eval/{name}/{metric}": value for metric, value in found.items()}

    def save(self, step: int, state: State, evaluated: dict[str, float]) -> None:
        """Begin to save under `step`; its lines in the log reach the disk first.

        DivergedError, and nothing saved, where a parameter, a statistic or an average is not finite: finite
        gradients can still overflow in the update.
        """
        if not all_finite(state):
            raise DivergedError(
                f"after step {step} the parameters or the optimizer's state are not finite, and are not saved: an "
                "update has overflowed, or the weights that the run began with were not finite. Earlier checkpoints "
                "are sound; lower optim.learning_rate"
            )
        self.writers.sync()
        metadata = {
            "config_hash": config_hash(self.assembly.config),
            "config": to_plain(self.assembly.config),
            "data_order": DATA_ORDER_VERSION,
            **self.fingerprints,
            **vars(self.counters),
        }
        self.checkpointer.save(step, state, metadata, evaluated)

    def close(self) -> None:
        """End the records. A save that is running is committed first, whatever has ended the run."""
        with contextlib.suppress(UserError):  # what ended the run is what is told
            self.checkpointer.wait()
        self.progress.close()
        self.writers.close()

    def resume_clock(self) -> None:
        """Leave evaluation and saving out of the next step's seconds."""
        self.mark = time.monotonic()

    def stop_agreed(self, requested: bool) -> bool:
        """Whether any process was asked to stop: all leave after the same step.

        Of several processes the answer is that of the step before, as with metrics: no device waits for it.
        """
        if jax.process_count() == 1:
            return requested
        before, self.asked = self.asked, mesh.any_process(self.assembly.mesh, requested)
        return before is not None and bool(before)
