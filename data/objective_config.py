"""What is predicted, as data. One dataclass an objective; its functions stand in `data.objectives.OBJECTIVES`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.schema import COUNT, POSITIVE, SHARE, Rule, one_of
from data.span_lengths import SHORTEST_NOISY, Denoiser, noise_counts, raw_length
from data.tokenizer_config import FileTokenizer, TokenizerConfig, special_names

SENTINELS = "<extra_id_{i}>"  # T5's


@dataclass(frozen=True)
class CausalObjective:
    """Predict the next token."""

    name: str = "causal"


@dataclass(frozen=True)
class MaskedObjective:
    """Predict masked tokens and, if asked, whether one sentence follows another (Devlin et al. 2018, section 3.1)."""

    name: str = "masked"
    rate: float = 0.15  # of a row's tokens, special ones counted, that are to be predicted
    choice: str = "count"  # count (as many in each row of a length), independent (each token by itself)
    max_predictions: int = 20  # a row at the most; BERT takes 20 for rows of 128, 77 for 512
    keep_share: float = 0.1  # of the predictions whose token stays what it is
    random_share: float = 0.1  # of those whose token becomes any of the vocabulary; the others are masked
    whole_word: bool = False  # all tokens of a word are predicted, or none
    next_sentence: bool = False  # rows are pairs of sentences, half of them not neighbours
    short_rate: float = 0.1  # of the documents whose pairs are cut to a random length
    # Sets of masks (and pairs) that are drawn once, BERT's dupe_factor: the epochs take them in turn; with
    # next_sentence one epoch holds them all. None: new masks every epoch (Liu et al. 2019).
    copies: int | None = 10


@dataclass(frozen=True)
class ReplacedTokenObjective:
    """Tell tokens that a generator has put in from those of the text (Clark et al. 2020)."""

    name: str = "replaced_token"
    rate: float = 0.15  # of a row's tokens, special ones counted, that the generator predicts
    choice: str = "count"  # as for masked
    max_predictions: int = 20  # a row at the most
    keep_share: float = 0.0  # of the predictions whose token the generator reads as it is
    random_share: float = 0.0  # of those whose token it reads as any of the vocabulary; the others are masked
    whole_word: bool = False  # all tokens of a word are predicted, or none
    copies: int | None = None  # sets of masks that the epochs take in turn; None: new ones every epoch


@dataclass(frozen=True)
class SpanCorruptionObjective:
    """Predict spans that a sentinel each stands for (Raffel et al. 2019, section 3.1.4)."""

    name: str = "span_corruption"
    rate: float = 0.15  # of a row's tokens that are noise
    mean_span: float = 3.0  # tokens of a span of noise, in the mean
    sentinels: str = SENTINELS  # special tokens of the tokenizer; {i}: 0, 1, ... in the order of a row's spans
    arrangement: str = "encoder_decoder"  # and decoder, prefix_decoder; see data.arrangements


@dataclass(frozen=True)
class PrefixObjective:
    """Predict what follows a prefix whose tokens see one another (Raffel et al. 2019, section 3.2.1)."""

    name: str = "prefix_lm"


# Tay et al. 2022, table 1, under the mode tokens of the released models: R, S and X.
DENOISERS = (
    Denoiser("[NLU]", 0.15, 3.0),
    Denoiser("[NLU]", 0.15, 8.0),
    Denoiser("[S2S]", 0.25, suffix=True),
    Denoiser("[NLG]", 0.5, 3.0),
    Denoiser("[NLG]", 0.5, 8.0),
    Denoiser("[NLG]", 0.15, 64.0),
    Denoiser("[NLG]", 0.5, 64.0),
)


@dataclass(frozen=True)
class Ul2Objective:
    """Span corruption of several kinds, a row one of them (Tay et al. 2022)."""

    name: str = "ul2"
    denoisers: tuple[Denoiser, ...] = DENOISERS
    sentinels: str = SENTINELS  # as for span_corruption
    arrangement: str = "encoder_decoder"  # and decoder, prefix_decoder; see data.arrangements


@dataclass(frozen=True)
class FimObjective:
    """Predict the next token of texts whose middle has been moved to their end (Bavarian et al. 2022)."""

    name: str = "fim"
    rate: float = 0.5  # of a row's segments that are rearranged
    spm_share: float = 0.5  # of those, as suffix, prefix, middle; the others as prefix, suffix, middle
    segments: int = 4  # of a row that are rearranged at the most; each has 3 tokens of room
    prefix: str = "<|fim_prefix|>"  # special tokens of the tokenizer
    suffix: str = "<|fim_suffix|>"
    middle: str = "<|fim_middle|>"


@dataclass(frozen=True)
class SupervisedObjective:
    """Predict answers, and their ends, from what stands before them."""

    name: str = "supervised"
    format: str = "prompt"  # what a record holds: prompt (a prompt and its answer), chat (messages by turns)
    prompt: str = "prompt"  # columns of a record
    answer: str = "answer"
    messages: str = "messages"
    template: str = "chatml"  # of a chat: chatml, a tokenizer_config.json that holds one, or a file of Jinja


@dataclass(frozen=True)
class Seq2SeqObjective:
    """Predict a target from its source, by an encoder and a decoder."""

    name: str = "seq2seq"
    source: str = "source"  # columns of a record
    target: str = "target"
    target_length: int = 256  # tokens of a decoder's row; data.length is the encoder's


@dataclass(frozen=True)
class QaObjective:
    """Find the answer to a question in a context (Devlin et al. 2018, section 4.2)."""

    name: str = "qa"
    stride: int = 128  # tokens of context from the start of a window to that of the next
    max_question: int = 64  # tokens of a question that are kept


Objective = (
    CausalObjective
    | MaskedObjective
    | ReplacedTokenObjective
    | SpanCorruptionObjective
    | PrefixObjective
    | Ul2Objective
    | FimObjective
    | SupervisedObjective
    | Seq2SeqObjective
    | QaObjective
)

SHORTEST_PAIR = 5  # [CLS] A [SEP] B [SEP]
SHORTEST_SIDE = 2  # of a pair: a token and its end
FIM_SENTINELS = 3  # a rearranged segment
QA_SPECIAL_TOKENS = 3  # [CLS] question [SEP] context [SEP]
FORMATS = ("prompt", "chat")
CHATML = ("<|im_start|>", "<|im_end|>")
ARRANGEMENTS = ("encoder_decoder", "decoder", "prefix_decoder")

RULES = {
    "rate": Rule(lambda rate: 0 < rate <= 1, "above 0 and at most 1"),
    "choice": one_of("count", "independent"),
    "max_predictions": COUNT,
    "keep_share": SHARE,
    "random_share": SHARE,
    "short_rate": SHARE,
    "copies": COUNT,
    "mean_span": Rule(lambda span: span >= 1, "at least 1"),
    "arrangement": one_of(*ARRANGEMENTS),
    "denoisers.*.rate": Rule(lambda rate: 0 < rate < 1, "above 0 and below 1"),
    "denoisers.*.mean_span": Rule(lambda span: span >= 1, "at least 1"),
    "denoisers.*.weight": POSITIVE,
    "spm_share": SHARE,
    "segments": COUNT,
    "format": one_of(*FORMATS),
    **dict.fromkeys(("prompt", "answer", "messages", "source", "target"), Rule(bool, "a column of the records")),
    "template": Rule(bool, "chatml, or a file"),
    "target_length": COUNT,
    "stride": COUNT,
    "max_question": COUNT,
}

Problems = list[tuple[str, str]]  # (key below `data`, clash)


def arrangement_of(objective: Objective) -> str | None:
    """How an objective with inputs and outputs lays them out; None where it has none."""
    return objective.arrangement if isinstance(objective, SpanCorruptionObjective | Ul2Objective) else None


def has_prefixes(objective: Objective) -> bool:
    """Whether tokens of a prefix see one another, so that batches hold `order`."""
    return isinstance(objective, PrefixObjective) or arrangement_of(objective) == "prefix_decoder"


def reads_both_sides(objective: Objective) -> bool:
    """Whether what is predicted of a token follows from what stands before and behind it: by an encoder."""
    return isinstance(objective, MaskedObjective | ReplacedTokenObjective | QaObjective)


def denoisers_of(objective: SpanCorruptionObjective | Ul2Objective) -> tuple[Denoiser, ...]:
    """The kinds of noise of an objective; that of span corruption has no mode token."""
    if isinstance(objective, Ul2Objective):
        return objective.denoisers
    return (Denoiser("", objective.rate, objective.mean_span),)


def fim_length(objective: FimObjective, length: int) -> int:
    """Tokens of text in a row of `length`: the others are room for sentinels."""
    return length - FIM_SENTINELS * objective.segments


def special_tokens(objective: Objective, length: int) -> tuple[str, ...]:
    """The special tokens, beside that of the mask, that rows of `length` can hold, by name.

    As many sentinels as the most spans of a row.
    """
    if isinstance(objective, FimObjective):
        return objective.prefix, objective.suffix, objective.middle
    if isinstance(objective, SupervisedObjective):
        return CHATML if objective.format == "chat" and objective.template == "chatml" else ()
    if not isinstance(objective, SpanCorruptionObjective | Ul2Objective):
        return ()
    denoisers = denoisers_of(objective)
    raw = raw_length(denoisers, objective.arrangement, length)
    spans = max(noise_counts(denoiser, raw)[1] for denoiser in denoisers)
    modes = dict.fromkeys(denoiser.mode for denoiser in denoisers if denoiser.mode)
    return *modes, *sentinel_names(objective, spans)


def sentinel_names(objective: SpanCorruptionObjective | Ul2Objective, count: int) -> list[str]:
    return [objective.sentinels.replace("{i}", str(i)) for i in range(count)]


def shown(names: Sequence[str]) -> str:
    """Names for a person to read, of which there may be many."""
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ... {names[-1]} ({len(names)} in all)"


def check(objective: Objective, tokenizer: TokenizerConfig, length: int) -> Problems:
    """What no field's type can refuse, as (key below `data`, clash) pairs; `length` is that of a row."""
    return CHECKS[objective.name](objective, tokenizer, length)


