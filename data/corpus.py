"""English and code that every Python installation carries, as the TFDS data set `python_library`.

Documents are the topics of the language reference that `help()` shows (`pydoc_data.topics`) and the modules
of the standard library in source, their documentation inside. Files are read and parsed, never imported.
The text changes with every Python release, so no golden number rests on it.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import os
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from data.errors import DataError

VALIDATION_SHARE = 0.05
# Tests and their data; programs that are no library; what others installed; builds of one machine.
LEFT_OUT = {
    *("__pycache__", "test", "tests", "idle_test", "idlelib", "lib2to3"),
    *("site-packages", "dist-packages", "pydoc_data", "lib-dynload"),
}
GENERATED = ("config-", "_sysconfigdata")
TABLES = ("decoding_table", "decoding_map")  # in encodings: lists of code points, neither English nor code


def documents(root: str | os.PathLike) -> Iterator[tuple[str, str]]:
    """(path below `root`, text) of each topic and module of a standard library, by path, no text twice."""
    root, seen = Path(root), set()
    for path, text in sorted([*_topics(root), *_modules(root)]):
        if text.strip() and text not in seen:
            seen.add(text)
            yield path, text


def held_out(path: str) -> bool:
    """Whether the document of this path is on the validation side."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") < VALIDATION_SHARE * 2**64


def _topics(root: Path) -> Iterator[tuple[str, str]]:
    """The entries of the one dict that pydoc_data/topics.py assigns."""
    source = root / "pydoc_data" / "topics.py"
    if not source.is_file():
        return
    for node in ast.parse(source.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield f"pydoc_data/topics/{name}", text


def _modules(root: Path) -> Iterator[tuple[str, str]]:
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in LEFT_OUT and not name.startswith(GENERATED)]
        for name in files:
            if name.endswith(".py") and not name.startswith(GENERATED):
                source = Path(directory, name)
                path = source.relative_to(root).as_posix()
                text = _source(source)
                if not (path.startswith("encodings/") and any(table in text for table in TABLES)):
                    yield path, text


def _source(path: Path) -> str:
    """A module's text in its declared encoding; nothing where it is not text."""
    try:
        with open(path, "rb") as file:
            encoding, _ = tokenize.detect_encoding(file.readline)
        return path.read_bytes().decode(encoding)
    except (SyntaxError, UnicodeDecodeError):
        return ""


@dataclasses.dataclass(eq=False)
class LibraryConfig(tfds.core.BuilderConfig):
    root: str = ""  # the standard library's directory


class PythonLibrary(tfds.core.GeneratorBasedBuilder):
    """The builder. Its configuration is named by the Python version, so that each keeps its own copy."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        LibraryConfig(name=f"python_{platform.python_version()}", root=sysconfig.get_path("stdlib")),
    ]

    def check(self):
        """Raises DataError when the standard library holds no source to read."""
        if next(_modules(Path(self.builder_config.root)), None) is None:
            raise DataError(
                f"The standard library in {self.builder_config.root} carries no source, so there is no "
                "python_library here. Set data.source to your own text."
            )

    def _info(self):
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict({"id": text, "text": text}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        found = list(documents(self.builder_config.root))
        return {
            "train": self._generate_examples([item for item in found if not held_out(item[0])]),
            "validation": self._generate_examples([item for item in found if held_out(item[0])]),
        }

    def _generate_examples(self, found):
        for index, (path, text) in enumerate(found):
            yield index, {"id": path, "text": text}
