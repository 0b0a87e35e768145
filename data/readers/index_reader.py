"""What data sets share whose examples are found by number: splits by name, parts by ranges."""

from __future__ import annotations

from collections.abc import Iterator

from data.errors import ConfigError, DataError
from data.readers.base import BaseReader, Part
from data.readers.fields import Place

BATCH = 256  # examples read at a time


class IndexReader(BaseReader):
    """The examples of splits in the data set's own order."""

    def name(self) -> str:
        """Of the data set, for errors."""
        raise NotImplementedError

    def size(self, split: str) -> tuple[int, int]:
        """Examples of a split, and about how many bytes they are. DataError where they cannot be read."""
        raise NotImplementedError

    def features(self, split: str) -> list[str]:
        """The names of an example's fields."""
        raise NotImplementedError

    def examples(self, split: str, start: int, stop: int) -> Iterator[dict]:
        raise NotImplementedError

    def shared(self) -> int:
        """How many examples are in both splits."""
        raise NotImplementedError

    def split_name(self, split: str) -> str:
        return self.config.train_split if split == "train" else self.config.validation_split

    def has_validation(self):
        return bool(self.config.validation_split)

    def parts(self, split):
        if not self.split_name(split):
            return []
        count, size = self.size(split)
        for asked in self.asked():
            self.column(asked, self.features(split), self.name(), "feature")
        if count == 0:
            raise DataError(f"The split {self.split_name(split)!r} of {self.name()} is empty.")
        if self.has_validation() and (shared := self.shared()):
            raise ConfigError(
                f"data.source.train_split={self.config.train_split} and "
                f"data.source.validation_split={self.config.validation_split} of {self.name()} share {shared:,} "
                "examples. Set them to splits, or slices of one such as train[:95%] and train[95%:], that share none."
            )
        step = max(1, count * self.part_bytes // max(size, 1))
        return [Part(self.split_name(split), start, min(start + step, count)) for start in range(0, count, step)]

    def read(self, part, split):
        yield from self.sound(self._records(part, split), part)

    def _records(self, part: Part, split: str):
        where = f"{part.path!r} of {self.name()}"
        for number, example in enumerate(self.examples(split, part.start, part.stop), part.start):
            yield self.document(example, Place(where, "example", number))

    def none(self, split):
        return f"The split {self.split_name(split)!r} of {self.name()} holds no document."
