"""What must be settled before JAX starts its devices: the flags of XLA, and the other processes of a run."""

from __future__ import annotations

import os

from data.errors import ConfigError
from train.config import Config

# XLA on CPU: reductions through YNNPACK race between cores (jax#39741). XLA on GPU: no atomics.
DETERMINISTIC_FLAGS = ("--xla_cpu_experimental_ynn_fusion_type=", "--xla_gpu_deterministic_ops=true")
PLACES = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}


def prepare_runtime(config: Config) -> None:
    """Set the flags of XLA, and join the run's processes where JAX_COORDINATOR_ADDRESS says where the first one is."""
    if config.train.deterministic:
        os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *DETERMINISTIC_FLAGS)).strip()
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        join_processes()


def join_processes() -> None:
    """Join them by JAX's coordination service. ConfigError where that cannot be.

    JAX reads the address by itself, but count and index only from a cluster that it knows (Slurm, Open MPI,
    Kubernetes, Cloud TPU); elsewhere JAX_NUM_PROCESSES and JAX_PROCESS_ID give them.
    """
    import jax  # here, after the flags of XLA

    try:
        given = {name: int(os.environ[variable]) for name, variable in PLACES.items() if variable in os.environ}
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the processes at JAX_COORDINATOR_ADDRESS={os.environ['JAX_COORDINATOR_ADDRESS']} cannot be joined: "
            f"{error}. Outside of a cluster that JAX knows, set {' and '.join(PLACES.values())} in each process"
        ) from error
