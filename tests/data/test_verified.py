"""Large files that were found whole are not read again until something has written to them."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from data import store, tokenizer, verified
from data.encoding import TextEncoder
from data.errors import DataError
from data.store import Store
from data.store_writer import Piece, write_store


@pytest.fixture
def opened(tmp_path, monkeypatch) -> Store:
    """A store of several shards that counts as large, and as settled."""
    monkeypatch.setattr(store, "SHARD_TOKENS", 100)
    monkeypatch.setattr(verified, "REMEMBERED", 100)
    monkeypatch.setattr(verified, "SETTLED", 0)
    store.write(tmp_path / "store", ["some text"] * 50, tokenizer.byte_tokenizer(), about={})
    time.sleep(0.02)  # longer than the kernel's clock ticks
    return Store(tmp_path / "store")


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the files whose digests were taken."""
    names, take = [], verified.sha256_file

    def counted(path):
        names.append(Path(path).name)
        return take(path)

    monkeypatch.setattr(verified, "sha256_file", counted)
    return names


def flip(path: Path, offset: int = 5):
    """Changes a byte in place and sets the times of change back, as far as a program can."""
    status = path.stat()
    with open(path, "r+b") as file:
        content = file.read()
        file.seek(offset)
        file.write(bytes([content[offset] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns


def test_files_are_read_once(opened, read):
    opened.verify(every_byte=False)
    assert sorted(read) == sorted(opened.header["files"])
    read.clear()
    opened.verify(every_byte=False)
    assert read == []
    opened.verify()
    assert sorted(read) == sorted(opened.header["files"])


def test_a_flipped_byte_is_found_though_its_time_was_set_back(opened, read):
    opened.verify(every_byte=False)
    read.clear()
    flip(opened.directory / "tokens-00002.bin")
    with pytest.raises(DataError, match="tokens-00002.bin is damaged"):
        opened.verify(every_byte=False)
    assert read == ["tokens-00002.bin"]
    flip(opened.directory / "tokens-00002.bin")
    opened.verify(every_byte=False)


@pytest.mark.parametrize("change", ["exchanged", "cut", "copied", "new header", "touched"])
def test_what_is_not_the_file_that_was_read_is_read(change, opened, read, tmp_path):
    opened.verify(every_byte=False)
    read.clear()
    path = opened.directory / "tokens-00001.bin"
    if change == "exchanged":
        other = opened.directory / "tokens-00003.bin"
        path.rename(tmp_path / "x")
        other.rename(path)
        (tmp_path / "x").rename(other)
        opened.verify(every_byte=False)  # these shards have the same content
        assert sorted(read) == ["tokens-00001.bin", "tokens-00003.bin"]
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-2])
        with pytest.raises(DataError, match="tokens-00001.bin has 198 bytes"):
            opened.verify(every_byte=False)
    elif change == "copied":
        shutil.copytree(opened.directory, tmp_path / "copy")
        shutil.copy(verified.memory_of(opened.directory), verified.memory_of(tmp_path / "copy"))
        Store(tmp_path / "copy").verify(every_byte=False)
        assert sorted(read) == sorted(opened.header["files"])
    elif change == "new header":
        files = {**opened.header["files"], "tokens-00001.bin": {"bytes": 200, "sha256": "0" * 64}}
        assert "tokens-00001.bin is damaged" in verified.problems(opened.directory, files, False)[0]
    else:
        path.touch()
        opened.verify(every_byte=False)
        assert read == ["tokens-00001.bin"]


def test_small_stores_are_read_each_time(opened, read, monkeypatch):
    monkeypatch.setattr(verified, "REMEMBERED", 1 << 28)
    for _ in range(2):
        read.clear()
        opened.verify(every_byte=False)
        assert sorted(read) == sorted(opened.header["files"])
    assert not verified.memory_of(opened.directory).exists()


def test_a_file_written_just_now_is_not_remembered(opened, read, monkeypatch):
    """Another change within the same tick of the clock would have the same time."""
    monkeypatch.setattr(verified, "SETTLED", 60 * 10**9)
    opened.verify(every_byte=False)
    read.clear()
    opened.verify(every_byte=False)
    assert sorted(read) == sorted(opened.header["files"])


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", json.dumps({"tokens-00000.bin": 3}).encode()])
def test_a_memory_that_cannot_be_read_is_none(content, opened, read):
    verified.memory_of(opened.directory).write_bytes(content)
    opened.verify(every_byte=False)
    assert sorted(read) == sorted(opened.header["files"])


def test_a_file_that_cannot_be_read_to_its_end_is_named(opened, monkeypatch):
    def failing(path):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(verified, "sha256_file", failing)
    with pytest.raises(DataError, match="tokens-00003.bin cannot be read: Input/output error"):
        opened.verify()


def test_a_damaged_store_leaves_no_memory(opened):
    flip(opened.directory / "tokens-00000.bin")
    with pytest.raises(DataError, match="tokens-00000.bin is damaged"):
        opened.verify(every_byte=False)
    assert not verified.memory_of(opened.directory).exists()


def test_a_store_that_may_only_be_read_is_read_each_time(opened, read, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(verified, "write_durably", refused)
    for _ in range(2):
        read.clear()
        opened.verify(every_byte=False)
        assert sorted(read) == sorted(opened.header["files"])


def test_a_large_store_that_was_verified_is_opened_at_once(tmp_path, monkeypatch):
    """Nothing but the files' facts is looked at: in far less than it takes to read them."""
    monkeypatch.setattr(verified, "SETTLED", 0)
    ids = np.full(1 << 24, 65, "<u2")
    ids[0] = 256
    part = Piece(ids, np.array([ids.size], np.uint64), {}, 256, ids.size - 1, 0)
    encoder = TextEncoder(tokenizer.byte_tokenizer())
    write_store(tmp_path / "store", [part] * 9, encoder, {}, store.SHARD_TOKENS)
    time.sleep(0.02)
    opened = Store(tmp_path / "store")
    assert sum(record["bytes"] for record in opened.header["files"].values()) > verified.REMEMBERED
    opened.verify(every_byte=False)
    began = time.monotonic()
    again = Store(tmp_path / "store")
    again.verify(every_byte=False)
    assert time.monotonic() - began < 0.1
    assert np.array_equal(again.tokens(0, 9), opened.tokens(0, 9))
