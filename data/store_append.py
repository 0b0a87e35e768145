"""Appends documents to a token store without touching a byte of what is there.

A new folder, `appended-00001` and so on, holds the ids of the new documents, in shards of their own, and the
offsets and marks of all documents, old and new; then a new header takes the old one's place. So a launch that is
killed leaves the store as it was. The fingerprint is that of a store with this history: the same documents built at
once are another store. Where sources shall be mixed, or one of them taken back, give each a store of its own
(`data.mixture_config`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from data.encoding import Encoder
from data.errors import ConfigError, DataError
from data.files import storage_errors, sync, write_durably
from data.store import Store
from data.store_format import APPENDED_VERSION, HEADER, appended_name, fingerprint, header_bytes
from data.store_writer import Piece, Writer, incoming

CHUNK = 1 << 24  # offsets or marks copied at a time
SUMS = ("num_documents", "text_bytes", "empty_documents")


def append(store: Store, found: Iterable[Piece], encoder: Encoder, about: dict):
    """Puts the documents of pieces behind those of a store, all of them or none; `about` is kept in its header.

    Raises ConfigError when the pieces are of another tokenizer or with other marks, DataError where there is no
    document or another process appends, StorageError when the disk refuses.
    """
    check(store, encoder)
    directory = store.directory
    number = len(store.header.get("appended", ())) + 1
    name = appended_name(number)
    with _alone(directory), incoming(directory) as folder, storage_errors(directory):
        if Store(directory).fingerprint != store.fingerprint:
            raise DataError(f"Another process has appended to {directory} meanwhile. Run the command again.")
        (folder / name).mkdir()
        writer = _written(folder / name, store, found)
        files = {f"{name}/{file}": record for file, record in writer.files().items()}
        header = _header(store, writer, name, {**store.header["files"], **files}, about)
        write_durably(folder / HEADER, header_bytes(header))
        sync(folder / name)
        if (directory / name).exists():
            shutil.rmtree(directory / name)  # of a launch that was killed
        (folder / name).rename(directory / name)
        sync(directory)
        (folder / HEADER).replace(directory / HEADER)
        sync(directory)


def check(store: Store, encoder: Encoder):
    """Raises ConfigError when documents of an encoder do not belong into a store."""
    if encoder.tokenizer.fingerprint != store.header["tokenizer_fingerprint"]:
        raise ConfigError(f"{store.directory} was made by another tokenizer than these documents. Name that one.")
    marks = tuple(sorted(encoder.marks))
    if marks != store.marks:
        raise ConfigError(
            f"{store.directory} holds the marks {', '.join(store.marks) or 'none'}, these documents would get "
            f"{', '.join(marks) or 'none'}. Set data.objective as it was when the store was made."
        )


@contextlib.contextmanager
def _alone(directory: Path):
    """Holds a lock on the store's directory."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DataError(f"Another process appends to {directory}. Run the command again when it is done.") from error
    finally:
        os.close(handle)


def _written(folder: Path, store: Store, found: Iterable[Piece]) -> Writer:
    """Writes the files of an append to `folder`."""
    with contextlib.closing(Writer(folder, store.marks, store.header["shard_tokens"], store.num_tokens)) as writer:
        for start in range(0, store.num_documents, CHUNK):
            writer.borders.write(store.document_starts[start : start + CHUNK])
        for name, bits in writer.marks.items():
            for start in range(0, store.num_tokens, CHUNK):
                bits.write(store.marked(name, start, min(start + CHUNK, store.num_tokens)))
        for part in found:
            writer.write(part)
    if not writer.counts["num_documents"]:
        raise DataError("No document to append: all of them are empty, or there is none. Check data.source.")
    return writer


def _header(store: Store, writer: Writer, name: str, files: dict, about: dict) -> dict:
    counts = writer.counts
    added = {"folder": name, "num_tokens": writer.shards.total, **{key: counts[key] for key in SUMS}, "about": about}
    return {
        **store.header,
        "version": APPENDED_VERSION,
        "num_tokens": store.num_tokens + writer.shards.total,
        **{key: store.header[key] + counts[key] for key in SUMS},
        "max_token": max(store.max_token, counts["max_token"]),
        "fingerprint": fingerprint(files, store.header["tokenizer_fingerprint"]),
        "files": files,
        "appended": [*store.header.get("appended", ()), added],
    }
