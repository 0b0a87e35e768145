"""Compressed files are read to their end, concatenated streams included; one that is cut is an error."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pytest

from data import sources
from data.errors import DataError
from tests.data.readers.formats import source, train

COMPRESS = {
    ".gz": gzip.compress,
    ".zst": lambda content: pyarrow.compress(content, "zstd", asbytes=True),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def lines(first: int, last: int) -> bytes:
    return "".join(json.dumps({"text": f"text {i} 中"}) + "\n" for i in range(first, last)).encode()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_concatenated_streams(suffix, tmp_path):
    path, compress = tmp_path / f"a.jsonl{suffix}", COMPRESS[suffix]
    content = lines(0, 5000)
    path.write_bytes(compress(content[:1001]) + compress(content[1001:]))
    config = source("jsonl", path)
    assert train(config) == [f"text {i} 中" for i in range(5000)]
    assert sources.reader(config, "unused", part_bytes=10).parts("train") == [(str(path), 0, -1)]


@pytest.mark.parametrize("cut", [1, 9, 2000])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_cut_streams(suffix, cut, tmp_path):
    path, compress = tmp_path / f"a.jsonl{suffix}", COMPRESS[suffix]
    path.write_bytes((compress(lines(0, 10)) + compress(lines(10, 5000)))[:-cut])
    with pytest.raises(DataError, match=rf"a\.jsonl{suffix} cannot be read: .*Restore it, or remove it"):
        train(source("jsonl", path, tolerance=0.5))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_other_content(suffix, tmp_path):
    (tmp_path / f"a.jsonl{suffix}").write_bytes(lines(0, 1000))
    with pytest.raises(DataError, match=rf"a\.jsonl{suffix} cannot be read"):
        train(source("jsonl", tmp_path / f"a.jsonl{suffix}"))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_nothing(suffix, tmp_path):
    (tmp_path / f"a.txt{suffix}").write_bytes(COMPRESS[suffix](b""))
    with pytest.raises(DataError, match=rf"a\.txt{suffix} is empty\. Remove it"):
        train(source("paragraph", tmp_path / f"a.txt{suffix}"))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text_and_tables_too(suffix, tmp_path):
    compress = COMPRESS[suffix]
    (tmp_path / f"a.txt{suffix}").write_bytes(compress("one\n\n中".encode()))
    assert train(source("paragraph", tmp_path / f"a.txt{suffix}")) == ["one", "中"]
    (tmp_path / f"a.tsv{suffix}").write_bytes(compress(b'id\ttext\n1\t"a\nb"\n'))
    assert train(source("csv", tmp_path / f"a.tsv{suffix}")) == ["a\nb"]
