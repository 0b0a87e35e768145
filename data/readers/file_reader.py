"""What sources of files share: which files, and which side a document is on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

from data.errors import DataError
from data.files import canonical_json
from data.readers.base import BaseReader, Document, Part
from data.readers.files import File, matching
from data.source_config import FileSource, TextSource


class FileReader(BaseReader):
    """Documents of files. A format says what a file's parts are and what a part's records.

    Attributes:
      suffix: of such files, for advice.
    """

    suffix: str

    def __init__(self, config: FileSource, cache_dir: str, columns: Sequence[str] | None, part_bytes: int):
        """Finds the files. Raises DataError when a path matches none, or a file is empty."""
        super().__init__(config, columns, part_bytes)
        if not config.paths:
            raise DataError("data.source.paths is empty; name the files or globs that hold the text.")
        self.held_out = matching("data.source.validation_paths", config.validation_paths, self.suffix)
        apart = {file.path for file in self.held_out}
        found = matching("data.source.paths", config.paths, self.suffix)
        self.files = [file for file in found if file.path not in apart]
        if not self.files:
            raise DataError(
                "data.source.validation_paths holds every file of data.source.paths, so none is left to "
                "train on. Narrow one of them."
            )

    def file_parts(self, file: File) -> list[Part]:
        """The parts of a file; one, unless the format can be read from its middle."""
        return [Part(file.path, 0, -1)]

    def records(self, part: Part) -> Iterator[Document | DataError]:
        """What each record of a part holds, or why it is malformed."""
        raise NotImplementedError

    def has_validation(self):
        return bool(self.held_out) or self.config.validation_fraction > 0

    def identity(self):
        return {
            "paths": [file.facts for file in self.files],
            "validation_paths": [file.facts for file in self.held_out],
        }

    def parts(self, split):
        if split == "validation" and not self.has_validation():
            return []
        files = self.held_out if self.held_out and split == "validation" else self.files
        return [part for file in files for part in self.file_parts(file)]

    def read(self, part, split):
        if not self.held_out:
            threshold = int(self.config.validation_fraction * 2**64)
            wanted = split == "validation"
            # A malformed record is on no side: it is counted once, with those of training.
            found = self.sound(self._some(part), part, counted=not wanted)
            yield from (document for document in found if (_hash(document) < threshold) == wanted)
        elif split == "validation":
            yield from self.sound(self._some(part), part)
        else:
            yield from self._unlike_held_out(part)

    def _unlike_held_out(self, part: Part) -> Iterator[Document]:
        """The documents that are not, word for word, in `validation_paths` too."""
        held_out = self._held_out_hashes
        for document in self.sound(self._some(part), part):
            if _hash(document) in held_out:
                self.counts["held_out"] += 1
            else:
                yield document

    @cached_property
    def _held_out_hashes(self) -> set[int]:
        parts = self.parts("validation")
        return {_hash(document) for part in parts for document in self.sound(self._some(part), part, counted=False)}

    def _some(self, part: Part) -> Iterator[Document | DataError]:
        """The records of a part; DataError where it is a whole file without any."""
        empty = True
        for record in self.records(part):
            empty = False
            yield record
        if empty and part.start == 0 and part.stop == -1:
            raise DataError(f"{part.path} of data.source holds no document. Remove it, or check data.source.")

    def none(self, split):
        files = self.held_out if self.held_out and split == "validation" else self.files
        where = files[0].path if len(files) == 1 else f"{files[0].path} and {len(files) - 1} more"
        share = self.config.validation_fraction
        if self.held_out or share == 0:
            apart = f" but what is held out for validation ({self.counts['held_out']})" if self.held_out else ""
            return f"{where} of data.source holds no document{apart}. Check data.source."
        smaller = ""
        if isinstance(self.config, TextSource) and self.config.document == "file":
            smaller = "data.source.document=paragraph for smaller documents, "
        return (
            f"No document of {where} is on the {split} side: a hash of each holds out "
            f"data.source.validation_fraction={share:g} of them, and there are too few. Set {smaller}"
            "data.source.validation_paths to files of their own, or data.source.validation_fraction=0 for no "
            "validation."
        )


def _hash(document: Document) -> int:
    """The first 64 bits of the SHA-256 of a text, or of a record's fields as canonical JSON."""
    content = document.encode() if isinstance(document, str) else canonical_json(document.fields)
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
