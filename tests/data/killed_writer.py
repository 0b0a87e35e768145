"""A writer of token stores that is killed, again and again. Run by test_store.py.

`killed_writer.py DIRECTORY OLD`: for n = 1, 2, ... a child writes DIRECTORY/<n>/store and is killed at its n-th call
of a function that changes the disk or its n-th document, until one survives. With OLD=1 a store is
there before. Prints one wait status a line and child.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path

from data import encoding, store
from data.tokenizer import byte_tokenizer

CALLS = ("mkdir", "fsync", "rename", "rmdir", "unlink")


def kill_at(number: int):
    """A function that ends this process the `number`-th time it is called, and counts calls of CALLS too."""
    calls = count(1)

    def tick():
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function):
        def call(*arguments, **named):
            tick()
            return function(*arguments, **named)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    return tick


def texts(tick, letter: str):
    for index in range(4):
        tick()
        yield letter * (index + 1)


def main(directory: Path, old: bool):
    encoding.BATCH_CHARACTERS = store.SHARD_TOKENS = 4
    for number in count(1):
        target = directory / str(number) / "store"
        target.parent.mkdir()
        child = os.fork()
        if child == 0:
            if old:
                store.write(target, texts(lambda: None, "o"), byte_tokenizer(), about={})
            store.write(target, texts(kill_at(number), "n"), byte_tokenizer(), about={})
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print(status, flush=True)
        if status == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "1")
