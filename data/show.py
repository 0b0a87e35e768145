"""Shows the rows of a recipe as a person reads them: `python -m data.show --config FILE.py[:arg]`.

Prints what its data come to and the first rows that a step reads: where documents begin, which tokens carry loss, how
much is padding, from which source each row is. What is to be predicted stands in brackets ⟦⟧ or, on a terminal, is
underlined; of masked rows ⟦what is read → what is hidden⟧. --html writes the same as one page, with the lengths of
the documents and the shares of the sources. Prepares the stores where they are missing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import overview
from data.cli import Parser, run_command
from data.config import Data
from data.errors import ConfigError
from data.files import storage_errors
from data.kinds import ObjectiveRows
from data.loader import Loader
from data.mixture import Mixture, supplies_of
from data.mixture_config import MixtureSource
from data.objectives import check_tokenizer, objective_rows
from data.overview import Source
from data.prepare import prepare
from data.row_view import Piece, RowView, view
from data.schema import split_duration
from data.settings import PREFIX, apply_overrides, from_plain, load, read_spec
from data.spelling import Speller

LOSS, FAINT, RESET = "\x1b[1;4;32m", "\x1b[2m", "\x1b[0m"  # bold, underlined and green; faint


@dataclass(frozen=True)
class Section:
    """The section of a recipe that this command reads whole."""

    data: Data = Data()


@dataclass(frozen=True)
class Train:
    """What of its section `train` decides which rows a step reads."""

    batch_size: int = 8  # as in train.config
    seed: int = 0


@dataclass(frozen=True)
class TrainSection:
    train: Train = Train()


LIMITS = {"rows": (1, 10_000), "step": (0, 10**12), "tokens": (1, 10**6)}  # of the arguments


class Shown(NamedTuple):
    """All that is shown of a recipe."""

    recipe: str
    objective: str
    length: int
    packing: str
    tokenizer: str
    vocab_size: int
    step: int
    notes: list[str]
    sources: list[Source]
    rows: list[RowView]


def read(recipe: str, overrides: Sequence[str]) -> tuple[Data, Train]:
    """What decides the rows of a recipe. ConfigError where it cannot be."""
    config = load(recipe, overrides, Section, ignore_other_sections=True).data
    names, given = vars(Train()), read_spec(recipe).get("train", {})
    train = from_plain(TrainSection, {"train": {name: given[name] for name in names if name in given}})
    split = [override.partition("=") for override in overrides]
    mine = [(["train", name], text) for name in names for key, _, text in split if key == f"{PREFIX}train.{name}"]
    train = apply_overrides(train, mine).train
    if train.batch_size < 1:
        raise ConfigError(f"train.batch_size is {train.batch_size}, must be at least 1")
    return config, train


def _grows(recipe: str, overrides: Sequence[str]) -> bool:
    """Whether the recipe's batches grow over its steps."""
    key = f"{PREFIX}train.batch_ramp.name="
    given = [override.removeprefix(key) for override in overrides if override.startswith(key)]
    saved = read_spec(recipe).get("train", {}).get("batch_ramp", {}).get("name", "none")
    return (given[-1] if given else saved) != "none"


def gather(recipe: str, config: Data, train: Train, step: int, count: int, limit: int) -> Shown:
    """What `recipe` comes to, and `count` rows from the first of `step` on, each of about `limit` tokens.

    ConfigError where the recipe cannot be, DataError where its data cannot be read.
    """
    prepared = prepare(config)
    tokenizer = prepared.tokenizer
    check_tokenizer(config, tokenizer, tokenizer.vocab_size)
    rows = {name: objective_rows(config, stores.train, train.seed) for name, stores in prepared.sources.items()}
    mixture, notes = _mixture(config, rows, train)
    loader = Loader(rows, train.batch_size, train.seed, config.shuffle, mixture=mixture)
    first = step * train.batch_size
    last = first + count
    if mixture is not None and mixture.num_rows is not None:
        last = min(last, mixture.num_rows)
        if first >= last:
            raise ConfigError(f"--step is {step}, but the mixture ends after {mixture.num_rows:,} rows; lower it")
    speller, views = Speller(tokenizer), []
    for name, epoch, index in map(loader.place, range(first, last)):
        found = rows[name].rows([index], epochs=np.array([epoch]))
        row = {key: value[0] for key, value in found.items()}
        views.append(view(row, speller, name, epoch, index, limit))
    return Shown(
        recipe,
        config.objective.name,
        config.length,
        config.packing,
        config.tokenizer.name,
        tokenizer.vocab_size,
        step,
        notes,
        [
            overview.source_of(name, prepared.sources[name].train, rows[name], share, read / len(rows[name]), most)
            for (name, read), (share, most) in zip(loader.consumed(step).items(), _shares(config), strict=True)
        ],
        views,
    )


def _shares(config: Data) -> list[tuple[float, float | None]]:
    """(share of the rows, most epochs) of each source."""
    if not isinstance(config.source, MixtureSource):
        return [(1.0, None)]
    parts = config.source.components
    whole = sum(part.weight for part in parts)
    return [(part.weight / whole, part.max_epochs) for part in parts]


def _mixture(config: Data, rows: dict[str, ObjectiveRows], train: Train) -> tuple[Mixture | None, list[str]]:
    """The mixture as a run has it, and what of it is not shown: only a run can turn all durations into rows."""
    source, notes = config.source, []
    if not isinstance(source, MixtureSource):
        return None, notes
    starts = [(0, [part.weight for part in source.components])]
    for stage in source.stages:
        amount, unit = split_duration(stage.start)
        if unit != "steps":
            notes.append(
                f"a stage begins at {stage.start}, which only a run has in rows: stages from it on are left out"
            )
            break
        starts.append((int(amount) * train.batch_size, stage.weights))
    return Mixture(supplies_of(source, rows.values()), starts, train.seed), notes


