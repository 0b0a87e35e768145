"""A recipe reads what is tokenized already where it lies, with the tokenizer that made it."""

import dataclasses
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from data import tokenizer
from data.config import Data, check, missing_inputs
from data.errors import ConfigError, DataError
from data.mixture_config import Component, MixtureSource
from data.objective_config import MaskedObjective
from data.objectives import objective_rows
from data.prepare import gzip_bits_per_byte, prepare, summary
from data.source_config import StoredSource, TextSource
from data.tokenizer_config import BpeTokenizer, ByteTokenizer, FileTokenizer, WordPieceTokenizer

TEXTS = [f"Document {number} of the text." for number in range(40)]


@pytest.fixture
def config(tmp_path):
    return Data(cache_dir=str(tmp_path / "cache"), length=16)


@pytest.fixture
def store(config, tmp_path) -> Path:
    """The directory of a token store that was made of text, by a tokenizer trained on it."""
    path = tmp_path / "text.txt"
    path.write_text("\n".join(TEXTS))
    source = TextSource(paths=(str(path),), document="line", validation_fraction=0)
    text = dataclasses.replace(config, source=source, tokenizer=BpeTokenizer(vocab_size=300))
    return prepare(text).train.directory


def nanogpt(path: Path, texts=TEXTS) -> str:
    ids = [i for text in texts for i in (*text.encode(), 256)]
    path.write_bytes(struct.pack(f"<{len(ids)}H", *ids))
    return str(path)


def stored(config: Data, path, tokenizer=None, **fields) -> Data:
    changed = dataclasses.replace(config, source=StoredSource(path=str(path), **fields))
    return dataclasses.replace(changed, tokenizer=tokenizer) if tokenizer else changed


def test_a_token_store_brings_its_tokenizer(config, store, tmp_path):
    prepared = prepare(stored(config, store), vocab_size=300)
    assert prepared.train.directory == store and prepared.validation is None
    assert [prepared.tokenizer.decode(prepared.train.document(i)) for i in range(40)] == TEXTS
    same = FileTokenizer(path=str(store / "tokenizer.json"))
    assert prepare(stored(config, store, same)).train.fingerprint == prepared.train.fingerprint
    with pytest.raises(ConfigError, match="another tokenizer than the one that made.*Set data.tokenizer.path to"):
        prepare(stored(config, store, ByteTokenizer()))
    with pytest.raises(DataError, match="model.vocab_size is 257"):
        prepare(stored(config, store), vocab_size=257)


def test_files_of_another_tool_give_the_rows_of_the_same_text(config, tmp_path):
    files = {"path": nanogpt(tmp_path / "train.bin"), "validation_path": nanogpt(tmp_path / "val.bin", TEXTS[:3])}
    prepared = prepare(stored(config, tokenizer=ByteTokenizer(), **files), vocab_size=257)
    assert prepared.validation.num_documents == 3
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS))
    source = TextSource(paths=(str(text),), document="line", validation_fraction=0)
    expected = prepare(dataclasses.replace(config, source=source, tokenizer=ByteTokenizer()))
    for packing in ("concat", "best_fit", "unpacked"):
        pair = [
            objective_rows(dataclasses.replace(config, packing=packing), found.train, seed=0)
            for found in (expected, prepared)
        ]
        assert len(pair[0]) == len(pair[1]) > 20
        batches = [rows.rows(np.arange(len(rows))) for rows in pair]
        for key, values in batches[0].items():
            assert np.array_equal(values, batches[1][key]), (packing, key)
    assert summary(prepared)["train"]["bytes_per_token"] is None
    assert gzip_bits_per_byte(prepared.train, prepared.tokenizer) == pytest.approx(
        gzip_bits_per_byte(expected.train, expected.tokenizer)
    )


def test_a_component_of_a_mixture_may_be_stored(config, store, tmp_path):
    components = (
        Component(name="a", source=StoredSource(path=str(store))),
        Component(name="b", source=TextSource(paths=(str(tmp_path / "text.txt"),), document="line")),
    )
    mixed = dataclasses.replace(config, source=MixtureSource(components=components))
    same = FileTokenizer(path=str(store / "tokenizer.json"))
    prepared = prepare(dataclasses.replace(mixed, tokenizer=same))
    assert prepared.sources["a"].train.directory == store
    with pytest.raises(ConfigError, match="Component 'a' of data.source.*for a mixture set data.tokenizer.name=file"):
        prepare(mixed)


def test_marks_that_are_not_there_are_asked_for(config, store, tmp_path):
    made = tokenizer.train_wordpiece(TEXTS, WordPieceTokenizer(vocab_size=100, max_characters=60))
    made.save(tmp_path / "wordpiece.json")
    ids = [i for text in TEXTS for i in (*made.encode(text), made.end_of_text)]
    np.array(ids, np.uint16).tofile(tmp_path / "train.bin")
    settings = stored(config, tmp_path / "train.bin", FileTokenizer(path=str(tmp_path / "wordpiece.json")))
    masked = MaskedObjective(max_predictions=3)
    assert prepare(dataclasses.replace(settings, objective=masked)).train.num_documents == 40
    with pytest.raises(ConfigError, match="has no marks of words"):
        prepare(dataclasses.replace(settings, objective=dataclasses.replace(masked, whole_word=True)))


def test_what_cannot_be_read_so_is_refused(config, store, tmp_path):
    path = nanogpt(tmp_path / "train.bin")
    with pytest.raises(ConfigError, match="data.tokenizer.name is bpe, which is trained on text"):
        prepare(stored(config, path))
    with pytest.raises(ConfigError, match="holds the token stores train; data.source.path must name one"):
        prepare(stored(config, store.parent))
    with pytest.raises(DataError, match="header.json cannot be read"):
        prepare(stored(config, tmp_path, layout="plumbline"))
    with pytest.raises(ConfigError, match="where no layout shows in the names"):
        prepare(stored(config, tmp_path / "none"))
    assert [key for key, _ in missing_inputs(stored(config, ""))] == ["source.path"]
    assert "must be one of" in check(stored(config, path, layout="megatron-lm"))[0][1]
    assert check(stored(config, path, dtype="float32"))[0][0] == "source.dtype"
    assert "say it" in check(stored(config, path, layout="llmc", dtype="uint16"))[0][1]


def test_damage_is_found_before_it_is_read(config, store, tmp_path):
    path = Path(nanogpt(tmp_path / "train.bin"))
    settings = stored(config, path, ByteTokenizer())
    status = prepare(settings).train.directory and path.stat()
    content = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(bytes([content[0] ^ 1]))

    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match="train.bin is damaged"):
        prepare(settings)
