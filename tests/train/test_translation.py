"""Each encoder-decoder learns a toy language in about a minute, by the commands that a person calls.

Training takes half a minute to a minute on two cores, what it compiles included.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import environment

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
GERMAN = ["null", "eins", "zwei", "drei", "vier", "fuenf", "sechs", "sieben", "acht", "neun"]
ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TRAINED, HELD_OUT = 8000, 50  # pairs
RECIPES = ("transformer", "t5", "gshard", "switch")
SETTINGS = {
    "data.source.name": "jsonl",
    "data.objective.name": "seq2seq",
    "data.objective.target_length": 16,
    "data.length": 16,
    "data.packing": "unpacked",
    "data.tokenizer.vocab_size": 320,
    "data.tokenizer.special_tokens": "[]",
    "model.vocab_size": 320,
    "model.dropout": 0.0,
    "model.output_dropout": 0.0,
    "model.attention.dropout": 0.0,
    "model.feed_forward.dropout": 0.0,
    "optim.optimizer.name": "adamw",
    "optim.learning_rate": 3e-3,
    "optim.schedule.name": "linear",
    "optim.schedule.warmup": 30,
    "train.steps": 450,
    "train.batch_size": 64,
    "eval.every": 450,
    "checkpoint.every": 150,
    "log.tensorboard": "false",
}


def sentences() -> list[tuple[str, str]]:
    """Three to six different digits in words, and in the other language the other way round; no pair twice."""
    generator, found = random.Random(0), {}
    while len(found) < TRAINED + HELD_OUT:
        digits = generator.sample(range(10), generator.randint(3, 6))
        found[" ".join(GERMAN[digit] for digit in digits)] = " ".join(ENGLISH[digit] for digit in reversed(digits))
    return list(found.items())


def call(*arguments: str) -> str:
    """What a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=RECIPES)
def trained(request, tmp_path_factory) -> tuple[Path, list[tuple[str, str]]]:
    """(the run, pairs that it has not seen)."""
    directory, pairs = tmp_path_factory.mktemp(request.param), sentences()
    text = directory / "pairs.jsonl"
    objects = ({"source": source, "target": target} for source, target in pairs[HELD_OUT:])
    text.write_text("".join(f"{json.dumps(each)}\n" for each in objects))
    settings = {**SETTINGS, "data.source.paths": text, "data.cache_dir": directory / "cache"}
    given = [f"--config.{key}={value}" for key, value in settings.items()]
    call("train.main", "--config", f"configs/{request.param}.py:debug", "--workdir", str(directory / "run"), *given)
    return directory / "run", pairs[:HELD_OUT]


@pytest.mark.parametrize(
    "how", (("--temperature", "0"), ("--beams", "4", "--length_penalty", "0.6")), ids=("greedy", "beams")
)
def test_every_sentence_that_it_has_not_seen_is_translated(trained, how):
    run, pairs = trained
    prompts = [part for source, _ in pairs for part in ("--prompt", source)]
    results = json.loads(call("train.generate", "--run", str(run), *prompts, *how, "--json"))
    assert [(result["prompt"], result["text"]) for result in results] == pairs
    assert all(result["ended"] for result in results)
    if "--beams" in how:
        assert all(-1.0 < result["score"] < 0.0 for result in results)


def test_the_mean_of_its_checkpoints_translates_too(trained, tmp_path):
    run, pairs = trained
    call("train.average", "--run", str(run), "--last", "2", "--workdir", str(tmp_path / "mean"))
    prompts = [part for source, _ in pairs[:10] for part in ("--prompt", source)]
    printed = call("train.generate", "--run", str(tmp_path / "mean"), *prompts, "--beams", "4")
    assert printed.split("\n\n")[:-1] == [target for _, target in pairs[:10]]
