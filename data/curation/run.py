"""Runs the steps of a curation, each once: claims the folder, skips what is done, stops where a task failed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.curation import config as asked
from data.curation import executors, packages
from data.curation.config import Curation, RayExecutor, SlurmExecutor
from data.curation.decontaminate import matching
from data.curation.documents import note_of, open_source, path_of, source_errors
from data.curation.folders import DOCUMENTS, WORK, completed, put
from data.curation.plan import NOTES, Step, plan
from data.curation.report import ASKED, JSON, PAGE
from data.errors import ConfigError, DataError
from data.files import locked, sha256_file, storage_errors
from data.schema import config_hash, flatten, to_plain

VERSION = 1  # of what the code makes of a recipe; folders of another are not continued
ELSEWHERE = ("executor", "cache_dir", "output")  # parts of a recipe on which no byte depends
JOBS = "jobs.json"
SHOWN = 3  # differences between two recipes that an error names


def curate(config: Curation) -> dict[str, Any]:
    """Does what is left of a curation; returns its summary. Raises ConfigError, DataError, StorageError."""
    config, output = asked.whole(config), Path(config.output).absolute()
    about, tasks = describe(config)
    steps = plan(config, tasks)
    if isinstance(config.executor, SlurmExecutor):
        executors.check_slurm()
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    with locked(output / ".lock", f"curate: waiting for another process that curates into {output}"):
        with storage_errors(output):
            claim(output, about)
        if isinstance(config.executor, SlurmExecutor):
            with storage_errors(output):
                return submit(config, steps, output)
        if isinstance(config.executor, RayExecutor):
            executors.connect(config.executor)
        for step in steps:
            run_step(config, step, output / WORK / step.name)
        return finish(output, config, steps, tasks)


def describe(config: Curation) -> tuple[dict[str, Any], int]:
    """What decides on every byte of the output, and in how many tasks it is made; reads nothing but the input."""
    with source_errors():
        reader = open_source(config)
        reader.check()
        tasks = min(config.tasks, len(reader.parts("train")))
    recipe = {key: value for key, value in to_plain(config).items() if key not in ELSEWHERE}
    about = {
        "version": VERSION,
        "hash": config_hash(recipe),
        "recipe": recipe,
        "input": json.loads(json.dumps(reader.identity())),
        "files": {str(index): _digests(stage) for index, stage in enumerate(config.stages) if _files(stage)},
        "packages": packages.versions(config),
    }
    return about, tasks


def _files(stage: asked.Stage) -> list[str]:
    """The files of the user's that a stage reads."""
    if isinstance(stage, asked.Decontaminate):
        return matching(stage.paths)
    path = getattr(stage, "path", None)
    return [path] if path else []


def _digests(stage: asked.Stage) -> dict[str, str]:
    found = {}
    for path in _files(stage):
        try:
            found[path] = sha256_file(path)
        except OSError as error:
            raise DataError(f"{path} (of the stage {stage.name}) cannot be read: {error}.") from error
    return found


def claim(output: Path, about: dict[str, Any]):
    """Writes into a new folder what it is made of; raises ConfigError when it is made of something else."""
    path = output / ASKED
    if not path.exists():
        strange = sorted(entry.name for entry in output.iterdir() if entry.name != ".lock")
        if strange:
            raise ConfigError(
                f"output is {output}, which holds {', '.join(strange[:SHOWN])} but no curation. Name a folder that is "
                "new or empty: --config.output=DIR"
            )
        put(path, json.dumps(about, ensure_ascii=False, indent=1).encode() + b"\n")
        return
    try:
        found = flatten(json.loads(path.read_bytes()))
    except ValueError as error:
        raise DataError(f"{path} is not as this command wrote it: {error}. Remove {output}.") from error
    wanted = flatten(about)
    keys = [key for key in dict.fromkeys([*found, *wanted]) if found.get(key) != wanted.get(key) and key != "hash"]
    if keys:
        shown = "; ".join(
            f"{key.removeprefix('recipe.')} was {json.dumps(found.get(key))}, is {json.dumps(wanted.get(key))}"
            for key in keys[:SHOWN]
        )
        more = f"; and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        raise ConfigError(
            f"{output} holds a curation of something else: {shown}{more}. Give it back, or name a folder of its own "
            "for this one: --config.output=DIR"
        )


