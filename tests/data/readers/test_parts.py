"""Parts of a source, read one after the other by different processes, are the source: nothing is lost or doubled."""

import dataclasses
import json
import os
import pickle
import random

import pytest

from data import sources
from data.source_config import TextSource
from tests.data.readers.formats import SOURCES, WRITERS, source, train

TEXTS = [f"{'lang ' * (7 * i % 11)}Zeile {i} é 中文\nzweite {i}" for i in range(40)]


def split_read(config, split: str, size: int, columns=None) -> list:
    """The documents of all parts, each part read by a reader that came over as a pickle."""
    reader = sources.reader(config, "unused", columns, part_bytes=size)
    parts = json.loads(json.dumps(reader.parts(split)))
    return [
        document for part in parts for document in pickle.loads(pickle.dumps(reader)).read(sources.Part(*part), split)
    ]


@pytest.mark.parametrize("name", SOURCES)
def test_parts_of_any_size_are_the_documents(name, tmp_path):
    path = tmp_path / "a.txt"
    WRITERS[name](path, TEXTS)
    config = source(name, path)
    assert train(config) == TEXTS
    for size in (1, 7, 64, 1000, 1 << 26):
        assert split_read(config, "train", size) == TEXTS


@pytest.mark.parametrize("name", SOURCES)
def test_each_side_of_all_parts(name, tmp_path):
    """What a hash holds out, and what a file of its own does, does not depend on the parts."""
    WRITERS[name](tmp_path / "a.txt", TEXTS)
    WRITERS[name](tmp_path / "b.txt", TEXTS[::9])
    shared = source(name, tmp_path / "a.txt", validation_fraction=0.3)
    held_out, kept = split_read(shared, "validation", 50), split_read(shared, "train", 50)
    assert sorted(held_out + kept) == sorted(TEXTS) and held_out and kept
    assert kept == train(shared)
    apart = source(name, tmp_path / "*.txt", validation_paths=(str(tmp_path / "b.txt"),))
    assert split_read(apart, "validation", 50) == TEXTS[::9]
    assert split_read(apart, "train", 50) == [text for text in TEXTS if text not in TEXTS[::9]]


def test_uncompressed_files_have_many_parts(tmp_path):
    for name in ("paragraph", "jsonl", "parquet", "array_record"):
        WRITERS[name](tmp_path / name, TEXTS)
        assert len(sources.reader(source(name, tmp_path / name), "unused", part_bytes=500).parts("train")) > 2


@pytest.mark.parametrize("document", ["line", "paragraph"])
def test_no_border_cuts_a_document(document, tmp_path):
    """Random text of short lines, blank ones, both line ends, a byte-order mark, with and without a last line end."""
    draw = random.Random(1)
    for case in range(40):
        ends = draw.choice(["\n", "\r\n", "\n\n", "\n \t\u3000\n"])
        text = "".join(draw.choice(["a", "é中", "", "xyz 1"]) + draw.choice(["\n", ends]) for _ in range(30)) + "end"
        path = tmp_path / f"{case}.txt"
        path.write_bytes(draw.choice([b"", b"\xef\xbb\xbf"]) + (text + draw.choice(["", "\n", "\n\n"])).encode())
        config = TextSource(paths=(str(path),), document=document, validation_fraction=0.0)
        whole = train(config)
        for size in (1, 2, 3, 5, 17):
            assert split_read(config, "train", size) == whole


