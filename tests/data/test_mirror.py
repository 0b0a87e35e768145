"""What lies in an object store is copied by many requests at once, file by file, and only what has changed."""

import hashlib
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from fsspec import AbstractFileSystem

from data import mirror, store, tokenizer
from data.config import Data
from data.errors import ConfigError, DataError
from data.prepare import prepare
from data.source_config import StoredSource
from data.store import Store
from data.store_format import header_bytes
from data.tokenizer_config import ByteTokenizer

ROOT = Path(__file__).parents[2]
LATENCY = 0.05  # seconds
TEXTS = [f"text number {i}" for i in range(400)]


class Slow(AbstractFileSystem):
    """Files in memory, each request for which takes LATENCY."""

    protocol = "slow"
    cachable = False
    content: dict[str, bytes] = {}
    requests: list[tuple[str, int | None]] = []
    lock = threading.Lock()
    running = most = 0
    fail_after: int | None = None
    together: threading.Barrier | None = None  # requests wait until so many are running

    def ls(self, path, detail=True, **kwargs):
        path = self._strip_protocol(path).rstrip("/")
        found = {}
        for name, content in self.content.items():
            if name == path:
                found[name] = {"name": name, "size": len(content), "type": "file", "ETag": etag(content)}
            elif name.startswith(f"{path}/"):
                child = f"{path}/{name[len(path) + 1 :].split('/')[0]}"
                known = {"name": child, "size": 0, "type": "directory"}
                if child == name:
                    known = {"name": child, "size": len(content), "type": "file", "ETag": etag(content)}
                found[child] = known
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def cat_file(self, path, start=None, end=None, **kwargs):
        path = self._strip_protocol(path)
        with self.lock:
            type(self).running += 1
            type(self).most = max(self.most, self.running)
            self.requests.append((path, start))
            failing = self.fail_after is not None and len(self.requests) > self.fail_after
        if self.together is not None:
            self.together.wait()
        time.sleep(LATENCY)
        with self.lock:
            type(self).running -= 1
        if failing:
            raise ConnectionError("the cable is cut")
        if path not in self.content:
            raise FileNotFoundError(path)
        return self.content[path][start:end]


