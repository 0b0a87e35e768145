"""A token store is whole or absent, says which byte of it is wrong, and gives every token back."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from data import encoding, store, store_format, store_writer, tokenizer
from data.encoding import Encoded, TextEncoder
from data.errors import DataError, StorageError
from data.store import Store

ROOT = Path(__file__).parents[2]
TEXTS = ["abc", "", "x", "a longer document\nof two lines", "abc", "é" * 20]


def write(directory: Path, texts=TEXTS, made=None) -> Store:
    store.write(directory, texts, made or tokenizer.byte_tokenizer(), about={"why": "test"})
    return Store(directory)


@pytest.fixture(params=[1 << 28, 7, 1])
def shards(request, monkeypatch) -> int:
    """Tokens a shard: one shard, many, one token each."""
    monkeypatch.setattr(store, "SHARD_TOKENS", request.param)
    return request.param


def test_gives_back_every_document(tmp_path, shards):
    written = write(tmp_path / "store")
    kept = [text for text in TEXTS if text]
    expected = [[256, *text.encode()] for text in kept]
    assert [written.document(i).tolist() for i in range(written.num_documents)] == expected
    stream = sum(expected, [])
    assert written.tokens(0, written.num_tokens).tolist() == stream
    for start in range(len(stream) + 1):
        for stop in range(start, len(stream) + 1):
            assert written.tokens(start, stop).tolist() == stream[start:stop]
    assert written.num_tokens == len(stream)
    assert written.text_bytes == sum(len(text.encode()) for text in TEXTS)
    assert (written.max_token, written.end_of_text) == (256, 256)
    assert written.header["empty_documents"] == 1
    assert written.header["about"] == {"why": "test"}
    assert written.document_starts.tolist() == [sum(map(len, expected[:i])) for i in range(len(expected))]
    written.verify()


def test_reading_outside_is_an_error(tmp_path):
    written = write(tmp_path / "store")
    for start, stop in ((-1, 2), (0, written.num_tokens + 1), (3, 2)):
        with pytest.raises(IndexError):
            written.tokens(start, stop)
    with pytest.raises(IndexError):
        written.document(written.num_documents)


def test_batches_of_text_change_nothing(tmp_path, monkeypatch):
    expected = write(tmp_path / "one").fingerprint
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 1)
    assert write(tmp_path / "many").fingerprint == expected


def test_fingerprint_is_of_content_alone(tmp_path):
    first = write(tmp_path / "first")
    os.utime(tmp_path / "first" / "tokens-00000.bin", (1, 1))
    store.write(tmp_path / "again", TEXTS, tokenizer.byte_tokenizer(), about={"another": 1})
    assert Store(tmp_path / "again").fingerprint == first.fingerprint
    assert Store(tmp_path / "first").fingerprint == first.fingerprint
    assert write(tmp_path / "text", [*TEXTS, "y"]).fingerprint != first.fingerprint


def words(path: Path, size: int) -> tokenizer.Tokenizer:
    """A tokenizer of the words w1 ... w<size - 1>, and of an end of text."""
    library = tokenizers.Tokenizer(
        models.WordLevel({"</s>": 0, **{f"w{i}": i for i in range(1, size)}}, unk_token="w1")
    )
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.save(str(path))
    return tokenizer.load(path)


class Given(TextEncoder):
    """Documents that are lists of ids."""

    def __call__(self, documents):
        return Encoded([np.array(ids, np.uint32) for ids in documents], {}, 0, 0)


def test_fingerprint_is_of_borders_and_tokenizer_too(tmp_path):
    """The same ids with other borders, or made by another tokenizer, are another store."""
    small, large = words(tmp_path / "small.json", 5), words(tmp_path / "large.json", 6)
    stores = []
    for name, made, documents in (
        ("two", small, [[1], [2]]),
        ("one", small, [[1, 0, 2]]),
        ("other", large, [[1], [2]]),
    ):
        store_writer.write_store(
            tmp_path / name, store_writer.pieces(Given(made), [documents]), Given(made), {}, store.SHARD_TOKENS
        )
        stores.append(Store(tmp_path / name))
    assert [opened.tokens(0, 4).tolist() for opened in stores] == [[0, 1, 0, 2]] * 3
    assert [opened.num_documents for opened in stores] == [2, 1, 2]
    assert len({opened.fingerprint for opened in stores}) == 3


@pytest.mark.parametrize(
    "size, dtype",
    [(256, "uint8"), (257, "uint16"), (1 << 16, "uint16"), ((1 << 16) + 1, "uint32"), (1 << 32, "uint32")],
)
def test_width_is_the_narrowest_that_holds_the_vocabulary(size, dtype):
    assert store_format.width(size) == dtype


@pytest.mark.parametrize("size", [200, 300, 70_000])
def test_every_width_holds_its_largest_id(size, tmp_path):
    written = write(tmp_path / "store", [f"w{size - 1} w2"], words(tmp_path / "words.json", size))
    assert written.tokens(0, 3).tolist() == [0, size - 1, 2]
    assert written.dtype.name == store_format.width(size)
    assert written.tokenizer.decode(written.document(0)) == f"w{size - 1} w2"
    store.check_vocabulary(written, size)
    with pytest.raises(DataError, match=rf"Token 1 of .* is {size - 1}, but model.vocab_size is {size - 1}"):
        store.check_vocabulary(written, size - 1)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_store_is_an_error_and_leaves_nothing(texts, tmp_path):
    with pytest.raises(DataError, match="No document"):
        write(tmp_path / "below" / "store", texts)
    assert not list(tmp_path.rglob("*store*"))


def test_a_failing_source_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 1)

    def texts():
        yield from ("one", "two", "three")
        raise DataError("line 4 is no text")

    with pytest.raises(DataError, match="line 4"):
        write(tmp_path / "store", texts())
    assert not list(tmp_path.iterdir())


def test_an_older_store_is_replaced_whole(tmp_path):
    old = write(tmp_path / "store", ["old text"])
    new = write(tmp_path / "store", ["new"])
    assert new.document(0).tolist() == [256, *b"new"]
    assert old.document(0).tolist() == [256, *b"old text"]  # who has it open keeps it
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_disk_that_refuses_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        write(tmp_path / "file" / "store")


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path):
    script = (
        "import resource, signal, sys; from data import store; from data.errors import StorageError\n"
        "from data.tokenizer import byte_tokenizer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: store.write(sys.argv[1], ['x' * 10000], byte_tokenizer(), about={})\n"
        "except StorageError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "File too large" in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("old", [False, True])
def test_killed_at_any_moment_leaves_a_whole_store_or_none(old, tmp_path):
    command = [sys.executable, str(Path(__file__).parent / "killed_writer.py"), str(tmp_path), str(int(old))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    statuses = list(map(int, output.split()))
    assert len(statuses) > 12
    assert statuses == [signal.SIGKILL] * (len(statuses) - 1) + [0]
    seen = set()
    for number in range(1, len(statuses) + 1):
        directory = tmp_path / str(number) / "store"
        if directory.exists():
            Store(directory).verify()
            seen.add(chr(Store(directory).document(0)[1]))
        else:
            seen.add("none")
        assert write(directory, ["after"]).document(0).tolist() == [256, *b"after"]
        assert [path.name for path in directory.parent.iterdir()] == ["store"]
    assert seen == ({"o", "n", "none"} if old else {"n", "none"})


def test_a_living_writer_is_not_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 1)

    def texts():
        yield "one"
        yield "two"
        store_writer.sweep(tmp_path / "store")  # as another writer of the same store does when it starts
        yield "three"

    assert write(tmp_path / "store", texts()).num_documents == 3


def damage(path: Path, offset: int):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << (offset % 8)
    path.write_bytes(content)


def names(pattern: str, directory: Path):
    with pytest.raises(DataError, match=pattern) as raised:
        Store(directory).verify()
    assert str(directory) in str(raised.value)


def test_every_flipped_byte_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_TOKENS", 40)
    write(tmp_path / "store")
    files = sorted(path.name for path in (tmp_path / "store").iterdir())
    shards = [f"tokens-{index:05d}.bin" for index in range(3)]
    assert files == ["documents.bin", "header.json", "tokenizer.json", *shards]
    for name in files:
        path = tmp_path / "store" / name
        content = path.read_bytes()
        for offset in range(0, len(content), 97 if name == "tokenizer.json" else 1):
            damage(path, offset)
            names(name, path.parent)
            path.write_bytes(content)
    Store(tmp_path / "store").verify()


def test_damage_to_the_header_or_a_length_is_seen_on_opening(tmp_path):
    write(tmp_path / "whole")
    for name in os.listdir(tmp_path / "whole"):
        for change in ("truncated", "emptied", "longer", "missing"):
            copy = tmp_path / f"{name}-{change}"
            shutil.copytree(tmp_path / "whole", copy)
            content = (copy / name).read_bytes()
            changed = {"truncated": content[:-1], "emptied": b"", "longer": content + b"\n"}.get(change)
            (copy / name).unlink()
            if changed is not None:
                (copy / name).write_bytes(changed)
            with pytest.raises(DataError) as raised:
                Store(copy)
            assert str(copy / name) in str(raised.value)
            if name != "header.json" and changed is not None:
                assert f"{len(changed)} bytes, the header says {len(content)}" in str(raised.value)


def test_a_foreign_file_is_named(tmp_path):
    write(tmp_path / "store")
    (tmp_path / "store" / "tokens-00009.bin").write_bytes(b"\0")
    names("tokens-00009.bin", tmp_path / "store")


def test_another_format_or_version_is_refused(tmp_path):
    written = write(tmp_path / "store")
    for change in ({"version": 3}, {"format": "something else"}):
        (tmp_path / "store" / "header.json").write_bytes(store_format.header_bytes({**written.header, **change}))
        with pytest.raises(DataError, match="header.json is a"):
            Store(tmp_path / "store")


def test_a_tokenizer_of_another_store_is_refused(tmp_path):
    write(tmp_path / "store")
    path = tmp_path / "store" / "tokenizer.json"
    content = path.read_bytes()
    swapped = content.replace(b'"A": 65', b'"A": 66').replace(b'"B": 66', b'"B": 65')
    assert len(swapped) == len(content) and swapped != content
    path.write_bytes(swapped)
    with pytest.raises(DataError, match="tokenizer.json"):
        Store(tmp_path / "store").tokenizer  # noqa: B018


def test_opening_allocates_nothing_that_grows_with_the_store(tmp_path):
    written = write(tmp_path / "store", ["x" * 1000] * 1000)
    assert not written.document_starts.flags.owndata
    assert not written.tokens(5, 500_000).flags.owndata
    assert isinstance(written.tokens(0, 9), np.ndarray)
    digest = hashlib.sha256(written.tokens(0, written.num_tokens).tobytes()).hexdigest()
    assert digest == written.header["files"]["tokens-00000.bin"]["sha256"]
