"""The command line prepares a store from a source of any name, and says what was passed over."""

import json

import pytest

from data import prepare
from data.errors import ConfigError, DataError
from data.store import Store
from tests.data.readers.formats import SOURCES, WRITERS, write_parquet

TEXTS = [f"text {i} 中\nsecond line of {i}" for i in range(60)]
NAMES = {"paragraph": ("text", "--config.data.source.document=paragraph")}


def run(tmp_path, name: str, *more: str):
    kind, *settings = NAMES.get(name, (name,))
    prepare.main(
        [
            *("--config", "configs/llama.py:debug", f"--config.data.cache_dir={tmp_path}/cache"),
            *(f"--config.data.source.name={kind}", f"--config.data.source.paths={tmp_path}/*.file", *settings),
            *("--config.data.tokenizer.name=bytes", "--config.model.vocab_size=300", *more),
        ]
    )


@pytest.mark.parametrize("name", SOURCES)
def test_each_source(name, tmp_path, capsys):
    WRITERS[name](tmp_path / "a.file", TEXTS)
    run(tmp_path, name, "--config.data.source.validation_fraction=0.2")
    found = json.loads(capsys.readouterr().out)
    stores = [Store(found[split]["path"]) for split in ("train", "validation")]
    decoded = [
        store.tokenizer.decode(store.document(index)[1:]) for store in stores for index in range(store.num_documents)
    ]
    assert sorted(decoded) == sorted(TEXTS)


def test_what_was_passed_over_is_said_once(tmp_path, capsys):
    write_parquet(tmp_path / "a.file", [*TEXTS, None, ""])
    run(tmp_path, "parquet", "--config.data.source.tolerance=0.1")
    told = capsys.readouterr().err
    assert told.count("malformed") == 1
    assert "prepare: train: 2 malformed records were passed over, as data.source.tolerance allows" in told


@pytest.mark.parametrize(
    ("more", "error", "pattern"),
    [
        ("--config.data.source.field=body", DataError, r"a\.file has no column 'body'"),
        ("--config.data.source.tolerance=2", ConfigError, r"data\.source\.tolerance is 2\.0, must be"),
        ("--config.data.source.validation_paths=none.file", DataError, r"none\.file in .*paths matches no file"),
        ("--config.data.source.document=line", ConfigError, r"document belongs to text"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(more, error, pattern, tmp_path):
    write_parquet(tmp_path / "a.file", TEXTS)
    with pytest.raises(error, match=pattern):
        run(tmp_path, "parquet", more)
    assert not (tmp_path / "cache").exists()
