"""A source gives its documents once, on one side, in one order, or says which file and place is wrong."""

import gzip
import json
import os
from pathlib import Path

import pytest

from data import sources
from data.errors import DataError
from data.source_config import JsonlSource, TextSource, TfdsSource


def text(tmp_path: Path, *contents: str | bytes, **fields) -> TextSource:
    for number, content in enumerate(contents):
        path = tmp_path / f"{number:02d}.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return TextSource(paths=(f"{tmp_path}/*.txt",), **{"validation_fraction": 0.0, **fields})


def jsonl(tmp_path: Path, content: str | bytes, name: str = "a.jsonl", **fields) -> JsonlSource:
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(content)
    return JsonlSource(paths=(str(tmp_path / name),), **{"validation_fraction": 0.0, **fields})


def train(source) -> list[str]:
    return list(sources.documents(source, "train", "unused"))


def validation(source) -> list[str]:
    return list(sources.documents(source, "validation", "unused"))


def test_a_file_is_a_document_as_it_is(tmp_path):
    contents = ["one\n\ntwo\r\n", "\x00é\n", "no line end"]
    assert train(text(tmp_path, *contents)) == contents


def test_paragraphs_and_lines(tmp_path):
    content = "\n \none\ntwo\r\n\t\nthree\n\n\n\nfour"
    assert train(text(tmp_path, content, document="paragraph")) == ["one\ntwo", "three", "four"]
    assert train(text(tmp_path, content, document="line")) == ["one", "two", "three", "four"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert train(text(tmp_path, b"\xef\xbb\xbfone")) == ["one"]
    assert train(jsonl(tmp_path, b'\xef\xbb\xbf{"text": "one"}\n')) == ["one"]


def test_json_lines_plain_and_compressed(tmp_path):
    lines = "".join(json.dumps({"id": i, "body": f"text {i} é"}) + "\n\n" for i in range(5))
    expected = [f"text {i} é" for i in range(5)]
    assert train(jsonl(tmp_path, lines, field="body")) == expected
    assert train(jsonl(tmp_path, gzip.compress(lines.encode()), "a.jsonl.gz", field="body")) == expected


def test_files_are_read_once_in_sorted_order(tmp_path):
    for name in ("b/2.txt", "a/9.txt", "b/10.txt", "[odd].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    paths = (f"{tmp_path}/**/*.txt", f"{tmp_path}/b/2.txt", f"{tmp_path}/[odd].txt")
    expected = ["[odd].txt", "a/9.txt", "b/10.txt", "b/2.txt"]
    assert train(TextSource(paths=paths, validation_fraction=0.0)) == expected
    assert train(TextSource(paths=paths[::-1], validation_fraction=0.0)) == expected
    assert train(TextSource(paths=paths[2:], validation_fraction=0.0)) == expected[:1]


def test_sides_follow_the_text_alone(tmp_path):
    """Every copy of a line is on one side, both sides together are everything, and more text moves no line."""
    lines = [f"line {i % 700}" for i in range(1000)]
    source = text(tmp_path, "\n".join(lines), document="line", validation_fraction=0.2)
    held_out, kept = validation(source), train(source)
    assert sorted(held_out + kept) == sorted(lines)
    assert not set(held_out) & set(kept)
    assert 0.15 < len(set(held_out)) / 700 < 0.25
    more = text(
        tmp_path, "\n".join(f"new {i}" for i in range(500)), "\n".join(lines), document="line", validation_fraction=0.2
    )
    assert [line for line in validation(more) if line.startswith("line")] == held_out


def test_held_out_files_keep_their_copies_out_of_training(tmp_path):
    source = text(tmp_path, "one\ntwo\nboth\n", "three\nboth\n", document="line")
    source = TextSource(**{**vars(source), "validation_paths": (f"{tmp_path}/01.txt",), "validation_fraction": 0.5})
    reader = sources.reader(source, "unused")
    assert list(reader.documents("train")) == ["one", "two"]
    assert reader.counts["held_out"] == 1
    assert list(reader.documents("validation")) == ["three", "both"]


def test_no_validation_is_none(tmp_path):
    source = text(tmp_path, "one")
    assert validation(source) == []
    assert not sources.reader(source, "unused").has_validation()


def test_identity_changes_with_the_files(tmp_path):
    source = text(tmp_path, "one", "two")
    first = sources.identity(sources.reader(source, "unused"))
    assert json.loads(json.dumps(first)) == first == sources.identity(sources.reader(source, "unused"))
    os.utime(tmp_path / "00.txt", ns=(1, 1))
    touched = sources.identity(sources.reader(source, "unused"))
    (tmp_path / "02.txt").write_text("three")
    assert first != touched != sources.identity(sources.reader(source, "unused"))


