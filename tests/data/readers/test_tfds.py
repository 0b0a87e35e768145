"""TFDS data sets with configuration, version and slices, in parts."""

import pickle
import socket
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from data import corpus, sources
from data.errors import ConfigError, DataError
from data.source_config import TfdsSource


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A cache in which the configuration `small` of python_library is prepared, from a library of 60 modules."""
    directory = tmp_path_factory.mktemp("tfds")
    (directory / "library").mkdir()
    for number in range(60):
        (directory / "library" / f"m{number:02d}.py").write_text(f"'module {number}'\n")
    config = corpus.LibraryConfig(name="small", root=str(directory / "library"))
    builder = corpus.PythonLibrary(config=config, data_dir=str(directory / "tfds"), file_format="array_record")
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    return directory


def documents(prepared: Path, split: str, part_bytes: int = 1 << 26, columns=None, **fields) -> list:
    """Of all parts, each read by a reader that came over as a pickle; the same as all documents at once."""
    config = TfdsSource(**{"dataset": "python_library/small:1.0.0", **fields})
    reader = sources.reader(config, str(prepared), columns, part_bytes)
    whole = list(reader.documents(split))
    assert (len(reader.parts(split)) > 1) == (part_bytes < 1000)
    assert whole == [d for part in reader.parts(split) for d in pickle.loads(pickle.dumps(reader)).read(part, split)]
    return whole


@pytest.mark.parametrize("part_bytes", [1, 200, 1 << 26])
def test_slices_in_parts(part_bytes, prepared):
    whole = documents(prepared, "train", part_bytes)
    assert 50 < len(whole) < 60 and whole[0] == "'module 0'\n"
    fields = {"train_split": "train[:90%]", "validation_split": "train[90%:]"}
    kept, held_out = (documents(prepared, split, part_bytes, **fields) for split in ("train", "validation"))
    assert kept + held_out == whole and held_out


def test_what_is_prepared_opens_no_socket(prepared, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert documents(prepared, "train")


def test_columns(prepared):
    first = documents(prepared, "train", columns=("id", "text"))[0]
    assert first.fields == {"id": "m00.py", "text": "'module 0'\n"}
    assert str(first.where) == "'train' of python_library/small/1.0.0, example 0"


@pytest.mark.parametrize(
    ("fields", "error", "pattern"),
    [
        (
            {"train_split": "train[:90%]", "validation_split": "train[50%:]"},
            ConfigError,
            r"train\[:90%\] and .*train\[50%:\] of python_library/small/1\.0\.0 share 2\d examples",
        ),
        ({"validation_split": "train"}, ConfigError, "share 5. examples"),
        ({"train_split": "train[:1"}, DataError, r"'train\[:1' .*Its splits are train, validation"),
        ({"train_split": "train[:0]"}, DataError, r"The split 'train\[:0\]' of .* is empty"),
        (
            {"dataset": "python_library/small:2.0.0"},
            DataError,
            r"no data set 'python_library/small:2\.0\.0'.*small not found with version 2\.0\.0",
        ),
        ({"dataset": "python_library/smal:1.0.0"}, DataError, r"smal not found.*found below"),
        ({"field": "body"}, DataError, r"no feature 'body' \(data\.source\.field\); it has id, text"),
    ],
)
def test_what_is_wrong_is_said(fields, error, pattern, prepared):
    with pytest.raises(error, match=pattern) as raised:
        documents(prepared, "train", **fields)
    assert "\n" not in str(raised.value)
