"""What a curation did: counts and samples of every stage, as JSON and as a page of Markdown, and its documents.

The report is written by the last step, which then moves the documents to `output` in one rename: a folder
`documents` is there whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.pipeline.base import PipelineStep

from data.curation import tally
from data.curation.documents import note_of, path_of, verify
from data.curation.folders import DOCUMENTS, put, task_name
from data.curation.tally import Tally
from data.errors import DataError
from data.files import sync

JSON, PAGE, ASKED = "report.json", "report.md", "curation.json"
SHOWN = 12  # reasons a stage whose samples the page shows


class Row(NamedTuple):
    """A stage in the report: its name, and where its tasks count."""

    name: str
    folder: str
    tasks: int


class Report(PipelineStep):
    """Writes the report and publishes the documents. Runs as one task, after every other step."""

    type, name = "report", "counts and samples"

    def __init__(self, output: str, rows: Sequence[Row], documents: str, notes: str, tasks: int, samples: int):
        super().__init__()
        self.output, self.rows = Path(output), list(rows)
        self.documents, self.notes, self.tasks, self.samples = Path(documents), Path(notes), tasks, samples

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        asked = json.loads((self.output / ASKED).read_bytes())
        stages = [(row.name, self._total(row)) for row in self.rows]
        found = {"hash": asked["hash"], "recipe": asked["recipe"], "stages": []}
        found["stages"] = [{"name": name, **counted.plain()} for name, counted in stages]
        self._publish(found, asked["recipe"]["compress"])
        put(self.output / JSON, json.dumps(found, ensure_ascii=False, indent=1).encode() + b"\n")
        put(self.output / PAGE, page(asked["hash"], stages).encode())

    def _total(self, row: Row) -> Tally:
        paths = (Path(row.folder) / f"{task_name(rank)}.json" for rank in range(row.tasks))
        return tally.total(map(tally.read, paths), self.samples)

    def _publish(self, found: dict[str, Any], compress: bool):
        target = self.output / DOCUMENTS
        source = target if not self.documents.exists() else self.documents  # moved by a task that was then killed
        counts = [verify(path_of(source, rank, compress), note_of(self.notes, rank)) for rank in range(self.tasks)]
        left = found["stages"][-1]["totals"].get("documents_out", 0)
        if sum(counts) != left:
            raise DataError(
                f"{source} holds {sum(counts)} documents, but the last stage let {left} pass. Remove the folder of "
                "`output` and curate again."
            )
        if source != target:
            source.rename(target)
            sync(self.output)


def page(config_hash: str, stages: Sequence[tuple[str, Tally]]) -> str:
    """The report as Markdown."""
    lines = [
        "# What this curation did",
        "",
        f"Recipe {config_hash}; all of it stands in `{JSON}`, all settings in `{ASKED}`.",
        "",
        "| stage | documents in | out | dropped | changed | bytes in | bytes out |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(_row(name, counted) for name, counted in stages),
    ]
    shown = [section for name, counted in stages for section in _section(name, counted)]
    if shown:
        lines += ["", "This page quotes what was taken out: keep it as private as the input.", *shown]
    return "\n".join(lines) + "\n"


def _row(name: str, counted: Tally) -> str:
    totals = counted.totals
    numbers = (
        totals["documents_in"],
        totals["documents_out"],
        totals["documents_in"] - totals["documents_out"],
        totals["documents_changed"],
        totals["bytes_in"],
        totals["bytes_out"],
    )
    return f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} |"


def _section(name: str, counted: Tally) -> list[str]:
    """Why documents fell at a stage and what was replaced, each with its samples."""
    found = [(count, reason, "documents dropped") for reason, count in counted.dropped.items() if count]
    found += [(count, kind, "places replaced") for kind, count in counted.changes.items() if count]
    found.sort(key=lambda item: (-item[0], item[1]))
    lines = []
    for count, label, what in found[:SHOWN]:
        lines += ["", f"## {name}: {label}, {count:,} {what}", ""]
        for sample in counted.samples.get(label, []):
            note = f" ({_inline(sample.note)})" if sample.note else ""
            lines.append(f"- `{_inline(sample.document)}`{note}: {_inline(sample.text)}")
    if len(found) > SHOWN:
        lines += ["", f"{name}: {len(found) - SHOWN} further reasons stand in `{JSON}`."]
    return lines


def _inline(text: str) -> str:
    """A text as one line that Markdown shows as it is."""
    flat = " ".join(text.split())
    return "".join(f"\\{character}" if character in r"\`*_[]<>#|" else character for character in flat)