def _nothing(objective, tokenizer, length) -> Problems:
    return []


def _check_masks(objective: MaskedObjective | ReplacedTokenObjective, tokenizer, length) -> Problems:
    problems = []
    if not isinstance(tokenizer, FileTokenizer) and not {"[MASK]", "<mask>"} & set(special_names(tokenizer)):
        clash = f"is {objective.name}, but tokenizer {tokenizer.name} has no mask token"
        fix = "take data.tokenizer.name=wordpiece, or name [MASK] in data.tokenizer.special_tokens"
        problems.append(("objective.name", f"{clash}; {fix}"))
    if objective.keep_share + objective.random_share > 1:
        clash = f"is {objective.random_share:g}, which with keep_share {objective.keep_share:g} is more than 1"
        problems.append(("objective.random_share", clash))
    if objective.max_predictions > length:
        clash = f"is {objective.max_predictions}, more than the {length} tokens of a row (data.length)"
        problems.append(("objective.max_predictions", clash))
    return problems


def _check_masked(objective: MaskedObjective, tokenizer, length) -> Problems:
    problems = _check_masks(objective, tokenizer, length)
    if objective.next_sentence and length < SHORTEST_PAIR:
        problems.append(("length", f"is {length}, too short for [CLS] A [SEP] B [SEP]; at least {SHORTEST_PAIR}"))
    return problems


