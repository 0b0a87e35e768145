"""What a source is to the rest of the data path, and what all readers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

from data.errors import DataError
from data.readers.fields import Malformed, Place, pick, plain, text_of

PART_BYTES = 64 << 20  # of text in a part, about: seconds of work
REMEDY = "Mend or remove it, or let a share of such records be passed over with data.source.tolerance."


class Part(NamedTuple):
    """A stretch of a source that can be read by itself."""

    path: str  # a file or URL; of a data set by name, its split
    start: int  # bytes or records, as the format has it
    stop: int  # -1: to the end


class Record(NamedTuple):
    """What a supervised objective reads: the asked columns, each value as JSON has it."""

    fields: dict[str, object]
    where: Place  # prints as "FILE, line 12": for errors


Document = str | Record


class Reader(Protocol):
    """A source, found and ready to be read. Goes to worker processes as a pickle.

    `read(part, split)` over `parts(split)`, one after the other, is exactly `documents(split)`.

    Attributes:
      counts: what this object has passed over so far: "held_out", documents that are held out for validation too;
        "malformed", records under `data.source.tolerance`; "no_text", responses of a crawl that are no text.
    """

    counts: Counter

    def has_validation(self) -> bool:
        """Whether documents are held out."""

    def check(self):
        """Raises DataError when the input cannot give its first documents; writes nothing."""

    def identity(self) -> dict:
        """JSON-able facts that change when the documents do."""

    def parts(self, split: str) -> list[Part]:
        """The parts of 'train' or 'validation', in a fixed order; each takes seconds to read."""

    def read(self, part: Part, split: str) -> Iterator[Document]:
        """The documents of a part that are in `split`; DataError names file and place of what cannot be read."""

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of all parts; DataError where there is none."""


class BaseReader:
    """What all readers share: picking fields, passing over malformed records, going through the parts."""

    def __init__(self, config, columns: Sequence[str] | None, part_bytes: int):
        """`columns`: what is read of each record; None: the text in `config.field`."""
        self.config, self.part_bytes, self.counts = config, part_bytes, Counter()
        self.columns = None if columns is None else tuple(columns)

    def check(self):
        for split in ("train", "validation") if self.has_validation() else ("train",):
            next(self.documents(split))

    def documents(self, split):
        parts, empty = self.parts(split), True
        for document in chain.from_iterable(self.read(part, split) for part in parts):
            empty = False
            yield document
        if parts and empty:
            raise DataError(self.none(split))

    def none(self, split: str) -> str:
        """Why there is no document in `split`, and what to do."""
        raise NotImplementedError

    @property
    def field(self) -> str:
        """What holds the text."""
        return self.config.field

    @property
    def named(self) -> str:
        """The field that holds the text, for errors."""
        return f"{self.field!r} (data.source.field)"

    def asked(self) -> tuple[str, ...]:
        """The fields that are read of each record."""
        return (self.field,) if self.columns is None else self.columns

    def column(self, asked: str, names: Sequence[str], where: str, noun: str) -> str:
        """Which of `names` holds a field: its own, or that of the column of structs it is in. Raises DataError."""
        for name in (asked, asked.partition(".")[0]):
            if name in names:
                return name
        key = " (data.source.field)" if self.columns is None else ""
        raise DataError(f"{where} has no {noun} {asked!r}{key}; it has {', '.join(names)}.")

    def document(self, record: object, where: Place) -> Document | DataError:
        """What is read of a record; if it is malformed, the error that says why, for `sound` to judge."""
        try:
            if self.columns is None:
                return text_of(pick(record, self.field, self.named), self.named)
            return Record({name: plain(pick(record, name, repr(name)), repr(name)) for name in self.columns}, where)
        except Malformed as error:
            return DataError(f"{where}{error} {REMEDY}")

    def sound(
        self, found: Iterable[Document | DataError | None], part: Part, counted: bool = True
    ) -> Iterator[Document]:
        """The documents among `found`, which are all records of a part; None is one that need hold no text.

        Malformed ones are passed over, and counted where `counted`, while they are a share of at most
        `data.source.tolerance` of the part; with a tolerance of 0 the first is raised at once. The share is judged
        at the end of each part by itself, so that it does not matter who reads the others.
        """
        records, malformed, first, tolerance = 0, 0, None, self.config.tolerance
        for document in found:
            if document is None:
                self.counts["no_text"] += counted
                continue
            records += 1
            if not isinstance(document, DataError):
                yield document
            elif tolerance:
                malformed += 1
                first = first or document
            else:
                raise document
        if records and malformed / records > tolerance:
            raise DataError(
                f"{malformed:,} of {records:,} records of {part.path} are malformed, more than "
                f"data.source.tolerance={tolerance:g} allows. The first: {first}"
            )
        if malformed and counted:
            self.counts["malformed"] += malformed
