"""The command trains the tokenizer of a recipe, to the same bytes every time, and measures any on held-out text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import tokenizer, tokenizer_report
from data.errors import ConfigError, DataError
from data.tokenizer import load

ROOT = Path(__file__).parents[2]
CHINESE = ("子曰學而時習之不亦說乎", "有朋自遠方來不亦樂乎", "天地玄黃宇宙洪荒日月盈昃")
TRAINING = [f"The number {n} of the lines, {CHINESE[n % 3]}。 Привет {n * 7919 % 1000}" for n in range(400)]
HELD_OUT = [f"Other lines, {CHINESE[n % 3][::-1]} 龍 {n}" for n in range(30)]


@pytest.fixture
def recipe(tmp_path):
    for name, lines in (("train.txt", TRAINING), ("held.txt", HELD_OUT)):
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = {
        **{"name": "text", "document": "line"},
        "paths": [str(tmp_path / "train.txt")],
        "validation_paths": [str(tmp_path / "held.txt")],
    }
    data = {"source": source, "tokenizer": {"name": "bpe", "vocab_size": 400}, "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "recipe.json").write_text(json.dumps({"data": data, "train": {"steps": 3}}))
    return tmp_path / "recipe.json"


def run(capsys, *arguments) -> dict:
    tokenizer_report.main([str(argument) for argument in arguments])
    return json.loads(capsys.readouterr().out)


KINDS = {
    "bpe": (),
    "wordpiece": ("--config.data.tokenizer.name=wordpiece", "--config.data.tokenizer.max_characters=100"),
    "unigram": ("--config.data.tokenizer.name=unigram",),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipes_tokenizer_is_trained_on_its_training_documents(recipe, tmp_path, capsys, kind):
    output = tmp_path / "made.json"
    overrides = (*KINDS[kind], "--config.data.tokenizer.vocab_size=420")
    found = run(capsys, "train", "--config", recipe, "--output", output, *overrides)
    made = load(output)
    assert (found["path"], found["fingerprint"], found["vocab_size"]) == (
        *(str(output), made.fingerprint),
        made.vocab_size,
    )
    assert found["special_tokens"] == made.special_tokens and found["end_of_text"] == made.end_of_text_token
    held_out = found["held_out"]
    ids = made.encode_batch(HELD_OUT)
    assert held_out["documents"] == 30 and held_out["bytes"] == sum(len(text.encode()) for text in HELD_OUT)
    assert held_out["tokens"] == sum(map(len, ids))
    assert held_out["bytes_per_token"] == round(held_out["bytes"] / held_out["tokens"], 4)
    unknown = sum(int((row == made.unknown).sum()) for row in ids) if kind == "wordpiece" else 0
    assert held_out["unknown_rate"] == round(unknown / held_out["tokens"], 6)
    assert held_out["documents_returned"] == (0 if kind == "wordpiece" else 1)
    assert sum(script["bytes"] for script in held_out["scripts"].values()) == held_out["bytes"]
    assert {"latin", "han", "digits", "other"} == {*held_out["scripts"]}
    again = run(capsys, "report", "--config", recipe, "--tokenizer", output)
    assert {"path": str(output), **again} == found


def test_a_byte_of_what_is_no_piece_is_counted(recipe, tmp_path, capsys):
    found = run(capsys, "train", "--config", recipe, "--output", tmp_path / "u.json", *KINDS["unigram"])
    made = load(tmp_path / "u.json")
    dragons = made.encode("龍")
    assert set(dragons) <= set(made.fallback_bytes) and len(dragons) == 3
    assert found["held_out"]["byte_fallback_rate"] >= 3 * 30 / found["held_out"]["tokens"] - 1e-6


def test_tokens_and_bytes_are_those_of_their_script():
    counts = tokenizer_report.measure(tokenizer.byte_tokenizer(), ["ab 學", "Ж1", "", "é"])
    names = [*tokenizer_report.SCRIPTS, "other"]
    by_name = {name: (int(counts.bytes[i]), int(counts.tokens[i])) for i, name in enumerate(names) if counts.bytes[i]}
    assert by_name == {"latin": (4, 4), "han": (3, 3), "cyrillic": (2, 2), "digits": (1, 1), "other": (1, 1)}
    assert (counts.documents, counts.returned, counts.characters) == (4, 4, 7)
    assert counts.bytes.dtype == np.int64


def test_a_file_is_not_lost(recipe, tmp_path, capsys):
    output = tmp_path / "made.json"
    arguments = ("train", "--config", recipe, "--output", output)
    first = run(capsys, *arguments)
    kept = (output.read_bytes(), output.stat().st_mtime_ns)
    assert run(capsys, *arguments) == first
    with pytest.raises(ConfigError, match=r"made\.json, which holds another tokenizer; --force"):
        run(capsys, *arguments, "--config.data.tokenizer.vocab_size=410")
    assert output.read_bytes() == kept[0]
    assert run(capsys, *arguments, "--config.data.tokenizer.vocab_size=410", "--force")["vocab_size"] == 410
    assert {path.name for path in tmp_path.iterdir()} <= {"made.json", "train.txt", "held.txt", "recipe.json", "cache"}


def test_other_tokenizers_are_measured_with_their_settings(recipe, tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nother\nlines\n,\n")
    settings = ("--config.data.tokenizer.name=file", "--config.data.tokenizer.lowercase=true")
    found = run(capsys, "report", "--config", recipe, "--tokenizer", tmp_path / "vocab.txt", *settings)
    assert found["vocab_size"] == 8 and found["held_out"]["unknown_rate"] > 0.5
    found = run(capsys, "report", "--config", recipe, "--config.data.tokenizer.name=bytes", "--held_out_bytes", 100)
    assert found["held_out"]["bytes_per_token"] == 1 and 100 <= found["held_out"]["bytes"] < 200


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["train"], ConfigError, "--output is missing"),
        (["train", "--output", "{tmp}/x.txt"], ConfigError, r"must be a file that ends in \.json"),
        (["train", "--output", "{tmp}/gone/x.json"], ConfigError, r"there is no directory"),
        (["train", "--output", "{tmp}/x.json", "--tokenizer", "y"], ConfigError, "--tokenizer belongs to report"),
        (["train", "--output", "{tmp}/x.json", "--config.data.tokenizer.name=bytes"], ConfigError, "is not trained"),
        (["train", "--output", "{tmp}/x.json", "--config.data.tokenizer.vocab=3"], ConfigError, "unknown"),
        (
            ["train", "--output", "{tmp}/x.json", "--config.data.tokenizer.special_tokens=a"],
            ConfigError,
            r"data\.tokenizer\.special_tokens holds \"a\"",
        ),
        (["report"], ConfigError, "--tokenizer is missing: the recipe trains its own"),
        (["report", "--output", "x"], ConfigError, "--output and --force belong to train"),
        (["report", "--tokenizer", "{tmp}/gone.json"], DataError, "cannot be read"),
        (["report", "--held_out_bytes", "0", "--tokenizer", "x"], ConfigError, "must be at least 1"),
        (["write"], ConfigError, "invalid choice"),
        (["report", "stray", "--tokenizer", "x"], ConfigError, "stray"),
    ],
)
def test_what_cannot_be_is_refused(recipe, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        tokenizer_report.main([*(item.replace("{tmp}", str(tmp_path)) for item in arguments), "--config", str(recipe)])
    assert not (tmp_path / "x.json").exists()


def test_nothing_held_out_is_refused(recipe, tmp_path):
    arguments = ("--config.data.source.validation_paths=", "--config.data.source.validation_fraction=0")
    with pytest.raises(ConfigError, match="holds no text out"):
        tokenizer_report.main(["report", "--config", str(recipe), "--tokenizer", "x", *arguments])


def test_as_a_command_it_prints_json_alone_and_ends_with_a_code(recipe, tmp_path):
    def command(*arguments):
        line = [sys.executable, "-m", "data.tokenizer", *arguments, "--config", str(recipe)]
        return subprocess.run(line, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True, text=True)

    done = command("train", "--output", str(tmp_path / "made.json"))
    assert done.returncode == 0 and json.loads(done.stdout)["vocab_size"] == 400
    assert all(line.startswith("tokenizer: ") for line in done.stderr.splitlines())
    refused = command("report", "--tokenizer", str(tmp_path / "gone.json"))
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (3, "", 1)