def _check_denoising(objective: SpanCorruptionObjective | Ul2Objective, tokenizer, length) -> Problems:
    denoisers = denoisers_of(objective)
    if not denoisers:
        return [("objective.denoisers", "is empty, must hold at least one kind of noise")]
    if any(denoiser.rate == 1 for denoiser in denoisers):
        return [("objective.rate", "is 1, which leaves nothing to predict the noise from; lower it")]
    if "{i}" not in objective.sentinels:
        clash = f"is {json.dumps(objective.sentinels)}, must hold {{i}}, the number of a span"
        return [("objective.sentinels", f"{clash}, such as {SENTINELS}")]
    if raw_length(denoisers, objective.arrangement, length) < SHORTEST_NOISY:
        clash = f"is {length}, too short for a token, a span of noise, their sentinels and ends"
        return [("length", f"{clash} under data.objective.arrangement={objective.arrangement}")]
    return _check_special(objective, tokenizer, length)


def _check_fim(objective: FimObjective, tokenizer, length) -> Problems:
    names, problems = (objective.prefix, objective.suffix, objective.middle), []
    if len(set(names)) < FIM_SENTINELS:
        clash = f"is {json.dumps(objective.middle)}: prefix, suffix and middle must be three different tokens"
        problems.append(("objective.middle", clash))
    if fim_length(objective, length) < 1:
        clash = f"is {objective.segments}, whose sentinels leave no room in a row of {length} tokens (data.length)"
        problems.append(("objective.segments", clash))
    return problems or _check_special(objective, tokenizer, length)


def _check_special(objective: Objective, tokenizer: TokenizerConfig, length) -> Problems:
    """Whether a tokenizer that is not read from a file will have what the objective puts into rows."""
    known = () if isinstance(tokenizer, FileTokenizer) else special_names(tokenizer)
    missing = [name for name in special_tokens(objective, length) if name not in known]
    if not known or not missing:
        return []
    clash = f"lack {shown(missing)}, which data.objective.name={objective.name} puts into rows"
    return [("tokenizer.special_tokens", f"{clash} of data.length {length}; name them there")]


def _check_supervised(objective: SupervisedObjective, tokenizer, length) -> Problems:
    if objective.format == "prompt" and objective.prompt == objective.answer:
        clash = f"is {json.dumps(objective.answer)}, as data.objective.prompt is; name two columns"
        return [("objective.answer", clash)]
    return _check_special(objective, tokenizer, length)


def _check_pairs(objective: Seq2SeqObjective, tokenizer, length) -> Problems:
    if objective.source == objective.target:
        clash = f"is {json.dumps(objective.target)}, as data.objective.source is; name two columns"
        return [("objective.target", clash)]
    if length < SHORTEST_SIDE or objective.target_length < SHORTEST_SIDE:
        clash = f"is {min(length, objective.target_length)}, too short for a token and its end"
        return [("length" if length < SHORTEST_SIDE else "objective.target_length", clash)]
    return []


def _check_qa(objective: QaObjective, tokenizer, length) -> Problems:
    if length <= objective.max_question + QA_SPECIAL_TOKENS:
        clash = f"is {length}, which a question of {objective.max_question} tokens (data.objective.max_question) and"
        return [("length", f"{clash} {QA_SPECIAL_TOKENS} special ones leave no room for a context in")]
    return []


CHECKS: dict[str, Callable[..., Problems]] = {  # (objective, tokenizer, length of a row) -> clashes
    "causal": _nothing,
    "masked": _check_masked,
    "replaced_token": _check_masks,
    "span_corruption": _check_denoising,
    "prefix_lm": _nothing,
    "ul2": _check_denoising,
    "fim": _check_fim,
    "supervised": _check_supervised,
    "seq2seq": _check_pairs,
    "qa": _check_qa,
}
