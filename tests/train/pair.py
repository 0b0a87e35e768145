"""One of two processes that save and restore together: `pair.py PORT INDEX DIRECTORY WHAT`. For test_checkpoint.py."""

import os
import sys
from pathlib import Path

import jax
import jax.experimental.multihost_utils
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from train import checkpoint, quorum
from train.checkpoint import Checkpointer, restore_newest

WHOLE = np.arange(64, dtype=np.float32).reshape(8, 8)


def state(spec: PartitionSpec, step: int) -> dict:
    mesh = jax.make_mesh((4,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.make_array_from_callback((8, 8), NamedSharding(mesh, spec), lambda index: (WHOLE + step)[index])
    return {"w": split, "step": jax.device_put(np.int32(step), NamedSharding(mesh, PartitionSpec()))}


def template(spec: PartitionSpec) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(spec, 0))


def check_restored(directory: Path, step: int, reported: int) -> None:
    said = []
    tree, manifest = restore_newest(directory, template(PartitionSpec(None, "a")), said.append)
    assert manifest.step == step and len(said) == reported, (manifest.step, said)
    for shard in tree["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, (WHOLE + step)[shard.index])


def whole(directory: Path, index: int) -> None:
    """Save twice and restore onto another sharding; damage the newest, and all pass over it together."""
    checkpointer = Checkpointer(directory, keep=2)
    for step in (1, 2, 2):
        checkpointer.save(step, state(PartitionSpec("a"), step), {}, {})
    checkpointer.close()
    check_restored(directory, 2, 0)
    jax.experimental.multihost_utils.sync_global_devices("damage")
    if index == 0:
        (directory / "2" / "state" / "_METADATA").write_bytes(b"")
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    check_restored(directory, 1, 1)


def silent(directory: Path, index: int) -> None:
    """Process 1 hashes nothing: process 0 names it and nothing is committed; process 1 learns that it failed."""
    if index == 1:
        checkpoint.write_digests = lambda *_: None
    quorum.GRACE = 0.5
    checkpointer = Checkpointer(directory, keep=2, timeout=2.0 if index == 0 else 10.0)
    checkpointer.save(1, state(PartitionSpec("a"), 1), {}, {})
    try:
        checkpointer.wait()
    except Exception as error:
        print(type(error).__name__, error)
    jax.experimental.multihost_utils.sync_global_devices("end")
    assert checkpoint.steps(directory) == []


if __name__ == "__main__":
    port, index, directory, what = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
    {"whole": whole, "silent": silent}[what](directory, index)
    sys.stdout.flush()
    os._exit(0)
