"""Ids as other tools lay them out, read where they lie as a token store. Each layout states its rule for borders.

A document is `<end of text> t1 ... tn` whether the end of text was stored before it, behind it or not at all, and a
document without a token is left out. So where each document has one end of text, as many tokens are read as are stored.
"""

from __future__ import annotations

import bisect
import contextlib
import glob
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data import verified
from data.errors import ConfigError, DataError
from data.files import canonical_json, locked, storage_errors, sync, write_durably
from data.layouts import megatron, streams
from data.layouts.raw import Raw, check_ids, spans
from data.store import Stream
from data.store_format import DOCUMENTS, HEADER, check_size, header_bytes, read_header
from data.store_writer import HashedFile, incoming
from data.tokenizer import Tokenizer

FORMAT = "plumbline index of ids laid out by another tool"
VERSION = 1
PLACES = "places.bin"  # uint64: the id, of all files together, with which each document starts
HASH_DIGITS = 16

# Name of a layout: what reads a file of it, and how the files in a directory end.
LAYOUTS: dict[str, tuple[Callable[[Path, str | None, int], Raw], str]] = {
    "megatron": (lambda path, dtype, vocab_size: megatron.read(path), ".idx"),
    "nanogpt": (streams.nanogpt, ".bin"),
    "llmc": (streams.llmc, ".bin"),
    "numpy": (streams.numpy_array, ".npy"),
    "datatrove": (streams.datatrove, ".ds"),
}


def open_layout(path: str, layout: str, dtype: str | None, tokenizer: Tokenizer, cache_dir: str) -> LaidOut:
    """The ids at `path`, a file, a directory of them or a glob, as a token store.

    Where documents lie is found by reading them once and kept in `cache_dir`, until a file changes. `layout` is one
    of LAYOUTS, `dtype` the type of ids where neither the files nor the layout say; None: the layout's rule.

    Raises ConfigError for a path whose layout cannot be told, DataError that names file and id for what cannot be.
    """
    files = _files(path, layout)
    read, _ = LAYOUTS[layout]
    raws = [read(file, dtype, tokenizer.vocab_size) for file in files]
    types = sorted({raw.ids.dtype.str for raw in raws})
    if len(types) > 1:
        raise DataError(f"{path} matches files of different types of ids, {' and '.join(types)}. Name one of a kind.")
    facts = [VERSION, layout, types, tokenizer.fingerprint, [_facts(file) for raw in raws for file in _parts(raw)]]
    key = hashlib.sha256(canonical_json(facts)).hexdigest()[:HASH_DIGITS]
    directory = Path(cache_dir) / "layouts" / key
    if not (directory / HEADER).exists():
        with locked(directory.with_name(f".{key}.lock"), f"prepare: waiting for another process that reads {path}"):
            if not (directory / HEADER).exists():
                print(f"prepare: looking for the documents of {path}", file=sys.stderr, flush=True)
                _index(directory, raws, layout, tokenizer)
    return LaidOut(directory, raws, tokenizer)


def _parts(raw: Raw) -> tuple[Path, ...]:
    return (raw.path, *raw.beside)


def _facts(path: Path) -> list:
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def _files(path: str, layout: str) -> list[Path]:
    """Absolute paths of the files of a layout at `path`, sorted."""
    ending = LAYOUTS[layout][1]
    if os.path.isdir(path):
        found = [str(file) for file in Path(path).iterdir() if file.name.endswith(ending)]
    elif os.path.exists(path) or (layout == "megatron" and os.path.exists(f"{path}.idx")):
        found = [path]
    else:
        found = glob.glob(path, recursive=True)
        if layout == "megatron":  # which a glob may match by either file of a pair, or both
            found = [f"{file[:-4]}{ending}" if file.endswith(".bin") else file for file in found]
        found = [file for file in found if file.endswith(ending)] or found
    files = sorted({Path(os.path.abspath(file)) for file in found})
    if not files:
        raise DataError(f"{path} in data.source matches no file of {layout}, which end in {ending}.")
    return files


def tell_layout(path: str) -> str:
    """Which of LAYOUTS the files at `path` have, by their names; ConfigError where they do not tell."""
    if os.path.isdir(path):
        names = sorted(file.name for file in Path(path).iterdir())
    else:
        names = sorted(os.path.basename(file) for file in (glob.glob(path, recursive=True) or [path]))
        if os.path.exists(f"{path}.idx"):
            return "megatron"
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    for name in names:
        if name.endswith(".idx") or (
            name.endswith(".bin") and os.path.exists(os.path.join(folder, name[:-4] + ".idx"))
        ):
            return "megatron"
        if name.endswith(".bin"):
            file = Path(folder, name)
            return "llmc" if file.is_file() and streams.llmc_header(file) is not None else "nanogpt"
        for layout in ("numpy", "datatrove"):
            if name.endswith(LAYOUTS[layout][1]):
                return layout
    raise ConfigError(
        f"data.source.path is {path!r}, where no layout shows in the names ({', '.join(names[:3])}). Set "
        f"data.source.layout to plumbline or one of {', '.join(LAYOUTS)}."
    )


