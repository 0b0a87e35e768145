"""Small recipes, run in this process, and what they leave."""

import gzip
import json
import random
from dataclasses import replace

import pytest

from data.curation.config import Curation, LocalExecutor
from data.source_config import JsonlSource

COMMON = ["the", "be", "to", "of", "and", "that", "have", "with"]


class Text:
    """Seeded sentences of invented words, which no two documents share by chance."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)
        self.invented = ["".join(self.draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(20_000)]

    def words(self, count: int) -> list[str]:
        pools = self.draw.choices((COMMON, self.invented), (0.3, 0.7), k=count)
        return [self.draw.choice(pool) for pool in pools]

    def document(self, sentences: int = 8, length: int = 12) -> str:
        return "\n".join(f"{' '.join(self.words(length)).capitalize()}." for _ in range(sentences))


@pytest.fixture
def text():
    return Text(0)


@pytest.fixture
def write(tmp_path):
    """`write(name, texts)`: JSON lines below the test's folder; texts may be bytes, written as they are."""

    def put(name: str, texts):
        path = tmp_path / name
        lines = [item if isinstance(item, bytes) else json.dumps({"text": item}).encode() for item in texts]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return put


@pytest.fixture
def recipe(tmp_path):
    """`recipe(*stages, **fields)`: those stages on in*.jsonl, by one worker, into `out`."""

    def make(*stages, **fields) -> Curation:
        made = Curation(
            source=JsonlSource(paths=(str(tmp_path / "in*.jsonl"),)),
            stages=stages,
            output=str(tmp_path / "out"),
            executor=LocalExecutor(workers=1),
        )
        return replace(made, **fields)

    return make


@pytest.fixture
def left(tmp_path):
    """`left()`: the records that a curation has left, in order."""

    def read(output: str = "out") -> list[dict]:
        paths = sorted((tmp_path / output / "documents").glob("*.jsonl.gz"))
        return [json.loads(line) for path in paths for line in gzip.open(path, "rt", encoding="utf-8")]

    return read


@pytest.fixture
def report(tmp_path):
    """`report()`: the stages of report.json by name."""

    def read(output: str = "out") -> dict[str, dict]:
        found = json.loads((tmp_path / output / "report.json").read_text())
        return {stage["name"]: stage for stage in found["stages"]}

    return read
