"""A source of lines of text files, a file a part; each reading of a file is written down. Imported by workers too."""

import collections
import hashlib
import json
import os
from pathlib import Path

from data.errors import DataError


class LineReader:
    def __init__(self, directory: Path, bad: str = "", kill: str = ""):
        """A line that holds `bad` is malformed; reading one that holds `kill` kills the process."""
        self.directory, self.bad, self.kill = Path(directory), bad, kill
        self.counts: collections.Counter = collections.Counter()

    def paths(self) -> list[str]:
        return [str(path) for path in sorted(self.directory.glob("*.txt"))]

    def identity(self):
        return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in self.paths()}

    def parts(self, split):
        return [Part(path, 0, -1) for path in self.paths()]

    def read(self, part, split):
        with open(self.directory / "read.log", "a") as log:
            print(json.dumps([os.getpid(), part.path]), file=log)
        for line in Path(part.path).read_text().split("\n"):
            if self.kill and self.kill in line:
                os.kill(os.getpid(), 9)
            if self.bad and self.bad in line:
                raise DataError(f"{part.path}, line {line} is malformed. Mend it.")
            if line.startswith("#"):
                self.counts["malformed"] += 1
            else:
                yield line

    def documents(self, split):
        for part in self.parts(split):
            yield from self.read(part, split)


Part = collections.namedtuple("Part", "path start stop")
