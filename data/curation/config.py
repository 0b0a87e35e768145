"""What is asked of a curation, as data. Imports no engine: a recipe is read and checked without one.

A stage is one dataclass here and one entry in `data.curation.stages.STAGES` (what looks at one document at a time) or
in `data.curation.plan.DEDUPLICATIONS` (what compares documents).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from data import source_config
from data.schema import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Rule, one_of, refusals
from data.source_config import FileSource, JsonlSource, Source, StoredSource, TextSource

KINDS = ("email", "phone", "ip", "cn_id", "cn_phone", "credit_card", "iban")  # of personal data


@dataclass(frozen=True)
class Extract:
    """The main text of HTML, by trafilatura (Barbaresi 2021). A document that is no HTML stays as it is."""

    name: str = "extract"
    precision: bool = True  # rather lose text than keep boilerplate
    timeout: float = 60.0  # seconds for a page; generous, since what it drops depends on the machine


@dataclass(frozen=True)
class Language:
    """Keep what py3langid, which carries its model, finds to be in one of these languages."""

    name: str = "language"
    languages: tuple[str, ...] = ("en",)  # ISO 639-1, such as en, zh
    threshold: float = 0.65  # the least probability


@dataclass(frozen=True)
class GopherQuality:
    """The quality rules of Rae et al. 2021, appendix A.1.1. 0 turns a rule off."""

    name: str = "gopher_quality"
    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0  # characters in the mean; Chinese words are one each: 0
    max_word_length: float = 10.0
    max_symbols: float = 0.1  # hashes, and ellipses, a word
    max_bullet_lines: float = 0.9  # share of the lines that begin with a bullet
    max_ellipsis_lines: float = 0.3  # share of the lines that end with an ellipsis
    min_alphabetic: float = 0.8  # share of the words, punctuation counted, that hold a letter
    min_stop_words: int = 2  # different ones
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")


@dataclass(frozen=True)
class GopherRepetition:
    """The repetition rules of Rae et al. 2021, table A1: the largest shares. 0 turns a rule off."""

    name: str = "gopher_repetition"
    lines: float = 0.3  # that are repeated, of the lines
    line_characters: float = 0.2  # in them, of the characters
    paragraphs: float = 0.3
    paragraph_characters: float = 0.2
    top: tuple[float, ...] = (0.2, 0.18, 0.16)  # characters in the most frequent 2-, 3-, 4-gram
    repeated: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)  # characters in repeated 5- to 10-grams


@dataclass(frozen=True)
class C4Quality:
    """The rules of Raffel et al. 2019, section 2.2, which also take single lines out. -1 turns a number off."""

    name: str = "c4_quality"
    terminal_punctuation: bool = True  # drop lines that do not end in . ? ! or a quote; Chinese stops are none: false
    min_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    remove_citations: bool = True  # such as [3]
    javascript: bool = True  # drop lines that speak of it
    policies: bool = True  # drop lines that speak of cookies, terms of use
    lorem_ipsum: bool = True  # drop documents with it
    curly_bracket: bool = True  # drop documents with one


@dataclass(frozen=True)
class FineWebQuality:
    """The rules of Penedo et al. 2024, section 3.6."""

    name: str = "fineweb_quality"
    min_punctuated_lines: float = 0.12  # share of the lines that end in terminal punctuation, of any script
    max_short_lines: float = 0.67  # share of the lines of at most `short_line` characters
    short_line: int = 30
    max_repeated_characters: float = 0.01  # share of the characters that are in repeated lines
    max_lines_per_word: float = 0.3


@dataclass(frozen=True)
class BadWords:
    """Drop documents that hold a word of a list of yours; C4 used LDNOOBW's, which nobody downloads here."""

    name: str = "bad_words"
    path: str = ""  # a text file, a word or phrase a line


@dataclass(frozen=True)
class FastText:
    """Keep documents to which a fastText classifier of yours gives a label. Needs the package fasttext."""

    name: str = "fasttext"
    path: str = ""  # the model's file; nothing is downloaded
    label: str = ""  # without __label__
    threshold: float = 0.5  # the least probability


@dataclass(frozen=True)
class ExactDedup:
    """Keep the first of the documents that are the same text."""

    name: str = "exact_dedup"
    normalize: bool = True  # same but for case, white space and Unicode's spelling (NFKC)


@dataclass(frozen=True)
class MinHash:
    """Keep the first of the documents that are nearly the same (Broder 1997), joined where any pair is.

    Two documents whose sets of n-grams have the Jaccard similarity s become a pair with probability
    1 - (1 - s^hashes)^buckets: 0.92 at 0.8, 0.9996 at 0.9 with these numbers, those of FineWeb.
    """

    name: str = "minhash"
    n_grams: int = 5  # words; a document of fewer is never a near duplicate
    buckets: int = 14
    hashes: int = 8  # a bucket
    seed: int = 1


