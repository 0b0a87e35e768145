"""Text to ids on disk, by ours and by others: a contender of `experiments.bench_data` in a process of its own.

`python -m experiments.bench_text NAME FOLDER` reads `text/*.jsonl` and `tokenizer.json` of FOLDER and prints JSON: the
seconds it took, imports left out, and how many ids came of it, without those between documents.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, cycle
from pathlib import Path

from data import corpus, tokenizer
from data.cli import run_command
from data.workers import usable_cpus

FILES = 8
VOCABULARY = 32_000
ALONE = 256  # documents that `tokenizers` alone is handed at a time: of more, its encodings fill the memory


def make_text(folder: Path, size: int, files: int = FILES) -> int:
    """Writes the embedded corpus, shuffled again and again, as JSON lines; the bytes of UTF-8 text, `size` or more.

    A tokenizer trained on the corpus lies beside them.
    """
    documents = [text for _, text in corpus.documents(sysconfig.get_path("stdlib"))]
    tokenizer.train_bpe(documents, VOCABULARY).save(folder / "tokenizer.json")
    (folder / "text").mkdir()
    written = 0
    with ExitStack() as stack:
        handles = [stack.enter_context(open(folder / "text" / f"{i:02d}.jsonl", "w")) for i in range(files)]
        for text, handle in zip(_again_and_again(documents), cycle(handles), strict=False):
            handle.write(json.dumps({"text": text}) + "\n")
            written += len(text.encode())
            if written >= size:
                return written


def _again_and_again(documents: list[str]) -> Iterator[str]:
    generator = random.Random(0)
    while True:
        generator.shuffle(documents)
        yield from documents


def files_of(folder: Path) -> list[str]:
    return sorted(str(path) for path in (folder / "text").glob("*.jsonl"))


def ours(folder: Path, out: Path) -> tuple[float, int]:
    """What a run does before its first step: workers, token store, digests, and a look at every byte of it."""
    from data.config import Data
    from data.prepare import prepare
    from data.source_config import JsonlSource
    from data.tokenizer_config import FileTokenizer

    source = JsonlSource(paths=(str(folder / "text" / "*.jsonl"),), validation_fraction=0.0)
    settings = Data(source=source, tokenizer=FileTokenizer(path=str(folder / "tokenizer.json")), cache_dir=str(out))
    began = time.perf_counter()
    store = prepare(settings).train
    return time.perf_counter() - began, store.num_tokens - store.num_documents


def alone(folder: Path, out: Path) -> tuple[float, int]:
    """The `tokenizers` library on texts in memory, on all cores; nothing is read or written."""
    import tokenizers

    lines = chain.from_iterable(Path(path).read_text().splitlines() for path in files_of(folder))
    texts = [json.loads(line)["text"] for line in lines]
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    count, began = 0, time.perf_counter()
    for first in range(0, len(texts), ALONE):
        count += sum(map(len, made.encode_batch_fast(texts[first : first + ALONE], add_special_tokens=False)))
    return time.perf_counter() - began, count


def datasets(folder: Path, out: Path) -> tuple[float, int]:
    """Hugging Face: the JSON reader, `map` in batches on as many processes as there are cores, `save_to_disk`."""
    import datasets as library
    import tokenizers

    library.disable_progress_bars()
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encoded(batch: dict) -> dict:
        return {"ids": [found.ids for found in made.encode_batch_fast(batch["text"], add_special_tokens=False)]}

    cores, began = usable_cpus(), time.perf_counter()
    loaded = library.load_dataset(
        "json", data_files=files_of(folder), split="train", cache_dir=str(out / "cache"), num_proc=cores
    )
    loaded = loaded.map(encoded, batched=True, remove_columns=["text"], num_proc=cores)
    loaded.save_to_disk(out / "saved")
    seconds = time.perf_counter() - began
    return seconds, sum(len(ids) for ids in loaded.with_format("numpy")["ids"])


def datatrove(folder: Path, out: Path) -> tuple[float, int]:
    """datatrove's DocumentTokenizer, a task for each core."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from loguru import logger

    logger.remove()
    made = str(folder / "tokenizer.json")
    steps = [
        JsonlReader(str(folder / "text"), glob_pattern="*.jsonl"),
        DocumentTokenizer(str(out / "ids"), tokenizer_name_or_path=made, eos_token=None, shuffle_documents=False),
    ]
    cores, began = usable_cpus(), time.perf_counter()
    LocalPipelineExecutor(pipeline=steps, tasks=cores, workers=cores, logging_dir=str(out / "log")).run()
    seconds = time.perf_counter() - began
    return seconds, sum(path.stat().st_size for path in (out / "ids").glob("*.ds")) // 2


CONTENDERS: dict[str, Callable[[Path, Path], tuple[float, int]]] = {
    "ours": ours,
    "tokenizers": alone,
    "datasets": datasets,
    "datatrove": datatrove,
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_text", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    known = parser.parse_args(arguments)
    out = known.folder / f"out-{known.name}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.environ["HF_HOME"] = str(out / "home")  # before Hugging Face's libraries are imported
    seconds, ids = CONTENDERS[known.name](known.folder, out)
    print(json.dumps({"seconds": seconds, "ids": ids}))
    shutil.rmtree(out)


if __name__ == "__main__":
    run_command(main)
