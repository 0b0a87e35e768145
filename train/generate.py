"""Ask a trained run: continue texts, fill masked tokens, or turn texts into vectors.

python -m train.generate --run DIR --prompt TEXT [--prompt TEXT ...]
python -m train.generate --run DIR --fill 'TEXT WITH [MASK]'
python -m train.generate --run DIR --embed --prompt TEXT --json
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data import tokenizer as tokenizers
from data.cli import Parser, run_command
from data.errors import ConfigError
from data.schema import from_plain
from data.tokenizer import Tokenizer
from data.tokenizer_config import FileTokenizer
from model.generate import Sampling, generate
from model.parameters import declarations
from model.transformer import Transformer, initialise
from train.checkpoint import load_params
from train.config import Config
from train.encode import PAD_TO, POOLINGS, Run, embed, fill
from train.errors import CheckpointError
from train.rundir import read_json


def load_run(run: Path) -> Run:
    """Model, parameters (newest checkpoint, one device) and tokenizer of a run directory."""
    if not run.is_dir():
        raise ConfigError(f"--run {run} is not a directory")
    plain = read_json(run / "config.json")
    if plain is None:
        raise CheckpointError(f"{run} holds no run: it has no config.json. Train one with python -m train.main")
    config = from_plain(Config, plain)
    model = Transformer(config.model)
    shapes = jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0))
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), declarations(shapes))
    params = load_params(run, abstract)
    setting = config.data.tokenizer
    end_of_text, stop = (setting.end_of_text, setting.stop) if isinstance(setting, FileTokenizer) else (None, None)
    return model, params, tokenizers.load(run / "tokenizer.json", end_of_text, stop=stop)


def continue_texts(run: Run, prompts: Sequence[str], max_new_tokens: int, sampling: Sampling, seed: int) -> list[dict]:
    """{"prompt", "text", "tokens", "ended"} for each prompt, in order; `tokens` are the new ids, without the end.

    A prompt stands behind an end-of-text token, as a document does in training, and draws from a key of its
    own made of `seed`, its text and how often it stood before: the other prompts change nothing.
    """
    model, params, tokenizer = run
    if not (model.config.attention.causal and model.config.language_head):
        raise ConfigError("this run is an encoder, which does not continue text: ask it with --fill or --embed")
    ids = [[tokenizer.end_of_text, *row] for row in tokenizer.encode_batch(prompts)]
    longest, limit = max(map(len, ids)), model.config.max_length
    if limit is not None and longest + max_new_tokens > limit:
        raise ConfigError(
            f"the longest prompt has {longest} tokens and --max_new_tokens is {max_new_tokens}: together more than the "
            f"{limit} positions of the model's table. Shorten one of them"
        )
    tokens_BxL = np.full((len(ids), -(-longest // PAD_TO) * PAD_TO), tokenizer.end_of_text, np.int32)
    for row, values in enumerate(ids):
        tokens_BxL[row, : len(values)] = values
    lengths_B = np.array([len(row) for row in ids], np.int32)
    new_BxT, counts_B = jax.device_get(
        generate(
            model,
            params,
            tokens_BxL,
            lengths_B,
            prompt_keys(prompts, seed),
            max_new_tokens,
            tokenizer.stop,
            sampling._replace(vocab_size=tokenizer.vocab_size),  # a model may have more ids than its tokenizer
        )
    )
    return [
        _result(tokenizer, prompt, row[:count].tolist())
        for prompt, row, count in zip(prompts, new_BxT, counts_B, strict=True)
    ]


def _result(tokenizer: Tokenizer, prompt: str, tokens: list[int]) -> dict:
    ended = bool(tokens) and tokens[-1] == tokenizer.stop
    tokens = tokens[:-1] if ended else tokens
    return {"prompt": prompt, "text": tokenizer.decode(tokens), "tokens": tokens, "ended": ended}


def prompt_keys(prompts: Sequence[str], seed: int):
    """A key for each prompt, from `seed`, the prompt and how many equal ones stand before it."""
    counts: dict[str, int] = {}
    keys = []
    for prompt in prompts:
        seen = counts[prompt] = counts.get(prompt, -1) + 1
        keys.append(jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(prompt.encode())), seen))
    return jnp.stack(keys)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("train.generate", __doc__)
    parser.add_argument("--run", required=True, type=Path, help="a run directory")
    parser.add_argument("--prompt", action="append", default=[], help="a text; may be given several times")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest token")
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fill", action="append", default=[], help="a text with mask tokens, for an encoder")
    parser.add_argument("--candidates", type=int, default=5, help="tokens named for each mask of --fill")
    parser.add_argument("--embed", action="store_true", help="one vector of length 1 for each --prompt")
    parser.add_argument("--pooling", default="mean", help=f"of --embed: {', '.join(POOLINGS)}")
    parser.add_argument(
        "--json", action="store_true", help="JSON instead of text: a list; of --embed, an object a line"
    )
    known = parser.parse_args(arguments)
    if bool(known.fill) == bool(known.prompt) or (known.fill and known.embed):
        raise ConfigError(
            "give --prompt TEXT, alone or with --embed, or --fill TEXT: one of them, once or several times"
        )
    for name, good, wanted in (
        ("prompt", all(map(_is_unicode, known.prompt)), "text in the encoding of this system"),
        ("fill", all(map(_is_unicode, known.fill)), "text in the encoding of this system"),
        ("max_new_tokens", known.max_new_tokens >= 1, "at least 1"),
        ("temperature", 0 <= known.temperature < math.inf, "at least 0 and finite"),
        ("top_k", known.top_k is None or known.top_k >= 1, "at least 1"),
        ("top_p", known.top_p is None or 0 < known.top_p <= 1, "above 0 and at most 1"),
        ("seed", 0 <= known.seed < 2**32, "from 0 to 2**32 - 1"),
        ("candidates", known.candidates >= 1, "at least 1"),
        ("pooling", known.pooling in POOLINGS, f"one of {', '.join(POOLINGS)}"),
    ):
        if not good:
            raise ConfigError(f"--{name} is {ascii(getattr(known, name))}, must be {wanted}")
    return known


def _is_unicode(text: str) -> bool:
    """Whether the bytes of a command line could be decoded; the others come as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def main(arguments: Sequence[str]) -> None:
    known = parse(arguments)
    run = load_run(known.run)
    if known.embed:
        for result in embed(run, known.prompt, known.pooling):
            print(json.dumps(result if known.json else result["embedding"], ensure_ascii=False))
        return
    if known.fill:
        results = fill(run, known.fill, known.candidates)
    else:
        sampling = Sampling(known.temperature, known.top_k, known.top_p)
        results = continue_texts(run, known.prompt, known.max_new_tokens, sampling, known.seed)
    if known.json:
        print(json.dumps(results, ensure_ascii=False, indent=1))
        return
    for result in results:
        print(f"{_filled(result)}\n" if known.fill else f"{result['prompt']}{result['text']}\n")


def _filled(result: dict) -> str:
    """A filled text for people: the text, and a line of candidates with their probabilities for each mask."""
    lines = ("  ".join(f"{c['token']} {c['probability']:.3f}" for c in candidates) for candidates in result["masks"])
    return "\n".join((result["text"], *lines))


if __name__ == "__main__":
    run_command(main)
