"""Prepared once, current or rebuilt, by one process at a time; the command says what there is."""

import dataclasses
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import tokenizer
from data.build import build
from data.config import Data
from data.errors import ConfigError, DataError, StorageError
from data.objective_config import MaskedObjective
from data.prepare import gzip_bits_per_byte, prepare, summary
from data.schema import to_plain
from data.source_config import JsonlSource, TextSource, TfdsSource
from data.store import Store
from data.tokenizer_config import BpeTokenizer, ByteTokenizer, FileTokenizer, WordPieceTokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(f"Paragraph {i} of text.\nIt has two lines." for i in range(200)))
    return path


def config(corpus: Path, **fields) -> Data:
    source = TextSource(paths=(str(corpus),), document="paragraph")
    fields = {"source": source, "tokenizer": BpeTokenizer(vocab_size=300), **fields}
    return Data(cache_dir=str(corpus.parent / "cache"), **fields)


def files(directory: Path) -> dict[str, tuple[int, int]]:
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def texts(store: Store) -> list[str]:
    return [store.tokenizer.decode(store.document(index)) for index in range(store.num_documents)]


def test_both_sides_hold_the_source(corpus, capsys):
    prepared = prepare(config(corpus))
    paragraphs = corpus.read_text().split("\n\n")
    assert sorted(texts(prepared.train) + texts(prepared.validation)) == sorted(paragraphs)
    assert 0 < prepared.validation.num_documents < 30
    assert prepared.train.text_bytes + prepared.validation.text_bytes == sum(map(len, paragraphs))
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 4


def test_a_second_call_opens_what_is_there(corpus, capsys):
    first = prepare(config(corpus))
    before = files(corpus.parent)
    capsys.readouterr()
    second = prepare(config(corpus))
    assert files(corpus.parent) == before
    assert capsys.readouterr().err == ""
    assert (first.train.fingerprint, first.tokenizer.fingerprint) == (
        *(second.train.fingerprint, second.tokenizer.fingerprint),
    )


def test_what_reads_a_store_differently_shares_it(corpus):
    first = prepare(config(corpus))
    again = prepare(config(corpus, length=17, packing="unpacked", shuffle=False, prefetch=0))
    assert first.train.directory == again.train.directory


def test_objectives_share_a_store_unless_they_read_marks(corpus):
    def prepared(**fields):
        wordpiece = WordPieceTokenizer(vocab_size=300, max_characters=100)
        return prepare(config(corpus, tokenizer=wordpiece, length=32, **fields))

    causal, masked = prepared(), prepared(objective=MaskedObjective())
    words = prepared(objective=MaskedObjective(whole_word=True))
    pairs = prepared(objective=MaskedObjective(next_sentence=True))
    assert causal.train.directory == masked.train.directory
    assert [found.train.marks for found in (masked, words, pairs)] == [(), ("words",), ("sentences",)]
    assert len({found.train.directory for found in (masked, words, pairs)}) == 3
    assert len({found.train.fingerprint for found in (masked, words, pairs)}) == 3
    assert pairs.validation.marks == ("sentences",) and pairs.tokenizer.end_of_text_token == "[CLS]"
    before = files(corpus.parent)
    prepared(objective=MaskedObjective(next_sentence=True, rate=0.5, copies=1))
    assert files(corpus.parent) == before


def test_a_tokenizer_without_a_mask_is_refused_before_anything_is_written(corpus):
    path = corpus.parent / "tokenizer.json"
    tokenizer.byte_tokenizer().save(path)
    before = files(corpus.parent)
    with pytest.raises(ConfigError, match="has no mask token"):
        prepare(config(corpus, tokenizer=FileTokenizer(path=str(path)), objective=MaskedObjective()), vocab_size=1000)
    assert files(corpus.parent) == before


def test_a_changed_file_is_prepared_anew(corpus):
    first = prepare(config(corpus))
    corpus.write_text(corpus.read_text() + "\n\nOne more paragraph.")
    second = prepare(config(corpus))
    assert second.train.num_documents + second.validation.num_documents == 201
    assert first.train.directory == second.train.directory
    assert first.train.fingerprint != second.train.fingerprint
    assert sorted(path.name for path in second.train.directory.parent.iterdir()) == ["train", "validation"]


def test_rebuilding_elsewhere_gives_the_same_fingerprints(corpus, tmp_path):
    first = prepare(config(corpus))
    os.utime(corpus, (1, 1))
    second = prepare(config(corpus))
    assert first.train.header["about"] != second.train.header["about"]
    assert first.train.fingerprint == second.train.fingerprint
    assert first.validation.fingerprint == second.validation.fingerprint


def test_the_tokenizer_is_trained_on_training_documents_alone(corpus):
    prepared = prepare(config(corpus))
    assert prepared.tokenizer.fingerprint == tokenizer.train_bpe(texts(prepared.train), 300).fingerprint
    assert prepared.validation.tokenizer.fingerprint == prepared.tokenizer.fingerprint


