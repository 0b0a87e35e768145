"""`python -m data.store`: what there is, whether it is whole, and more of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data import store, store_append, store_command, tokenizer
from data.cli import exit_code
from data.encoding import TextEncoder, batches
from data.errors import ConfigError, DataError
from data.packing_plan import plan
from data.store import Store
from data.store_writer import pieces

ROOT = Path(__file__).parents[2]
TEXTS = ["abc", "", "x", "a longer document\nof two lines", "é" * 20]
MORE = ["y", "more text", "", "z" * 30]


def write(directory: Path, texts=TEXTS, marks=()) -> Store:
    store.write(directory, texts, tokenizer.byte_tokenizer(), about={}, marks=marks)
    return Store(directory)


def append(opened: Store, texts=MORE, made=None, marks=None):
    encoder = TextEncoder(made or tokenizer.byte_tokenizer(), opened.marks if marks is None else marks)
    store_append.append(opened, pieces(encoder, batches(texts)), encoder, {"more": True})
    return Store(opened.directory)


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def called(capsys, *arguments) -> tuple[int, str, str]:
    code = exit_code(store_command.main, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(params=[1 << 28, 7, 1])
def shards(request, monkeypatch):
    monkeypatch.setattr(store, "SHARD_TOKENS", request.param)


@pytest.mark.parametrize("marks", [(), ("sentences", "words")])
@pytest.mark.parametrize("times", [1, 2])
def test_appended_documents_stand_behind_the_others_and_touch_none(times, marks, shards, tmp_path):
    first = write(tmp_path / "store", marks=marks)
    before = content(first.directory)
    stream = first.tokens(0, first.num_tokens).tolist()
    appended = append(append(first) if times == 2 else first)
    after = content(first.directory)
    assert {name: after[name] for name in before if name != "header.json"} == {
        name: found for name, found in before.items() if name != "header.json"
    }
    expected = write(tmp_path / "expected", [*TEXTS, *MORE * times], marks)
    size = expected.num_tokens
    assert appended.num_tokens == size and appended.tokens(0, size).tolist() == expected.tokens(0, size).tolist()
    for start in range(0, size + 1, 3):
        for stop in range(start, size + 1, 5):
            assert appended.tokens(start, stop).tolist() == expected.tokens(start, stop).tolist()
    assert appended.document_starts.tolist() == expected.document_starts.tolist()
    for name in marks:
        assert appended.marked(name, 0, size).tolist() == expected.marked(name, 0, size).tolist()
    for name in ("num_documents", "text_bytes", "empty_documents", "max_token"):
        assert appended.header[name] == expected.header[name]
    assert appended.fingerprint not in (first.fingerprint, expected.fingerprint)
    assert [part["about"] for part in appended.header["appended"]] == [{"more": True}] * times
    appended.verify()
    assert first.tokens(0, first.num_tokens).tolist() == stream  # who has it open keeps it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "store"]


def test_a_store_with_appended_documents_is_of_another_version(tmp_path):
    """Code that knows of no appended documents refuses it, rather than to read a part."""
    assert append(write(tmp_path / "store")).header["version"] == 2
    assert write(tmp_path / "other").header["version"] == 1


def test_every_flipped_byte_of_an_appended_store_is_named(tmp_path):
    appended = append(write(tmp_path / "store", marks=("words",)))
    for name, whole in content(appended.directory).items():
        path = appended.directory / name
        for offset in range(0, len(whole), 97 if name == "tokenizer.json" else 7):
            changed = bytearray(whole)
            changed[offset] ^= 1
            path.write_bytes(changed)
            with pytest.raises(DataError, match=f"{name} is"):
                Store(appended.directory).verify()
        path.write_bytes(whole)
    Store(appended.directory).verify()
    (appended.directory / "appended-00001" / "foreign").write_bytes(b"")
    with pytest.raises(DataError, match="foreign is no part"):
        appended.verify()


def test_what_does_not_belong_into_a_store_is_refused(tmp_path):
    opened = write(tmp_path / "store", marks=("words",))
    before = content(opened.directory)
    with pytest.raises(ConfigError, match="by another tokenizer"):
        append(opened, made=tokenizer.train_bpe(["abc"], 260))
    with pytest.raises(ConfigError, match="holds the marks words, these documents would get none"):
        append(opened, marks=())
    with pytest.raises(DataError, match="No document to append"):
        append(opened, texts=["", ""])

    def meanwhile():
        yield "text"
        append(opened)

    with pytest.raises(DataError, match="Another process appends"):
        append(opened, texts=meanwhile())
    assert content(opened.directory) == before
    append(opened)
    with pytest.raises(DataError, match="has appended to .* meanwhile"):
        append(opened)


def test_killed_at_any_moment_an_append_is_whole_or_has_not_been(tmp_path):
    script = (
        "import sys; from pathlib import Path; from tests.data.killed_writer import kill_at\n"
        "from tests.data.test_store_command import append; from data.store import Store\n"
        "opened = Store(sys.argv[1]); kill_at(int(sys.argv[2])); append(opened)\n"
    )
    (tmp_path / "old").mkdir()
    old = write(tmp_path / "old" / "store", marks=("words",))
    sizes, number = [], 1
    while True:
        shutil.copytree(tmp_path / "old", tmp_path / str(number))
        directory = tmp_path / str(number) / "store"
        status = subprocess.run([sys.executable, "-c", script, str(directory), str(number)], cwd=ROOT).returncode
        found = Store(directory)
        found.verify()
        sizes.append(found.num_documents)
        assert found.tokens(0, old.num_tokens).tolist() == old.tokens(0, old.num_tokens).tolist()
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if found.num_documents == old.num_documents:
            append(found).verify()
            assert [path.name for path in directory.parent.iterdir()] == ["store"]
        number += 2
    assert set(sizes) == {4, 7} and len(sizes) > 4 and sizes == sorted(sizes)


def test_verify_names_everything_that_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(store, "SHARD_TOKENS", 20)
    directory = write(tmp_path / "store").directory
    code, out, _ = called(capsys, "verify", directory)
    assert code == 0 and json.loads(out)["whole"] and json.loads(out)["files"] == len(list(directory.iterdir()))
    flipped = bytearray((directory / "tokens-00000.bin").read_bytes())
    flipped[3] ^= 4
    (directory / "tokens-00000.bin").write_bytes(flipped)
    (directory / "tokens-00001.bin").write_bytes(b"12")
    (directory / "documents.bin").unlink()
    (directory / "notes.txt").write_text("mine")
    code, out, err = called(capsys, "verify", directory)
    assert (code, out) == (3, "") and err.count("\n") == 1
    for pattern in (
        "tokens-00000.bin is damaged: its SHA-256 is",
        "tokens-00001.bin has 2 bytes, the header says 40",
        "documents.bin cannot be read: No such file",
        "notes.txt is no part of the token store",
    ):
        assert pattern in err
    (directory / "header.json").write_text("{}")
    code, _, err = called(capsys, "verify", directory)
    assert code == 3 and "header.json is damaged" in err
    code, _, err = called(capsys, "verify", tmp_path / "none")
    assert code == 3 and "none/header.json cannot be read" in err


def test_verify_reads_what_is_kept_beside_a_store(tmp_path, capsys):
    opened = write(tmp_path / "store")
    plan(opened, 16, "best_fit", False)
    code, out, _ = called(capsys, "verify", opened.directory)
    (kept,) = json.loads(out)["beside"]
    assert code == 0
    path = next(path for path in Path(kept).iterdir() if path.suffix != ".json")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    code, _, err = called(capsys, "verify", opened.directory)
    assert code == 3 and f"{kept} is damaged" in err


def test_describe_says_what_a_store_holds(tmp_path, capsys):
    opened = append(write(tmp_path / "store"))
    code, out, _ = called(capsys, "describe", opened.directory)
    found = json.loads(out)
    lengths = sorted(len(text.encode()) for text in [*TEXTS, *MORE] if text)
    assert code == 0 and found["documents"] == len(lengths) and found["empty_documents"] == 2
    assert found["text_bytes"] == sum(lengths) and found["tokens"] == sum(lengths) + len(lengths)
    assert found["document_tokens"]["min"] == 1 and found["document_tokens"]["max"] == lengths[-1]
    assert found["document_tokens"]["50%"] == lengths[3]
    assert found["tokenizer"] == {
        "fingerprint": tokenizer.byte_tokenizer().fingerprint,
        "vocab_size": 257,
        "end_of_text": "<|endoftext|>",
    }
    assert sum(found["files"].values()) == found["bytes"] and found["dtype"] == "uint16"
    assert found["appended"][0]["num_documents"] == 3


def test_samples_are_documents_and_the_same_each_time(tmp_path, capsys):
    opened = write(tmp_path / "store", [f"document {i}" for i in range(200)])
    found = [called(capsys, "sample", opened.directory, "--documents", 5, "--seed", seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    lines = found[0][1].splitlines()
    assert len(lines) == 10 and len(set(lines[::2])) == 5
    for head, text in zip(lines[::2], lines[1::2], strict=True):
        index = int(head.split()[2])
        assert text == f"document {index}" and head == f"--- document {index} of 200, {len(text)} tokens"
    few = write(tmp_path / "few", ["a", "b"])
    assert called(capsys, "sample", few.directory, "--documents", 9)[1].count("---") == 2
    assert called(capsys, "sample", few.directory, "--documents", 0)[0] == 2


def recipe(directory: Path, name: str, **fields) -> Path:
    path = directory / f"{name}.json"
    path.write_text(json.dumps({"data": {"cache_dir": str(directory / "cache"), **fields}}))
    return path


def lines(directory: Path, name: str, texts) -> dict:
    (directory / f"{name}.txt").write_text("\n".join(texts))
    return {"name": "text", "paths": [str(directory / f"{name}.txt")], "document": "line", "validation_fraction": 0.0}


def test_append_makes_a_store_and_adds_each_source_once(tmp_path, capsys):
    a = recipe(tmp_path, "a", source=lines(tmp_path, "a", TEXTS[:1]), tokenizer={"name": "bytes"})
    b = recipe(tmp_path, "b", source=lines(tmp_path, "b", ["y", "more"]), tokenizer={"name": "bpe"})
    directory = tmp_path / "own" / "store"
    code, _, err = called(capsys, "append", "--store", directory, "--config", b)
    assert code == 2 and "Set data.tokenizer.name=file" in err and not directory.exists()
    added = []
    for config in (a, b, b, a):
        code, out, _ = called(capsys, "append", "--store", directory, "--config", config)
        added.append(json.loads(out)["added"])
        assert code == 0
    assert added == [1, 2, 0, 0]
    found = Store(directory)
    assert [found.tokenizer.decode(found.document(i)) for i in range(3)] == ["abc", "y", "more"]
    found.verify()
    lines(tmp_path, "b", ["y", "more", "third"])
    assert json.loads(called(capsys, "append", "--store", directory, "--config", b)[1])["added"] == 3


def test_a_store_that_a_recipe_keeps_is_left_alone(tmp_path, capsys):
    directory = write(tmp_path / "cache" / "stores" / "0123" / "train").directory
    a = recipe(tmp_path, "a", source=lines(tmp_path, "a", ["x"]), tokenizer={"name": "bytes"})
    code, _, err = called(capsys, "append", "--store", directory, "--config", a)
    assert code == 2 and "cp -r" in err and "data.source.name=store" in err


@pytest.mark.parametrize(
    "arguments, code",
    [((), 2), (("look",), 2), (("verify",), 2), (("verify", "x", "--stray"), 2), (("describe", "none"), 3)],
)
def test_command_ends_with_a_paragraph_and_its_code(arguments, code):
    command = [sys.executable, "-m", "data.store", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    assert result.returncode == code and result.stdout == ""
    assert result.stderr.startswith("error: ") and "Traceback" not in result.stderr
