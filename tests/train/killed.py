"""A process that is killed while it saves, again and again. Run by test_checkpoint.py, imported by none.

`killed.py DIRECTORY calls NAMES`: for n = 1, 2, ...: a copy of the checkpoints in DIRECTORY/start goes to
DIRECTORY/<n>, where a child saves one more and is killed at the n-th call of any of the functions of `os` in
NAMES (separated by commas), until one survives.

`killed.py DIRECTORY times COUNT SEED`: COUNT children in one directory, each killed after a random time of saving.

Prints one wait status a line and child. Forks before JAX has started its devices, so a child costs no import.
"""

import itertools
import os
import random
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from train.checkpoint import Checkpointer, restore_newest


def state(step: int) -> dict:
    """Every value says which step it is of."""
    return {"params": {"w": jnp.full((64, 32), step, jnp.float32)}, "ema": None, "step": jnp.int32(step)}


def kill_at(number: int, names: list[str]) -> None:
    """End this process by SIGKILL just before the `number`-th call from here of any function in `names`."""
    count = 0

    def counted(function):
        def call(*arguments, **named):
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    for name in names:
        setattr(os, name, counted(getattr(os, name)))


def forked(act) -> int:
    """The id of a child process that does `act` and nothing else."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def save_one(directory: Path, number: int, names: list[str]) -> None:
    jnp.zeros(1).block_until_ready()
    checkpointer = Checkpointer(directory, keep=2)
    kill_at(number, names)
    checkpointer.save(3, state(3), {}, {})
    checkpointer.close()


def save_on(directory: Path) -> None:
    found = restore_newest(directory, jax.eval_shape(lambda: state(0)))
    step = 0 if found is None else found[1].step
    checkpointer = Checkpointer(directory, keep=1)
    while True:
        step += 1
        checkpointer.save(step, state(step), {}, {})


def calls(directory: Path, names: list[str]) -> None:
    for number in itertools.count(1):
        copy = directory / str(number)
        shutil.copytree(directory / "start", copy)
        status = os.waitpid(forked(partial(save_one, copy, number, names)), 0)[1]
        print(status, flush=True)
        if not os.WIFSIGNALED(status):
            return


def times(directory: Path, count: int, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(count):
        child = forked(partial(save_on, directory))
        time.sleep(generator.uniform(0.3, 1.2))
        os.kill(child, signal.SIGKILL)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    if sys.argv[2] == "calls":
        calls(where, sys.argv[3].split(","))
    else:
        times(where, int(sys.argv[3]), int(sys.argv[4]))
