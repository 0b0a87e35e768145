"""`python -m train.generate` on a trained run: what it prints, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest

from data.cli import exit_code
from model.config import LearnedPositions
from tests import helpers
from train import generate

ROOT = Path(__file__).parents[2]
PROMPTS = ("Counting 3: 9", "7", "Counting Counting ")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of a few steps, its learned table 48 positions long."""
    directory = tmp_path_factory.mktemp("trained")
    config = helpers.tiny(directory, {"model.positions": LearnedPositions(length=48), "train.steps": 3})
    helpers.train(config, directory / "run")
    return directory / "run"


def asked(run: Path, *arguments: str) -> list[str]:
    return ["--run", str(run), "--max_new_tokens", "6", "--json", *arguments]


def prompts(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--prompt", text)]


@pytest.fixture
def answer(run, capsys):
    """`answer(*arguments)`: what the command prints, as JSON."""

    def call(*arguments: str) -> list[dict]:
        assert exit_code(generate.main, asked(run, *arguments)) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_each_prompt_gives_its_text_tokens_and_end(run, answer):
    tokenizer = generate.load_run(run)[2]
    results = answer(*prompts(*PROMPTS))
    assert [result["prompt"] for result in results] == list(PROMPTS)
    for result in results:
        assert set(result) == {"prompt", "text", "tokens", "ended"}
        assert result["text"] == tokenizer.decode(result["tokens"])
        assert len(result["tokens"]) == 6 or result["ended"]
        assert tokenizer.end_of_text not in result["tokens"] and max(result["tokens"]) < 257


def test_prompts_asked_together_are_each_asked_alone(answer):
    options = ("--top_k", "40", "--top_p", "0.9")
    together = answer(*prompts(*PROMPTS), *options)
    assert together == [answer(*prompts(text), *options)[0] for text in PROMPTS]


def test_a_prompt_asked_twice_gives_two_samples_and_one_greedy_text(answer):
    one, other = answer(*prompts("7", "7"))
    assert one["tokens"] != other["tokens"]
    assert one == answer(*prompts("7"))[0]
    one, other = answer(*prompts("7", "7"), "--temperature", "0")
    assert one == other


def test_a_seed_repeats_its_samples(answer):
    first, again, other = (answer(*prompts("7"), "--seed", seed) for seed in ("1", "1", "4294967295"))
    assert first == again != other


def test_a_prompt_stands_behind_the_end_of_text_which_begins_a_document(run, answer):
    """So an empty one begins a document: its first token is the likeliest behind an end of text alone."""
    model, params, tokenizer = generate.load_run(run)
    for prompt in ("", "7"):
        ids = [tokenizer.end_of_text, *tokenizer.encode(prompt)]
        batch = {"tokens": [ids], "positions": [range(len(ids))], "segment_ids": [[1] * len(ids)]}
        batch = {key: np.array([list(row) for row in value], np.int32) for key, value in batch.items()}
        scores = nn.apply(lambda model, batch=batch: model.logits(model(batch)[0]), model)({"params": params})
        likeliest = int(np.argmax(scores[0, -1, : model.config.vocab_size]))
        (result,) = answer(*prompts(prompt), "--temperature", "0")
        assert (result["tokens"] or [tokenizer.end_of_text])[0] == likeliest


def test_a_text_that_ends_says_so_without_its_end(run):
    """The end's bias set high: it is the first token everywhere."""
    model, params, tokenizer = generate.load_run(run)
    params["embedding"]["token"] = params["embedding"]["token"].at[tokenizer.end_of_text].mul(1e3)
    results = generate.continue_texts((model, params, tokenizer), PROMPTS, 6, generate.Sampling(0.0), seed=0)
    ended = [result for result in results if result["ended"]]
    assert ended and all(len(result["tokens"]) < 6 for result in ended)
    assert all(tokenizer.end_of_text not in result["tokens"] for result in results)


def test_the_command_prints_text_unless_asked_for_json(run):
    """As a person calls it, from a shell."""
    command = [sys.executable, "-m", "train.generate", "--run", str(run), *prompts("7"), "--max_new_tokens", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("7")


REFUSED = {
    "--temperature is -1.0, must be at least 0 and finite": ["--temperature", "-1"],
    "--temperature is inf, must be": ["--temperature", "inf"],
    "--temperature is nan, must be": ["--temperature", "nan"],
    "--top_k is 0, must be at least 1": ["--top_k", "0"],
    "--top_p is 0.0, must be above 0 and at most 1": ["--top_p", "0"],
    "--top_p is 1.5, must be": ["--top_p", "1.5"],
    "--max_new_tokens is 0, must be from 1 to 1048576": ["--max_new_tokens", "0"],
    "--max_new_tokens is 1048577, must be from 1": ["--max_new_tokens", "1048577"],
    "--seed is -1, must be from 0": ["--seed", "-1"],
    "--seed is 4294967296, must be": ["--seed", "4294967296"],
    "--prompt is ['7', '\\udcff'], must be text": ["--prompt", "\udcff"],
    "has 2 tokens and --max_new_tokens is 47: together more than the 48 positions": ["--max_new_tokens", "47"],
}


@pytest.mark.parametrize(("message", "arguments"), REFUSED.items(), ids=["".join(value) for value in REFUSED.values()])
def test_a_value_that_cannot_be_is_refused(run, capsys, message, arguments):
    assert exit_code(generate.main, asked(run, *prompts("7"), *arguments)) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


def test_a_text_may_fill_the_learned_table(run, capsys):
    arguments = asked(run, *prompts("7"), "--max_new_tokens", "46")
    assert exit_code(generate.main, arguments) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["tokens"]) <= 46


def test_arguments_that_are_missing_unknown_or_cut_short_are_refused(run, capsys):
    for arguments in (["--run", str(run)], prompts("7"), asked(run, *prompts("7"), "--temper", "1")):
        assert exit_code(generate.main, arguments) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ") and printed.out == ""


def test_a_directory_without_a_run_is_refused(run, tmp_path, capsys):
    assert exit_code(generate.main, asked(tmp_path / "missing", *prompts("7"))) == 2
    assert "is not a directory" in capsys.readouterr().err
    assert exit_code(generate.main, asked(tmp_path, *prompts("7"))) == 5
    assert "holds no run" in capsys.readouterr().err
    unsaved = tmp_path / "unsaved"
    shutil.copytree(run, unsaved, ignore=shutil.ignore_patterns("checkpoints"))
    assert exit_code(generate.main, asked(unsaved, *prompts("7"))) == 5
    assert str(unsaved) in capsys.readouterr().err


def test_the_end_of_text_is_the_one_that_the_run_was_configured_with(run, tmp_path):
    """A tokenizer whose end of text has no usual name."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    content = (copy / "tokenizer.json").read_text(encoding="utf-8")
    (copy / "tokenizer.json").write_text(content.replace("<|endoftext|>", "<stop>"), encoding="utf-8")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["tokenizer"] = {"name": "file", "path": "somewhere.json", "end_of_text": "<stop>"}
    (copy / "config.json").write_text(json.dumps(config))
    tokenizer = generate.load_run(copy)[2]
    assert (tokenizer.end_of_text, tokenizer.end_of_text_token) == (256, "<stop>")