def etag(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


fsspec.register_implementation("slow", Slow)


@pytest.fixture(autouse=True)
def slow(monkeypatch):
    Slow.content, Slow.requests, Slow.running, Slow.most, Slow.fail_after, Slow.together = {}, [], 0, 0, None, None
    monkeypatch.setattr(mirror, "TRIES", 1)


def upload(directory: Path, place: str):
    for path in directory.rglob("*"):
        if path.is_file():
            Slow.content[f"{place}/{path.relative_to(directory)}"] = path.read_bytes()


@pytest.fixture
def original(tmp_path, monkeypatch) -> Store:
    """A store of many shards, uploaded to slow://bucket/train."""
    monkeypatch.setattr(store, "SHARD_TOKENS", 100)
    store.write(tmp_path / "original", TEXTS, tokenizer.byte_tokenizer(), about={})
    upload(tmp_path / "original", "bucket/train")
    return Store(tmp_path / "original")


def test_the_latency_is_waited_for_once_and_not_for_each_request(original, tmp_path):
    began = time.monotonic()
    copy = Store(mirror.local("slow://bucket/train", str(tmp_path / "cache")))
    took = time.monotonic() - began
    copy.verify()
    assert copy.fingerprint == original.fingerprint
    assert len(Slow.requests) > 60 and Slow.most > 16  # on a busy machine
    assert took < LATENCY * len(Slow.requests) / 3


def test_a_large_file_is_read_by_64_ranges_at_once(tmp_path, monkeypatch):
    content = os.urandom(127_001)
    Slow.content["bucket/train.bin"] = content
    monkeypatch.setattr(mirror, "RANGE", 1000)
    Slow.together = threading.Barrier(64, timeout=30)
    copy = Path(mirror.local("slow://bucket/train.bin", str(tmp_path)))
    assert copy.read_bytes() == content and copy.name == "train.bin"
    assert len(Slow.requests) == 128 and Slow.most >= 64


def test_a_second_start_asks_for_the_header_alone(original, tmp_path):
    first = mirror.local("slow://bucket/train/", str(tmp_path))
    Slow.requests.clear()
    assert mirror.local("slow://bucket/train/", str(tmp_path)) == first
    assert Slow.requests == [("bucket/train/header.json", None)]


def test_a_cut_fetch_goes_on_with_the_files_that_are_missing(original, tmp_path, capsys):
    Slow.fail_after = 30
    with pytest.raises(DataError, match="ConnectionError: the cable is cut. Run the same command again to go on"):
        mirror.local("slow://bucket/train", str(tmp_path))
    whole = [path for path in tmp_path.glob("mirrors/*/files/train/*") if path.is_file()]
    assert 10 < len(whole) < 31
    Slow.fail_after = None
    Slow.requests.clear()
    copy = Store(mirror.local("slow://bucket/train", str(tmp_path)))
    assert len(Slow.requests) == 1 + len(list(copy.directory.iterdir())) - len(whole)
    copy.verify()


def test_killed_it_goes_on_with_the_files_that_are_missing(original, tmp_path):
    script = (
        "import sys; from tests.data.test_mirror import *\n"
        "upload(Path(sys.argv[1]), 'bucket/train'); put, count = mirror._Fetch._put, [0]\n"
        "def killing(self, one):\n"
        "    put(self, one); count[0] += 1\n"
        "    if count[0] == 20: os.kill(os.getpid(), 9)\n"
        "mirror._Fetch._put = killing; mirror.local('slow://bucket/train', sys.argv[2])\n"
    )
    command = [sys.executable, "-c", script, str(original.directory), str(tmp_path / "cache")]
    assert subprocess.run(command, cwd=ROOT).returncode == -9
    facts = (tmp_path / "cache").glob("mirrors/*/facts/train/*")
    whole = [path for path in facts if path.stat().st_size]
    assert len(whole) >= 20
    copy = Store(mirror.local("slow://bucket/train", str(tmp_path / "cache")))
    assert len(Slow.requests) == 1 + len(list(copy.directory.iterdir())) - len(whole)
    copy.verify()


def test_what_has_changed_is_fetched_again_and_what_is_gone_removed(original, tmp_path, monkeypatch):
    first = Store(mirror.local("slow://bucket/train", str(tmp_path / "cache")))
    store.write(tmp_path / "other", TEXTS[:200], tokenizer.byte_tokenizer(), about={})
    Slow.content.clear()
    Slow.requests.clear()
    upload(tmp_path / "other", "bucket/train")
    second = Store(mirror.local("slow://bucket/train", str(tmp_path / "cache")))
    second.verify()
    assert second.num_documents == 200 and second.directory == first.directory
    assert len(Slow.requests) < 10  # shards before the change are the same
    assert first.document(399).tolist() == original.document(399).tolist()  # who has it open keeps it


def test_a_copy_that_was_damaged_or_deleted_is_fetched_again(original, tmp_path):
    copy = Path(mirror.local("slow://bucket/train", str(tmp_path)))
    (copy / "tokens-00003.bin").unlink()
    (copy / "documents.bin").write_bytes(b"12")
    Slow.requests.clear()
    Store(mirror.local("slow://bucket/train", str(tmp_path))).verify()
    assert sorted(path.rsplit("/", 1)[1] for path, _ in Slow.requests) == [
        *("documents.bin", "header.json", "tokens-00003.bin"),
    ]


def test_damage_on_the_other_side_is_named(original, tmp_path):
    name = "bucket/train/tokens-00002.bin"
    Slow.content[name] = Slow.content[name][:-1] + b"\xff"
    with pytest.raises(DataError, match="tokens-00002.bin of slow://bucket/train is damaged: its SHA-256 is"):
        mirror.local("slow://bucket/train", str(tmp_path))
    Slow.content[name] = Slow.content[name][:-3]
    with pytest.raises(DataError, match="bytes came where .* were asked for"):
        mirror.local("slow://bucket/train", str(tmp_path))
    Slow.content["bucket/train/header.json"] += b" "
    with pytest.raises(DataError, match="header.json is damaged"):
        mirror.local("slow://bucket/train", str(tmp_path))


def test_a_header_that_points_elsewhere_is_refused(original, tmp_path):
    files = {**original.header["files"], "../../escaped": {"bytes": 1, "sha256": "0"}}
    Slow.content["bucket/train/header.json"] = header_bytes({**original.header, "files": files})
    with pytest.raises(DataError, match="escaped.*no file of a token store"):
        mirror.local("slow://bucket/train", str(tmp_path))
    assert not list(tmp_path.rglob("escaped"))


def test_without_an_answer_a_whole_copy_is_read(original, tmp_path, capsys):
    with pytest.raises(DataError, match="cannot be fetched: .*Where there is no network, fetch it elsewhere"):
        mirror.local("slow://bucket/none", str(tmp_path))
    first = mirror.local("slow://bucket/train", str(tmp_path))
    Slow.fail_after = 0
    assert mirror.local("slow://bucket/train", str(tmp_path)) == first
    assert "does not answer: its copy of an earlier start is read" in capsys.readouterr().err
    with pytest.raises(DataError, match="ConnectionError: the cable is cut"):
        mirror.local("slow://bucket/train", str(tmp_path / "elsewhere"))


def test_files_of_other_tools_come_with_what_belongs_to_them(tmp_path):
    ids = [i for text in TEXTS for i in (*text.encode(), 256)]
    half = len(ids) // 2
    Slow.content = {
        "bucket/a/part-0.npy": struct.pack(f"<{half}H", *ids[:half]),
        "bucket/a/part-1.npy": struct.pack(f"<{len(ids) - half}H", *ids[half:]),
        "bucket/a/notes.txt": b"",
        "bucket/b/x.ds": struct.pack("<3H", 1, 2, 3),
        "bucket/b/x.ds.index": struct.pack("<2Q", 2, 3),
        "bucket/b/x.ds.loss": b"123",
        "bucket/c/m.bin": b"12",
        "bucket/c/m.idx": b"34",
    }
    config = Data(cache_dir=str(tmp_path), tokenizer=ByteTokenizer(), source=StoredSource(path="slow://bucket/a/*.npy"))
    assert prepare(config).train.num_tokens == len(ids) + 1
    for url, names in (
        ("slow://bucket/b/x.ds", {"x.ds", "x.ds.index"}),
        ("slow://bucket/c/m", {"m.bin", "m.idx"}),
        ("slow://bucket/c/m.idx", {"m.bin", "m.idx"}),
        ("slow://bucket/a", {"part-0.npy", "part-1.npy", "notes.txt"}),
    ):
        copy = Path(mirror.local(url, str(tmp_path)))
        folder = copy if url.endswith("/a") else copy.parent
        assert {path.name for path in folder.iterdir()} == names, url
    Slow.content["bucket/a/part-1.npy"] = struct.pack("<2H", 5, 256)
    assert prepare(config).train.num_tokens == half + 1 + 2


def test_a_protocol_without_its_package_is_named(tmp_path):
    fsspec.register_implementation("absent", "no_such_package.FileSystem")
    with pytest.raises(ConfigError, match="a package is missing here: .*no_such_package"):
        mirror.local("absent://bucket/train", str(tmp_path))
    with pytest.raises(ConfigError, match="which fsspec cannot open"):
        mirror.local("nonsense://bucket/train", str(tmp_path))


def test_who_does_not_answer_is_not_waited_for(original, tmp_path, monkeypatch):
    monkeypatch.setattr("data.readers.remote.CONTACT", 0.2)
    monkeypatch.setattr(sys.modules[__name__], "LATENCY", 2.0)
    began = time.monotonic()
    with pytest.raises(DataError, match="did not answer within 0.2 s. Where there is no network"):
        mirror.local("slow://bucket/train", str(tmp_path))
    assert time.monotonic() - began < 1


def test_a_local_path_is_itself(tmp_path):
    assert mirror.local("some/where", str(tmp_path)) == "some/where"
    assert mirror.local("~/where", str(tmp_path)) == os.path.expanduser("~/where")
