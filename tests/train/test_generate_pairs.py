"""`python -m train.generate` on a decoder beside an encoder, whose prompt is the source; and with beams."""

import json
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest

from data.cli import exit_code
from data.objective_config import Seq2SeqObjective
from data.source_config import JsonlSource
from model.config import CapacityExperts, Layer, LearnedPositions
from tests import helpers
from train import generate

PROMPTS = ("Counting 3: 9", "7", "Counting Counting Counting Counting ")  # of two padded lengths
LONGEST = 60  # positions of the table


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A few steps on pairs of a number and its square, of one layer of experts each side."""
    directory = tmp_path_factory.mktemp("pairs")
    pairs = ({"source": f"{number} squared", "target": str(number**2)} for number in range(60))
    (directory / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    changes = {
        "data.source": JsonlSource(paths=(str(directory / "pairs.jsonl"),), validation_fraction=0.2),
        "data.objective": Seq2SeqObjective(target_length=8),
        "model.positions": LearnedPositions(length=LONGEST),
        "model.num_layers": 1,
        "model.encoder_layers": 1,
        "model.pattern": (Layer(experts=True),),
        # So few places that a text would lose some to those beside it, had it not all of them in decoding.
        "model.experts": CapacityExperts(num_experts=4, capacity_factor=0.25, min_capacity=1),
        "train.steps": 3,
    }
    helpers.train(helpers.tiny(directory, changes), directory / "run")
    return directory / "run"


@pytest.fixture
def answer(run, capsys):
    """`answer(prompts, *arguments)`: what the command prints, as JSON."""

    def call(prompts, *arguments: str) -> list[dict]:
        given = [part for text in prompts for part in ("--prompt", text)]
        assert exit_code(generate.main, ["--run", str(run), *given, "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def by_whole_passes(run: Path, prompt: str, count: int) -> list[int]:
    """The greedy tokens, an end included, by the full forward pass of the pair so far for each."""
    model, params, tokenizer = generate.load_run(run)
    source, written = [*tokenizer.encode(prompt), tokenizer.stop], [tokenizer.end_of_text]
    while len(written) <= count and (len(written) == 1 or written[-1] != tokenizer.stop):
        batch = {}
        for prefix, row in (("", written), ("source_", source)):
            batch[f"{prefix}tokens"] = np.array([row], np.int32)
            batch[f"{prefix}positions"] = np.arange(len(row), dtype=np.int32)[None]
            batch[f"{prefix}segment_ids"] = np.ones((1, len(row)), np.int32)
        scores = nn.apply(lambda model, batch=batch: model.logits(model(batch)[0]), model)({"params": params})
        written.append(int(np.argmax(scores[0, -1, : model.config.vocab_size])))
    return written[1:]


def test_greedy_text_is_the_argmax_of_whole_forward_passes(run, answer):
    """Behind the end of text alone, the source being the prompt with its end."""
    results = answer(PROMPTS[:2], "--temperature", "0", "--max_new_tokens", "4")
    stop = generate.load_run(run)[2].stop
    for result in results:
        found = result["tokens"] + [stop] * result["ended"]
        assert found == by_whole_passes(run, result["prompt"], 4)
    assert set(results[0]) == {"prompt", "text", "tokens", "ended"}


@pytest.mark.parametrize(
    "options",
    (
        ("--beams", "3"),
        pytest.param(("--top_k", "40"), marks=pytest.mark.slow),
        pytest.param(("--beams", "3", "--length_penalty", "0"), marks=pytest.mark.slow),
    ),
    ids=" ".join,
)
def test_prompts_asked_together_are_each_asked_alone(answer, options):
    together = answer(PROMPTS, *options, "--max_new_tokens", "9")
    alone = [answer([text], *options, "--max_new_tokens", "9")[0] for text in PROMPTS]
    for found, expected in zip(together, alone, strict=True):
        assert found.pop("score", 0.0) == pytest.approx(expected.pop("score", 0.0), abs=1e-4)
        assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("options", (("--temperature", "1e9"), ("--beams", "2")), ids=" ".join)
def test_a_text_may_be_longer_than_its_source_by_fifty_tokens(answer, options):
    """Nearly all of which are written at an absurd temperature; each row has its own limit."""
    together = answer(("7", "12345678"), *options)
    for prompt, result in zip(("7", "12345678"), together, strict=True):
        assert len(result["tokens"]) + result["ended"] <= len(prompt) + generate.MORE_TOKENS
        assert result["tokens"] == answer([prompt], *options)[0]["tokens"]
    if "--temperature" in options:
        assert any(len(result["tokens"]) == len(p) + 50 for p, result in zip(("7", "12345678"), together, strict=True))


@pytest.mark.slow
def test_one_beam_is_the_greedy_text(answer):
    greedy = answer(PROMPTS, "--temperature", "0", "--max_new_tokens", "8")
    found = answer(PROMPTS, "--beams", "1", "--max_new_tokens", "8")
    assert all(result.pop("score") < 0 for result in found) and found == greedy


def test_a_translation_is_printed_without_its_source(run, capsys):
    assert exit_code(generate.main, ["--run", str(run), "--prompt", "7 squared", "--max_new_tokens", "2"]) == 0
    assert not capsys.readouterr().out.startswith("7 squared")


REFUSED = {
    "--beams is 0, must be from 1 to 1024": ["--beams", "0"],
    "--beams is 1025, must be": ["--beams", "1025"],
    "--beams searches for a text, and --temperature": ["--beams", "2", "--temperature", "1"],
    "--beams searches for a text, and --top_k": ["--beams", "2", "--top_k", "1"],
    "--beams searches for what continues": ["--beams", "2", "--embed"],
    "--embed wants an encoder or a decoder by itself": ["--embed"],
    "--length_penalty is of a search": ["--length_penalty", "1"],
    "--length_penalty is -1.0, must be": ["--beams", "2", "--length_penalty", "-1"],
    "--length_penalty is nan, must be": ["--beams", "2", "--length_penalty", "nan"],
    "--max_new_tokens is 60: together more than the 60 positions": ["--max_new_tokens", "60"],
    f"a text has {LONGEST + 1} tokens, more than the {LONGEST}": ["--prompt", "7" * LONGEST],
}


@pytest.mark.parametrize(
    ("message", "arguments"), REFUSED.items(), ids=["".join(value[:2]) for value in REFUSED.values()]
)
def test_what_cannot_be_is_refused(run, capsys, message, arguments):
    assert exit_code(generate.main, ["--run", str(run), "--prompt", "7", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""
