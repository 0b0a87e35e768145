"""Special tokens that an objective puts into rows, found in a tokenizer by their names."""

from __future__ import annotations

from data.config import Data
from data.errors import ConfigError
from data.objective_config import shown, special_tokens
from data.tokenizer import Tokenizer


def check(config: Data, tokenizer: Tokenizer, vocab_size: int):
    """ConfigError where what the objective puts into rows is no special token, or has an id that the model lacks.

    What text can spell would not tell where it was put in, so that ordinary tokens will not do.
    """
    names, known = special_tokens(config.objective, config.length), tokenizer.special_tokens
    where = f"which data.objective.name={config.objective.name} puts into rows of data.length {config.length}"
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigError(
            f"The tokenizer of data.tokenizer.name={config.tokenizer.name} has no special tokens {shown(missing)}, "
            f"{where}. Name them in data.tokenizer.special_tokens, or take a tokenizer that has them."
        )
    if not names:
        return
    highest = max(names, key=known.get)
    if known[highest] >= vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size}, but the token {highest}, {where}, is {known[highest]}. Set "
            f"model.vocab_size to at least {known[highest] + 1}."
        )