BAD_TEXT = {
    "an unmatched path": (
        lambda d: TextSource(paths=(f"{d}/none*.txt",)),
        r"none\*\.txt in data\.source\.paths matches no",
    ),
    "an unmatched held-out path": (
        lambda d: text(d, "x", validation_paths=(f"{d}/none",)),
        r"none in data\.source\.validation_paths matches no",
    ),
    "a directory": (lambda d: TextSource(paths=(str(d),)), r"is a directory; write a glob such as"),
    "no path": (lambda d: TextSource(), r"data\.source\.paths is empty"),
    "an empty file": (lambda d: text(d, "x", ""), r"01\.txt in data\.source\.paths is empty"),
    "an empty compressed file": (lambda d: jsonl(d, gzip.compress(b""), "a.gz"), r"a\.gz is empty"),
    "only blank lines": (lambda d: text(d, " \n\n", document="line"), r"00\.txt of data\.source holds no document"),
    "only blank JSON lines": (lambda d: jsonl(d, "\n\n"), r"a\.jsonl of data\.source holds no document"),
    "Latin-1": (lambda d: text(d, b"good\nna\xefve\n"), r"00\.txt is not UTF-8: byte 7, in line 2, is 0xef"),
    "cut UTF-8": (lambda d: text(d, "é".encode()[:1], document="line"), r"00\.txt is not UTF-8: byte 0, in line 1"),
    "UTF-16": (lambda d: text(d, "x".encode("utf-16"), document="paragraph"), r"not UTF-8: byte 0, in line 1, is 0xff"),
    "malformed JSON": (lambda d: jsonl(d, '{"text": "a"}\n{"text": \n'), r"a\.jsonl, line 2 is not valid JSON"),
    "a JSON list": (lambda d: jsonl(d, "[1]\n"), r"a\.jsonl, line 1 holds a JSON list"),
    "a missing field": (
        lambda d: jsonl(d, '{"text": "a"}\n\n{"body": 1, "id": 2}\n'),
        r"line 3 has no key 'text' \(data\.source\.field\); its keys are 'body', 'id'",
    ),
    "a field that is no text": (lambda d: jsonl(d, '{"text": null}\n'), r"line 1: 'text' .* is null, expected text"),
    "half a surrogate pair": (
        lambda d: jsonl(d, '{"text": "a\\ud800"}\n'),
        r"line 1: 'text' .* holds half of a surrogate",
    ),
    "not UTF-8 in JSON": (lambda d: jsonl(d, b'{"text": "a"}\n{"text": "\xff"}'), r"byte 24, in line 2, is 0xff"),
    "no gzip": (lambda d: jsonl(d, b'{"text": "a"}', "a.jsonl.gz"), r"a\.jsonl\.gz cannot be read"),
    "cut gzip": (
        lambda d: jsonl(d, gzip.compress(b'{"text": "a"}\n' * 1000)[:-20], "a.jsonl.gz"),
        r"a\.jsonl\.gz cannot be read",
    ),
    "everything held out": (
        lambda d: text(d, "x", validation_paths=(f"{d}/*.txt",)),
        r"validation_paths holds every file of data\.source\.paths",
    ),
    "nothing but copies of what is held out": (
        lambda d: text(d, "x", "x", validation_paths=(f"{d}/01.txt",)),
        r"holds no document but what is held out for validation \(1\)",
    ),
    "too few to hold any out": (
        lambda d: text(d, "one file", validation_fraction=0.001),
        r"on the validation side.*data\.source\.document=paragraph.*data\.source\.validation_fraction=0 ",
    ),
    "too few to keep any": (lambda d: text(d, "one file", validation_fraction=0.999), r"on the train side"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_what_is_wrong_is_a_data_error_that_says_where(case, tmp_path):
    make, pattern = BAD_TEXT[case]
    with pytest.raises(DataError, match=pattern) as raised:
        source = make(tmp_path)
        for split in ("train", "validation"):
            list(sources.documents(source, split, "unused"))
    assert raised.value.exit_code == 3
    assert "\n" not in str(raised.value)


def test_an_unknown_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no data set 'no_such_set' \(data\.source\.dataset\)"):
        train(TfdsSource(dataset="no_such_set", directory=str(tmp_path)))
    assert not list(tmp_path.iterdir())
