"""What cannot be read is an error that names file and place and a fix, or is counted under a stated tolerance."""

import gzip
import json
import os
import re

import pyarrow
import pyarrow.parquet
import pytest

from data import sources
from data.config import Data, check
from data.errors import ConfigError, DataError
from data.source_config import ArrayRecordSource, CsvSource, TextSource, TfdsSource
from tests.data.readers.formats import SOURCES, WRITERS, source, train, warc_record, write_array_record, write_parquet


def written(directory, name: str, content: bytes, **fields):
    path = directory / "a.file"
    path.write_bytes(content)
    return source(name, path, **fields)


def parquet(directory, values, **fields):
    write_parquet(directory / "a.file", values)
    return source("parquet", directory / "a.file", **fields)


def array_record(directory, *records: bytes, **fields):
    write_array_record(directory / "a.file", list(records))
    return source("array_record", directory / "a.file", **fields)


def damaged(directory, config, place: int):
    content = bytearray((directory / "a.file").read_bytes())
    content[place] ^= 0xFF
    (directory / "a.file").write_bytes(content)
    return config


def cut(directory, config, size: int):
    content = (directory / "a.file").read_bytes()
    (directory / "a.file").write_bytes(content[:-size])
    return config


def http(head: str, body: bytes) -> bytes:
    return warc_record("response", head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)


