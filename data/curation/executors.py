"""The engines that run a step: datatrove's, made to stop where a task failed and to keep quiet.

As they are, datatrove 0.10's local executor waits for ever when the system kills a worker, its Ray executor goes on
when a task fails, and its Slurm executor lets the next step begin when a task of a first job array failed and the
second array's did not. Here no step begins before each task of the one before is marked as done: this process looks
before it starts a step, and each task looks again (`data.curation.documents.Gate`).
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from loguru import logger

from data.curation.config import LocalExecutor, RayExecutor, SlurmExecutor
from data.curation.folders import completed, leave_with, put, task_name
from data.curation.plan import Step
from data.errors import ConfigError, DataError, UserError
from data.files import storage_errors
from data.workers import usable_cpus

ROOT = Path(__file__).resolve().parents[2]  # what a worker elsewhere must be able to import
ERRORS = "errors"  # below a step: why tasks failed
PRELOADED = ["data.curation.plan"]  # by the process that workers are forked from


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what datatrove tells of a task off standard error; the task's log file has it."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            yield
        finally:
            logger.remove()


class Careful(PipelineExecutor):
    """A task's trouble as this code base tells it, also kept in a file of the step."""

    def _run_for_rank(self, rank: int, *arguments, **named):
        folder = Path(self.logging_dir.path)
        try:
            with storage_errors(folder), quiet():
                (folder / ERRORS / task_name(rank)).unlink(missing_ok=True)
                return super()._run_for_rank(rank, *arguments, **named)
        except UserError as error:
            with contextlib.suppress(OSError):  # the disk may be what is in trouble
                put(folder / ERRORS / task_name(rank), str(error).encode())
            raise


class Local(Careful, LocalPipelineExecutor):
    """Processes that are forked from one which has imported everything; one worker is this process itself."""

    def run(self):
        self.save_executor_as_json()
        ranks = self.get_incomplete_ranks()
        workers = min(self.workers, len(ranks))
        if workers <= 1:
            for rank in ranks:
                copy.deepcopy(self)._run_for_rank(rank)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with ProcessPoolExecutor(workers, context, initializer=leave_with, initargs=(os.getpid(),)) as pool:
            tasks = [pool.submit(self._run_for_rank, rank) for rank in ranks]
            try:
                for task in as_completed(tasks):
                    task.result()
            except BrokenProcessPool:
                raise DataError(
                    f"A worker of {Path(self.logging_dir.path).name} was killed, by the system for lack of memory "
                    "maybe. Set executor.workers lower and run the same command again: finished tasks stay."
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)


class Ray(Careful, RayPipelineExecutor):
    """Actors of a cluster that `connect` has found."""


class Slurm(Careful, SlurmPipelineExecutor):
    """A job array; its report is a step of its own, so datatrove's job that adds numbers up is not launched."""

    def launch_merge_stats(self):
        pass

    def script(self) -> str:
        """What sbatch would be given. Writes nothing: datatrove makes the folder of the logs, so it is another one."""
        wanted = self.slurm_logs_folder
        with tempfile.TemporaryDirectory() as self.slurm_logs_folder:
            arguments = self.get_sbatch_args(min(self.tasks, self.max_array_size))
            arguments = {key: str(value).replace(self.slurm_logs_folder, wanted) for key, value in arguments.items()}
        self.slurm_logs_folder = wanted
        pickled = self.logging_dir.resolve_paths("executor.pik")
        return self.get_launch_file_contents(arguments, f"srun  -l -n 1 launch_pickled_pipeline {pickled}")


def local(step: Step, folder: Path, settings: LocalExecutor) -> Local:
    return Local(step.blocks, tasks=step.tasks, workers=settings.workers or usable_cpus(), logging_dir=str(folder))


def ray(step: Step, folder: Path, settings: RayExecutor) -> Ray:
    return Ray(
        step.blocks,
        tasks=step.tasks,
        workers=settings.workers or -1,
        logging_dir=str(folder),
        cpus_per_task=settings.cpus,
        mem_per_cpu_gb=settings.memory,
    )


def slurm(step: Step, folder: Path, settings: SlurmExecutor) -> Slurm:
    return Slurm(
        step.blocks,
        tasks=step.tasks,
        workers=settings.workers or -1,
        logging_dir=str(folder),
        job_name=f"curate-{step.name}",
        partition=settings.partition,
        time=settings.time,
        cpus_per_task=settings.cpus,
        mem_per_cpu_gb=settings.memory,
        qos="",
        env_command=settings.environment or _environment(),
        sbatch_args=dict(
            argument.split("=", 1) if "=" in argument else (argument, "") for argument in settings.arguments
        ),
    )


def launch(step: Step, folder: Path, settings: SlurmExecutor, before: str | None) -> str:
    """Hands a step to Slurm, to begin when the job `before` has ended well; its job's number."""
    job = slurm(step, folder, settings)
    job.depends_job_id = before
    try:
        job.launch_job()
    except subprocess.CalledProcessError as error:
        raise ConfigError(
            f"sbatch refused {folder}/launch_script.slurm with exit code {error.returncode}; what it printed stands "
            "above. Mend executor.partition, time, memory or arguments."
        ) from error
    return str(job.job_id)


def _environment() -> str:
    """A shell command after which a node runs this interpreter's programs and finds this code."""
    programs = shlex.quote(str(Path(sys.executable).parent))
    return f"export PATH={programs}:$PATH PYTHONPATH={shlex.quote(str(ROOT))}"


def connect(settings: RayExecutor):
    """Joins a Ray cluster, or starts one of this machine's cores. Raises ConfigError without Ray or cluster."""
    try:
        import ray as engine
    except ImportError:
        raise ConfigError(
            "executor.name is ray, but Ray is not installed: pip install 'ray[default]', or take executor.name=local."
        ) from None
    where = {} if settings.address == "local" else {"address": settings.address}
    try:
        engine.init(
            **where, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}
        )
    except ConnectionError as error:
        raise ConfigError(
            f"executor.address is {settings.address}, but no Ray cluster answers there: {error}. Start one with `ray "
            "start --head`, or take executor.address=local."
        ) from None


def check_slurm():
    """Raises ConfigError where no Slurm is."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "executor.name is slurm, but there is no sbatch on this machine: run this on a login node of the cluster, "
            "or take executor.name=local. `--dry_run` prints the job scripts anywhere."
        )


def queued(jobs: list[str]) -> list[str]:
    """Which of these Slurm jobs still wait or run."""
    if not jobs:
        return []
    asked = ["squeue", "--noheader", "--format=%A", f"--jobs={','.join(jobs)}"]
    answer = subprocess.run(asked, capture_output=True, text=True)  # fails where it has forgotten all of them
    return [job for job in jobs if job in answer.stdout.split()]


def check_done(step: Step, folder: Path):
    """Raises DataError unless every task of a step is marked as done."""
    done = completed(folder, step.tasks)
    if len(done) < step.tasks:
        failed = task_name(next(rank for rank in range(step.tasks) if rank not in set(done)))
        told = folder / ERRORS / failed
        raise DataError(
            f"{step.tasks - len(done)} of {step.tasks} tasks of {step.name} failed, so no later step began. Task "
            f"{failed}: {told.read_text() if told.exists() else f'{folder}/logs/task_{failed}.log says why.'} Mend "
            "the cause and run the same command again."
        )
