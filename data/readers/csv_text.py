"""CSV and TSV files: rows of text whose values may be quoted and span lines."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from data.errors import DataError
from data.readers.base import REMEDY
from data.readers.fields import Place
from data.readers.file_reader import FileReader
from data.readers.files import lines

csv.field_size_limit(2**31 - 1)  # a document may be longer than the 128 KB that the module allows


class _Texts:
    """The lines of a file for the csv module; `bad` is the first that was not UTF-8 since it was last cleared."""

    def __init__(self, path: str):
        self.path, self.bad = path, None

    def __iter__(self) -> Iterator[str]:
        for line in lines(self.path):
            try:
                yield line.text()
            except DataError as error:
                self.bad = self.bad or error
                yield line.content.decode(errors="replace")


class CsvReader(FileReader):
    """CSV; a document is the text in the column `field`. A file is one part, since any line may be inside a value."""

    suffix = ".csv"

    def records(self, part):
        path, header = part.path, self._checked(list(self.config.header), part.path)
        for where, row in self._rows(path):
            if isinstance(row, DataError):
                if not header:
                    raise row
                yield row
            elif not header:
                header = self._checked(row, path)
            elif len(row) != len(header):
                found = f"has {len(row)} values for the {len(header)} columns {', '.join(header)}"
                yield DataError(f"{where} {found}. Check data.source.delimiter. {REMEDY}")
            else:
                yield self.document(dict(zip(header, row, strict=True)), where)

    def _rows(self, path: str) -> Iterator[tuple[Place, list[str] | DataError]]:
        texts = _Texts(path)
        rows = csv.reader(iter(texts), strict=True, **self._dialect(path))
        while True:
            where, texts.bad = Place(path, "line", rows.line_num + 1), None
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):  # the rest of the file is inside this value
                    raise DataError(
                        f"{where} opens a quote that no later line closes. Mend it, or set data.source.quote to "
                        "nothing where quotes are plain characters."
                    ) from error
                what = str(error).partition(" - ")[0]  # behind it stands advice for programmers
                yield where, DataError(f"{where} is not valid CSV: {what}. {REMEDY}")
                continue
            if row or texts.bad:
                yield where, texts.bad or row

    def _dialect(self, path: str) -> dict:
        delimiter = {"": "\t" if ".tsv" in path else ",", "tab": "\t"}.get(self.config.delimiter, self.config.delimiter)
        quoting = csv.QUOTE_MINIMAL if self.config.quote else csv.QUOTE_NONE
        return {"delimiter": delimiter, "quotechar": self.config.quote or None, "quoting": quoting}

    def _checked(self, header: list[str], path: str) -> list[str]:
        """The names of the columns, which hold those that are asked for. Raises DataError."""
        if header:
            for asked in self.asked():
                self.column(asked, header, f"{path}, by its header,", "column")
            if doubled := sorted({name for name in header if header.count(name) > 1}):
                raise DataError(f"{path} has two columns {doubled[0]!r}. Rename one in its first line.")
        return header