def run_step(config: Curation, step: Step, folder: Path):
    """Runs the tasks of a step that are not done here or on Ray. Raises what made a task fail."""
    done, started = len(completed(folder, step.tasks)), time.monotonic()
    if done == step.tasks:
        say(f"{step.name}: done before")
        return
    say(f"{step.name}: {step.tasks} task{'s' * (step.tasks > 1)}{f', {done} of them done before' if done else ''}")
    with storage_errors(folder), executors.quiet():
        make = executors.ray if isinstance(config.executor, RayExecutor) else executors.local
        make(step, folder, config.executor).run()
    executors.check_done(step, folder)
    say(f"{step.name}: done in {time.monotonic() - started:.1f} s")


def submit(config: Curation, steps: list[Step], output: Path) -> dict[str, Any]:
    """Hands the steps that are not done to Slurm, each behind the one before."""
    jobs = output / WORK / JOBS
    known = json.loads(jobs.read_bytes()) if jobs.exists() else {}
    waiting = executors.queued(list(known.values()))
    left = [step for step in steps if len(completed(output / WORK / step.name, step.tasks)) < step.tasks]
    if waiting:
        say(f"{len(steps) - len(left)} of {len(steps)} steps are done; Slurm still holds jobs {', '.join(waiting)}")
        return {"output": str(output), "jobs": known}
    if not left:
        return finish(output, config, steps, _tasks(steps))
    submitted, before = {}, None
    for step in left:
        with executors.quiet():
            before = executors.launch(step, output / WORK / step.name, config.executor, before)
        submitted[step.name] = before
        put(jobs, json.dumps(submitted).encode())
        say(f"{step.name}: {step.tasks} task{'s' * (step.tasks > 1)} as job {before}")
    say("run the same command again to see how far they are, and to submit again what failed")
    return {"output": str(output), "jobs": submitted}


def _tasks(steps: list[Step]) -> int:
    """How many tasks wrote the documents."""
    return steps[-2].tasks


def finish(output: Path, config: Curation, steps: list[Step], tasks: int) -> dict[str, Any]:
    """The summary of a curation that is done. Raises DataError when its documents are gone, or none is left."""
    notes = output / WORK / steps[-2].name / NOTES
    totals = {"documents": 0, "bytes": 0}
    for rank in range(tasks):
        note = json.loads(note_of(notes, rank).read_bytes())
        path = path_of(output / DOCUMENTS, rank, config.compress)
        if not path.is_file() or path.stat().st_size != note["bytes"]:
            raise DataError(f"{path} is gone or not as it was written. Remove {output} and curate again.")
        totals = {key: value + note[key] for key, value in totals.items()}
    if not totals["documents"]:
        raise DataError(f"No document is left: {output / PAGE} says which stage dropped them and shows some of them.")
    say(f"{totals['documents']:,} documents in {output / DOCUMENTS}; {output / PAGE} says what was dropped")
    return {"output": str(output), "report": str(output / JSON), **totals}


def show(config: Curation) -> Iterator[str]:
    """The steps as lines; for Slurm their job scripts."""
    config = asked.whole(config)
    _, tasks = describe(config)
    for step in plan(config, tasks):
        yield f"{step.name}: {step.tasks} task{'s' * (step.tasks > 1)}"
        if isinstance(config.executor, SlurmExecutor):
            folder = Path(config.output).absolute() / WORK / step.name
            yield executors.slurm(step, folder, config.executor).script()


def say(line: str):
    print(f"curate: {line}", file=sys.stderr, flush=True)
