"""Data sets of Hugging Face `datasets`, saved on this machine or named."""

import json
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import sources
from data.errors import ConfigError, DataError
from data.source_config import HuggingFaceSource

datasets = pytest.importorskip("datasets")
ROOT = Path(__file__).parents[3]
TEXTS = [f"text {i} 中" for i in range(100)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The same rows as datasets saves them: one split, two, a selection, and a folder of Parquet files."""
    directory = tmp_path_factory.mktemp("saved")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": TEXTS, "meta": [{"n": i, "s": f"s{i}"} for i in range(100)]})
    rows.save_to_disk(directory / "one")
    rows.select(range(99, 49, -1)).save_to_disk(directory / "selection")
    datasets.DatasetDict(train=rows, validation=rows.select(range(5))).save_to_disk(directory / "two")
    (directory / "files" / "data").mkdir(parents=True)
    rows.to_parquet(directory / "files" / "data" / "train-00000-of-00001.parquet")
    return directory


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def documents(split: str, cache: Path, part_bytes: int = 1 << 26, columns=None, **fields) -> list:
    """Of all parts, each read by a reader that came over as a pickle."""
    reader = sources.reader(HuggingFaceSource(**fields), str(cache), columns, part_bytes)
    whole = list(reader.documents(split))
    parts = [d for part in reader.parts(split) for d in pickle.loads(pickle.dumps(reader)).read(part, split)]
    assert parts == whole
    return whole


def test_folders_without_a_network(saved, tmp_path, no_sockets):
    for name in ("one", "files"):
        assert documents("train", tmp_path, dataset=str(saved / name), validation_split="") == TEXTS
    assert documents("train", tmp_path, dataset=str(saved / "selection"), validation_split="") == TEXTS[:49:-1]
    assert documents("train", tmp_path, dataset=str(saved / "two")) == TEXTS
    assert documents("validation", tmp_path, dataset=str(saved / "two")) == TEXTS[:5]


@pytest.mark.parametrize("part_bytes", [1, 300, 1 << 26])
def test_slices(part_bytes, saved, tmp_path):
    fields = {
        "dataset": str(saved / "one"),
        "train_split": "train[:80]+train[90:]",
        "validation_split": "train[80:90%]",
    }
    assert documents("train", tmp_path, part_bytes, **fields) == TEXTS[:80] + TEXTS[90:]
    assert documents("validation", tmp_path, part_bytes, **fields) == TEXTS[80:90]


def test_columns(saved, tmp_path):
    fields = {"dataset": str(saved / "one"), "validation_split": ""}
    assert documents("train", tmp_path, field="meta.s", **fields) == [f"s{i}" for i in range(100)]
    found = documents("train", tmp_path, columns=("meta.n", "text"), **fields)
    assert [record.fields for record in found] == [{"meta.n": i, "text": text} for i, text in enumerate(TEXTS)]
    assert str(found[7].where) == f"'train' of {saved / 'one'}, example 7"


def test_identity_is_of_the_rows(saved, tmp_path):
    def identity(name: str) -> str:
        script = (
            "import json, sys; from data import sources; from data.source_config import HuggingFaceSource as S\n"
            "reader = sources.reader(S(dataset=sys.argv[1], validation_split=''), sys.argv[2])\n"
            "print(json.dumps(sources.identity(reader)))"
        )
        command = [sys.executable, "-c", script, str(saved / name), str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout

    assert identity("one") == identity("one")
    one, other = json.loads(identity("one")), json.loads(identity("selection"))
    assert one["fingerprints"] != other["fingerprints"]


def test_identity_is_of_the_files_of_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    config = HuggingFaceSource(dataset=str(tmp_path / "folder"), validation_split="")
    found = []
    for texts in (["a", "b"], ["c", "d"]):
        (tmp_path / "folder" / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        assert list(sources.documents(config, "train", str(tmp_path))) == texts
        found.append(sources.identity(sources.reader(config, str(tmp_path))))
    assert found[0] != found[1]


BAD = {
    "no such folder": ({"dataset": "/no/such/folder"}, r"/no/such/folder \(data\.source\.dataset\) is no folder"),
    "no such split": ({"dataset": "one"}, r"split 'validation' \(data\.source\.validation_split\).*splits are train\."),
    "a slice that is none": (
        {"dataset": "two", "train_split": "train[:1"},
        r"'train\[:1' \(data\.source\.train_split\).*splits are train, validation",
    ),
    "a slice of nothing": ({"dataset": "two", "train_split": "train[:0]"}, r"split 'train\[:0\]' of .* is empty"),
    "a wrong column": ({"dataset": "two", "field": "body"}, r"has no feature 'body' .*; it has text, meta"),
    "a column that is no text": ({"dataset": "two", "field": "meta"}, r"example 0: 'meta' .* expected text"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_a_data_error(case, saved, tmp_path):
    fields, pattern = BAD[case]
    name = fields["dataset"]
    with pytest.raises(DataError, match=pattern) as raised:
        documents("train", tmp_path, **{**fields, "dataset": name if "/" in name else str(saved / name)})
    assert "\n" not in str(raised.value)


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty \(data\.source\.dataset\) cannot be loaded"):
        documents("train", tmp_path, dataset=str(tmp_path / "empty"))


def test_slices_that_share_rows_are_refused(saved, tmp_path):
    with pytest.raises(ConfigError, match=r"train_split=train\[:90%\] and .*=train\[80%:\] .* share 10 examples"):
        documents(
            "train", tmp_path, dataset=str(saved / "one"), train_split="train[:90%]", validation_split="train[80%:]"
        )


def test_a_name_without_a_network(tmp_path, monkeypatch, capfd):
    def refuse(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    started = time.monotonic()
    for dataset in ("no/such_set", "wikitext"):
        with pytest.raises(DataError, match=rf"'{dataset}' .*cannot be fetched from .*save_to_disk, copy that folder"):
            documents("train", tmp_path, dataset=dataset)
    assert time.monotonic() - started < 10
    assert capfd.readouterr().err == ""


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the package datasets.*requirements-sources\.txt"):
        sources.reader(HuggingFaceSource(dataset="one"), "unused")
