"""From a recipe to steps that an engine runs one after the other.

A step is a datatrove pipeline that runs as so many tasks. Stages that look at one document at a time share a step; one
that compares documents ends it:

    read          the source, stages, digests for exact_dedup; writes documents
    find          exact_dedup, one task: which documents are copies
    curate        drops them, further stages; writes documents
    signatures, pairs, find    minhash
    curate        drops them, further stages; writes documents
    evaluation    decontaminate, one task, before all others: the n-grams of the evaluation sets
    report        one task: adds the counts up, moves the last documents to `output`

Task t of a step that writes documents reads what task t of the one before wrote, so the documents stay in the order of
the source and what is written does not depend on which worker does it, or when.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datatrove.pipeline.base import PipelineStep

from data.curation import config as asked
from data.curation import dedup
from data.curation.config import Curation
from data.curation.decontaminate import DecontaminateStage, IndexEvaluation
from data.curation.documents import Gate, ReadDocuments, ReadSource, WriteDocuments, note_of
from data.curation.folders import DOCUMENTS, WORK
from data.curation.report import Report, Row
from data.curation.stages import STAGES

NOTES, TALLY = "notes", "tally"  # below a step


class Step(NamedTuple):
    name: str
    tasks: int
    blocks: list[PipelineStep]


class Planner:
    """Puts the steps of one recipe together; `steps` and `rows` grow as stages are added."""

    def __init__(self, config: Curation, tasks: int):
        self.config, self.tasks = config, tasks
        self.work = Path(config.output).absolute() / WORK
        self.steps: list[Step] = []
        self.rows: list[Row] = []  # what the report lists
        self.blocks: list[PipelineStep] = []  # of the step that is being put together
        self.written: str | None = None  # the step whose documents are read next
        self.first = True  # whether the source is still to be read

    def folder(self, name: str) -> Path:
        return self.work / name

    def name(self, what: str) -> str:
        return f"{len(self.steps):02d}-{what}"

    def add_step(self, what: str, tasks: int, blocks: Sequence[PipelineStep]):
        before = [Gate(str(self.folder(self.steps[-1].name)), self.steps[-1].tasks)] if self.steps else []
        self.steps.append(Step(self.name(what), tasks, [*before, *blocks]))

    def tally(self, label: str, tasks: int | None = None) -> str:
        """The folder where a stage of the current step counts; the report reads it."""
        folder = str(self.work / TALLY / f"{len(self.rows):02d}-{label}")
        self.rows.append(Row(label, folder, tasks or self.tasks))
        return folder

    def read(self) -> list[PipelineStep]:
        """The blocks that a step begins with that reads documents."""
        if self.first:
            self.first = False
            return [ReadSource(self.config, self.tally("read"))]
        return self.read_written()

    def read_written(self) -> list[PipelineStep]:
        return [ReadDocuments(str(self.folder(self.written) / DOCUMENTS), str(self.folder(self.written) / NOTES))]

    def begin(self):
        if not self.blocks:
            self.blocks = self.read()

    def end(self, last: bool = False):
        """Closes the step that is being put together: its documents are written."""
        self.begin()
        name = self.name("read" if self.written is None else "curate")
        compress = self.config.compress or not last
        folder = self.folder(name)
        self.blocks.append(WriteDocuments(str(folder / DOCUMENTS), str(folder / NOTES), compress))
        self.add_step(name[3:], self.tasks, self.blocks)
        self.written, self.blocks = name, []

    def add(self, number: int, stage: asked.Stage):
        """The stage of this number in the recipe."""
        if isinstance(stage, asked.ExactDedup):
            self.exact(stage)
        elif isinstance(stage, asked.MinHash):
            self.minhash(stage)
        elif isinstance(stage, asked.Decontaminate):
            self.begin()
            index = evaluation(self.work, number)
            self.blocks.append(DecontaminateStage(self.tally(stage.name), self.config.samples, index))
        else:
            self.begin()
            self.blocks.append(STAGES[type(stage)](stage, self.tally(stage.name), self.config.samples))

    def drop(self, name: str, found: str, reason: str):
        self.begin()
        self.blocks.append(dedup.DropStage(self.tally(name), self.config.samples, found, reason))

    def exact(self, stage: asked.ExactDedup):
        self.begin()
        digests, found = str(self.work / "digests"), str(self.work / "exact_dedup")
        self.blocks.append(dedup.Digests(digests, stage.normalize))
        self.end()
        self.add_step("exact_dedup-find", 1, [dedup.FindExact(digests, self.tasks, found)])
        self.drop(stage.name, found, "copy")

    def minhash(self, stage: asked.MinHash):
        self.end()
        signatures, pairs, found = (str(self.work / f"minhash-{part}") for part in ("signatures", "pairs", "found"))
        notes = [str(note_of(self.folder(self.written) / NOTES, rank)) for rank in range(self.tasks)]
        self.add_step("minhash-signatures", self.tasks, [*self.read_written(), dedup.Signatures(signatures, stage)])
        self.add_step("minhash-pairs", stage.buckets, [dedup.buckets(signatures, pairs, stage)])
        self.add_step("minhash-find", 1, [dedup.FindNear(pairs, stage.buckets, notes, found)])
        self.drop(stage.name, found, "near_copy")


def evaluation(work: Path, number: int) -> str:
    """Where the n-grams lie that the stage of this number looks for."""
    return str(work / f"evaluation-{number}")


def plan(config: Curation, tasks: int) -> list[Step]:
    """The steps of a recipe; `tasks` pieces of the source are curated at a time at the most.

    Raises ConfigError or DataError where a stage lacks what it reads.
    """
    planner = Planner(config, tasks)
    # Evaluation sets are read first: what is wrong with them is said before the source is.
    for number, stage in enumerate(config.stages):
        if isinstance(stage, asked.Decontaminate):
            planner.add_step(f"evaluation-{number}", 1, [IndexEvaluation(evaluation(planner.work, number), stage)])
    for number, stage in enumerate(config.stages):
        planner.add(number, stage)
    planner.end(last=True)
    written = planner.folder(planner.written)
    report = Report(
        output=str(Path(config.output).absolute()),
        rows=planner.rows,
        documents=str(written / DOCUMENTS),
        notes=str(written / NOTES),
        tasks=tasks,
        samples=config.samples,
    )
    planner.add_step("report", 1, [report])
    return planner.steps
