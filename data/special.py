"""Special tokens that an objective puts into rows, found in a tokenizer by their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.config import Data
from data.errors import ConfigError
from data.tokenizer import Tokenizer


def ids(tokenizer: Tokenizer, names: Sequence[str]) -> np.ndarray:
    """int32 [names]: the ids of special tokens that `check` has found."""
    return np.array([tokenizer.special_tokens[name] for name in names], np.int32)


def check(config: Data, tokenizer: Tokenizer, vocab_size: int, names: Sequence[str]):
    """ConfigError where a name is no special token of the tokenizer, or has an id that the model lacks.

    What text can spell would not tell where it was put in, so that ordinary tokens will not do.
    """
    known, objective = tokenizer.special_tokens, config.objective.name
    missing = [name for name in names if name not in known]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(
            f"The tokenizer of data.tokenizer.name={config.tokenizer.name} has no special token {missing[0]}{more}, "
            f"but data.objective.name={objective} puts {len(names)} into rows of data.length={config.length}: "
            f"{_shown(names)}. Name them in data.tokenizer.special_tokens, or take a tokenizer that has them."
        )
    highest = max(known[name] for name in names)
    if highest >= vocab_size:
        name = next(name for name in names if known[name] == highest)
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but the token {name}, which data.objective.name={objective} puts into "
            f"rows, is {highest}. Set model.vocab_size to at least {highest + 1}."
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ... {names[-1]}"