NOT_UTF8 = pyarrow.array([b"good", b"na\xefve"], pyarrow.binary()).view(pyarrow.string())
GB18030 = "第一行\n第二行\n".encode("gb18030")
BAD = {
    "Chinese of another encoding": (lambda d: written(d, "paragraph", GB18030), r"line 1, is 0x.*iconv .*GB18030"),
    "UTF-16": (lambda d: written(d, "paragraph", "中".encode("utf-16")), r"byte 0, in line 1, .* iconv -f UTF-16 -t"),
    "gzip under another name": (lambda d: written(d, "jsonl", gzip.compress(b"{}")), r"let its name end in \.gz\."),
    "a null in Parquet": (lambda d: parquet(d, ["a", None]), r"a\.file, row 1: 'text' .* is null, expected text"),
    "an empty text in Parquet": (lambda d: parquet(d, ["a", "  "]), r"a\.file, row 1: 'text' .* is empty\. Mend"),
    "no rows": (lambda d: parquet(d, pyarrow.array([], pyarrow.string())), r"a\.file .* holds no rows\. Remove"),
    "not UTF-8 in Parquet": (lambda d: parquet(d, NOT_UTF8), r"a\.file, row 1 is not UTF-8: .*0xef"),
    "a wrong column": (lambda d: parquet(d, ["a"], field="body"), r"no column 'body' .*field\); it has text\."),
    "no Parquet": (lambda d: written(d, "parquet", b"text"), r"a\.file cannot be read as Parquet.*Restore"),
    "cut Parquet": (lambda d: cut(d, parquet(d, ["a"]), 9), r"a\.file cannot be read as Parquet.*Restore"),
    "numbers in Parquet": (lambda d: parquet(d, [1, 2]), r"row 0: 'text' .* is 1, expected text"),
    "a key missing below": (
        lambda d: written(d, "jsonl", b'{"meta": {"body": "a"}}\n', field="meta.text"),
        r"line 1 has no key 'meta\.text' \(data\.source\.field\); the keys of 'meta' are 'body'",
    ),
    "an empty text in JSON": (lambda d: written(d, "jsonl", b'\n{"text": ""}\n'), r"line 2: 'text' .* is empty"),
    "a short row": (
        lambda d: written(d, "csv", b"id,text\n1,a\n2\n"),
        r"line 3 has 1 values for the 2 columns id, text",
    ),
    "an open quote": (lambda d: written(d, "csv", b'text\na\n"b\nc\n'), r"line 3 opens a quote .*data\.source\.quote"),
    "text behind a quote": (lambda d: written(d, "csv", b'text\n"a"b\n'), r"line 2 is not valid CSV"),
    "a lone carriage return": (
        lambda d: written(d, "csv", b"text\na\rb\n"),
        r"line 2 is not valid CSV: [^?]*field\. Mend",
    ),
    "not UTF-8 in CSV": (lambda d: written(d, "csv", b'text\n"a\n\xff"\n'), r"byte 8, in line 3, is 0xff"),
    "a header that is not UTF-8": (lambda d: written(d, "csv", b"te\xfft\na\n"), r"byte 2, in line 1, is 0xff"),
    "a wrong column in CSV": (
        lambda d: written(d, "csv", b"a,b\n1,2\n"),
        r"has no column 'text' \(data\.source\.field\); it has a, b",
    ),
    "two columns of a name": (lambda d: written(d, "csv", b"text,text\n1,2\n"), r"two columns 'text'. Rename one"),
    "a header alone": (lambda d: written(d, "csv", b"id,text\n"), r"a\.file of data\.source holds no document"),
    "no WARC": (lambda d: written(d, "warc", b"text\n"), r"record 1 does not begin with WARC/, but b'text.n'"),
    "a cut record": (
        lambda d: cut(d, written(d, "warc", warc_record("conversion", b"12345678")), 7),
        r"record 1 ends after 5 of 8 bytes",
    ),
    "a record without length": (lambda d: written(d, "warc", b"WARC/1.0\r\n\r\n"), r"record 1 has Content-Length ''"),
    "no conversion": (lambda d: written(d, "warc", warc_record("warcinfo", b"x")), r"a\.file .* holds no document"),
    "not UTF-8 in a conversion": (
        lambda d: written(d, "warc", warc_record("conversion", b"a") + warc_record("conversion", b"\xff")),
        r"record 2 is not UTF-8: byte 0",
    ),
    "a page of an unknown charset": (
        lambda d: written(d, "warc", http("HTTP/1.1 200 OK\nContent-Type: text/html; charset=nope", b"a")),
        r"record 1 is said to be nope, which Python cannot decode",
    ),
    "a page of another charset": (
        lambda d: written(d, "warc", http("HTTP/1.1 200 OK\nContent-Type: text/html; charset=gb2312", b"\xff")),
        r"record 1 is not gb2312: byte 0",
    ),
    "a page that is no gzip": (
        lambda d: written(d, "warc", http("HTTP/1.1 200 OK\nContent-Encoding: gzip", b"a")),
        r"record 1: its body is no valid gzip",
    ),
    "a page of broken chunks": (
        lambda d: written(d, "warc", http("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"9\r\nab")),
        r"record 1: its body is cut",
    ),
    "no ArrayRecord": (
        lambda d: written(d, "array_record", b"text"),
        r"a\.file cannot be read as ArrayRecord.*Restore",
    ),
    "no records": (lambda d: array_record(d), r"a\.file cannot be read as ArrayRecord.*Restore|holds no records"),
    "a damaged ArrayRecord": (
        lambda d: damaged(d, array_record(d, b"a" * 100, b"b" * 100), 120),
        r"a\.file cannot be read as ArrayRecord.*hash mismatch",
    ),
    "a cut ArrayRecord": (
        lambda d: cut(d, array_record(d, b"a", b"b"), 70_000),
        r"a\.file cannot be read as ArrayRecord",
    ),
    "a record that is not UTF-8": (
        lambda d: array_record(d, b"a", b"\xff"),
        r"record 1: its text is not UTF-8: byte 0",
    ),
    "a record that is no JSON": (lambda d: array_record(d, b"{", content="json"), r"record 0 is not valid JSON"),
    "a record without the key": (
        lambda d: array_record(d, b'{"body": "a"}', content="json"),
        r"record 0 has no key 'text' .*'body'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_it_is_a_data_error_that_says_where(case, tmp_path):
    make, pattern = BAD[case]
    with pytest.raises(DataError, match=pattern) as raised:
        train(make(tmp_path))
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
    assert ".." not in str(raised.value)


TEXTS = [f"text {i}" for i in range(19)]


def with_one_bad(name: str, directory):
    """A file of 19 sound records and one malformed, the tenth."""
    path = directory / "a.file"
    if name == "parquet":
        write_parquet(path, [*TEXTS[:9], None, *TEXTS[9:]])
    elif name == "array_record":
        write_array_record(
            path, [*(text.encode() for text in TEXTS[:9]), b"\xff", *(text.encode() for text in TEXTS[9:])]
        )
    else:
        WRITERS[name](path, [*TEXTS[:9], "MARK", *TEXTS[9:]])
        path.write_bytes(path.read_bytes().replace(b"MARK", b"M\xffRK"))
    return path


@pytest.mark.parametrize("name", SOURCES)
def test_malformed_records_pass_under_a_tolerance_and_are_counted(name, tmp_path):
    path = with_one_bad(name, tmp_path)
    reader = sources.reader(source(name, path, tolerance=0.05), "unused")
    assert list(reader.documents("train")) == TEXTS
    assert reader.counts == {"malformed": 1}
    with pytest.raises(
        DataError, match=r"1 of 20 records of .*a\.file .*tolerance=0\.04 allows\. The first: .*a\.file"
    ):
        train(source(name, path, tolerance=0.04))
    with pytest.raises(DataError, match=r"a\.file"):
        train(source(name, path))


def test_the_tolerated_share_is_exact(tmp_path):
    """29 of 100 are 0.29 of them, which 0.29 * 100 is not in binary."""
    (tmp_path / "a.file").write_text('{"text": "a"}\n' * 71 + "{\n" * 29)
    assert len(train(source("jsonl", tmp_path / "a.file", tolerance=0.29))) == 71
    with pytest.raises(DataError, match="29 of 100 records"):
        train(source("jsonl", tmp_path / "a.file", tolerance=0.28))


def test_a_malformed_record_is_counted_on_one_side(tmp_path):
    reader = sources.reader(
        source("jsonl", with_one_bad("jsonl", tmp_path), tolerance=0.5, validation_fraction=0.3), "unused"
    )
    found = [*reader.documents("validation"), *reader.documents("train")]
    assert sorted(found) == sorted(TEXTS) and reader.counts == {"malformed": 1}


def test_names_of_files_are_any_text(tmp_path):
    path = tmp_path / "数据 １" / "文本.jsonl"
    path.parent.mkdir()
    path.write_text('{"text": "a"}\n{\n')
    assert train(source("jsonl", tmp_path / "数据*" / "*.jsonl", tolerance=0.5)) == ["a"]
    with pytest.raises(DataError, match="数据 １/文本.jsonl, line 2 is not valid JSON"):
        train(source("jsonl", path))
    try:
        with open(os.fsencode(tmp_path) + b"/\xff.jsonl", "w") as file:
            file.write("{}")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(
        DataError, match=r"udcff\.jsonl' in data\.source\.paths has a name that is not UTF-8\. Rename it"
    ):
        train(source("jsonl", tmp_path / "*.jsonl"))


def test_a_file_without_documents_among_others(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"b\.jsonl of data\.source holds no document\. Remove it"):
        train(source("jsonl", tmp_path / "*.jsonl", tolerance=0.5))


def test_no_tolerance_hides_a_broken_file(tmp_path):
    for name, content in {
        "csv": b'text\na\nb\n"c\nd\n',
        "warc": warc_record("conversion", b"a") + warc_record("conversion", b"bc")[:-5],
    }.items():
        with pytest.raises(DataError, match="opens a quote|the file is cut"):
            train(written(tmp_path, name, content, tolerance=0.9))


def test_no_tolerance_takes_a_row_for_the_header(tmp_path):
    with pytest.raises(DataError, match=r"byte 2, in line 1, is 0xff"):
        train(written(tmp_path, "csv", b"te\xfft\ntext\na\n", tolerance=0.9))


def test_a_damaged_page_is_found_by_its_checksum(tmp_path):
    table = pyarrow.table({"text": ["a" * 100, "b" * 100]})
    options = {"write_page_checksum": True, "compression": "none", "use_dictionary": False, "write_statistics": False}
    pyarrow.parquet.write_table(table, tmp_path / "a.file", **options)
    content = (tmp_path / "a.file").read_bytes()
    assert train(source("parquet", tmp_path / "a.file")) == ["a" * 100, "b" * 100]
    (tmp_path / "a.file").write_bytes(content.replace(b"aaaa", b"aaab", 1))
    with pytest.raises(DataError, match=r"a\.file cannot be read: .*checksum.*Restore it"):
        train(source("parquet", tmp_path / "a.file"))


def test_wrong_columns_list_those_there_are(tmp_path):
    cases = {
        "jsonl": (b'{"prompt": "a", "reply": "b"}\n', r"line 1 has no key 'answer'; its keys are 'prompt', 'reply'"),
        "csv": (b"prompt,reply\na,b\n", r"has no column 'answer'; it has prompt, reply"),
    }
    for name, (content, pattern) in cases.items():
        with pytest.raises(DataError, match=pattern):
            train(written(tmp_path, name, content), columns=("prompt", "answer"))


def test_what_has_no_columns_says_so(tmp_path):
    array_record(tmp_path, b"a")
    for config in (
        TextSource(paths=(f"{tmp_path}/a.file",)),
        ArrayRecordSource(paths=(f"{tmp_path}/a.file",)),
    ):
        with pytest.raises(ConfigError, match="no columns, but prompt, answer are asked for"):
            sources.reader(config, "unused", columns=("prompt", "answer"))


@pytest.mark.parametrize(
    ("config", "key", "clash"),
    [
        (TextSource(tolerance=0.1), "source.tolerance", "document is file; take paragraph or line"),
        (TextSource(tolerance=1.0), "source.tolerance", "at least 0 and below 1"),
        (CsvSource(delimiter=";;"), "source.delimiter", "one character, tab or empty"),
        (CsvSource(quote=","), "source.quote", "so is the delimiter"),
        (ArrayRecordSource(content="xml"), "source.content", "one of text, json"),
        (TfdsSource(dataset="huggingface:a/b"), "source.dataset", "data.source.dataset=a/b"),
    ],
)
def test_settings_that_cannot_be(config, key, clash):
    (problem,) = check(Data(source=config))
    assert problem[0] == key and re.search(clash, problem[1])


def test_csv_as_it_is_written(tmp_path):
    """Quoted delimiters, quotes and line ends, a byte-order mark, tabs, no header, values beyond the module's limit."""
    content = b'\xef\xbb\xbfid,text\r\n1,"a, ""b""\r\nc"\r\n\r\n2,d\r\n'
    assert train(written(tmp_path, "csv", content)) == ['a, "b"\r\nc', "d"]
    assert train(written(tmp_path, "csv", b"1\ta\n2\tb\n", header=("id", "text"), delimiter="tab")) == ["a", "b"]
    assert train(written(tmp_path, "csv", b'text|id\n"a|1\nb"|2\n', delimiter="|", quote="")) == ['"a', 'b"']
    assert train(written(tmp_path, "csv", b"text\n" + b"x" * 500_000 + b"\n")) == ["x" * 500_000]
    (tmp_path / "a.tsv").write_bytes(b"text\tid\na, b\t1\n")
    assert train(source("csv", tmp_path / "a.tsv")) == ["a, b"]


def test_json_records_of_array_record(tmp_path):
    records = [{"text": f"t{i}", "n": i} for i in range(3)]
    config = array_record(tmp_path, *(json.dumps(record).encode() for record in records), content="json")
    assert train(config) == ["t0", "t1", "t2"]
    assert [record.fields for record in train(config, columns=("n", "text"))] == records
