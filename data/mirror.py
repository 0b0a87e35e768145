"""Copies of token stores, and of other tools' files, from an object store to below `data.cache_dir`.

What fsspec can open is copied: s3://, gs://, https:// and more. A copy is made by CONCURRENT range reads at a time,
so that the latency of a request, not its number, is waited for. Each file appears under its name once it is whole: its
length, and in a token store its digest, are as they should be. So a launch that was killed goes on with the files
that are missing. At each start the other side is asked whether something has changed; if it does not answer and the
copy is whole, the copy is read.

`data.cache_dir`/mirrors/<key of the URL>/files holds the copy, `facts` beside it which version of each file that is.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import DataError, UserError
from data.files import locked, sha256_file, storage_errors, sync, write_durably
from data.readers.remote import LOCAL_WAY, answer, facts, is_remote, system, told
from data.store_format import FORMAT, HEADER, header_bytes

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CONCURRENT = 64  # requests at a time
RANGE = 4 << 20  # bytes a request; CONCURRENT times as much is held in memory
TRIES = 3  # of a request
INTERVAL = 10.0  # seconds between lines of progress
HASH_DIGITS = 16
GLOB = "*?["
# What belongs to a file by its ending, in the layouts of other tools.
FILES = (".bin", ".idx", ".npy", ".ds")
SIBLINGS = {".bin": (".idx",), ".idx": (".bin",), ".ds": (".ds.index", ".ds.metadata")}


@dataclass
class _Wanted:
    """A file on the other side."""

    remote: str  # its path there
    name: str  # below `files`
    size: int | None  # bytes; None: nobody says
    facts: dict  # JSON-able, others when the content is another
    sha256: str | None = None
    left: int = field(default=0, compare=False)  # requests that are not answered yet


def local(path: str, cache_dir: str) -> str:
    """`path` on this machine: itself, or where the copy of what is at a URL lies.

    Raises ConfigError where the package for a URL is missing, DataError where nothing is there, nobody answers or what
    comes is not what it should be, StorageError when the disk refuses.
    """
    if not is_remote(path):
        return os.path.expanduser(path)
    files, place = system(path)
    place = place.rstrip("/")
    folder = Path(cache_dir) / "mirrors" / hashlib.sha256(path.encode()).hexdigest()[:HASH_DIGITS]
    found = str(folder / "files" / _relative(place, place))
    try:
        wanted = answer(path, lambda: _wanted(files, place))
    except Exception as error:  # each file system has classes of its own
        if (folder / "whole").exists():
            print(f"prepare: {path} does not answer: its copy of an earlier start is read", file=sys.stderr, flush=True)
            return found
        if isinstance(error, UserError):
            raise
        raise DataError(f"{path} cannot be fetched: {told(error)} {LOCAL_WAY}") from error
    waiting = f"prepare: waiting for another process that fetches {path}"
    with locked(folder.with_name(f".{folder.name}.lock"), waiting), storage_errors(folder):
        _bring_up_to_date(files, wanted, folder, path)
    return found


def _relative(remote: str, place: str) -> str:
    """The name below `files` of a file at or below `place`, or matching it as a glob."""
    plain = place
    while any(character in plain for character in GLOB):
        plain = posixpath.dirname(plain)
    base = plain if plain != place else posixpath.dirname(place)
    return posixpath.relpath(remote, base or ".") if base else remote.lstrip("/")


def _wanted(files: AbstractFileSystem, place: str) -> list[_Wanted]:
    """The files of a token store, or those at `place`, below it or matching it, with what belongs to them."""
    one_file = any(character in place for character in GLOB) or place.endswith(FILES)
    if not one_file and (header := _header(files, place)) is not None:
        content = header_bytes(header)
        strange = [name for name in header["files"] if name.startswith("/") or ".." in name.split("/")]
        if strange:
            raise DataError(f"{place}/{HEADER} names {strange[0]!r}, which is no file of a token store.")
        records = header["files"] | {HEADER: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
        return [
            _Wanted(f"{place}/{name}", _relative(f"{place}/{name}", place), known["bytes"], known, known["sha256"])
            for name, known in records.items()
        ]
    infos = _listed(files, place)
    for name in list(infos):
        stem, ending = posixpath.splitext(name)
        for sibling in (f"{stem}{other}" for other in SIBLINGS.get(ending, ())):
            if sibling not in infos and files.exists(sibling):
                infos[sibling] = files.info(sibling)
    return [
        _Wanted(name, _relative(name, place), info.get("size"), {"size": info.get("size"), **facts(info)})
        for name, info in sorted(infos.items())
    ]


def _header(files: AbstractFileSystem, place: str) -> dict | None:
    """The header of the token store at `place`; None where there is none."""
    try:
        content = files.cat_file(f"{place}/{HEADER}")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    try:
        header = json.loads(content)
        sound = header["format"] == FORMAT and header_bytes(header) == content
    except (ValueError, KeyError, TypeError):
        return None
    if not sound:
        raise DataError(f"{place}/{HEADER} is damaged: its content does not match its own SHA-256. Copy it there anew.")
    return header


def _listed(files: AbstractFileSystem, place: str) -> dict[str, dict]:
    if any(character in place for character in GLOB):
        found = files.glob(place, detail=True)
    elif files.isdir(place):
        found = files.find(place, detail=True)
    elif files.exists(place):
        found = {place: files.info(place)}
    else:  # the prefix of a pair of files
        found = {name: files.info(name) for name in (f"{place}.bin", f"{place}.idx") if files.exists(name)}
    found = {name: info for name, info in found.items() if info.get("type") != "directory"}
    if not found:
        raise FileNotFoundError(f"no file is at {place}, below it or matches it")
    return found


def _bring_up_to_date(files: AbstractFileSystem, wanted: list[_Wanted], folder: Path, url: str):
    known = {one.name: json.dumps(one.facts, sort_keys=True) for one in wanted}
    kept = {str(path.relative_to(folder / "facts")): path for path in (folder / "facts").rglob("*") if path.is_file()}
    changed = [
        one
        for one in wanted
        if one.name not in kept or kept[one.name].read_text() != known[one.name] or not _is_there(folder, one)
    ]
    gone = kept.keys() - known.keys()
    if (folder / "whole").exists() and not changed and not gone:
        return
    (folder / "whole").unlink(missing_ok=True)
    for name in gone | {one.name for one in changed}:
        (folder / "facts" / name).unlink(missing_ok=True)
        (folder / "files" / name).unlink(missing_ok=True)
    if changed:
        amount = sum(one.size or 0 for one in changed)
        print(f"prepare: fetching {len(changed):,} files, {amount:,} bytes, of {url}", file=sys.stderr, flush=True)
    _Fetch(files, folder, url).all(changed)
    write_durably(folder / "whole", b"")
    sync(folder)


def _is_there(folder: Path, one: _Wanted) -> bool:
    path = folder / "files" / one.name
    return path.is_file() and one.size in (None, path.stat().st_size)


class _Fetch:
    """Fetches files by ranges, many at a time."""

    def __init__(self, files: AbstractFileSystem, folder: Path, url: str):
        self.files, self.folder, self.url = files, folder, url
        self.lock = threading.Lock()

    def all(self, wanted: list[_Wanted]):
        """Raises the first error of any request, once those that have begun are answered."""
        for name in ("files", "facts"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(CONCURRENT)
        try:
            pending = {pool.submit(self._range, *one) for one in self._ranges(wanted)}
            count = len(pending)
            while pending:
                done, pending = wait(pending, timeout=INTERVAL, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if pending:
                    share = 100 * (count - len(pending)) // count
                    print(f"prepare: {share} % of {self.url} is here", file=sys.stderr, flush=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def _passing(self, one: _Wanted) -> Path:
        return self.folder / "facts" / f".{one.name.replace('/', '%')}.incoming"

    def _ranges(self, wanted: list[_Wanted]) -> list[tuple[_Wanted, int, int | None]]:
        """(file, first byte, one past the last) of all requests; the files are there to be written to."""
        ranges = []
        for one in wanted:
            with open(self._passing(one), "wb") as file:
                file.truncate(one.size or 0)
            if one.size is None:
                of_file: list = [(one, 0, None)]
            else:
                of_file = [(one, start, min(start + RANGE, one.size)) for start in range(0, max(one.size, 1), RANGE)]
            one.left = len(of_file)
            ranges += of_file
        return ranges

    def _range(self, one: _Wanted, start: int, stop: int | None):
        if stop != 0:  # a file may be empty
            content = self._answered(one, start, stop)
            with open(self._passing(one), "r+b") as file:
                file.seek(start)
                file.write(content)
        with self.lock:
            one.left -= 1
            last = one.left == 0
        if last:
            self._put(one)

    def _answered(self, one: _Wanted, start: int, stop: int | None) -> bytes:
        whole: Callable[[bytes], bool] = lambda content: stop is None or len(content) == stop - start  # noqa: E731
        for attempt in range(TRIES):
            try:
                content = self.files.cat_file(one.remote, start=None if stop is None else start, end=stop)
                if whole(content):
                    return content
                why = f"{len(content)} bytes came where {stop - start} were asked for."
            except Exception as error:  # each file system has classes of its own
                why = told(error)
            if attempt + 1 < TRIES:
                time.sleep(0.2 * 4**attempt)
        raise DataError(
            f"{one.remote} of {self.url} cannot be fetched: {why} Run the same command again to go on behind the files "
            f"that are whole. {LOCAL_WAY}"
        )

    def _put(self, one: _Wanted):
        """Checks a file that is all there and gives it its name."""
        passing, path = self._passing(one), self.folder / "files" / one.name
        if one.sha256 is not None and (digest := sha256_file(passing)) != one.sha256:
            raise DataError(
                f"{one.remote} of {self.url} is damaged: its SHA-256 is {digest}, the header says {one.sha256}. "
                "Copy it there anew."
            )
        sync(passing)
        for place in (path, self.folder / "facts" / one.name):
            place.parent.mkdir(parents=True, exist_ok=True)
        passing.rename(path)
        write_durably(self.folder / "facts" / one.name, json.dumps(one.facts, sort_keys=True).encode())