def test_a_missing_half_is_completed(corpus):
    first = prepare(config(corpus))
    for path in first.validation.directory.iterdir():
        path.unlink()
    first.validation.directory.rmdir()
    assert prepare(config(corpus)).validation.fingerprint == first.validation.fingerprint


@pytest.mark.parametrize("fraction", [0.0, 0.05])
def test_no_validation_is_none(corpus, fraction):
    source = TextSource(paths=(str(corpus),), document="line", validation_fraction=fraction)
    prepared = prepare(config(corpus, source=source))
    assert (prepared.validation is None) == (fraction == 0)
    assert ("validation" in summary(prepared)) == (fraction > 0)


def test_any_tokenizer(corpus, tmp_path):
    made = prepare(config(corpus, tokenizer=ByteTokenizer()))
    assert made.train.num_tokens == made.train.text_bytes + made.train.num_documents
    path = tmp_path / "tokenizer.json"
    tokenizer.train_bpe(["some text"], 260).save(path)
    settings = config(corpus, tokenizer=FileTokenizer(path=str(path)))
    first = prepare(settings)
    tokenizer.train_bpe(["Paragraph of text"], 270).save(path)
    second = prepare(settings)
    assert first.train.directory == second.train.directory
    assert second.tokenizer.fingerprint == tokenizer.load(path).fingerprint != first.tokenizer.fingerprint


def test_processes_at_once_build_it_once(corpus):
    script = (
        "import sys; from data.config import Data; from data.prepare import prepare\n"
        "from data.source_config import TextSource; from data.tokenizer_config import BpeTokenizer\n"
        "source = TextSource(paths=(sys.argv[1],), document='paragraph')\n"
        "tokenizer = BpeTokenizer(vocab_size=300)\n"
        "print(prepare(Data(source=source, tokenizer=tokenizer, cache_dir=sys.argv[2])).train.fingerprint)\n"
    )
    command = [sys.executable, "-c", script, str(corpus), str(corpus.parent / "cache")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    children = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(3)]
    outputs = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert sum("a vocabulary of" in err for _, err in outputs) == 1
    assert prepare(config(corpus)).train.fingerprint == outputs[0][0].strip()


def test_damage_is_found_before_it_is_read(corpus):
    prepared = prepare(config(corpus))
    path = prepared.train.directory / "tokens-00000.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    prepare(config(corpus, verify=False))
    with pytest.raises(DataError, match="train/tokens-00000.bin is damaged"):
        prepare(config(corpus))
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="bytes, the header says"):
        prepare(config(corpus, verify=False))


def test_gzip_is_what_gzip_needs(corpus):
    prepared = prepare(config(corpus))
    needed = sum(len(gzip.compress(text.encode(), 9)) for text in texts(prepared.validation))
    expected = 8 * needed / prepared.validation.text_bytes
    assert gzip_bits_per_byte(prepared.validation, prepared.tokenizer) == pytest.approx(expected, rel=1e-12)


