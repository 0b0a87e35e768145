"""What becomes of text on its way to batches, as data. Imports neither JAX nor a reader.

Sources, mixtures of them, tokenizers and objectives are declared in `data.source_config`, `data.mixture_config`,
`data.tokenizer_config` and `data.objective_config`.
"""

from __future__ import annotations

from dataclasses import dataclass

from data import mixture_config, objective_config, source_config, tokenizer_config
from data.mixture_config import MixtureSource
from data.objective_config import CausalObjective, Objective
from data.schema import COUNT, NOT_NEGATIVE, POSITIVE, Rule, one_of, refusals
from data.source_config import Source, TfdsSource
from data.tokenizer_config import BpeTokenizer, TokenizerConfig


@dataclass(frozen=True)
class Data:
    source: Source | MixtureSource = TfdsSource()
    tokenizer: TokenizerConfig = BpeTokenizer()
    objective: Objective = CausalObjective()
    length: int = 256  # tokens a row
    # concat (concatenate, then split), best_fit (whole documents together), unpacked (documents apart, padded)
    packing: str = "concat"
    long_documents: str = "split"  # what becomes of those longer than a row, but for concat: split, drop
    shuffle: bool = True  # a new permutation of the rows each epoch, from train.seed
    cache_dir: str = ".cache"  # prepared corpora, tokenizers and token stores
    prefetch: int = 2  # batches made ahead in the background
    timeout: float = 300.0  # seconds to wait for a batch before the run ends as hung
    # Check the stores' digests before the first step: of small ones at each start, of a large one's files those that
    # were written to since they were found whole. `python -m data.store verify` reads every byte.
    verify: bool = True
    workers: int | None = None  # processes that tokenize; None: one for each core that may be used


PACKINGS = ("concat", "best_fit", "unpacked")
LONG_DOCUMENTS = ("split", "drop")

RULES = {
    **{f"source.{key}": rule for key, rule in (source_config.RULES | mixture_config.RULES).items()},
    **{f"tokenizer.{key}": rule for key, rule in tokenizer_config.RULES.items()},
    **{f"objective.{key}": rule for key, rule in objective_config.RULES.items()},
    "length": COUNT,
    "packing": one_of(*PACKINGS),
    "long_documents": one_of(*LONG_DOCUMENTS),
    "cache_dir": Rule(bool, "a directory"),
    "prefetch": NOT_NEGATIVE,
    "timeout": POSITIVE,
    "workers": COUNT,
}


def check(config: Data) -> list[tuple[str, str]]:
    """What no field's type can refuse, as (key below `data`, clash) pairs; empty when sound."""
    source = config.source
    problems = mixture_config.check(source) if isinstance(source, MixtureSource) else source_config.check(source)
    return refusals(config, RULES) or (
        _below("source", problems)
        + _check_packing(config)
        + _below("tokenizer", tokenizer_config.check(config.tokenizer))
        + objective_config.check(config.objective, config.tokenizer, config.length)
    )


def missing_inputs(config: Data) -> list[tuple[str, str]]:
    """The text and the tokenizer that a recipe leaves for its user to name, as `check` puts it.

    Apart from `check`, because what needs no text (sizes, dry runs, compiling for a topology) goes without.
    """
    source = config.source
    missing = mixture_config.missing(source) if isinstance(source, MixtureSource) else source_config.missing(source)
    return _below("source", missing) + _below("tokenizer", tokenizer_config.missing(config.tokenizer))


def _check_packing(config: Data) -> list[tuple[str, str]]:
    if config.packing == "concat" and config.long_documents == "drop":
        return [("long_documents", "is drop, but packing is concat, which cuts wherever a row ends; take best_fit")]
    return []


def _below(section: str, problems: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"{section}.{key}", clash) for key, clash in problems]