def _index(directory: Path, raws: list[Raw], layout: str, tokenizer: Tokenizer):
    """Writes where the documents lie, what is in the files and their digests to a new `directory`."""
    with incoming(directory) as folder, storage_errors(directory):
        counts, written = _find_documents(folder, raws, tokenizer)
        files = {file.name: file.record() for file in written}
        paths = [path for raw in raws for path in _parts(raw)]
        for path, digest in zip(paths, verified.digests(paths), strict=True):
            files[str(path)] = {"bytes": path.stat().st_size, "sha256": digest}
        content = [record["sha256"] for record in files.values()]
        settings = [FORMAT, VERSION, layout, content, tokenizer.fingerprint]
        header = {
            "format": FORMAT,
            "version": VERSION,
            "layout": layout,
            "dtype": raws[0].ids.dtype.name,
            **counts,
            "end_of_text": tokenizer.end_of_text,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "fingerprint": hashlib.sha256(canonical_json(settings)).hexdigest(),
            "files": files,
        }
        write_durably(folder / HEADER, header_bytes(header))
        sync(folder)
        folder.rename(directory)
        sync(directory.parent)


def _find_documents(folder: Path, raws: list[Raw], tokenizer: Tokenizer) -> tuple[dict[str, int], list[HashedFile]]:
    """Writes DOCUMENTS and PLACES; (what the header says of the documents, the two files)."""
    borders, places = HashedFile(folder / DOCUMENTS), HashedFile(folder / PLACES)
    counts = {"num_tokens": 0, "num_documents": 0, "empty_documents": 0, "max_token": tokenizer.end_of_text}
    before = 0
    with contextlib.closing(borders), contextlib.closing(places):
        for raw in raws:
            counts["max_token"] = max(counts["max_token"], check_ids(raw, tokenizer.vocab_size))
            documents = counts["num_documents"]
            for firsts, stops in spans(raw, tokenizer.end_of_text):
                full = stops > firsts
                lengths = (stops - firsts)[full] + 1
                starts = counts["num_tokens"] + np.cumsum(lengths) - lengths
                borders.write(starts.astype("<u8"))
                places.write((firsts[full] + before).astype("<u8"))
                counts["num_tokens"] += int(lengths.sum())
                counts["num_documents"] += lengths.size
                counts["empty_documents"] += full.size - lengths.size
            if counts["num_documents"] == documents + 1 and raw.spans is None:
                end = f"{tokenizer.end_of_text_token} (id {tokenizer.end_of_text})"
                print(f"prepare: {raw.path} is read as one document: no {end} stands in it", file=sys.stderr)
            before += raw.ids.size
    if not counts["num_documents"]:
        raise DataError(f"{raws[0].path} holds no document: nothing but ends of text. Check data.source.path.")
    return counts, [borders, places]


class LaidOut(Stream):
    """Files of another tool as a token store.

    Attributes: those of `data.store.Store`; `directory` is where the places of documents are kept, `text_bytes` is
    None, since ids do not say it, and there are no marks.
    """

    def __init__(self, directory: Path, raws: list[Raw], tokenizer: Tokenizer):
        """Raises DataError when what is kept in `directory` is damaged."""
        self.directory, self.tokenizer, self._raws = directory, tokenizer, raws
        self.header = read_header(directory / HEADER, FORMAT, (VERSION,))
        for name in (DOCUMENTS, PLACES):
            check_size(directory / name, self.header["files"][name]["bytes"])
        self.num_tokens: int = self.header["num_tokens"]
        self.num_documents: int = self.header["num_documents"]
        self.max_token: int = self.header["max_token"]
        self.end_of_text: int = self.header["end_of_text"]
        self.fingerprint: str = self.header["fingerprint"]
        self.text_bytes, self.marks = None, ()
        self.document_starts, self._places = (
            np.memmap(directory / name, dtype="<u8", mode="r").view(np.ndarray) for name in (DOCUMENTS, PLACES)
        )
        stored = raws[0].ids.dtype
        self.dtype = stored if self.end_of_text <= np.iinfo(stored).max else np.dtype("<u4")
        self._starts = np.cumsum([0, *(raw.ids.size for raw in raws)]).tolist()

    def tokens(self, start, stop):
        self._check(start, stop)
        if start == stop:
            return np.empty(0, self.dtype)
        # In the array's own type: for a Python integer all of it would be made into another.
        first = int(self.document_starts.searchsorted(np.uint64(start), "right")) - 1
        last = int(self.document_starts.searchsorted(np.uint64(stop), "left"))
        borders = self.document_starts[first:last].astype(np.int64)
        places = self._places[first:last].astype(np.int64)
        if last == first + 1 and start > borders[0]:
            place = int(places[0]) + start - int(borders[0]) - 1
            return self._stored(place, place + stop - start)
        found = np.empty(stop - start, self.dtype)
        ends = np.append(borders[1:], stop)
        for border, end, place in zip(borders.tolist(), ends.tolist(), places.tolist(), strict=True):
            begin = max(border, start)
            if begin == border:
                found[begin - start] = self.end_of_text
                begin += 1
            place += begin - border - 1
            found[begin - start : end - start] = self._stored(place, place + end - begin)
        return found

    def _stored(self, first: int, last: int) -> np.ndarray:
        """Ids of the files, `last` > `first`, of one document and so of one file."""
        index = bisect.bisect_right(self._starts, first) - 1
        return self._raws[index].ids[first - self._starts[index] : last - self._starts[index]]

    def verify(self, every_byte=True):
        """As `Store.verify`, of the files and of what is kept of them."""
        found = verified.problems(self.directory, self.header["files"], every_byte)
        if found:
            raise DataError(
                f"{' '.join(found)} Restore what is damaged; if it is meant to be so, delete {self.directory} to "
                "have it read anew."
            )
