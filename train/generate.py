"""Ask a trained run: continue texts, fill masked tokens, or turn texts into vectors.

python -m train.generate --run DIR --prompt TEXT [--prompt TEXT ...] [--beams 4]
python -m train.generate --run DIR --fill 'TEXT WITH [MASK]'
python -m train.generate --run DIR --embed --prompt TEXT --json
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
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
from model import config as cfg
from model.beam import BeamSearch, beam_search
from model.generate import Sampling, generate
from model.parameters import declarations
from model.replaced import GENERATOR, discriminator, generator, initialise_whole, merged
from model.transformer import Transformer
from train.checkpoint import load_params
from train.config import Config
from train.encode import PAD_TO, POOLINGS, Run, check_lengths, embed, fill
from train.errors import CheckpointError
from train.rundir import read_json

NEW_TOKENS = 64  # written at most, where --max_new_tokens does not say
MORE_TOKENS = 50  # than a source has, beside an encoder
MOST_TOKENS = 2**20  # for which a cache has room from the start
MOST_BEAMS = 1024  # each of which is a row of the cache


def load_run(run: Path, predicts: bool = False) -> Run:
    """Model, parameters (newest checkpoint, one device) and tokenizer of a run directory.

    Of one that finds replaced tokens the discriminator, which it is for; the generator where what is asked `predicts`
    masked tokens.
    """
    if not run.is_dir():
        raise ConfigError(f"--run {run} is not a directory")
    plain = read_json(run / "config.json")
    if plain is None:
        raise CheckpointError(f"{run} holds no run: it has no config.json. Train one with python -m train.main")
    config = from_plain(Config, plain)
    shapes = jax.eval_shape(partial(initialise_whole, config.model), jax.random.key(0))
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), declarations(shapes))
    model, params = config.model, load_params(run, abstract)
    if model.generator_layers and predicts:
        model, params = generator(model), params[GENERATOR]
    elif model.generator_layers:
        model, params = discriminator(model), merged(params)
    model, setting = with_room(model), config.data.tokenizer
    end_of_text, stop = (setting.end_of_text, setting.stop) if isinstance(setting, FileTokenizer) else (None, None)
    return Transformer(model), params, tokenizers.load(run / "tokenizer.json", end_of_text, stop=stop)


def with_room(model: cfg.Model) -> cfg.Model:
    """The model with a place for every token at every expert.

    How many there are follows from how long a row is, and so from the texts that are asked for beside it.
    """
    if not isinstance(model.experts, cfg.CapacityExperts):
        return model
    return replace(model, experts=replace(model.experts, eval_capacity_factor=float(model.experts.num_experts)))


def continue_texts(
    run: Run, prompts: Sequence[str], max_new_tokens: int | None, how: Sampling | BeamSearch, seed: int = 0
) -> list[dict]:
    """{"prompt", "text", "tokens", "ended"} for each prompt, in order; `tokens` are the new ids, without the end.

    A prompt stands behind an end-of-text token, as a document does in training; beside an encoder it is the source,
    with its end, and the end-of-text token alone begins the decoder's text. At most `max_new_tokens` are written: None
    is NEW_TOKENS, or beside an encoder the source's and MORE_TOKENS (Vaswani et al. 2017, section 6.1).

    Under a Sampling each text draws from a key of its own made of `seed`, its prompt and how often it stood before: the
    other prompts change nothing. Under a BeamSearch it has "score" too, its log-probability over its length's penalty.
    """
    model, params, tokenizer = run
    if not (model.config.attention.causal and model.config.language_head):
        raise ConfigError("this run is an encoder, which does not continue text: ask it with --fill or --embed")
    ids = [row.tolist() for row in tokenizer.encode_batch(prompts)]
    if model.config.encoder_layers:
        begun, sources = [[tokenizer.end_of_text] for _ in ids], [[*row, tokenizer.stop] for row in ids]
        limits = [max_new_tokens or len(row) + MORE_TOKENS for row in ids]
        check_lengths(model, sources)
        source = padded(sources, PAD_TO)
    else:
        begun, source = [[tokenizer.end_of_text, *row] for row in ids], None
        limits = [max_new_tokens or NEW_TOKENS for _ in ids]
    most, limits_B = max(limits), np.array(limits, np.int32)
    check_room(model, max(map(len, begun)), most)
    given = padded(begun, PAD_TO if source is None else 1)
    how = how._replace(vocab_size=tokenizer.vocab_size)  # a model may have more ids than its tokenizer
    scores_B = None
    if isinstance(how, BeamSearch):
        found = beam_search(model, params, *given, limits_B, most, tokenizer.stop, how, source)
        new_BxT, counts_B, scores_B = jax.device_get(found)
    else:
        found = generate(model, params, *given, prompt_keys(prompts, seed), most, tokenizer.stop, how, source)
        new_BxT, counts_B = jax.device_get(found)
    counts_B = np.minimum(counts_B, limits_B)
    rows = [row[:count].tolist() for row, count in zip(new_BxT, counts_B, strict=True)]
    results = [_result(tokenizer, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
    if scores_B is None:
        return results
    return [{**result, "score": float(score)} for result, score in zip(results, scores_B, strict=True)]


def padded(rows: list[list[int]], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """(int32 `[rows, L]`, each padded at the right to one multiple, int32 `[rows]`: their lengths)."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), -(-lengths.max() // multiple) * multiple), np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
    return tokens, lengths