def text(shown: Shown, colour: bool) -> str:
    """All of it for a terminal or a pipe."""
    lines = [
        f"{shown.recipe}: {layout(shown)}",
        f"tokenizer {shown.tokenizer}, {shown.vocab_size:,} ids",
        "",
        *_table(shown.sources),
        *(f"note: {note}" for note in shown.notes),
    ]
    for source in shown.sources:
        lines.append(f"{source.name}: {source.about}")
        if source.packings:
            padded = ", ".join(f"{packing} {share:.2%}" for packing, share in source.packings.items())
            lines.append(f"{source.name}: padding by packing: {padded}")
    for number, row in enumerate(shown.rows):
        lines += ["", *_row_lines(row, number, shown.step, colour)]
    return "\n".join(lines)


def layout(shown: Shown) -> str:
    """The objective and how its rows are laid out; some objectives lay them out themselves."""
    packing = f", packing {shown.packing}" if any(source.packings for source in shown.sources) else ""
    return f"objective {shown.objective}, rows of {shown.length:,} tokens{packing}"


def _table(sources: Sequence[Source]) -> list[str]:
    heads = ("source", "documents", "tokens", "bytes/token", "rows", "share", "epochs", "padding", "predicted")
    lines = [heads]
    for source in sources:
        size = "unknown" if source.bytes_per_token is None else f"{source.bytes_per_token:.3f}"
        most = "" if source.max_epochs is None else f" of {source.max_epochs:g}"
        counts = (f"{source.documents:,}", f"{source.tokens:,}", size, f"{source.rows:,}", f"{source.share:.2%}")
        shares = (f"{share:.2%}" for share in (source.padding, source.predicted))
        lines.append((source.name, *counts, f"{source.epochs:.2f}{most}", *shares))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(value.rjust(width) if place else value.ljust(width) for place, (value, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]


def _row_lines(row: RowView, number: int, step: int, colour: bool) -> list[str]:
    share = row.padding / (row.tokens + row.padding)
    lines = [
        f"row {number} from step {step} on: row {row.row:,} of epoch {row.epoch:,} of {row.source}; {row.tokens:,} "
        f"tokens, {row.predicted:,} to predict, {share:.1%} padding"
    ]
    for stretch in row.stretches:
        lines.append(f"  -- {stretch.title}")
        content = _pieces(stretch.pieces, colour)
        lines += [f"  | {line}" for line in content.split("\n")] if content else []
    return lines


def _pieces(pieces: Sequence[Piece], colour: bool) -> str:
    """What stands in a stretch. Tokens to be predicted that follow one another share their brackets."""
    shown = []
    for (loss, read), group in groupby(pieces, key=lambda piece: (piece.loss, piece.read)):
        parts = list(group)
        content = "".join(_styled(piece.text, piece, colour) for piece in parts)
        if read is None:
            shown.append(f"⟦{content}⟧" if loss and not colour else content)
            continue
        for piece in parts:
            hidden = piece.text.lstrip(" ")
            both = _styled(f"{read} → {hidden}", piece, colour)
            shown.append(piece.text[: len(piece.text) - len(hidden)] + (both if colour else f"⟦{both}⟧"))
    return "".join(shown)


def _styled(content: str, piece: Piece, colour: bool) -> str:
    """Text of a piece in its style, each line by itself, so that what stands before a line has none."""
    style = LOSS if piece.loss else FAINT if piece.special else ""
    if not colour or not style:
        return content
    return "\n".join(f"{style}{line}{RESET}" if line else line for line in content.split("\n"))


def main(arguments: Sequence[str]) -> None:
    """Prints a recipe's rows, as text or JSON, and writes its page."""
    parser = Parser("data.show", __doc__)
    parser.add_argument("--config", required=True, metavar="FILE.py[:arg]", help="a recipe, or a run's config.json")
    parser.add_argument("--rows", type=int, default=4, help="how many rows are shown")
    parser.add_argument("--step", type=int, default=0, help="the step, counted from 0, whose first row comes first")
    parser.add_argument("--tokens", type=int, default=1024, help="how many tokens of a row are shown at the most")
    parser.add_argument("--html", metavar="FILE", help="where to write the page")
    parser.add_argument("--json", action="store_true", help="print JSON")
    known, overrides = parser.parse_known_args(arguments)
    for name, (least, most) in LIMITS.items():
        if not least <= getattr(known, name) <= most:
            raise ConfigError(f"--{name} is {getattr(known, name)}, must be at least {least} and at most {most:,}")
    if known.step and _grows(known.config, overrides):
        raise ConfigError(
            f"--step is {known.step}, but the batch of this recipe grows (train.batch_ramp), so that steps are not all "
            "of one size here; leave --step at 0"
        )
    page = None if known.html is None else Path(known.html)
    if page is not None and not page.parent.is_dir():
        raise ConfigError(f"--html is {page}, but there is no directory {page.parent}; make it, or name another file")
    shown = gather(known.config, *read(known.config, overrides), known.step, known.rows, known.tokens)
    if page is not None:
        from data.show_html import html

        with storage_errors(page):
            page.write_text(html(shown), encoding="utf-8")
    sys.stdout.reconfigure(errors="backslashreplace")
    if known.json:
        print(json.dumps(plain(shown), ensure_ascii=False, indent=1))
    else:
        print(text(shown, sys.stdout.isatty() and not os.environ.get("NO_COLOR")))


def plain(value):
    """Named tuples as objects."""
    if hasattr(value, "_asdict"):
        return {key: plain(item) for key, item in value._asdict().items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    run_command(main)
