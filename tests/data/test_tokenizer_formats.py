"""A tokenizer's file is read by what it holds, a directory by the file in it, and anything else is named."""

import pytest

from data import tokenizer
from data.config import Data, check
from data.errors import ConfigError, DataError
from data.tokenizer import load
from data.tokenizer_config import FileTokenizer

VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n"


def test_a_directory_is_read_by_the_file_in_it(tmp_path):
    with pytest.raises(DataError, match=r"holds no tokenizer: none of tokenizer\.json, vocab\.txt"):
        load(tmp_path)
    (tmp_path / "vocab.txt").write_text(VOCABULARY)
    assert load(tmp_path, lowercase=True).encode("Hello") == [5]
    made = tokenizer.train_bpe(["some text"], 260)
    made.save(tmp_path / "tokenizer.json")
    assert load(tmp_path).fingerprint == made.fingerprint


def test_two_models_in_a_directory_are_refused(tmp_path):
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"\n")
    with pytest.raises(DataError, match=r"holds a\.model and b\.model; name the one to read"):
        load(tmp_path)


def test_json_is_read_under_any_name(tmp_path):
    made = tokenizer.train_bpe(["some text"], 260)
    made.save(tmp_path / "tokenizer")
    assert load(tmp_path / "tokenizer").fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.safetensors", b"\x10\x00\x00\x00{}", r"x\.safetensors begins with b'\\x10"),
        ("x.gguf", b"GGUF\x03\x00", r"begins with b'GGUF.*a SentencePiece \.model, or tiktoken's ranks"),
        ("x", b"", r"x is empty, so it is no tokenizer that can be read"),
        ("merges", b"#version: 0.2\nt h\n", r"begins with b'#version: 0\.2"),
        ("x.json", b"[]", r"x\.json is not a tokenizer\.json"),
        ("x.zip", b"PK\x03\x04", r"begins with b'PK"),
    ],
)
def test_anything_else_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.model cannot be read: No such file"):
        load(tmp_path / "gone.model")


def test_a_setting_of_another_format_is_refused(tmp_path):
    tokenizer.byte_tokenizer().save(tmp_path / "tokenizer.json")
    for setting in ({"pattern": "gpt2"}, {"lowercase": True}):
        with pytest.raises(ConfigError, match=rf"data\.tokenizer\.{[*setting][0]} is"):
            load(tmp_path, **setting)
    ((key, clash),) = check(Data(tokenizer=FileTokenizer(path="x", pattern="r50k")))
    assert key == "tokenizer.pattern" and "must be one of gpt2, cl100k, llama3, o200k" in clash
