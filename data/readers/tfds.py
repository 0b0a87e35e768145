"""TFDS data sets as documents, read as ArrayRecord without TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
from collections.abc import Iterator, Sequence

from data.errors import DataError, UserError
from data.files import storage_errors
from data.readers.index_reader import BATCH, IndexReader
from data.readers.remote import CONTACT, told
from data.source_config import TfdsSource


class TfdsReader(IndexReader):
    """The examples of a TFDS data set; a document is the text feature `field`.

    The data set is spelled as TFDS does it, `name/config:1.2.0`, and so are its splits, `train[:90%]`.
    """

    def __init__(self, config: TfdsSource, cache_dir: str, columns: Sequence[str] | None, part_bytes: int):
        """Finds the data set's builder. Raises DataError when there is none of that name."""
        super().__init__(config, columns, part_bytes)
        self.directory = os.path.abspath(config.directory or os.path.join(cache_dir, "tfds"))
        self.name()  # a wrong one shows now

    def __getstate__(self):
        return {key: value for key, value in vars(self).items() if key not in ("builder", "_sequences")}

    @functools.cached_property
    def builder(self):
        # Imported here, since it takes a third of a second that other sources need not pay.
        tfds = importlib.import_module("tensorflow_datasets")
        importlib.import_module("data.corpus")  # registers python_library
        name = self.config.dataset
        try:
            with _quiet():
                return tfds.builder(name, data_dir=self.directory, file_format="array_record")
        except Exception as error:  # TFDS raises many classes for a name that it cannot resolve
            raise DataError(
                f"TFDS knows no data set {name!r} (data.source.dataset): {told(error)} "
                "Check the name. One prepared elsewhere with file_format='array_record' is found below "
                f"{self.directory}."
            ) from error

    def name(self):
        return self.builder.info.full_name

    def check(self):
        if self._is_prepared():
            super().check()
        elif hasattr(self.builder, "check"):
            self.builder.check()

    def identity(self):
        return {
            "dataset": self.name(),
            "field": self.config.field,
            "splits": [self.config.train_split, self.config.validation_split],
        }

    def size(self, split):
        self._prepare()
        with self._readable(split) as name:
            count = self.builder.info.splits[name].num_examples
        splits = self.builder.info.splits.values()  # a slice does not know its own bytes
        return count, count * sum(s.num_bytes for s in splits) // max(sum(s.num_examples for s in splits), 1)

    def features(self, split):
        return sorted(self.builder.info.features)  # whose own order is another in another process

    def examples(self, split, start, stop):
        found = self._examples(split)
        for first in range(start, stop, BATCH):
            yield from found.__getitems__(range(first, min(first + BATCH, stop)))

    def shared(self):
        mine = [self.builder.info.splits[self.split_name(split)].file_instructions for split in ("train", "validation")]
        return sum(
            max(0, min(a.skip + a.take, b.skip + b.take) - max(a.skip, b.skip))
            for a in mine[0]
            for b in mine[1]
            if a.filename == b.filename
        )

    @functools.cached_property
    def _sequences(self) -> dict[str, Sequence[dict]]:
        return {}

    def _examples(self, split: str) -> Sequence[dict]:
        if split not in self._sequences:
            with self._readable(split) as name:
                self._sequences[split] = self.builder.as_data_source(name)
        return self._sequences[split]

    @contextlib.contextmanager
    def _readable(self, split: str) -> Iterator[str]:
        """Gives the name of a split; what TFDS raises of it becomes a DataError."""
        name = self.split_name(split)
        try:
            yield name
        except Exception as error:  # an unknown split, a slice that does not parse, another file format
            raise DataError(
                f"The split {name!r} (data.source.{split}_split) of {self.name()} in {self.directory} cannot be read: "
                f"{told(error)} Its splits are {', '.join(self.builder.info.splits)}."
            ) from error

    def _is_prepared(self) -> bool:
        with _quiet():
            return self.builder.is_prepared()

    def _prepare(self):
        if self._is_prepared():
            return
        tfds = importlib.import_module("tensorflow_datasets")
        tfds.disable_progress_bar()
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            with storage_errors(self.directory), _quiet(), _impatient():
                self.builder.download_and_prepare(download_config=config)
        except UserError:
            raise
        except Exception as error:
            raise DataError(
                f"{self.name()} cannot be prepared here: {told(error)} "
                "Where there is no network, prepare it with TFDS elsewhere, with file_format='array_record', and copy "
                f"it below {self.directory}."
            ) from error


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Lets a download fail within seconds where no network answers; TFDS itself tries for minutes."""
    downloader = importlib.import_module("tensorflow_datasets.core.download.downloader")
    before = downloader.MAX_RETRIES, downloader._open_url
    downloader.MAX_RETRIES, downloader._open_url = 1, functools.partial(before[1], timeout=CONTACT)
    try:
        yield
    finally:
        downloader.MAX_RETRIES, downloader._open_url = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TFDS reports of a data set that is still to be prepared off both streams."""
    absl, requests = importlib.import_module("absl.logging"), logging.getLogger("urllib3")
    before = absl.get_verbosity(), requests.level
    absl.set_verbosity(absl.ERROR)
    requests.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.set_verbosity(before[0])
        requests.setLevel(before[1])
