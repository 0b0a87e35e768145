"""Ids that other tools have laid out are read as the documents they were, whole, from any place.

The files are made here from the published formats, byte by byte, and by datatrove's own writers where it is installed.
"""

import struct
from pathlib import Path

import numpy as np
import pytest

from data.errors import ConfigError, DataError
from data.layouts import raw
from data.layouts.opened import LAYOUTS, open_layout, tell_layout
from data.tokenizer import byte_tokenizer

END = 256  # of byte_tokenizer; ids are those of bytes
DOCUMENTS = [[1, 2, 3], [4], list(range(5, 60)), [7, 7], [9] * 20]
BYTES = {"uint16": "H", "uint32": "I", "int32": "i", "int64": "q"}


def packed(ids, dtype="uint16") -> bytes:
    return struct.pack(f"<{len(ids)}{BYTES[dtype]}", *ids)


def ended(documents=DOCUMENTS) -> list[int]:
    return [i for ids in documents for i in (*ids, END)]


def megatron(path: Path, documents, dtype="uint16", end=(END,), sequences=1, listed=True, modes=False):
    """PREFIX.bin and PREFIX.idx, each document in `sequences` pieces."""
    code = {"uint16": 8, "int32": 4, "int64": 5}[dtype]
    pieces, borders = [], [0]
    for ids in documents:
        ids = [*ids, *end]
        cuts = [len(ids) * i // sequences for i in range(sequences + 1)]
        pieces += [ids[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        borders.append(len(pieces))
    lengths = [len(piece) for piece in pieces]
    offsets = [sum(lengths[:i]) * struct.calcsize(BYTES[dtype]) for i in range(len(lengths))]
    borders = borders if listed else [0]
    Path(f"{path}.bin").write_bytes(packed(sum(pieces, []), dtype))
    Path(f"{path}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(pieces), len(borders))
        + struct.pack(f"<{len(pieces)}i", *lengths)
        + struct.pack(f"<{len(pieces)}q", *offsets)
        + struct.pack(f"<{len(borders)}q", *borders)
        + (bytes(len(pieces)) if modes else b"")
    )


def datatrove(path: Path, documents, dtype="uint16", end=(END,), index=True, metadata=None):
    documents = [[*ids, *end] for ids in documents]
    path.write_bytes(packed(sum(documents, []), dtype))
    if index:
        ends = np.cumsum([len(ids) for ids in documents])
        Path(f"{path}.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    if metadata:
        Path(f"{path}.metadata").write_text(f"some/tokenizer|{metadata}\n{sum(map(len, documents))}\n1 T")


def llmc(path: Path, magic=20240520, dtype="uint16"):
    ids = [i for ids in DOCUMENTS for i in (END, *ids)]
    path.write_bytes(struct.pack("<256i", magic, 1, len(ids), *[0] * 253) + packed(ids, dtype))


WRITERS = {
    "nanogpt": (lambda d: (d / "train.bin").write_bytes(packed(ended())), "train.bin"),
    "llmc": (lambda d: llmc(d / "train.bin"), "train.bin"),
    "llmc of 4 bytes": (lambda d: llmc(d / "train.bin", 20240801, "uint32"), "train.bin"),
    "numpy, raw as OLMo": (lambda d: (d / "part-0.npy").write_bytes(packed(ended())), "part-0.npy"),
    "numpy": (lambda d: np.save(d / "part-0.npy", np.array(ended(), np.int64)), "part-0.npy"),
    "numpy, other byte order": (lambda d: np.save(d / "part-0.npy", np.array(ended(), ">u2")), "part-0.npy"),
    "megatron": (lambda d: megatron(d / "text", DOCUMENTS), "text"),
    "megatron by .bin": (lambda d: megatron(d / "text.x", DOCUMENTS, "int32"), "text.x.bin"),
    "megatron by .idx": (lambda d: megatron(d / "text", DOCUMENTS, "int64", modes=True), "text.idx"),
    "megatron without ends": (lambda d: megatron(d / "text", DOCUMENTS, end=()), "text"),
    "megatron, 3 sequences": (lambda d: megatron(d / "text", DOCUMENTS, sequences=3), "text"),
    "megatron, not listed": (lambda d: megatron(d / "text", DOCUMENTS, listed=False), "text"),
    "datatrove": (lambda d: datatrove(d / "0.ds", DOCUMENTS), "0.ds"),
    "datatrove of 4 bytes": (lambda d: datatrove(d / "0.ds", DOCUMENTS, "uint32", metadata=4), "0.ds"),
    "datatrove without ends": (lambda d: datatrove(d / "0.ds", DOCUMENTS, end=(), metadata=2), "0.ds"),
    "datatrove without index": (lambda d: datatrove(d / "0.ds", DOCUMENTS, index=False), "0.ds"),
}
STORED = {True: sum(map(len, DOCUMENTS)), False: sum(map(len, DOCUMENTS)) + len(DOCUMENTS)}


def opened(path: Path, dtype=None, layout=None, cache=None):
    layout = layout or tell_layout(str(path))
    return open_layout(str(path), layout, dtype, byte_tokenizer(), str(cache or path.parent.parent / "cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture(params=[raw.CHUNK, 16])
def chunk(request, monkeypatch) -> int:
    monkeypatch.setattr(raw, "CHUNK", request.param)
    monkeypatch.setattr("data.layouts.streams.CHUNK", request.param)
    monkeypatch.setattr("data.layouts.megatron.STEP", max(request.param >> 4, 1))
    return request.param


def holds(store, documents=DOCUMENTS):
    """Every document and every stretch of the stream is as it was written."""
    expected = [[END, *ids] for ids in documents]
    assert [store.document(i).tolist() for i in range(store.num_documents)] == expected
    stream = sum(expected, [])
    assert store.num_tokens == len(stream)
    assert store.document_starts.tolist() == np.cumsum([0, *map(len, expected)])[:-1].tolist()
    for start in range(len(stream) + 1):
        for stop in (start, *range(start + 1, len(stream) + 1, 3), len(stream)):
            found = store.tokens(start, stop)
            assert found.tolist() == stream[start:stop] and found.dtype == store.dtype
    for start, stop in ((-1, 2), (0, len(stream) + 1), (3, 2)):
        with pytest.raises(IndexError):
            store.tokens(start, stop)
    store.verify()


@pytest.mark.parametrize("name", WRITERS)
def test_every_document_is_read_as_it_was_written(name, folder, chunk):
    write, file = WRITERS[name]
    write(folder)
    store = opened(folder / file)
    assert store.header["layout"] == name.split()[0].strip(",")
    holds(store)
    assert (store.end_of_text, store.max_token, store.text_bytes, store.marks) == (END, END, None, ())
    assert store.tokenizer.fingerprint == byte_tokenizer().fingerprint == store.header["tokenizer_fingerprint"]


@pytest.mark.parametrize("name", [name for name in WRITERS if "without ends" not in name])
def test_as_many_tokens_are_read_as_are_stored(name, folder):
    write, file = WRITERS[name]
    write(folder)
    store = opened(folder / file)
    assert store.num_tokens == sum(part.ids.size for part in store._raws) == len(ended())


def test_a_last_document_without_its_end_is_whole(folder):
    (folder / "train.bin").write_bytes(packed(ended()[:-1]))
    holds(opened(folder / "train.bin"))


def test_empty_documents_are_left_out_and_counted(folder, chunk):
    ids = [END, END, *ended(DOCUMENTS[:2]), END, END, *ended(DOCUMENTS[2:]), END]
    (folder / "train.bin").write_bytes(packed(ids))
    store = opened(folder / "train.bin")
    holds(store)
    assert store.header["empty_documents"] == 4
    datatrove(folder / "0.ds", [[], *DOCUMENTS[:2], [], *DOCUMENTS[2:], []])
    store = opened(folder / "0.ds")
    holds(store)
    assert store.header["empty_documents"] == 3


def test_an_end_of_text_inside_a_recorded_document_is_no_border(folder):
    documents = [[1, END, 2], [END, 3]]
    datatrove(folder / "0.ds", documents)
    holds(opened(folder / "0.ds"), documents)
    megatron(folder / "text", documents)
    holds(opened(folder / "text"), documents)


@pytest.mark.parametrize("where", ["directory", "glob", "glob of all"])
@pytest.mark.parametrize("layout", ["nanogpt", "numpy", "megatron", "datatrove", "llmc"])
def test_several_files_are_one_stream_in_the_order_of_their_names(layout, where, folder, chunk):
    ending = LAYOUTS[layout][1]
    names = [f"{name}{ending}" for name in ("a", "b", "c")]
    parts = [DOCUMENTS[:2], DOCUMENTS[2:3], DOCUMENTS[3:]]
    for name, documents in zip(names, parts, strict=True):
        if layout == "megatron":
            megatron((folder / name).with_suffix(""), documents)
        elif layout == "datatrove":
            datatrove(folder / name, documents, end=())
        elif layout == "llmc":
            ids = [i for ids in documents for i in (END, *ids)]
            (folder / name).write_bytes(struct.pack("<256i", 20240520, 1, len(ids), *[0] * 253) + packed(ids))
        else:
            (folder / name).write_bytes(packed(ended(documents)[: -1 if layout == "numpy" else None]))
    path = {"directory": folder, "glob": folder / f"*{ending}", "glob of all": folder / "*"}[where]
    assert tell_layout(str(path)) == layout
    holds(opened(path, cache=folder.parent / "cache"))


def test_the_index_is_made_once_and_again_for_a_changed_file(folder, capsys):
    path = folder / "train.bin"
    path.write_bytes(packed(ended()))
    first = opened(path)
    assert "looking for the documents" in capsys.readouterr().err
    assert opened(path).fingerprint == first.fingerprint and capsys.readouterr().err == ""
    path.write_bytes(packed(ended(DOCUMENTS[:3])))
    second = opened(path)
    assert second.fingerprint != first.fingerprint and second.num_documents == 3
    (folder / "elsewhere.bin").write_bytes(packed(ended()))
    assert opened(folder / "elsewhere.bin").fingerprint == first.fingerprint


def test_fingerprint_is_of_borders_too(folder):
    datatrove(folder / "0.ds", [[1, 2], [3]], end=())
    first = opened(folder / "0.ds").fingerprint
    (folder / "0.ds.index").write_bytes(struct.pack("<2Q", 1, 3))
    assert opened(folder / "0.ds").fingerprint != first


@pytest.mark.parametrize("name", ["nanogpt", "megatron", "datatrove of 4 bytes", "numpy"])
def test_every_damaged_file_is_named(name, folder):
    write, file = WRITERS[name]
    write(folder)
    store = opened(folder / file)
    for path in [*folder.iterdir(), *(store.directory / name for name in ("documents.bin", "places.bin"))]:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match=f"{path.name} is damaged"):
            store.verify()
        path.write_bytes(content[:-1])
        with pytest.raises(DataError, match=f"{path.name} has"):
            store.verify()
        path.write_bytes(content)
    store.verify()


def test_a_text_without_an_end_is_one_document_and_said_to_be(folder, capsys):
    (folder / "train.bin").write_bytes(packed([1, 2, 3]))
    holds(opened(folder / "train.bin"), [[1, 2, 3]])
    assert "is read as one document: no <|endoftext|> (id 256) stands in it" in capsys.readouterr().err


def test_an_end_of_text_too_large_for_the_file_is_given_all_the_same(folder):
    """Explicit borders need no stored end of text, nor a type that holds it."""
    (folder / "0.npy").write_bytes(bytes([1, 2, 3]))
    store = opened(folder / "0.npy", dtype="uint8")
    assert store.document(0).tolist() == [END, 1, 2, 3]


BAD = {
    "an id beyond the vocabulary": (
        lambda d: (d / "x.bin").write_bytes(packed([1, 2, 300, 400])),
        "x.bin",
        "Id 2 of .*x.bin is 300, but data.tokenizer has ids below 257",
    ),
    "a negative id": (
        lambda d: np.save(d / "x.npy", np.array([5, -1], np.int64)),
        "x.npy",
        "Id 1 of .*x.npy is -1",
    ),
    "half an id": (
        lambda d: (d / "x.bin").write_bytes(b"123"),
        "x.bin",
        "3 bytes of ids, which is no multiple of the 2",
    ),
    "no id": (lambda d: (d / "x.bin").write_bytes(b""), "x.bin", "x.bin holds no ids"),
    "ends alone": (lambda d: (d / "x.bin").write_bytes(packed([END] * 3)), "x.bin", "holds no document"),
    "no such file": (lambda d: None, "x.bin", "matches no file of nanogpt"),
    "an array of two axes": (lambda d: np.save(d / "x.npy", np.zeros((2, 2), np.uint16)), "x.npy", "holds uint16"),
    "an array of objects": (
        lambda d: np.save(d / "x.npy", np.array([{}], object), allow_pickle=True),
        "x.npy",
        "no array that NumPy can map",
    ),
    "half a Megatron data set": (
        lambda d: (megatron(d / "x", DOCUMENTS), (d / "x.bin").unlink()),
        "x.idx",
        "x.bin is missing",
    ),
    "an index of something else": (
        lambda d: ((d / "x.idx").write_bytes(b"TNTIDX\0\0" * 9), (d / "x.bin").write_bytes(b"12")),
        "x.idx",
        "no index of Megatron",
    ),
    "floats in Megatron": (lambda d: rewritten(d / "x", 17, bytes([6])), "x", "ids of type 6"),
    "a cut index": (
        lambda d: (megatron(d / "x", DOCUMENTS), (d / "x.idx").write_bytes((d / "x.idx").read_bytes()[:-3])),
        "x",
        "It is damaged",
    ),
    "sequences of a document that lie apart": (
        lambda d: rewritten(d / "x", 34 + 4 * 10 + 8, struct.pack("<q", 2 * 3)),
        "x",
        "sequences 0 and the next lie apart",
    ),
    "documents out of order": (
        lambda d: rewritten(d / "x", 34 + 12 * 10 + 8, struct.pack("<2q", 4, 2)),
        "x",
        "document index that is not in order",
    ),
    "documents of fewer sequences": (
        lambda d: rewritten(d / "x", 34 + 12 * 10 + 8 * 5, struct.pack("<q", 9)),
        "x",
        "documents from sequence 0 to 9 of 10",
    ),
    "a cut Megatron file": (
        lambda d: (megatron(d / "x", DOCUMENTS), (d / "x.bin").write_bytes((d / "x.bin").read_bytes()[:-4])),
        "x",
        "points beyond its .bin",
    ),
    "a datatrove index beyond its file": (
        lambda d: (datatrove(d / "x.ds", DOCUMENTS), (d / "x.ds.index").write_bytes(struct.pack("<2Q", 4, 400))),
        "x.ds",
        "points beyond",
    ),
    "a datatrove index that ends early": (
        lambda d: (datatrove(d / "x.ds", DOCUMENTS), (d / "x.ds.index").write_bytes(struct.pack("<Q", 4))),
        "x.ds",
        "ends at id 4, but its file holds",
    ),
    "metadata without a size": (
        lambda d: (datatrove(d / "x.ds", DOCUMENTS), (d / "x.ds.metadata").write_text("tokenizer")),
        "x.ds",
        "bytes of an id",
    ),
    "a count that llm.c does not mean": (
        lambda d: (d / "x.bin").write_bytes(struct.pack("<256i", 20240520, 1, 9, *[0] * 253) + packed([1])),
        "x.bin",
        "holds 1 ids, its header says 9",
    ),
}


def rewritten(prefix: Path, place: int, change: bytes):
    """A Megatron data set of two sequences a document, its index changed from byte `place` on."""
    megatron(prefix, DOCUMENTS, sequences=2)
    index = prefix.with_suffix(".idx")
    content = bytearray(index.read_bytes())
    content[place : place + len(change)] = change
    index.write_bytes(content)


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_and_nothing_is_kept(case, folder):
    write, file, pattern = BAD[case]
    write(folder)
    with pytest.raises(DataError, match=pattern):
        opened(folder / file)
    assert not list((folder.parent / "cache").rglob("*.bin"))


def test_a_layout_that_does_not_show_is_asked_for(folder):
    (folder / "ids.dat").write_bytes(packed(ended()))
    with pytest.raises(ConfigError, match="Set data.source.layout to plumbline or one of megatron, nanogpt"):
        tell_layout(str(folder))
    holds(opened(folder / "ids.dat", layout="nanogpt"))


def test_nanogpt_is_not_llmc(folder):
    llmc(folder / "train.bin")
    with pytest.raises(DataError, match="data.source.layout=llmc"):
        opened(folder / "train.bin", layout="nanogpt")


def test_a_glob_may_match_either_file_of_a_pair(folder):
    for name, documents in (("a", DOCUMENTS[:2]), ("b", DOCUMENTS[2:])):
        megatron(folder / name, documents)
    holds(opened(folder / "*.bin", cache=folder.parent / "cache"))


@pytest.mark.parametrize("size, dtype", [(2, "uint16"), (4, "uint32")])
@pytest.mark.parametrize("end", [(), (END,)])
def test_what_datatrove_writes(size, dtype, end, folder):
    tokens = pytest.importorskip("datatrove.pipeline.tokens.tokenizer")
    file = tokens.TokenizedFile(str(folder), "0.ds", save_loss_metadata=True, save_final_metadata=True, token_size=size)
    for ids in DOCUMENTS:
        file.write([*ids, *end], np.ones(len(ids) + len(end), bool))
    file.close()
    assert opened(folder / "0.ds").header["dtype"] == dtype
    holds(opened(folder / "0.ds"))


@pytest.mark.parametrize("size", [2, 4])
def test_what_datatrove_writes_for_megatron(size, folder):
    tokens = pytest.importorskip("datatrove.pipeline.tokens.megatron_tokenizer")
    file = tokens.MegatronTokenizedFile(str(folder), "0", token_size=size)
    for ids in DOCUMENTS:
        file.write([*ids, END])
    file.close()
    holds(opened(folder / "0"))
