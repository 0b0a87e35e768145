"""A builder of token stores that is killed, again and again. Run by test_build.py, imported by none.

`killed_builder.py DIRECTORY LINES STRIDE`: for n = 1, 1 + STRIDE, ... a child builds DIRECTORY/<n>/store of the text
files in LINES and is killed at its n-th call of a function that changes the disk, until one survives. Prints, for
each, [n, its wait status, the parts that were whole behind it].
"""

import json
import os
import sys
from itertools import count
from pathlib import Path

from data import build
from data.encoding import TextEncoder
from data.tokenizer import byte_tokenizer
from tests.data.killed_writer import kill_at
from tests.data.line_reader import LineReader


def main(directory: Path, lines: Path, stride: int):
    build.SMALL_BYTES = 0
    for number in count(1, stride):
        target = directory / str(number) / "store"
        target.parent.mkdir()
        child = os.fork()
        if child == 0:
            kill_at(number)
            build.build(target, LineReader(lines), "train", TextEncoder(byte_tokenizer(), ("words",)), {}, workers=2)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        whole = sorted(path.name for path in target.parent.glob(".store.parts-*/*.part"))
        print(json.dumps([number, status, whole]), flush=True)
        if status == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
