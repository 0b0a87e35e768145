"""What is predicted, as data. One dataclass an objective; its functions stand in `data.objectives.OBJECTIVES`."""

from __future__ import annotations

from dataclasses import dataclass

from data.schema import COUNT, SHARE, Rule
from data.tokenizer_config import BpeTokenizer, ByteTokenizer, TokenizerConfig


@dataclass(frozen=True)
class CausalObjective:
    """Predict the next token."""

    name: str = "causal"


@dataclass(frozen=True)
class MaskedObjective:
    """Predict masked tokens and, if asked, whether one sentence follows another (Devlin et al. 2018, section 3.1)."""

    name: str = "masked"
    rate: float = 0.15  # of a row's tokens, special ones counted, that are to be predicted
    max_predictions: int = 20  # a row at the most; BERT takes 20 for rows of 128, 77 for 512
    keep_share: float = 0.1  # of the predictions whose token stays what it is
    random_share: float = 0.1  # of those whose token becomes any of the vocabulary; the others are masked
    whole_word: bool = False  # all tokens of a word are predicted, or none
    next_sentence: bool = False  # rows are pairs of sentences, half of them not neighbours
    short_rate: float = 0.1  # of the documents whose pairs are cut to a random length
    # Sets of masks (and pairs) that are drawn once, BERT's dupe_factor: the epochs take them in turn; with
    # next_sentence one epoch holds them all. None: new masks every epoch (Liu et al. 2019).
    copies: int | None = 10


Objective = CausalObjective | MaskedObjective

SHORTEST_PAIR = 5  # [CLS] A [SEP] B [SEP]

RULES = {
    "rate": Rule(lambda rate: 0 < rate <= 1, "above 0 and at most 1"),
    "max_predictions": COUNT,
    "keep_share": SHARE,
    "random_share": SHARE,
    "short_rate": SHARE,
    "copies": COUNT,
}


def check(objective: Objective, tokenizer: TokenizerConfig, length: int) -> list[tuple[str, str]]:
    """What no field's type can refuse, as (key below `data`, clash) pairs; `length` is that of a row."""
    return CHECKS[objective.name](objective, tokenizer, length)


def _check_causal(objective, tokenizer, length) -> list[tuple[str, str]]:
    return []


def _check_masked(objective: MaskedObjective, tokenizer, length) -> list[tuple[str, str]]:
    problems = []
    if isinstance(tokenizer, BpeTokenizer | ByteTokenizer):
        clash = f"is masked, but tokenizer {tokenizer.name} has no mask token; take data.tokenizer.name=wordpiece"
        problems.append(("objective.name", clash))
    if objective.keep_share + objective.random_share > 1:
        clash = f"is {objective.random_share:g}, which with keep_share {objective.keep_share:g} is more than 1"
        problems.append(("objective.random_share", clash))
    if objective.max_predictions > length:
        clash = f"is {objective.max_predictions}, more than the {length} tokens of a row (data.length)"
        problems.append(("objective.max_predictions", clash))
    if objective.next_sentence and length < SHORTEST_PAIR:
        problems.append(("length", f"is {length}, too short for [CLS] A [SEP] B [SEP]; at least {SHORTEST_PAIR}"))
    return problems


CHECKS = {"causal": _check_causal, "masked": _check_masked}  # (objective, tokenizer, length of a row) -> clashes
