"""Files of ids and nothing else, whose documents stand between ends of text (`data.tokenizer.end_of_text`).

nanogpt     .bin: uint16, an end of text behind each document
llmc        .bin of llm.c and nanoGPT's speed runs: 256 int32, of which the third is the number of ids, then uint16, or
            uint32 (magic number 20240801), an end of text before each document
numpy       .npy: with NumPy's header, or without one as OLMo writes them, an end of text behind each document. Of a
            file without, the type is the narrowest unsigned one for the tokenizer's vocabulary
datatrove   .ds: uint16, or uint32 for vocabularies above 65,536, unless its .metadata says. Borders are those in
            .ds.index, uint64, one past the last id of each document; without that file, ends of text. Loss masks
            (.ds.loss) are not read: every token is to be predicted

`data.source.dtype` has the last word on the type where a file has no header.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.layouts.raw import CHUNK, Raw, Spans, mapped
from data.store_format import width

LLMC_MAGIC = {20240520: "uint16", 20240801: "uint32"}
LLMC_HEADER = 256  # int32
NUMPY_MAGIC = b"\x93NUMPY"


def _little(name: str) -> np.dtype:
    return np.dtype(name).newbyteorder("<")


def llmc_header(path: Path) -> np.ndarray | None:
    """The header of llm.c at the start of a file; None where there is none."""
    with open(path, "rb") as file:
        content = file.read(4 * LLMC_HEADER)
    header = np.frombuffer(content, "<i4") if len(content) == 4 * LLMC_HEADER else None
    return header if header is not None and int(header[0]) in LLMC_MAGIC else None


def nanogpt(path: Path, dtype: str | None, vocab_size: int) -> Raw:
    if llmc_header(path) is not None:
        raise DataError(f"{path} begins with the header of llm.c, which nanoGPT has not. Set data.source.layout=llmc.")
    return Raw(path, mapped(path, _little(dtype or "uint16")))


def llmc(path: Path, dtype: str | None, vocab_size: int) -> Raw:
    header = llmc_header(path)
    if header is None:
        raise DataError(f"{path} does not begin with the header of llm.c. Check data.source.layout.")
    ids = mapped(path, _little(LLMC_MAGIC[int(header[0])]), 4 * LLMC_HEADER)
    if ids.size != header[2]:
        raise DataError(f"{path} holds {ids.size} ids, its header says {header[2]}. It is damaged: restore it.")
    return Raw(path, ids)


def numpy_array(path: Path, dtype: str | None, vocab_size: int) -> Raw:
    with open(path, "rb") as file:
        headed = file.read(len(NUMPY_MAGIC)) == NUMPY_MAGIC
    if not headed:
        return Raw(path, mapped(path, _little(dtype or width(vocab_size))))
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path} is no array that NumPy can map: {error}. Restore it.") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.size:
        raise DataError(f"{path} holds {ids.dtype} {list(ids.shape)}, expected integers [ids] and at least one.")
    return Raw(path, ids.view(np.ndarray))


def datatrove(path: Path, dtype: str | None, vocab_size: int) -> Raw:
    metadata, index = path.with_name(f"{path.name}.metadata"), path.with_name(f"{path.name}.index")
    beside = tuple(file for file in (metadata, index) if file.is_file())
    size = "4" if vocab_size > 1 << 16 else "2"
    if metadata in beside:
        size = metadata.read_text(errors="replace").split("\n")[0].rpartition("|")[2]
    if dtype is None and size not in ("2", "4"):
        raise DataError(
            f"{metadata} does not end its first line in |2 or |4, the bytes of an id. Set data.source.dtype."
        )
    ids = mapped(path, _little(dtype or {"2": "uint16", "4": "uint32"}[size]))
    return Raw(path, ids, beside, (lambda: _ends(index, ids.size)) if index in beside else None)


def _ends(path: Path, size: int) -> Iterator[Spans]:
    ends = mapped(path, np.dtype("<u8"))
    first = 0
    for start in range(0, ends.size, CHUNK >> 4):
        stops = ends[start : start + (CHUNK >> 4)].astype(np.int64)
        starts = np.concatenate([[first], stops[:-1]])
        if (stops < starts).any() or stops[-1] > size:
            raise DataError(f"{path} is not in order, or points beyond the {size} ids of its file. Restore both.")
        yield starts, stops
        first = int(stops[-1])
    if first != size:
        raise DataError(f"{path} ends at id {first}, but its file holds {size}. Restore both.")
