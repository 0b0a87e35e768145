"""TFDS data sets as documents, read as ArrayRecord without TensorFlow."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence

from data.config import TfdsSource
from data.errors import DataError, UserError
from data.files import storage_errors


class TfdsReader:
    """The examples of a TFDS data set in its own order; a document is the text feature `field`."""

    def __init__(self, config: TfdsSource, cache_dir: str):
        """Finds the data set's builder. Raises DataError when there is none of that name."""
        self.config = config
        self.directory = os.path.abspath(config.directory or os.path.join(cache_dir, "tfds"))
        # Imported here, since it takes a third of a second that other sources need not pay.
        self._tfds = importlib.import_module("tensorflow_datasets")
        importlib.import_module("data.corpus")  # registers python_library
        try:
            self.builder = self._tfds.builder(config.dataset, data_dir=self.directory, file_format="array_record")
        except Exception as error:  # TFDS raises many classes for a name that it cannot resolve
            raise DataError(
                f"TFDS knows no data set {config.dataset!r} (data.source.dataset): {_first_line(error)} Check the name; "
                f"a data set prepared elsewhere with file_format='array_record' is found below {self.directory}."
            ) from error

    def has_validation(self):
        return bool(self.config.validation_split)

    def check(self):
        if self.builder.is_prepared():
            for split in ("train", "validation") if self.has_validation() else ("train",):
                next(self.documents(split))
        elif hasattr(self.builder, "check"):
            self.builder.check()

    def identity(self):
        return {
            "dataset": self.builder.info.full_name,
            "field": self.config.field,
            "splits": [self.config.train_split, self.config.validation_split],
        }

    def documents(self, split) -> Iterator[str]:
        name = self.config.train_split if split == "train" else self.config.validation_split
        if not name:
            return
        examples = self._examples(split, name)
        if not len(examples):
            raise DataError(f"The split {name!r} of {self.builder.info.full_name} in {self.directory} is empty.")
        for index in range(len(examples)):
            yield self._text(examples[index], f"Example {index} of {name!r} in {self.builder.info.full_name}")

    def _examples(self, split: str, name: str) -> Sequence[dict]:
        self._prepare()
        known = self.builder.info.splits
        try:
            examples = self.builder.as_data_source(name)
        except Exception as error:  # an unknown split, a slice that does not parse, another file format
            raise DataError(
                f"The split {name!r} (data.source.{split}_split) of {self.builder.info.full_name} in {self.directory} "
                f"cannot be read: {_first_line(error)} Its splits are {', '.join(known)}."
            ) from error
        if self.config.field not in self.builder.info.features:
            raise DataError(
                f"{self.builder.info.full_name} has no feature {self.config.field!r} (data.source.field); it has "
                f"{', '.join(self.builder.info.features)}."
            )
        return examples

    def _prepare(self):
        if self.builder.is_prepared():
            return
        self._tfds.disable_progress_bar()
        config = self._tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            # TFDS reports on standard output, which belongs to the command that called.
            with storage_errors(self.directory), contextlib.redirect_stdout(sys.stderr):
                self.builder.download_and_prepare(download_config=config)
        except UserError:
            raise
        except Exception as error:
            raise DataError(
                f"{self.builder.info.full_name} cannot be prepared here: {type(error).__name__}: {_first_line(error)} "
                "Prepare it with TFDS elsewhere, with file_format='array_record', and copy it below "
                f"{self.directory}."
            ) from error

    def _text(self, example: dict, where: str) -> str:
        value = example[self.config.field]
        try:
            return value.decode() if isinstance(value, bytes) else _checked(value)
        except (UnicodeError, TypeError) as error:
            raise DataError(f"{where}: {self.config.field!r} (data.source.field) is not UTF-8 text: {error}.") from error


def _checked(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"it is {type(value).__name__}")
    value.encode()
    return value


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "").strip() or type(error).__name__
    return line if line.endswith(".") else f"{line}."
