"""Files behind URLs; without a network each fails within seconds, and what is local never asks for one."""

import contextlib
import functools
import gzip
import http.server
import re
import socket
import socketserver
import threading
import time
import zipfile

import fsspec
import pytest

from data import sources
from data.errors import ConfigError, DataError
from data.readers import remote
from data.source_config import TfdsSource
from tests.data.readers.formats import SOURCES, WRITERS, source, train

TEXTS = [f"text {i} 中" for i in range(20)]


@contextlib.contextmanager
def served(server: type[socketserver.BaseServer], handler):
    with server(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


class Ranges(Quiet):
    """Answers a range of bytes, as object stores do."""

    def send_head(self):
        path = self.translate_path(self.path)
        with open(path, "rb") as file:
            content = file.read()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2]), len(content) - 1)) if asked else (0, len(content) - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[first : last + 1])


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "array_record"])
def test_every_format_behind_a_url(name, tmp_path):
    WRITERS[name](tmp_path / "a.file", TEXTS)
    files = fsspec.filesystem("memory")
    files.pipe(f"/{name}/a.file", (tmp_path / "a.file").read_bytes())
    config = source(name, f"memory://{name}/*.file")
    assert train(config) == TEXTS
    assert train(config, part_bytes=50) == TEXTS
    reader = sources.reader(config, "unused", part_bytes=50)
    assert reader.identity() == sources.reader(config, "unused").identity()
    files.pipe(f"/{name}/a.file", (tmp_path / "a.file").read_bytes())
    assert sources.reader(config, "unused").identity() != reader.identity()


def test_compressed_behind_a_url():
    fsspec.filesystem("memory").pipe("/gz/a.txt.gz", gzip.compress(b"one\n\ntwo"))
    assert train(source("paragraph", "memory://gz/a.txt.gz")) == ["one", "two"]


def test_inside_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b/1.jsonl.gz", gzip.compress(b'{"text": "one"}'))
        archive.writestr("b/2.jsonl", b'{"text": "two"}\n{"text": "three"}')
    config = source("jsonl", f"zip://b/*.jsonl*::{tmp_path}/a.zip")
    assert train(config) == train(config, part_bytes=10) == ["one", "two", "three"]


def test_a_line_in_a_later_part_is_named_by_its_byte():
    fsspec.filesystem("memory").pipe("/bad/a.jsonl", b'{"text": "a"}\n' * 9 + b"{\n")
    with pytest.raises(DataError, match=r"memory://.*a\.jsonl, line 1 behind byte 126 is not valid JSON"):
        train(source("jsonl", "memory://bad/a.jsonl"), part_bytes=120)


@pytest.mark.parametrize("handler", [Quiet, Ranges])
def test_over_http(handler, tmp_path):
    pytest.importorskip("aiohttp")
    WRITERS["jsonl"](tmp_path / "a.jsonl", TEXTS)
    with served(http.server.ThreadingHTTPServer, functools.partial(handler, directory=str(tmp_path))) as address:
        config = source("jsonl", f"{address}/a.jsonl")
        assert train(config) == TEXTS
        reader = sources.reader(config, "unused", part_bytes=100)
        assert list(reader.documents("train")) == TEXTS
        assert (len(reader.parts("train")) > 1) == (handler is Ranges)
        large = "".join(f"line {i} {'x' * 100}\n" for i in range(60_000))  # more than fsspec asks for at a time
        (tmp_path / "large.txt").write_text(large)
        for size in (1 << 20, 1 << 26):
            reader = sources.reader(source("paragraph", f"{address}/large.txt", document="line"), "", None, size)
            assert list(reader.documents("train")) == large.splitlines()
        with pytest.raises(DataError, match=r"none\.jsonl in data\.source\.paths cannot be fetched"):
            train(source("jsonl", f"{address}/none.jsonl"))


def test_one_that_never_answers(monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "CONTACT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(DataError, match=r"http://127.*a\.txt did not answer within 0\.5 s\. .*copy it here"):
            train(source("jsonl", f"http://127.0.0.1:{silent.getsockname()[1]}/a.txt"))
        assert time.monotonic() - started < 5


@contextlib.contextmanager
def no_names(monkeypatch):
    """A machine whose resolver knows nobody, as one without a network."""

    def refuse(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield


@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        (source("jsonl", "https://example.invalid/a.jsonl"), r"https://example\.invalid/a\.jsonl in .* copy it here"),
        (source("parquet", "https://example.invalid/*.parquet"), r"example\.invalid.* cannot be fetched.*copy it here"),
        (TfdsSource(dataset="lm1b"), r"lm1b/1\.1\.0 cannot be prepared here: .*prepare it with TFDS elsewhere"),
        (TfdsSource(dataset="no_such_set"), r"no data set 'no_such_set'"),
    ],
)
def test_no_network(config, pattern, tmp_path, monkeypatch, capfd, caplog):
    if not isinstance(config, TfdsSource):
        pytest.importorskip("aiohttp")
    started = time.monotonic()
    with no_names(monkeypatch), pytest.raises(DataError, match=pattern):
        list(sources.documents(config, "train", str(tmp_path)))
    assert time.monotonic() - started < 10
    assert not caplog.text
    assert capfd.readouterr().err == ""


def test_what_cannot_be_opened_says_what_is_missing():
    with pytest.raises(ConfigError, match=r"nothing://a, which fsspec cannot open: .* It knows s3://"):
        train(source("jsonl", "nothing://a"))
    fsspec.register_implementation("lacking", "no_such_package.Files", errtxt="Get B")
    with pytest.raises(ConfigError, match=r"lacking://a, for which a package is missing here: ImportError: Get B"):
        train(source("jsonl", "lacking://a"))
    with pytest.raises(DataError, match=r"zip://a::/none\.zip, which cannot be opened"):
        train(source("jsonl", "zip://a::/none.zip"))
    with pytest.raises(ConfigError, match=r"ArrayRecord files are read from a disk alone"):
        train(source("array_record", "memory://a"))
    with pytest.raises(DataError, match=r"memory://none\*\.txt in data\.source\.paths matches no file there"):
        train(source("paragraph", "memory://none*.txt"))
    fsspec.filesystem("memory").pipe("/empty/a.txt", b"")
    with pytest.raises(DataError, match=r"memory:///empty/a\.txt in data\.source\.paths is empty"):
        train(source("paragraph", "memory://empty/a.txt"))
    with pytest.raises(DataError, match=r"memory://empty in .* is a directory; write a glob such as"):
        train(source("paragraph", "memory://empty"))


@pytest.mark.parametrize("name", SOURCES)
def test_files_open_no_socket(name, tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a socket")

    WRITERS[name](tmp_path / "a.file", TEXTS)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert train(source(name, tmp_path / "*.file")) == train(source(name, f"file://{tmp_path}/a.file")) == TEXTS
