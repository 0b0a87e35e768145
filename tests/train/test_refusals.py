"""What cannot be is refused by real commands: within seconds, with its exit code, in one paragraph, writing nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from data.schema import to_plain
from tests.helpers import ROOT, TEXT, environment, lines, steps, tiny, train
from train.rundir import open_run

GPT2, LLAMA, DEBERTA = (f"{ROOT}/configs/{name}.py:debug" for name in ("gpt2", "llama", "deberta"))


LIMITED = """
import resource, runpy, sys
limit, module = int(sys.argv.pop(1)), sys.argv.pop(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run(module: str, *arguments, cwd: Path, devices: int = 1, largest_file: int | None = None):
    """`python -m module arguments` in `cwd`; `largest_file` bytes are all that its disk takes of one file."""
    how = ["-m", module] if largest_file is None else ["-c", LIMITED, str(largest_file), module]
    command = [sys.executable, *how, *map(str, arguments)]
    began = time.monotonic()
    done = subprocess.run(command, cwd=cwd, env=environment(devices), capture_output=True, text=True)
    assert time.monotonic() - began < 90
    return done


def contents(directory: Path) -> dict:
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def refused(code: int, message: str, module: str, *arguments, cwd: Path, **options) -> str:
    """Run a command that must end with `code`, with one paragraph and nothing else, having changed no file."""
    before = contents(cwd)
    done = run(module, *arguments, cwd=cwd, **options)
    assert (done.returncode, done.stdout) == (code, ""), (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert contents(cwd) == before
    return done.stderr


@pytest.fixture
def place(tmp_path) -> Path:
    """A directory with some text, in which commands run: `runs` and `.cache` would appear here."""
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


SETTINGS = (
    ((), "--config"),
    (("--config", GPT2, "extra"), "'extra' is not an argument"),
    (("--config", GPT2, "--workdri", "x"), "'--workdri' is not an argument"),
    (("--config", f"{ROOT}/configs/gtp2.py:debug"), "no file .*gtp2.py; did you mean gpt2.py"),
    (("--config", f"{ROOT}/configs/gpt2.py:125m"), "the size is 125m, must be one of debug, 124m"),
    (("--config", GPT2, "--config.train.stepz=3"), "train.stepz is unknown; did you mean train.steps"),
    (("--config", GPT2, "--config.train.batch_size=3.5"), "train.batch_size .*3.5"),
    (("--config", GPT2, "--config.train.steps=10%"), "a share of itself"),
    (("--config", GPT2, "--config.model.attention.num_heads=5"), "num_heads is 5, which does not divide embed_dim 64"),
    (("--config", GPT2, "--config.train.accumulate=3"), "accumulate is 3, which does not divide train.batch_size 8"),
    (("--config", GPT2, "--config.data.length=128"), "data.length is 128, longer than the learned table's"),
    (("--config", DEBERTA, "--config.data.length=128"), "learned table's model.positions.absolute_length 64"),
    (("--config", GPT2, "--config.optim.optimizer.name=adamm"), "adamm.*did you mean adam"),
)


@pytest.mark.parametrize(("arguments", "message"), SETTINGS, ids=[message for _, message in SETTINGS])
def test_settings_that_cannot_be(arguments, message, place):
    refused(2, message, "train.main", *arguments, cwd=place)


MESHES = (
    (("--config.mesh.data=4",), 1, "takes 4 devices, and this machine has 1"),
    (("--config.mesh.tensor=8",), 8, "kv_heads 2 does not divide by mesh.tensor = 8 .*key/kernel"),
    (("--config.train.batch_size=12",), 8, "train.batch_size is 12, .* choose a multiple of 8"),
)


@pytest.mark.parametrize(("overrides", "devices", "message"), MESHES)
def test_machines_that_do_not_suffice(overrides, devices, message, place):
    refused(2, message, "train.main", "--config", LLAMA, *overrides, cwd=place, devices=devices)


def recipe(place: Path, *overrides: str, text: str = "text.txt") -> tuple:
    """Arguments for the debug size of GPT-2 on a text in `place`, as bytes."""
    source = ("--config.data.source.name=text", f"--config.data.source.paths={text}")
    return ("--config", GPT2, *source, "--config.data.tokenizer.name=bytes", *overrides)


@pytest.mark.parametrize(
    ("content", "text", "message"),
    (
        (b"", "empty.txt", "empty.txt in data.source.paths is empty"),
        (None, "missing*.txt", r"missing\*.txt in data.source.paths matches no file"),
        (b"\n \n", "empty.txt", "empty.txt"),
        (b"abc \xff\xfe", "empty.txt", "empty.txt is not UTF-8: byte 4"),
    ),
)
def test_text_that_cannot_be_read(content, text, message, place):
    if content is not None:
        (place / "empty.txt").write_bytes(content)
    paragraphs = "--config.data.source.document=paragraph"
    refused(3, message, "train.main", *recipe(place, paragraphs, text=text), cwd=place)


def word_tokenizer(path: Path) -> None:
    """A tokenizer.json of 700 words, of which the text's are the last ones."""
    words = [f"word{number}" for number in range(650)] + ["<|endoftext|>", "[UNK]", *sorted(set(TEXT.split()))[:48]]
    vocabulary = {word: index for index, word in enumerate(words)}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(path))


def test_a_token_beyond_the_vocabulary(place):
    """Told by the tokenizer before any text is tokenized; a store that is there already is looked at itself."""
    word_tokenizer(place / "words.json")
    overrides = ("--config.data.tokenizer.name=file", "--config.data.tokenizer.path=words.json")
    arguments = [a for a in recipe(place) if "tokenizer" not in a] + list(overrides)
    arguments += ["--config.data.source.document=paragraph", "--config.data.source.validation_fraction=0.2"]
    refused(3, "words.json gives ids up to 699, but model.vocab_size is 512", "train.main", *arguments, cwd=place)
    prepared = run("data.prepare", *arguments, cwd=place)
    assert prepared.returncode == 0, prepared.stderr
    message = r"Token 0 of .*/train is 650, but model.vocab_size is 512. Set model.vocab_size to at least 700"
    refused(3, message, "train.main", *arguments, cwd=place)


@pytest.mark.parametrize("where", ("--workdir", "--config.data.cache_dir"))
def test_a_place_below_a_file(where, place):
    (place / "file").write_text("kept")
    chosen = (where, "file/below") if where == "--workdir" else (f"{where}=file/below",)
    paragraphs = "--config.data.source.document=paragraph"
    refused(6, "file", "train.main", *recipe(place, paragraphs), *chosen, cwd=place)


def test_a_disk_that_takes_no_more(place):
    refused(6, "File too large", "train.main", *recipe(place), cwd=place, largest_file=1000)


def test_a_second_run_in_one_directory(place):
    with open_run(place / "run", True):
        message = f"in use by process {os.getpid()} on"
        refused(2, message, "train.main", *recipe(place), "--workdir", "run", cwd=place)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A directory with text, config.json and a run of two checkpoints."""
    place = tmp_path_factory.mktemp("trained")
    config = tiny(place, {"checkpoint.every": 4})
    train(config, place / "run")
    (place / "config.json").write_text(json.dumps(to_plain(config)))
    return place


@pytest.fixture
def saved(trained, tmp_path) -> Path:
    """A copy of the run, for a test to damage; text and cache stay where they are."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copy(trained / "config.json", tmp_path / "config.json")
    return tmp_path


ARGUMENTS = ("--config", "config.json", "--workdir", "run")
LONGER = ("--config.train.steps=7", "--config.optim.learning_rate=0.02")


def test_a_fixed_field_changed_on_resume(saved):
    wider = "--config.model.feed_forward.hidden_dim=128"
    said = refused(2, "hidden_dim was 64, now 128", "train.main", *ARGUMENTS, wider, cwd=saved)
    assert "model.feed_forward.hidden_dim" in said and "--workdir" in said
    refused(2, "train.seed was 0, now 1", "train.main", *ARGUMENTS, "--config.train.seed=1", cwd=saved)


def flip(folder: Path) -> Path:
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_one_flipped_byte_is_named_and_the_checkpoint_before_it_used(saved):
    path = flip(saved / "run" / "checkpoints" / "6")
    done = run("train.main", *ARGUMENTS, *LONGER, cwd=saved)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(str(path)) == 1 and "step 4 of 7" in done.stderr and "Traceback" not in done.stderr
    assert "changed on resume: train.steps: 6 -> 7" in done.stderr
    assert "changed on resume: optim.learning_rate: 0.01 -> 0.02" in done.stderr
    history = [json.loads(line) for line in (saved / "run" / "config-history.jsonl").read_text().splitlines()]
    assert history == [
        {"step": 4, "path": "optim.learning_rate", "old": 0.01, "new": 0.02},
        {"step": 4, "path": "train.steps", "old": 6, "new": 7},
    ]


def test_a_disk_that_is_full_when_a_checkpoint_is_written(saved):
    """Loud, and not "saved": the older checkpoints stay, and the same command goes on once there is room."""
    done = run("train.main", *ARGUMENTS, *LONGER, cwd=saved, largest_file=150_000)
    assert done.returncode == 6 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: Cannot write the checkpoint") and "File too large" in last and ".incoming/7" in last
    assert steps(saved / "run") == [4, 6]
    done = run("train.main", *ARGUMENTS, *LONGER, cwd=saved)
    assert done.returncode == 0 and "step 6 of 7" in done.stderr, done.stderr
    assert steps(saved / "run") == [4, 6, 7] and len(lines(saved / "run")) == 7 + 2


def test_no_sound_checkpoint(saved):
    """All damaged: each is named, then the end; the same for every command that reads a run."""
    for step in (4, 6):
        flip(saved / "run" / "checkpoints" / str(step))
    commands = (
        ("train.main", *ARGUMENTS),
        ("train.inspect", "--run", "run"),
        ("train.generate", "--run", "run", "--prompt", "a"),
    )
    before = contents(saved)
    for module, *arguments in commands:
        done = run(module, *arguments, cwd=saved)
        assert (done.returncode, done.stdout) == (5, ""), (module, done.stderr)
        *passed, last = done.stderr.splitlines()
        assert [line.split(":")[0] for line in passed] == ["Passing over checkpoint 6", "Passing over checkpoint 4"]
        assert last.startswith("error: No usable checkpoint") and "run/checkpoints" in last
    assert contents(saved) == before


def test_no_checkpoint_at_all(saved):
    shutil.rmtree(saved / "run" / "checkpoints")
    refused(5, "No checkpoint in", "train.inspect", "--run", "run", cwd=saved)
    refused(5, "No checkpoint in run", "train.generate", "--run", "run", "--prompt", "a", cwd=saved)
    refused(5, "No checkpoint in run", "train.main", *ARGUMENTS[:3], "new", "--config.train.init_from=run", cwd=saved)
    refused(2, "nowhere", "train.inspect", "--run", "nowhere", cwd=saved)
    refused(2, "nowhere", "train.generate", "--run", "nowhere", "--prompt", "a", cwd=saved)


def test_weights_of_another_shape(saved):
    overrides = ("--config.train.init_from=run", "--config.model.feed_forward.hidden_dim=72")
    message = r"up/kernel: saved float32\[2, 32, 64\], expected float32\[2, 32, 72\]"
    refused(2, message, "train.main", *ARGUMENTS[:3], "new", *overrides, cwd=saved)


def test_a_dry_run_says_what_would_be_and_writes_nothing(place):
    before = contents(place)
    done = run("train.main", "--config", LLAMA, "--dry_run", cwd=place, devices=8)
    assert done.returncode == 0 and contents(place) == before and done.stderr == ""
    # 512 x 64 embeddings, 2 layers of query, output (64 x 64), key, value (64 x 32), 3 x 64 x 192 and 2 norms, a norm
    count = 512 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192 + 2 * 64) + 64
    for text in (
        f"model       {count:,} parameters, 2 layers x 64",
        "batch       8 rows x 64 = 512 tokens a step",
        "run         20 steps, 10,240 tokens",
        f"params {4 * count:,}",
        "mesh data=8 fsdp=1 expert=1 tensor=1",
        "decayed: 8",
    ):
        assert text in done.stdout, (text, done.stdout)


@pytest.mark.parametrize(
    ("variables", "message"),
    (
        ({}, "JAX_COORDINATOR_ADDRESS=127.0.0.1:1 cannot be joined.* set JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "cannot be joined: invalid literal .* 'two'"),
    ),
)
def test_processes_that_cannot_be_joined(variables, message, place, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refused(2, message, "train.main", "--config", LLAMA, cwd=place)
