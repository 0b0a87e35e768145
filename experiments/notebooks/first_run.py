# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---

# %% [markdown]
# # A first run
#
# Train a decoder of 130,000 parameters in half a minute, stop it, go on, look at what it reads and what it writes. Open
# this file as a notebook with Jupyter and jupytext, started in the project's root, or run it as it is:
#
#     PYTHONPATH=. .venv/bin/python experiments/notebooks/first_run.py

# %%
import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from data.packing import make_rows
from data.prepare import prepare
from model.generate import Sampling
from train.checks import load
from train.generate import continue_texts, load_run
from train.inspect import report
from train.loop import train
from train.metrics import read_metrics

workdir = Path(tempfile.mkdtemp(prefix="plumbline-first-run-")) / "run"

# %% [markdown]
# ## A configuration is data
# A recipe is read, overridden by the same strings as on the command line, checked, and frozen.

# %%
config = load("configs/llama.py:debug", ["--config.train.steps=40", "--config.optim.schedule.name=constant"])
print(config.model)

# %% [markdown]
# ## What the model reads
# A row of the token store: documents one after the other, each behind an end-of-text token (`|`). Segments tell them
# apart, positions restart with each, and every token has its target.

# %%
prepared = prepare(config.data)
rows = make_rows(prepared.train, config.data.length, config.data.packing)
crossing = next(row for row in map(rows.row, range(len(rows))) if row["segment_ids"].max() > 1)
end = prepared.tokenizer.end_of_text
print("".join("|" if token == end else prepared.tokenizer.decode([token]) for token in crossing["tokens"]))
print(crossing["segment_ids"])
print(crossing["positions"])
assert np.array_equal(crossing["targets"][:-1], crossing["tokens"][1:])

# %% [markdown]
# ## Train, stop, go on
# Forty steps at a constant rate: first twenty, then the same command with forty. The second call restores step 20.

# %%
first = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=20))
train(first, workdir)
train(config, workdir)
print({key: report(workdir, None)[key] for key in ("steps", "newest", "tokens", "params_sha256")})

# %% [markdown]
# ## The curve
# `metrics.jsonl` has one object a step, and one an evaluation.

# %%
records = read_metrics(workdir / "metrics.jsonl")
losses = [record["loss"] for record in records if "loss" in record]
for step in range(0, len(losses), 4):
    print(f"{step + 1:3d}  {losses[step]:.3f}  {'#' * round(10 * losses[step])}")
assert len(losses) == 40
assert losses[-1] < losses[0] - 0.5

# %% [markdown]
# ## What it writes
# After 20,000 tokens it knows which characters are common, and little else; `make quickstart` trains a larger one.

# %%
for result in continue_texts(load_run(workdir), ["def ", "The "], 40, Sampling(0.8, top_k=50), seed=0):
    print(f"{result['prompt']}|{result['text']}")
