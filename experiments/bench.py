"""`python -m experiments.bench`: our step beside a plain Flax decoder of the same sizes, in turn, on this machine.

Both train 6 layers x 384, 6 heads, rows of 256 tokens, batch 16, vocabulary 8,192 with AdamW and clipping. A round
times a few steps of each and a matrix product of the same dtype, so that a slow moment meets all three; ratios are
those of single rounds, and the median is what to quote. With `--output FILE` the figures are written as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data.cli import run_command
from experiments.plain_flax import PlainDecoder, make_step
from model.config import Attention, FeedForward, LearnedPositions, Model, Norm
from train import flops, schedule
from train.assembly import assemble
from train.config import AdamW, Config, Constant, Data, Mesh, Optim, Train
from train.rundir import environment
from train.step import Step

LAYERS, EMBED, HEADS, LENGTH, ROWS, VOCABULARY = 6, 384, 6, 256, 16, 8192
LEARNING_RATE = 3e-4
MATMUL = 2048


def our_config(dtype: str, unroll: int, chunks: int) -> Config:
    model = Model(
        vocab_size=VOCABULARY,
        num_layers=LAYERS,
        embed_dim=EMBED,
        attention=Attention(num_heads=HEADS, qkv_bias=True, output_bias=True),
        feed_forward=FeedForward(4 * EMBED, "gelu_tanh", gated=False, bias=True),
        norm=Norm("layernorm", bias=True),
        positions=LearnedPositions(length=LENGTH),
        dtype=dtype,
        unroll=unroll,
    )
    optim = Optim(AdamW(b2=0.95, weight_decay=0.1), LEARNING_RATE, Constant(), clip_norm=1.0)
    train = Train(steps=1000, batch_size=ROWS, loss_chunks=chunks)
    return Config(model=model, data=Data(length=LENGTH), optim=optim, train=train, mesh=Mesh(data=1))


def ours(config: Config, tokens, targets) -> tuple[Callable, float]:
    """(a function that runs one step, FLOPs of a token)."""
    assembly = assemble(config)
    rate = schedule.build(config.optim.schedule, LEARNING_RATE, config.train.steps, int)
    step = Step(assembly.task, assembly.optimizer, rate, config.train.seed, clip_norm=config.optim.clip_norm)
    compiled = jax.jit(step, donate_argnums=0)
    positions = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.int32)[None], tokens.shape)
    ones = jnp.ones_like(tokens)
    batch = {
        "tokens": tokens,
        "targets": targets,
        "weights": jnp.ones(tokens.shape, jnp.float32),
        "segment_ids": ones,
        "positions": positions,
    }
    kept = [assembly.fresh()]

    def run():
        kept[0], metrics = compiled(kept[0], batch)
        return metrics["loss"]

    return run, flops.flops_per_token(config.model, assembly.declarations, LENGTH)


def plain(dtype: str, tokens, targets) -> Callable:
    model = PlainDecoder(VOCABULARY, LAYERS, EMBED, HEADS, LENGTH, jnp.dtype(dtype))
    init, step = make_step(model, LEARNING_RATE)
    kept = [init(jax.random.key(0), tokens)]

    def run():
        kept[0], loss = step(kept[0], tokens, targets)
        return loss

    return run


def matmul(dtype: str) -> Callable:
    x = jnp.ones((MATMUL, MATMUL), dtype)
    product = jax.jit(jnp.matmul)
    return lambda: product(x, x)


def seconds(run: Callable, repeats: int) -> float:
    """Seconds of one call, over `repeats` of them."""
    began = time.perf_counter()
    for _ in range(repeats):
        last = run()
    jax.block_until_ready(last)
    return (time.perf_counter() - began) / repeats


def compare(dtype: str, rounds: int, steps: int, unroll: int, chunks: int) -> dict:
    """Medians over `rounds`: tokens/s of both, their ratio, the matmul rate, our share of it."""
    generator = np.random.default_rng(0)
    tokens = jnp.asarray(generator.integers(0, VOCABULARY, (ROWS, LENGTH)), jnp.int32)
    targets = jnp.roll(tokens, -1, axis=1)
    our_run, per_token = ours(our_config(dtype, unroll, chunks), tokens, targets)
    runs = {"ours": our_run, "plain": plain(dtype, tokens, targets), "matmul": matmul(dtype)}
    for run in runs.values():
        seconds(run, 1)  # compiles
    times = [{name: seconds(run, steps) for name, run in runs.items()} for _ in range(rounds)]
    count = ROWS * LENGTH
    ratios = [round_["plain"] / round_["ours"] for round_ in times]
    rates = [2 * MATMUL**3 / round_["matmul"] for round_ in times]
    shares = [count * per_token / round_["ours"] / rate for round_, rate in zip(times, rates, strict=True)]
    return {
        "dtype": dtype,
        "ours_tokens_per_second": count / statistics.median(round_["ours"] for round_ in times),
        "plain_tokens_per_second": count / statistics.median(round_["plain"] for round_ in times),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "matmul_gflops": statistics.median(rates) / 1e9,
        "share_of_matmul": statistics.median(shares),
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of each in a round")
    parser.add_argument("--unroll", type=int, default=LAYERS, help="layers compiled side by side in ours")
    parser.add_argument("--chunks", type=int, default=1, help="train.loss_chunks of ours")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    known = parser.parse_args(arguments)
    results = [
        compare(dtype, known.rounds, known.steps, known.unroll, known.chunks) for dtype in ("float32", "bfloat16")
    ]
    where = {"machine": platform.processor() or platform.machine(), "date": time.strftime("%Y-%m-%d"), **environment()}
    machine = f"{where['machine']}, {where['visible_cpus']} CPUs, jax {where['jax']}"
    print(f"{machine}, {known.rounds} rounds of {known.steps} steps")
    print("| dtype | ours tokens/s | plain Flax tokens/s | ratio (range) | matmul GFLOP/s | our share of it |")
    print("|---|---|---|---|---|---|")
    for row in results:
        low, high = row["ratio_range"]
        print(
            f"| {row['dtype']} | {row['ours_tokens_per_second']:,.0f} | {row['plain_tokens_per_second']:,.0f} "
            f"| {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | {row['matmul_gflops']:.0f} "
            f"| {row['share_of_matmul']:.0%} |"
        )
    if known.output is not None:
        settings = {name: value for name, value in vars(known).items() if name != "output"}
        known.output.write_text(json.dumps({"settings": settings, "where": where, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    run_command(main)
