"""The benchmark of the data engine, with a small text and store: what it compares is the same work."""

import importlib.util
import json

import numpy as np
import pytest

from data.errors import ConfigError
from experiments import bench_data, bench_rows, bench_text

TOKENS = 300_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    bench_text.make_text(folder, 400_000, files=2)
    return folder


@pytest.fixture(scope="module")
def store(folder):
    return bench_rows.make_store(folder / "store", TOKENS, folder / "tokenizer.json")


def test_text_is_as_long_as_asked_for(folder):
    lines = [json.loads(line)["text"] for path in (folder / "text").iterdir() for line in path.read_text().splitlines()]
    assert len(bench_text.files_of(folder)) == 2
    size = sum(len(text.encode()) for text in lines)
    assert 400_000 <= size < 400_000 + max(len(text.encode()) for text in lines)


@pytest.mark.parametrize("name", bench_text.CONTENDERS)
def test_contenders_make_the_same_ids(folder, tmp_path, name):
    if importlib.util.find_spec(name) is None and name != "ours":
        pytest.skip("needs requirements-bench.txt")
    seconds, ids = bench_text.CONTENDERS[name](folder, tmp_path)
    assert seconds > 0
    assert ids == bench_text.alone(folder, tmp_path)[1]


def test_the_store_is_as_described(store):
    assert abs(store.num_tokens - TOKENS) < 0.02 * TOKENS
    starts = store.document_starts.astype(np.int64)
    assert (store.tokens(0, store.num_tokens)[starts] == store.end_of_text).all()
    assert abs(store.num_tokens / store.num_documents / 600 - 1) < 0.3


def test_the_flat_file_holds_the_ids_of_the_store(store, tmp_path):
    bench_rows.make_flat(store, tmp_path / "flat.bin")
    flat = np.fromfile(tmp_path / "flat.bin", "<u2")
    assert (flat == store.tokens(0, store.num_tokens)).all()
    row = bench_rows.FlatSource(tmp_path / "flat.bin")[3]
    ours = bench_rows.make_rows(store, bench_rows.LENGTH, "concat").row(3)
    assert (row["tokens"] == ours["tokens"]).all() and (row["targets"] == ours["targets"]).all()


@pytest.mark.parametrize("layout", bench_rows.LAYOUTS)
def test_loaders_open_and_read(store, layout):
    stores = [store.directory] * (2 if layout == "mixture" else 1)
    found = bench_rows.open_and_read(layout, stores, 3)
    assert found["start"] > 0 and found["resume"] > 0
    assert found["most"] >= found["before"] > 1_000_000


def test_rows_are_timed_against_others(store, tmp_path):
    pytest.importorskip("torch", reason="needs requirements-bench.txt")
    pytest.importorskip("grain", reason="needs requirements-bench.txt")
    bench_rows.make_flat(store, tmp_path / "flat.bin")
    found = bench_data.rows(store.directory, tmp_path / "flat.bin", 2, 2)
    assert set(found["ratio"]) == {"nanogpt", "grain"} and found["grain"]["fastest"] in bench_rows.GRAIN


def test_ratios_are_of_single_rounds():
    found = bench_data.ratios({"other": [2.0, 6.0, 8.0], "ours": [1.0, 2.0, 16.0]}, "other", "ours")
    assert found == {"median": 2.0, "range": [0.5, 3.0]}


def test_the_command_reports_and_cleans_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "passing"))
    (tmp_path / "passing").mkdir()
    sizes = ["--tokens", str(TOKENS), "--rounds", "1", "--read", "2"]
    bench_data.main(["--parts", "open", *sizes, "--output", str(tmp_path / "out.json")])
    assert not list((tmp_path / "passing").iterdir())
    printed, written = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    for layout in bench_rows.LAYOUTS:
        for size in ("small", "large"):
            assert f"| anonymous memory, {layout}, {size} | " in printed
            assert written["results"]["open"][f"{layout}, {size}"]["most"] < 500e6
    assert written["settings"]["tokens"] == TOKENS and "jax" in written["where"]


@pytest.mark.parametrize("arguments", [["--turns", "0"], ["--tokens", "many"], ["--keep", "."], ["--part", "rows"]])
def test_what_cannot_be_is_refused(arguments):
    with pytest.raises(ConfigError):
        bench_data.main(["--parts", "open", *arguments])
