"""Blocks that are in the way; as a program, a step of two workers that do not end: `python dying.py FOLDER`."""

import os
import signal
import sys
import time
from pathlib import Path

from datatrove.pipeline.base import PipelineStep


class Dying(PipelineStep):
    """Ends its process as the system does when memory runs out."""

    type, name = "test", "dying"

    def run(self, data=None, rank=0, world_size=1):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


class Waiting(PipelineStep):
    type, name = "test", "waiting"

    def __init__(self, folder: str):
        super().__init__()
        self.folder = folder

    def run(self, data=None, rank=0, world_size=1):
        Path(self.folder, f"{rank}.pid").write_text(str(os.getpid()))
        time.sleep(600)


if __name__ == "__main__":
    from data.curation import executors
    from data.curation.config import LocalExecutor
    from data.curation.plan import Step

    folder = Path(sys.argv[1])
    executors.local(Step("00-test", 2, [Waiting(str(folder))]), folder / "00-test", LocalExecutor(workers=2)).run()