@dataclass(frozen=True)
class Decontaminate:
    """Drop documents that share an n-gram of words with an evaluation set (Brown et al. 2020, appendix C)."""

    name: str = "decontaminate"
    paths: tuple[str, ...] = ()  # files or globs: .jsonl, .json (SQuAD's form too), otherwise text; also .gz
    fields: tuple[str, ...] = ()  # the keys whose texts count, at any depth; empty: all texts
    n: int = 13  # words in a row, a Chinese character being one
    shortest: int = 13  # words of an evaluation text that is still looked for, whole where it is below n


@dataclass(frozen=True)
class Pii:
    """Put `<EMAIL>`, `<PHONE>`, ... in the place of personal data; what counts stands in `data.curation.pii`."""

    name: str = "pii"
    kinds: tuple[str, ...] = KINDS


Stage = (
    Extract
    | Language
    | GopherQuality
    | GopherRepetition
    | C4Quality
    | FineWebQuality
    | BadWords
    | FastText
    | ExactDedup
    | MinHash
    | Decontaminate
    | Pii
)


@dataclass(frozen=True)
class LocalExecutor:
    """Processes of this machine."""

    name: str = "local"
    workers: int | None = None  # processes; None: one a core


@dataclass(frozen=True)
class SlurmExecutor:
    """Job arrays that wait for one another. The folder of `output` must be seen by every node."""

    name: str = "slurm"
    workers: int | None = None  # tasks at a time; None: all
    partition: str = ""
    time: str = "24:00:00"  # limit of a task
    cpus: int = 1  # a task
    memory: int = 4  # gigabytes a CPU
    environment: str = ""  # shell command before the task; empty: the environment this command runs in
    arguments: tuple[str, ...] = ()  # further sbatch directives, such as account=lab


@dataclass(frozen=True)
class RayExecutor:
    """Actors of a Ray cluster. The folder of `output` must be seen by every node."""

    name: str = "ray"
    workers: int | None = None  # tasks at a time; None: all
    address: str = "auto"  # of the cluster; auto: the running one, local: one of this machine's cores
    cpus: int = 1  # a task
    memory: float = 2.0  # gigabytes a CPU


Executor = LocalExecutor | SlurmExecutor | RayExecutor


@dataclass(frozen=True)
class Curation:
    """Which text becomes which, and where it is done.

    What is written depends on everything but `executor`: the same bytes whatever the engine and its workers.
    """

    source: Source = JsonlSource(validation_fraction=0.0)  # its validation_fraction does not apply: all is curated
    keep: tuple[str, ...] = ()  # columns of the source that stay beside the text
    stages: tuple[Stage, ...] = ()  # in this order
    output: str = "curated"  # a folder: documents/*.jsonl.gz, report.md, report.json, work/ to resume from
    compress: bool = True  # gzip the documents
    part_bytes: int = 1 << 24  # of the source, about, that are not divided further
    tasks: int = (
        64  # at most so many stretches of parts, each the work of one worker at a time and a file of the output
    )
    samples: int = 5  # texts that the report quotes for each reason to drop; 0: none
    cache_dir: str = ".cache"  # what the source keeps, such as a prepared TFDS data set
    executor: Executor = LocalExecutor()


SHARES = (
    *("threshold", "max_bullet_lines", "max_ellipsis_lines", "min_alphabetic", "lines", "line_characters"),
    *("paragraphs", "paragraph_characters", "min_punctuated_lines", "max_short_lines", "max_repeated_characters"),
)
NOT_BELOW = ("min_words", "max_words", "min_word_length", "max_word_length", "max_symbols", "min_stop_words")
ALSO_OFF = Rule(lambda value: value >= -1, "at least 0, or -1 for no limit")
SIGNATURES = 2**14  # hashes a document beyond which a signature is longer than most texts

RULES = {
    **{f"source.{key}": rule for key, rule in source_config.RULES.items()},
    **{f"stages.*.{key}": SHARE for key in SHARES},
    **{f"stages.*.{key}": NOT_NEGATIVE for key in NOT_BELOW},
    **{f"stages.*.{key}": COUNT for key in ("n_grams", "buckets", "hashes", "n", "shortest", "short_line")},
    **{f"stages.*.{key}": ALSO_OFF for key in ("min_sentences", "min_words_per_line")},
    "stages.*.timeout": POSITIVE,
    "stages.*.max_lines_per_word": POSITIVE,
    "stages.*.seed": Rule(lambda value: 0 <= value < 2**32, "at least 0 and below 2^32"),
    "output": Rule(bool, "a directory"),
    "cache_dir": Rule(bool, "a directory"),
    "tasks": Rule(lambda value: 1 <= value <= 99_999, "at least 1 and at most 99999"),
    "part_bytes": COUNT,
    "samples": NOT_NEGATIVE,
    "executor.workers": COUNT,
    "executor.cpus": COUNT,
    "executor.memory": POSITIVE,
}
# What a stage must be told, since the package behind it would fetch it: field, what stands there.
TOLD = {
    BadWords: ("path", "a local list, a word or phrase a line; none is downloaded"),
    FastText: ("path", "the file of a local fastText model; none is downloaded"),
    Decontaminate: ("paths", "the files or globs of the evaluation sets"),
}


