"""Data sets of Hugging Face `datasets`: a folder that it saved, a folder of data files, or a name on the hub."""

from __future__ import annotations

import importlib
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import cached_property
from types import ModuleType
from typing import NamedTuple

from data.errors import ConfigError, DataError, UserError
from data.readers.index_reader import BATCH, IndexReader
from data.readers.remote import answer, told
from data.source_config import HuggingFaceSource

LOCAL_WAY = (
    "Where there is no network, load it elsewhere with datasets.load_dataset, keep it with its save_to_disk, copy that "
    "folder here and set data.source.dataset to its path."
)


class _Stretch(NamedTuple):
    split: str
    start: int  # in rows
    stop: int


class HuggingFaceReader(IndexReader):
    """The rows of splits; a document is the text in the column `field`.

    Splits are spelled as `datasets` does it, `train[:90%]`. A folder that `save_to_disk` made of one split is called
    train. Only a name on the hub touches the network.
    """

    def __init__(self, config: HuggingFaceSource, cache_dir: str, columns: Sequence[str] | None, part_bytes: int):
        """Opens a folder, or fetches the data set unless it is cached below `cache_dir`. Raises DataError."""
        super().__init__(config, columns, part_bytes)
        self.cache_dir = os.path.abspath(os.path.join(cache_dir, "huggingface"))
        self.folder = os.path.expanduser(config.dataset)
        if not os.path.isdir(self.folder) and (self.folder.startswith((".", "/")) or self.folder.count("/") > 1):
            raise DataError(f"{config.dataset} (data.source.dataset) is no folder, seen from {os.getcwd()}.")
        self.tables = self._loaded(_package())

    def name(self):
        return self.config.dataset

    def identity(self):
        return {
            "dataset": [self.config.dataset, self.config.config, self.config.revision],
            "field": self.config.field,
            "splits": [self.config.train_split, self.config.validation_split],
            "fingerprints": {name: table._fingerprint for name, table in self.tables.items()},
        }

    def size(self, split):
        stretches = self._stretches[split]
        sizes = [table.data.nbytes // max(len(table.data), 1) for table in self.tables.values()]
        count = sum(stretch.stop - stretch.start for stretch in stretches)
        return count, count * max(sizes)

    def features(self, split):
        return self.tables[self._stretches[split][0].split].column_names

    def examples(self, split, start, stop):
        names = self.features(split)
        columns = list(dict.fromkeys(self.column(asked, names, self.name(), "feature") for asked in self.asked()))
        for stretch in self._stretches[split]:
            length = stretch.stop - stretch.start
            first, last = max(start, 0) + stretch.start, min(stop, length) + stretch.start
            table = self.tables[stretch.split].select_columns(columns)
            for number in range(first, last, BATCH):
                found = table[number : min(number + BATCH, last)]
                yield from (dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True))
            start, stop = start - length, stop - length

    def shared(self):
        return sum(
            max(0, min(mine.stop, other.stop) - max(mine.start, other.start))
            for mine in self._stretches["train"]
            for other in self._stretches["validation"]
            if mine.split == other.split
        )

    @cached_property
    def _stretches(self) -> dict[str, list[_Stretch]]:
        """The rows of each side, as stretches of the data set's own splits."""
        datasets, lengths = _package(), {name: len(table) for name, table in self.tables.items()}
        found = {}
        for split in ("train", "validation") if self.has_validation() else ("train",):
            name = self.split_name(split)
            try:
                exact = datasets.ReadInstruction.from_spec(name).to_absolute(lengths)
                found[split] = [_Stretch(part.splitname, part.from_ or 0, part.to) for part in exact]
            except Exception as error:  # an unknown split, a slice that does not parse
                empty = ", or to nothing for no validation" if split == "validation" else ""
                raise DataError(
                    f"The split {name!r} (data.source.{split}_split) of {self.name()} cannot be read: {told(error)} "
                    f"Its splits are {', '.join(lengths)}. Set it to one, or a slice such as train[:95%]{empty}."
                ) from error
        return found

    def _loaded(self, datasets: ModuleType) -> dict:
        """Each split's table by name."""
        try:
            found = self._from_folder(datasets) if os.path.isdir(self.folder) else self._from_hub(datasets)
        except UserError:
            raise
        except Exception as error:  # of many classes
            raise DataError(
                f"{self.config.dataset} (data.source.dataset) cannot be loaded: {told(error)} {LOCAL_WAY}"
            ) from error
        return {name: table.with_format(None) for name, table in found.items()}

    def _from_folder(self, datasets: ModuleType) -> dict:
        saved = any(os.path.exists(os.path.join(self.folder, name)) for name in ("state.json", "dataset_dict.json"))
        if not saved:
            datasets.disable_progress_bars()
            return datasets.load_dataset(self.folder, self.config.config, cache_dir=self.cache_dir)
        found = datasets.load_from_disk(self.folder)
        return {"train": found} if isinstance(found, datasets.Dataset) else found

    def _from_hub(self, datasets: ModuleType) -> dict:
        """What is cached, also where the hub cannot be reached; else what it sends."""
        constants, source = importlib.import_module("huggingface_hub.constants"), self.config
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _unreachable(constants.ENDPOINT)
        before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
        if reason:  # or each request is tried again and again
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        try:
            datasets.disable_progress_bars()
            return datasets.load_dataset(
                source.dataset, source.config, revision=source.revision, cache_dir=self.cache_dir
            )
        except Exception as error:
            if not reason:
                raise
            raise DataError(
                f"The data set {source.dataset!r} (data.source.dataset) is not in {self.cache_dir}, and cannot be "
                f"fetched from {constants.ENDPOINT}: {reason}. {LOCAL_WAY}"
            ) from error
        finally:
            constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _package() -> ModuleType:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(
            "data.source.name=huggingface needs the package datasets, which is not installed here: pip install -r "
            "requirements-sources.txt."
        ) from error


def _unreachable(endpoint: str) -> str | None:
    """Why the hub does not answer; None if it does."""
    try:
        answer(endpoint, lambda: urllib.request.urlopen(endpoint, timeout=5).close())
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return told(error).rstrip(".")
    except DataError:
        return "it does not answer"
    return None
