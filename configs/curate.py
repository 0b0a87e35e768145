"""Curated text: filters, duplicates, evaluation sets, personal data.

    configs/curate.py          English web text of yours, with the rules of Gopher, C4 and FineWeb
    configs/curate.py:zh       Chinese text of yours
    configs/curate.py:debug    the text that every Python carries

The debug size needs nothing but this repository and `pip install -r requirements-curate.txt`:

    python -m data.curate --config configs/curate.py:debug --config.output=runs/curated-debug

The others read your files:

    python -m data.curate --config configs/curate.py --config.source.paths='crawl/*.jsonl.gz' \
        --config.output=curated --config.stages.8.paths='evaluation/*.jsonl'

A run reads what is left with `--config.data.source.name=jsonl --config.data.source.paths='curated/documents/*.gz'`.
On a cluster `--config.executor.name=slurm --config.executor.partition=cpu`, or `--config.executor.name=ray`.
"""

from data.curation.config import (
    C4Quality,
    Curation,
    Decontaminate,
    ExactDedup,
    Extract,
    FineWebQuality,
    GopherQuality,
    GopherRepetition,
    Language,
    MinHash,
    Pii,
)
from data.settings import to_config_dict
from data.source_config import TfdsSource


def get_config(arg: str | None = None):
    """The curation of one size."""
    if arg not in SIZES:
        raise ValueError(f"the sizes are {', '.join(filter(None, SIZES))}, and none for English text of yours")
    config = to_config_dict(Curation())
    config.output = "curated" if arg is None else f"curated-{arg}"
    SIZES[arg](config)
    return config


def english(config):
    """FineWeb's order (Penedo et al. 2024), with C4's rule about the ends of lines off as there."""
    config.stages = (
        Extract(),
        Language(languages=("en",)),
        GopherRepetition(),
        GopherQuality(),
        C4Quality(terminal_punctuation=False),
        FineWebQuality(),
        ExactDedup(),
        MinHash(),
        Decontaminate(),
        Pii(),
    )


def chinese(config):
    """The rules that hold for any script. A character is a word, so only long runs that come back are a fault."""
    config.stages = (
        Extract(),
        Language(languages=("zh",)),
        GopherRepetition(top=(0, 0, 0), repeated=(0, 0, 0, 0, 0, 0.1)),
        GopherQuality(min_word_length=0, min_stop_words=2, stop_words=("的", "是", "在", "了", "和", "不", "有", "这")),
        FineWebQuality(),
        ExactDedup(),
        MinHash(),
        Decontaminate(),
        Pii(),
    )


def debug(config):
    """Every kind of stage that code survives."""
    config.source = TfdsSource(dataset="python_library", validation_split="")
    config.part_bytes = 1 << 20
    config.stages = (
        Language(languages=("en",), threshold=0.3),
        GopherQuality(max_symbols=0, min_alphabetic=0.3, min_stop_words=1),
        GopherRepetition(lines=0.5, top=(0, 0, 0), repeated=(0,) * 6),
        ExactDedup(),
        MinHash(),
        Pii(),
    )


SIZES = {None: english, "zh": chinese, "debug": debug}