# Filters of datatrove that fetch a model or a list, and what there is instead.
FETCHING = {
    "c4_badwords": "bad_words, with path=FILE of words",
    "c4_bad_words": "bad_words, with path=FILE of words",
    "language_filter": "language, whose package carries its model",
    "fasttext_filter": "fasttext, with path=FILE of a model",
    "unigram_log_probs": "fasttext, with path=FILE of a model that tells such text",
    "url_filter": "bad_words, with path=FILE of words",
}


def local_way(clash: str) -> str:
    """What to take instead, where `clash` is that of a stage which would fetch something; otherwise nothing."""
    found = re.search(r'stages\.\d+\.name is "(\w+)"', clash)
    if found is None or found[1] not in FETCHING:
        return ""
    return f". datatrove's {found[1]} fetches what it needs as it runs, so it is not taken; take {FETCHING[found[1]]}"


def check(config: Curation) -> list[tuple[str, str]]:
    """What no field's type can refuse, as (key, clash) pairs; empty when sound."""
    problems = refusals(config, RULES)
    if problems:
        return problems
    for index, stage in enumerate(config.stages):
        problems += [(f"stages.{index}.{key}", clash) for key, clash in _check_stage(stage)]
    names = [stage.name for stage in config.stages]
    if not names:
        problems.append(("stages", f"is empty, must name what is to be done: {', '.join(STAGE_NAMES)}"))
    for name in ("exact_dedup", "minhash"):
        if names.count(name) > 1:
            problems.append(("stages", f"holds {name} twice; documents that are gone cannot be found again"))
    problems += [(f"source.{key}", clash.replace("data.", "")) for key, clash in source_config.check(config.source)]
    if isinstance(config.source, StoredSource):
        problems.append(
            ("source.name", "is store, which holds ids and no text to curate; name the text they came from")
        )
    if config.keep and isinstance(config.source, TextSource):
        problems.append(("keep", f"is {list(config.keep)}, but source.name={config.source.name} has no columns"))
    if isinstance(config.executor, SlurmExecutor):
        if not config.executor.partition:
            problems.append(("executor.partition", "is empty, must name a partition of the cluster (sinfo lists them)"))
        for index, argument in enumerate(config.executor.arguments):
            if argument.startswith("-"):
                problems.append(
                    (f"executor.arguments.{index}", f"is {argument!r}, must be without dashes: account=lab")
                )
    return problems


def _check_stage(stage: Stage) -> list[tuple[str, str]]:
    problems = []
    field, what = TOLD.get(type(stage), (None, ""))
    if field and not getattr(stage, field):
        problems.append((field, f"is empty, must be {what}"))
    if isinstance(stage, FastText) and not stage.label:
        problems.append(("label", "is empty, must be a label of the model, without __label__"))
    if isinstance(stage, Language) and not stage.languages:
        problems.append(("languages", "is empty, must hold ISO 639-1 codes such as en, zh"))
    if isinstance(stage, Pii):
        rule = one_of(*KINDS)
        wrong = [kind for kind in stage.kinds if not rule.holds(kind)]
        problems += [("kinds", f"holds {kind!r}, each must be {rule.wanted}") for kind in wrong]
        if not stage.kinds:
            problems.append(("kinds", f"is empty, must hold some of {', '.join(KINDS)}"))
    if isinstance(stage, Decontaminate) and stage.shortest > stage.n:
        problems.append(("shortest", f"is {stage.shortest}, must be at most n = {stage.n}"))
    if isinstance(stage, MinHash) and stage.buckets * stage.hashes > SIGNATURES:
        problems.append(("buckets", f"times hashes is {stage.buckets * stage.hashes}, must be at most {SIGNATURES}"))
    if isinstance(stage, GopherRepetition):
        for key, length in (("top", 3), ("repeated", 6)):
            shares = getattr(stage, key)
            if len(shares) != length or not all(SHARE.holds(share) for share in shares):
                problems.append((key, f"is {list(shares)}, must be {length} numbers from 0 to 1"))
    return problems


def whole(config: Curation) -> Curation:
    """The same with nothing held out by chance: all that the source holds for training is curated."""
    if not isinstance(config.source, FileSource):
        return config
    return replace(config, source=replace(config.source, validation_fraction=0.0))


STAGE_NAMES = tuple(stage().name for stage in Stage.__args__)
