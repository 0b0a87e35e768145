"""`python -m experiments.quickstart --run DIR`: what a run on the embedded corpus has learned, and where it lies."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.cli import run_command
from data.prepare import gzip_bits_per_byte, prepare
from data.schema import from_plain
from model.generate import Sampling
from train.config import Config
from train.errors import CheckpointError
from train.generate import continue_texts, load_run
from train.metrics import read_metrics
from train.rundir import read_json

PROMPTS = ("class Error(Exception):", "    def close(self):", "Return True if the")
SAMPLING = Sampling(0.7, top_k=40, top_p=0.9)
METRIC = "eval/validation/bits_per_byte"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.quickstart", description=__doc__, allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, help="the directory of a finished quickstart")
    run = parser.parse_args(arguments).run
    loaded = load_run(run)
    prepared = prepare(from_plain(Config, read_json(run / "config.json")).data)
    evaluations = [record for record in read_metrics(run / "metrics.jsonl") if METRIC in record]
    if not evaluations or prepared.validation is None:
        raise CheckpointError(f"{run} has no evaluation in its metrics.jsonl; finish its training first")
    ours = evaluations[-1][METRIC]
    gzip = gzip_bits_per_byte(prepared.validation, prepared.tokenizer)
    print("\nSamples (temperature 0.7, top-k 40, top-p 0.9; the prompt stands before the bar):\n")
    for result in continue_texts(loaded, PROMPTS, 60, SAMPLING, seed=0):
        print(f"--- {result['prompt']}|{result['text']}\n")
    verdict = "below" if ours < gzip else "NOT below"
    print(
        f"Validation, {prepared.validation.num_documents} documents that training never saw: {ours:.3f} bits per byte, "
        f"{verdict} the {gzip:.3f} of `gzip -9` on each document by itself.\n\n"
        f"config       {run / 'config.json'}\n"
        f"metrics      {run / 'metrics.jsonl'}, one JSON object a step\n"
        f"curves       tensorboard --logdir {run / 'tensorboard'}\n"
        f"checkpoints  {run / 'checkpoints'}; `python -m train.inspect --run {run}` describes them\n"
        f"more text    python -m train.generate --run {run} --prompt 'The ' --temperature 0.7 --top_k 40\n"
        f"go on        python -m train.main --config {run / 'config.json'} --workdir {run} --config.train.steps=...\n"
    )


if __name__ == "__main__":
    run_command(main)
