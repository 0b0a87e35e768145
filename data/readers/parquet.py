"""Parquet files: read by row groups, and only the columns that are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet

from data.errors import DataError
from data.readers.base import REMEDY, Part
from data.readers.fields import Place
from data.readers.file_reader import FileReader
from data.readers.files import opened
from data.readers.remote import told

BATCH = 1024  # rows read at a time


class ParquetReader(FileReader):
    """Parquet; a document is the text in the column `field`, or in a field of a column of structs."""

    suffix = ".parquet"

    def file_parts(self, file):
        with _opened(file.path) as table:
            metadata = table.metadata
            if metadata.num_rows == 0:
                raise DataError(f"{file.path} of data.source holds no rows. Remove it, or narrow the glob.")
            columns = self._columns(table, file.path)
            sizes = [_size(metadata.row_group(index), columns) for index in range(metadata.num_row_groups)]
        borders, size = [0], 0
        for index, more in enumerate(sizes):
            if size and size + more > self.part_bytes:
                borders.append(index)
                size = 0
            size += more
        return [Part(file.path, *pair) for pair in zip(borders, [*borders[1:], len(sizes)], strict=True)]

    def records(self, part):
        with _opened(part.path) as table:
            columns = self._columns(table, part.path)
            number = sum(table.metadata.row_group(index).num_rows for index in range(part.start))
            groups = list(range(part.start, part.stop))
            for batch in table.iter_batches(BATCH, row_groups=groups, columns=columns):
                for row in _rows(batch):
                    where = Place(part.path, "row", number)
                    number += 1
                    if isinstance(row, UnicodeDecodeError):
                        yield DataError(f"{where} is not UTF-8: {row}. {REMEDY}")
                    else:
                        yield self.document(row, where)

    def _columns(self, table: pyarrow.parquet.ParquetFile, path: str) -> list[str]:
        """The columns that hold the asked fields."""
        names = table.schema_arrow.names
        return [self.column(asked, names, path, "column") for asked in self.asked()]


def _size(group, columns: list[str]) -> int:
    """Uncompressed bytes of the columns of a row group."""
    chunks = map(group.column, range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[pyarrow.parquet.ParquetFile]:
    with opened(path, from_start=False) as file:
        try:
            with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as table:
                yield table
        except pyarrow.ArrowException as error:
            raise DataError(
                f"{path} cannot be read as Parquet: {told(error)} Restore it, or remove it from data.source."
            ) from error


def _rows(batch: pyarrow.RecordBatch) -> list[dict | UnicodeDecodeError]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_row(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _row(batch: pyarrow.RecordBatch) -> dict | UnicodeDecodeError:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return error
