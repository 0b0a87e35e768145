"""A process that encodes parts of a source, for `data.build`: `python -m data.build_worker`.

It reads from standard input a pickled Job and then the numbers of parts, a line each, and answers on standard
output with lines of JSON. It ends, at once, when its input does: also when whoever started it was killed.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from data.encoding import BATCH_CHARACTERS, Encoder, batches
from data.errors import UserError
from data.files import storage_errors
from data.part_files import write_part
from data.store_format import width
from data.store_writer import Piece, pieces

if TYPE_CHECKING:
    from data.sources import Part, Reader


class Job(NamedTuple):
    """What all workers of a build are given."""

    directory: Path  # of part files
    reader: Reader
    split: str
    encoder: Encoder
    parts: list[list[Part]]  # of the source, those that share a part file together
    batch_characters: int = BATCH_CHARACTERS  # text encoded at a time


def part_name(index: int) -> str:
    return f"{index:06d}.part"


def encode(job: Job, index: int, tell) -> None:
    """Writes the file of one part; `tell` is called with (documents, ids, bytes of text) as they are made."""
    before = job.reader.counts.copy()
    dtype = width(job.encoder.tokenizer.vocab_size)

    def told() -> Iterator[Piece]:
        documents = chain.from_iterable(job.reader.read(part, job.split) for part in job.parts[index])
        for found in pieces(job.encoder, batches(documents, job.batch_characters)):
            yield found
            tell(found.lengths.size, found.ids.size, found.text_bytes)

    with storage_errors(job.directory):
        path = job.directory / part_name(index)
        write_part(path, told(), dtype, sorted(job.encoder.marks), lambda: dict(job.reader.counts - before))


def _listen(requests: IO[bytes], wanted: queue.SimpleQueue):
    for line in requests:
        wanted.put(int(line))
    os._exit(0)  # nobody is left who wants an answer


def main():
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    job: Job = pickle.load(requests)
    wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, wanted), daemon=True).start()

    def tell(documents: int, ids: int, text_bytes: int):
        print(json.dumps({"documents": documents, "tokens": ids, "text_bytes": text_bytes}), file=replies)

    while True:
        index = wanted.get()
        try:
            encode(job, index, tell)
            answer = {"done": index}
        except UserError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        except MemoryError:
            print("a worker process has no memory left", file=sys.stderr, flush=True)
            os._exit(1)
        except Exception:
            answer = {"bug": traceback.format_exc()}
        print(json.dumps(answer), file=replies)


if __name__ == "__main__":
    main()
