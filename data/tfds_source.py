"""TFDS data sets as documents, read as ArrayRecord without TensorFlow."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Iterator, Sequence

from data.errors import DataError, UserError
from data.files import storage_errors
from data.source_config import TfdsSource


class TfdsReader:
    """The examples of a TFDS data set in its own order; a document is the text feature `field`."""

    def __init__(self, config: TfdsSource, cache_dir: str):
        """Finds the data set's builder. Raises DataError when there is none of that name."""
        self.config, self.left_out = config, 0
        self.directory = os.path.abspath(config.directory or os.path.join(cache_dir, "tfds"))
        # Imported here, since it takes a third of a second that other sources need not pay.
        self._tfds = importlib.import_module("tensorflow_datasets")
        importlib.import_module("data.corpus")  # registers python_library
        try:
            with _quiet():
                self.builder = self._tfds.builder(config.dataset, data_dir=self.directory, file_format="array_record")
        except Exception as error:  # TFDS raises many classes for a name that it cannot resolve
            raise DataError(
                f"TFDS knows no data set {config.dataset!r} (data.source.dataset): {_first_line(error)} "
                "Check the name. One prepared elsewhere with file_format='array_record' is found below "
                f"{self.directory}."
            ) from error
        self._name = self.builder.info.full_name

    def has_validation(self):
        return bool(self.config.validation_split)

    def check(self):
        if self._is_prepared():
            for split in ("train", "validation") if self.has_validation() else ("train",):
                next(self.documents(split))
        elif hasattr(self.builder, "check"):
            self.builder.check()

    def identity(self):
        return {
            "dataset": self._name,
            "field": self.config.field,
            "splits": [self.config.train_split, self.config.validation_split],
        }

    def documents(self, split) -> Iterator[str]:
        name = self.config.train_split if split == "train" else self.config.validation_split
        if not name:
            return
        examples = self._examples(split, name)
        if not len(examples):
            raise DataError(f"The split {name!r} of {self._name} in {self.directory} is empty.")
        for index in range(len(examples)):
            yield self._text(examples[index], f"Example {index} of {name!r} in {self._name}")

    def _examples(self, split: str, name: str) -> Sequence[dict]:
        self._prepare()
        try:
            examples = self.builder.as_data_source(name)
        except Exception as error:  # an unknown split, a slice that does not parse, another file format
            raise DataError(
                f"The split {name!r} (data.source.{split}_split) of {self._name} in {self.directory} cannot "
                f"be read: {_first_line(error)} Its splits are {', '.join(self.builder.info.splits)}."
            ) from error
        features = list(self.builder.info.features)
        if self.config.field not in features:
            raise DataError(
                f"{self._name} has no feature {self.config.field!r} (data.source.field); it has {', '.join(features)}."
            )
        return examples

    def _is_prepared(self) -> bool:
        with _quiet():
            return self.builder.is_prepared()

    def _prepare(self):
        if self._is_prepared():
            return
        self._tfds.disable_progress_bar()
        config = self._tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            with storage_errors(self.directory), _quiet():
                self.builder.download_and_prepare(download_config=config)
        except UserError:
            raise
        except Exception as error:
            raise DataError(
                f"{self._name} cannot be prepared here: {type(error).__name__}: {_first_line(error)} "
                "Prepare it with TFDS elsewhere, with file_format='array_record', and copy it below "
                f"{self.directory}."
            ) from error

    def _text(self, example: dict, where: str) -> str:
        value = example[self.config.field]
        try:
            return value.decode() if isinstance(value, bytes) else _checked(value)
        except (UnicodeError, TypeError) as error:
            raise DataError(
                f"{where}: {self.config.field!r} (data.source.field) is not UTF-8 text: {error}."
            ) from error


def _checked(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"it is {type(value).__name__}")
    value.encode()
    return value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TFDS reports of a data set that is still to be prepared off both streams."""
    logging = importlib.import_module("absl.logging")
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "").strip() or type(error).__name__
    return line if line.endswith(".") else f"{line}."