def check_room(model: Transformer, longest: int, new: int) -> None:
    """ConfigError where the model's positions end before the longest prompt and its `new` tokens do."""
    limit = model.config.max_length
    if limit is not None and longest + new > limit:
        raise ConfigError(
            f"the longest prompt has {longest} tokens and --max_new_tokens is {new}: together more than the "
            f"{limit} positions of the model's table. Shorten one of them"
        )


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
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        help=f"at most (default: {NEW_TOKENS}; of an encoder-decoder, {MORE_TOKENS} more than the prompt has)",
    )
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token (default: 1)")
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beams", type=int, help="search for a likely text with so many beams, instead of drawing one")
    parser.add_argument(
        "--length_penalty",
        type=float,
        help=f"alpha of --beams: higher for longer texts (default: {BeamSearch().length_penalty})",
    )
    parser.add_argument("--fill", action="append", default=[], help="a text with mask tokens, for an encoder")
    parser.add_argument("--candidates", type=int, default=5, help="tokens named for each mask of --fill")
    parser.add_argument("--embed", action="store_true", help="one vector of length 1 for each --prompt")
    parser.add_argument("--pooling", default="mean", help=f"of --embed: {', '.join(POOLINGS)}")
    parser.add_argument(
        "--json", action="store_true", help="JSON instead of text: a list; of --embed, an object a line"
    )
    known = parser.parse_args(arguments)
    check_usage(known)
    tokens = known.max_new_tokens
    for name, good, wanted in (
        ("prompt", all(map(_is_unicode, known.prompt)), "text in the encoding of this system"),
        ("fill", all(map(_is_unicode, known.fill)), "text in the encoding of this system"),
        ("max_new_tokens", tokens is None or 1 <= tokens <= MOST_TOKENS, f"from 1 to {MOST_TOKENS}"),
        ("temperature", known.temperature is None or 0 <= known.temperature < math.inf, "at least 0 and finite"),
        ("top_k", known.top_k is None or known.top_k >= 1, "at least 1"),
        ("top_p", known.top_p is None or 0 < known.top_p <= 1, "above 0 and at most 1"),
        ("seed", 0 <= known.seed < 2**32, "from 0 to 2**32 - 1"),
        ("beams", known.beams is None or 1 <= known.beams <= MOST_BEAMS, f"from 1 to {MOST_BEAMS}"),
        ("length_penalty", known.length_penalty is None or 0 <= known.length_penalty < math.inf, "at least 0, finite"),
        ("candidates", known.candidates >= 1, "at least 1"),
        ("pooling", known.pooling in POOLINGS, f"one of {', '.join(POOLINGS)}"),
    ):
        if not good:
            raise ConfigError(f"--{name} is {ascii(getattr(known, name))}, must be {wanted}")
    return known


def check_usage(known: argparse.Namespace) -> None:
    """ConfigError where arguments do not go together."""
    if bool(known.fill) == bool(known.prompt) or (known.fill and known.embed):
        raise ConfigError(
            "give --prompt TEXT, alone or with --embed, or --fill TEXT: one of them, once or several times"
        )
    if known.beams is None and known.length_penalty is not None:
        raise ConfigError("--length_penalty is of a search with several beams: give --beams too")
    drawn = [name for name in ("temperature", "top_k", "top_p") if getattr(known, name) is not None]
    if known.beams is not None and drawn:
        raise ConfigError(f"--beams searches for a text, and --{drawn[0]} is of one that is drawn: leave one out")
    if known.beams is not None and (known.fill or known.embed):
        raise ConfigError("--beams searches for what continues a --prompt: leave it out with --fill and --embed")


def method(known: argparse.Namespace) -> Sampling | BeamSearch:
    """How texts are continued, from the arguments of the command."""
    if known.beams is None:
        return Sampling(1.0 if known.temperature is None else known.temperature, known.top_k, known.top_p)
    alpha = BeamSearch().length_penalty if known.length_penalty is None else known.length_penalty
    return BeamSearch(known.beams, alpha)


def _is_unicode(text: str) -> bool:
    """Whether the bytes of a command line could be decoded; the others come as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def main(arguments: Sequence[str]) -> None:
    known = parse(arguments)
    run = load_run(known.run, predicts=bool(known.fill))
    if known.embed:
        for result in embed(run, known.prompt, known.pooling):
            print(json.dumps(result if known.json else result["embedding"], ensure_ascii=False))
        return
    if known.fill:
        results = fill(run, known.fill, known.candidates)
    else:
        results = continue_texts(run, known.prompt, known.max_new_tokens, method(known), known.seed)
    if known.json:
        print(json.dumps(results, ensure_ascii=False, indent=1))
        return
    for result in results:
        print(f"{_filled(result) if known.fill else _written(run[0], result)}\n")


def _written(model: Transformer, result: dict) -> str:
    """A continued text for people: behind its prompt, or by itself where that is a source."""
    return result["text"] if model.config.encoder_layers else result["prompt"] + result["text"]


def _filled(result: dict) -> str:
    """A filled text for people: the text, and a line of candidates with their probabilities for each mask."""
    lines = ("  ".join(f"{c['token']} {c['probability']:.3f}" for c in candidates) for candidates in result["masks"])
    return "\n".join((result["text"], *lines))


if __name__ == "__main__":
    run_command(main)