BAD = {
    "an unmatched path": (lambda path: {"source": TextSource(paths=(f"{path}.none",))}, DataError, "matches no file"),
    "no path": (lambda path: {"source": JsonlSource()}, ConfigError, "data.source.paths is empty"),
    "no document to hold out": (
        lambda path: {"source": TextSource(paths=(str(path),), validation_fraction=1e-6)},
        DataError,
        "data.source.validation_fraction=0 ",
    ),
    "a malformed first document": (lambda path: {"source": JsonlSource(paths=(str(path),))}, DataError, "line 1"),
    "no tokenizer": (lambda path: {"tokenizer": FileTokenizer(path=f"{path}.none")}, DataError, "cannot be read"),
    "a text for a tokenizer": (
        lambda path: {"tokenizer": FileTokenizer(path=str(path), lowercase=True)},
        DataError,
        "not the vocab.txt of a BERT",
    ),
    "a vocab.txt without its case": (
        lambda path: {"tokenizer": FileTokenizer(path=str(path))},
        ConfigError,
        "data.tokenizer.lowercase is null",
    ),
    "too small a vocabulary": (
        lambda path: {"tokenizer": BpeTokenizer(vocab_size=256)},
        ConfigError,
        "data.tokenizer.vocab_size is 256",
    ),
    "an unknown packing": (lambda path: {"packing": "tight"}, ConfigError, "data.packing is"),
    "an unknown data set": (lambda path: {"source": TfdsSource(dataset="none_such")}, DataError, "none_such"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_before_anything_is_written(case, corpus):
    make, error, pattern = BAD[case]
    before = files(corpus.parent)
    with pytest.raises(error, match=pattern):
        prepare(config(corpus, **make(corpus)))
    assert files(corpus.parent) == before
    assert not (corpus.parent / "cache").exists()


def test_a_cache_that_cannot_be_is_a_storage_error(corpus):
    (corpus.parent / "cache").write_text("a file in the way")
    with pytest.raises(StorageError, match="cache"):
        prepare(config(corpus))


def command(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "data.prepare", *arguments]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)


def recipe(corpus: Path) -> str:
    """A recipe as a run keeps it, with sections that this command leaves alone."""
    path = corpus.parent / "config.json"
    data = {"source": {"name": "text", "paths": [str(corpus)], "document": "paragraph"}}
    path.write_text(json.dumps({"train": {"steps": 3}, "data": {**data, "cache_dir": str(corpus.parent / "cache")}}))
    return str(path)


def test_command_prints_what_there_is(corpus):
    arguments = ("--config", recipe(corpus), "--config.data.tokenizer.vocab_size=300", "--config.train.steps=9")
    first, second = command(*arguments), command(*arguments)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert first.stdout == second.stdout and second.stderr == ""
    printed = json.loads(first.stdout)
    assert printed == summary(prepare(config(corpus)))
    assert set(printed) == {"tokenizer", "train", "validation"}
    assert set(printed["train"]) == {
        *("path", "documents", "empty_documents", "tokens", "bytes_per_token", "fingerprint"),
    }


@pytest.mark.parametrize(
    "override, code, pattern",
    [
        ("--config.data.lenght=3", 2, "data.length"),
        ("--config.data.length=three", 2, "data.length"),
        ("stray", 2, "stray"),
        ("--config.data.source.paths=none.txt", 3, "none.txt"),
        ("--config.data.cache_dir={corpus}/below", 6, "corpus.txt/below"),
    ],
)
def test_command_ends_with_a_paragraph_and_its_code(override, code, pattern, corpus):
    result = command("--config", recipe(corpus), override.format(corpus=corpus))
    assert (result.returncode, result.stdout) == (code, "")
    assert pattern in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (corpus.parent / "cache").exists()


def test_preparing_starts_no_accelerator():
    script = "import sys, data.prepare; assert not {'jax', 'tensorflow', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def many_files(directory: Path) -> Data:
    """A recipe of eight files, of a second's work together."""
    for number in range(8):
        lines = [f"Line {line} of file {number}: {line * 7919 % 1000} words of text." for line in range(4000)]
        (directory / f"{number}.txt").write_text("\n".join(lines))
    source = TextSource(paths=(f"{directory}/*.txt",), document="line", validation_fraction=0)
    return Data(source=source, tokenizer=BpeTokenizer(vocab_size=400), cache_dir=str(directory / "cache"), workers=2)


@pytest.mark.parametrize("parts", [0, 1, 5])
def test_killed_it_goes_on_without_reading_finished_files_again(parts, tmp_path):
    """Files whose parts are whole are made unreadable, with the size and time of change that they had."""
    config = many_files(tmp_path)
    expected = prepare(dataclasses.replace(config, cache_dir=str(tmp_path / "other"))).train  # of one part
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"data": to_plain(config)}))
    script = "import sys; from data import build, prepare; build.SMALL_BYTES = 0; prepare.main(sys.argv[1:])"
    command = [sys.executable, "-c", script, "--config", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    assert b"the bpe tokenizer" in process.stderr.readline()
    assert b"a vocabulary of" in process.stderr.readline()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if parts == 0 or len(list(tmp_path.rglob("*.part"))) >= parts:
            break
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list((tmp_path / "cache").rglob("train/header.json"))
    finished = {int(part.stem) for part in tmp_path.rglob("*.part")}
    assert len(finished) >= parts
    for number in finished - {0}:  # of the first one a document is looked at, whether it is text
        file = tmp_path / f"{number}.txt"
        status = file.stat()
        file.write_bytes(b"\xff" * status.st_size)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    if finished:
        assert "vocabulary" not in result.stderr
        assert f"{len(finished)} of 8 parts are there from an earlier launch" in result.stderr
    made = Store(json.loads(result.stdout)["train"]["path"])
    assert made.fingerprint == expected.fingerprint and made.header["files"] == expected.header["files"]
    assert [path.name for path in made.directory.parent.iterdir()] == ["train"]


def test_killed_behind_a_split_it_goes_on_with_the_next(corpus, capsys, monkeypatch):
    def killed(directory, reader, split, *others):
        if split == "validation":
            raise KeyboardInterrupt
        build(directory, reader, split, *others)

    monkeypatch.setattr("data.prepare.build", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(corpus))
    monkeypatch.undo()
    kept = files(corpus.parent)
    capsys.readouterr()
    prepared = prepare(config(corpus))
    said = capsys.readouterr().err
    assert "vocabulary" not in said and "train:" not in said and "validation:" in said
    assert all(facts == kept[path] for path, facts in files(prepared.train.directory).items())
    assert sorted(path.name for path in prepared.train.directory.parent.iterdir()) == ["train", "validation"]
