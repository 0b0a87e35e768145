"""Where the numbers of a run go: one JSON object a step in metrics.jsonl, and TensorBoard, W&B, MLflow beside it.

JSON has no NaN: a value that is not finite is written as the text "NaN", "Infinity" or "-Infinity", and read
back by `read_metrics` as the float it was. Imports no JAX.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from data.errors import ConfigError
from data.files import sync
from train.config import Log

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value):
    """A scalar of Python, NumPy or JAX as a Python one; integers stay integers."""
    return value.item() if hasattr(value, "item") else value


def encode(record: dict) -> bytes:
    """One line. Floats have the shortest text that reads back as the same float."""

    def legal(value):
        value = plain(value)
        if isinstance(value, float) and not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return value

    return json.dumps({name: legal(value) for name, value in record.items()}, allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> dict | None:
    """The record of a line; None where it is torn or no record."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    return {name: NON_FINITE.get(v, v) if isinstance(v, str) else v for name, v in record.items()}


def read_metrics(path: Path) -> list[dict]:
    """Every record of a metrics.jsonl, without a last line that was torn or is being written."""
    with open(path, "rb") as file:
        return [record for line in file if (record := decode(line)) is not None]


class JsonlWriter:
    """Appends records to a file, each in one write, so that a reader sees whole lines at any time."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)

    def cut(self, after_step: int) -> None:
        """Drop the lines of later steps and a torn one; the bytes of the others stay. Later lines follow a resume."""

        def stays(line: bytes) -> bool:
            record = decode(line)
            return record is not None and record.get("step", 0) <= after_step

        beside = self.path.with_name(f".{self.path.name}.cut")
        prefix, whole = 0, True  # bytes of the kept lines; whether they are the file's beginning
        with open(self.path, "rb") as old:
            dropped = False
            for line in old:
                if stays(line):
                    prefix, whole = prefix + len(line), whole and not dropped
                else:
                    dropped = True
            if whole:  # the usual case: it needs no space on a disk that may be full
                os.ftruncate(self._descriptor, prefix)
                return
            old.seek(0)
            with open(beside, "wb") as new:
                new.writelines(line for line in old if stays(line))
        sync(beside)
        os.replace(beside, self.path)
        os.close(self._descriptor)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)

    def write(self, record: dict) -> None:
        line = encode(record)
        size = os.fstat(self._descriptor).st_size
        try:
            while line:  # a disk that is nearly full takes a part, and refuses the rest
                line = line[os.write(self._descriptor, line) :]
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class TensorBoardWriter:
    """Scalars for TensorBoard, written by its own package: no TensorFlow.

    After a resume a new file repeats the steps since the checkpoint; TensorBoard shows the later values.
    """

    def __init__(self, directory: Path):
        self._writer = package("tensorboard.summary", "tensorboard").Writer(str(directory))

    def write(self, record: dict) -> None:
        for name, value in record.items():
            if name not in ("step", "time"):
                self._writer.add_scalar(name, float(plain(value)), step=record["step"])

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """Weights & Biases. The id in `directory` lets a resumed run go on in the same place."""

    def __init__(self, project: str, directory: Path):
        wandb = package("wandb", "wandb")
        kept = kept_id(directory / "wandb-id")
        self._run = wandb.init(project=project, dir=str(directory), id=kept, resume="allow")
        keep_id(directory / "wandb-id", self._run.id)

    def write(self, record: dict) -> None:
        self._run.log({name: plain(v) for name, v in record.items() if name != "step"}, step=record["step"])

    def sync(self) -> None:
        """W&B sends from a process of its own."""

    def close(self) -> None:
        self._run.finish()


class MlflowWriter:
    """MLflow, where MLFLOW_TRACKING_URI says. The id in `directory` lets a resumed run go on in the same place."""

    def __init__(self, experiment: str, directory: Path):
        self._mlflow = package("mlflow", "mlflow")
        self._mlflow.set_experiment(experiment)
        run = self._mlflow.start_run(run_id=kept_id(directory / "mlflow-id"))
        keep_id(directory / "mlflow-id", run.info.run_id)

    def write(self, record: dict) -> None:
        values = {name: float(plain(value)) for name, value in record.items() if name != "step"}
        self._mlflow.log_metrics(values, step=record["step"])

    def sync(self) -> None:
        """MLflow writes as it is called."""

    def close(self) -> None:
        self._mlflow.end_run()


def package(module: str, name: str):
    """A module of an optional package; ConfigError names the package where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"The configuration asks for {name}, which is not installed ({error}). Install the package {name}, or "
            f"switch it off in the section log."
        ) from error


def kept_id(path: Path) -> str | None:
    return (path.read_text().strip() or None) if path.exists() else None


def keep_id(path: Path, value: str) -> None:
    path.write_text(value + "\n")


class Writers(list):
    """A list of writers that is one writer. One that fails is named once on stderr and dropped: training goes on."""

    def write(self, record: dict) -> None:
        self._each(lambda writer: writer.write(record))

    def sync(self) -> None:
        """What was written reaches the disk: called before a checkpoint of the same step."""
        self._each(lambda writer: writer.sync())

    def close(self) -> None:
        self._each(lambda writer: writer.close())
        self.clear()

    def _each(self, act: Callable) -> None:
        for writer in tuple(self):
            try:
                act(writer)
            except Exception as error:
                self.remove(writer)
                complain(type(writer).__name__, error)


def complain(name: str, error: Exception) -> None:
    print(
        f"{name} failed ({error}) and is switched off; training goes on without it.",
        file=sys.stderr,
        flush=True,
    )


def check_installed(log: Log) -> None:
    """ConfigError where a package that the configuration asks for is not installed; writes nothing."""
    wanted = {"tensorboard": log.tensorboard, "wandb": log.wandb is not None, "mlflow": log.mlflow is not None}
    for name in (name for name, asked in wanted.items() if asked):
        package(name, name)


def make_writers(log: Log, directory: Path, resume_step: int, primary: bool) -> Writers:
    """The writers of a run in `directory`, cut after `resume_step`; none where this process is not the primary one.

    ConfigError: a package that the configuration asks for is not installed.
    """
    makers = {"JsonlWriter": lambda: cut_jsonl(directory / "metrics.jsonl", resume_step)}
    if log.tensorboard:
        makers["TensorBoardWriter"] = lambda: TensorBoardWriter(directory / "tensorboard")
    if log.wandb is not None:
        makers["WandbWriter"] = lambda: WandbWriter(log.wandb, directory)
    if log.mlflow is not None:
        makers["MlflowWriter"] = lambda: MlflowWriter(log.mlflow, directory)
    writers = Writers()
    for name, make in makers.items() if primary else ():
        try:
            writers.append(make())
        except ConfigError:
            raise
        except Exception as error:
            complain(name, error)
    return writers


def cut_jsonl(path: Path, after_step: int) -> JsonlWriter:
    writer = JsonlWriter(path)
    writer.cut(after_step)
    return writer
