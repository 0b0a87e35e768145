"""Files behind a URL, through fsspec. Nothing else of `data` reads over a network, but for data sets by name."""

from __future__ import annotations

import contextlib
import importlib
import io
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from data.errors import ConfigError, DataError, UserError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CONTACT = 10.0  # seconds that the other side has to answer at all
BUFFER = 1 << 20  # bytes
# What tells one version of a file from another, by the names that stores give it.
VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "generation",
    "LastModified",
    "Last-Modified",
    "last_modified",
    "mtime",
    "modified",
    "created",
)
LOCAL_WAY = "Where there is no network, fetch it elsewhere, copy it here and name the copy in data.source."


def is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def system(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL and the path in it.

    Raises ConfigError where none is known or its package is missing, DataError where it cannot be opened.
    """
    fsspec = importlib.import_module("fsspec")
    try:
        return fsspec.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(
            f"data.source reads {url}, for which a package is missing here: {told(error)} Install it "
            "(requirements-sources.txt has that of https://), or copy the files here and name the copies."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"data.source reads {url}, which fsspec cannot open: {told(error)} It knows s3://, gs://, https:// and "
            "hf://, for instance; a local file is named by its path."
        ) from error
    except Exception as error:  # each file system has classes of its own
        raise DataError(f"data.source reads {url}, which cannot be opened: {told(error)} {LOCAL_WAY}") from error


def infos(key: str, pattern: str) -> dict[str, dict]:
    """What is known of each file at a URL or matching it as a glob, by URL. `key` is the setting, for errors.

    Raises DataError within seconds where the other side does not answer.
    """
    files, path = system(pattern)
    within = "".join(pattern.partition("::")[1:])  # of zip://FILE::URL, what FILE is in
    try:
        found = _infos(files, path, pattern)
    except UserError:
        raise
    except Exception as error:  # each file system has classes of its own
        raise DataError(
            f"{pattern} in {key} cannot be fetched: {told(error.__cause__ or error)} {LOCAL_WAY}"
        ) from error
    return {files.unstrip_protocol(name) + within: info for name, info in found.items()}


@contextlib.contextmanager
def opened(url: str, from_start: bool) -> Iterator[io.BufferedReader]:
    """A file behind a URL; over HTTP one that is read `from_start` needs no answer to ranges."""
    files, path = system(url)  # an archive is closed when nobody holds it
    options = {"block_size": 0} if from_start and _is_http(url) else {}
    with io.BufferedReader(files.open(path, "rb", **options), BUFFER) as file:
        yield file


def has_ranges(path: str) -> bool:
    """Whether a file can be read from its middle; some HTTP servers send it from the start whatever is asked."""
    if not _is_http(path):
        return True
    files, inner = system(path)

    def probe() -> bool:
        with files.open(inner, "rb", block_size=1) as file:
            file.seek(1)
            return len(file.read(1)) == 1

    try:
        return answer(path, probe)
    except Exception:  # if it is more than that, it shows when the file is read
        return False


def _is_http(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _infos(files: AbstractFileSystem, path: str, pattern: str) -> dict[str, dict]:
    try:
        return {path: answer(pattern, lambda: files.info(path))}
    except FileNotFoundError:
        if not any(character in path for character in "*["):
            raise
    # It answers; how long this takes depends on how much there is.
    found = {name: info for name, info in files.glob(path, detail=True).items() if info["type"] == "file"}
    return {name: files.info(name) if info.get("size") is None else info for name, info in found.items()}


def facts(info: dict) -> dict[str, str]:
    """What differs when the file does, JSON-able."""
    return {name: str(info[name]) for name in VERSIONS if info.get(name) is not None}


def answer(what: str, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises; DataError if it has done neither after CONTACT."""
    result: list = []

    def run():
        try:
            result.append((True, call()))
        except Exception as error:
            result.append((False, error))

    thread = threading.Thread(target=run, daemon=True)  # one that never answers keeps nobody
    thread.start()
    thread.join(CONTACT)
    if not result:
        raise DataError(f"{what} did not answer within {CONTACT:g} s. {LOCAL_WAY}")
    succeeded, value = result[0]
    if succeeded:
        return value
    raise value


def told(error: BaseException) -> str:
    """Class and first line of an error, as a sentence."""
    line = next(iter(str(error).splitlines()), "").strip()
    line = f"{type(error).__name__}: {line}" if line else type(error).__name__
    return line if line.endswith(".") else f"{line}."