def test_blank_lines_may_hold_any_white_space(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\n\u3000 \u00a0\r\ntwo\n\x1f\n\u3000three\n".encode())
    config = TextSource(paths=(str(tmp_path / "a.txt"),), document="paragraph", validation_fraction=0.0)
    assert train(config) == ["one", "two", "\u3000three"]
    assert train(dataclasses.replace(config, document="line")) == ["one", "two", "\u3000three"]


def test_a_byte_order_mark_is_dropped_where_a_file_begins_alone(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    config = TextSource(paths=(str(tmp_path / "a.txt"),), document="line", validation_fraction=0.0)
    assert split_read(config, "train", 5) == train(config) == ["one", "\ufefftwo"]


def test_a_file_is_one_part(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\n" * 100)
    config = TextSource(paths=(str(tmp_path / "a.txt"),), validation_fraction=0.0)
    assert split_read(config, "train", 10) == ["one\n\ntwo\n" * 100]


def test_records_know_their_line_in_every_part(tmp_path):
    WRITERS["jsonl"](tmp_path / "a.jsonl", TEXTS)
    config = source("jsonl", tmp_path / "a.jsonl")
    found = split_read(config, "train", 100, columns=("text",))
    assert [record.fields for record in found] == [{"text": text} for text in TEXTS]
    assert [str(record.where) for record in found] == [f"{tmp_path}/a.jsonl, line {i}" for i in range(1, 41)]
    for name, unit in {"parquet": "row", "array_record": "record"}.items():
        path = tmp_path / name
        WRITERS[name](path, TEXTS if name == "parquet" else ['{"text": "a"}'] * 40)
        fields = {"content": "json"} if name == "array_record" else {}
        found = split_read(source(name, path, **fields), "train", 100, columns=("text",))
        assert [str(record.where) for record in found] == [f"{path}, {unit} {i}" for i in range(40)]


def test_columns_of_every_format_of_records(tmp_path):
    WRITERS["csv"](tmp_path / "a.csv", TEXTS)
    assert [record.fields for record in train(source("csv", tmp_path / "a.csv"), columns=("text", "id"))] == [
        {"text": text, "id": str(i)} for i, text in enumerate(TEXTS)
    ]
    WRITERS["parquet"](tmp_path / "a.parquet", TEXTS, more=[{"tags": [i, None], "b": b"x"} for i in range(40)])
    found = train(source("parquet", tmp_path / "a.parquet"), columns=("more.tags", "more"))
    assert found[3].fields == {"more.tags": [3, None], "more": {"tags": [3, None], "b": "x"}}
    assert str(found[3].where) == f"{tmp_path}/a.parquet, row 3"


def test_a_dotted_name_goes_into_objects_unless_it_is_one(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"meta": {"text": "inside"}, "meta.text": "itself"}\n{"meta": {"text": "inside"}}\n'
    )
    assert train(source("jsonl", tmp_path / "a.jsonl", field="meta.text")) == ["itself", "inside"]
    WRITERS["parquet"](tmp_path / "a.parquet", TEXTS, meta=[{"text": text} for text in TEXTS])
    assert train(source("parquet", tmp_path / "a.parquet", field="meta.text")) == TEXTS


def test_directories_come_in_one_order_whatever_the_file_system_says(tmp_path, monkeypatch):
    for name in ("b/2.txt", "a/9.txt", "b/10.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    config = TextSource(paths=(f"{tmp_path}/**/*.txt",), validation_fraction=0.0)
    expected = train(config)
    scan = os.scandir

    class Backwards:
        def __init__(self, path):
            with scan(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        __enter__ = lambda self: iter(self.entries)  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731

    monkeypatch.setattr(os, "scandir", Backwards)
    assert train(config) == expected == ["a/9.txt", "b/10.txt", "b/2.txt", "c.txt"]


def test_identity_changes_with_what_is_read(tmp_path):
    for name in SOURCES:
        WRITERS[name](tmp_path / name, TEXTS)
        config = source(name, tmp_path / name)
        first = sources.identity(sources.reader(config, "unused"))
        assert json.loads(json.dumps(first)) == first == sources.identity(sources.reader(config, "unused"))
        WRITERS[name](tmp_path / name, TEXTS[::-1])
        os.utime(tmp_path / name, ns=(1, 1))
        assert sources.identity(sources.reader(config, "unused")) != first
