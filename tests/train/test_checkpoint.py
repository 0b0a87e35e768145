"""A checkpoint is whole or is none: round trips, damage, retention, kills, full disks."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data.errors import ConfigError, StorageError
from tests.train import killed
from train import manifest
from train.checkpoint import (
    Checkpointer,
    load_params,
    restore,
    restore_newest,
    restore_subset,
    steps,
    verify,
)
from train.errors import CheckpointError, MismatchError
from train.manifest import retained

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (
    "float32",
    "bfloat16",
    "float16",
    "float8_e4m3fn",
    "int32",
    "uint32",
    "int8",
    "uint8",
    "bool",
    "complex64",
)


def bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    """Random bits read as `dtype`: every NaN, infinity and subnormal may be among them."""
    generator = np.random.default_rng(seed)
    if dtype == "bool":
        return jnp.asarray(generator.integers(0, 2, shape).astype(bool))
    raw = generator.integers(0, 256, (*shape, jnp.dtype(dtype).itemsize), np.uint8)
    return jnp.asarray(raw.view(jnp.dtype(dtype))[..., 0])


def abstract(tree, sharding=None):
    """The template of a tree, in one sharding or in the tree's own."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree)


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(directory: Path, *numbers: int, keep: int = 9, **options) -> Path:
    """`directory` with a checkpoint of `killed.state(step)` for each number."""
    checkpointer = Checkpointer(directory, keep, **options)
    for step in numbers:
        checkpointer.save(step, killed.state(step), {"tokens": 10 * step}, {"loss": float(step)})
    checkpointer.close()
    return directory


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("pristine") / "checkpoints", 1, 2)


@pytest.fixture
def two(pristine, tmp_path) -> Path:
    """A directory with checkpoints 1 and 2, to be damaged."""
    return shutil.copytree(pristine, tmp_path / "checkpoints")


def newest(directory: Path) -> tuple[int, list[str]]:
    """The step that a restart would take, its contents checked, and what it said on the way."""
    said = []
    tree, found = restore_newest(directory, abstract(killed.state(0)), said.append)
    assert_same(tree, killed.state(found.step))
    return found.step, said


# --- round trips


def test_every_dtype_and_empty_subtree_survives(tmp_path):
    tree = {
        "params": {dtype: bits(dtype, (5, 3)) for dtype in DTYPES},
        "frozen": {},
        "opt_state": (
            jnp.int32(2**31 - 1),
            None,
            {"mu": {"a.b": bits("bfloat16", ()), "a": {"b": bits("int8", (1,))}}},
        ),
        "ema": None,
        "step": jnp.int32(7),
        "skipped": np.int32(3),
        "nothing": jnp.zeros((0, 4)),
    }
    checkpointer = Checkpointer(tmp_path, 1)
    checkpointer.save(7, tree, {"counts": {3: [1, 2.5, None]}}, {"loss": 0.1, "worst": float("nan")})
    checkpointer.close()
    tree = jax.tree.map(jnp.asarray, tree)
    got, found = restore_newest(tmp_path, abstract(tree))
    assert_same(got, tree)
    assert (found.metadata, found.metrics) == ({"counts": {"3": [1, 2.5, None]}}, {"loss": 0.1})


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy of `array` that begins at a multiple of 64 bytes."""
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


def meshes() -> list[NamedSharding]:
    """One device, and 2, 8 and 2 x 4 of them."""
    shapes = {(1,): ("a",), (2,): ("a",), (8,): ("a",), (2, 4): ("a", "b")}
    auto = jax.sharding.AxisType.Auto
    made = []
    for shape, names in shapes.items():
        mesh = jax.make_mesh(
            shape, names, axis_types=(auto,) * len(names), devices=jax.devices()[: int(np.prod(shape))]
        )
        made += [
            NamedSharding(mesh, PartitionSpec(*names)),
            NamedSharding(mesh, PartitionSpec(None, names[-1])),
        ]
        made += [NamedSharding(mesh, PartitionSpec())]
    return made


def test_another_mesh_has_the_same_bits(tmp_path):
    whole = {"w": bits("bfloat16", (16, 8)), "v": bits("float32", (8, 16), 1)}
    checkpointer = Checkpointer(tmp_path, keep=99)
    for step, sharding in enumerate(meshes()):
        checkpointer.save(step, jax.device_put(whole, sharding), {}, {})
    checkpointer.close()
    for step, sharding in zip(steps(tmp_path), meshes()[::-1], strict=True):
        got = restore(tmp_path / str(step), abstract(whole, sharding))
        assert_same(got, whole)
        assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(got))


@pytest.mark.parametrize("sharding", meshes()[-3:], ids=["split", "half", "replicated"])
def test_the_caller_may_overwrite_what_it_saves(tmp_path, sharding):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0, out_shardings=sharding)
    checkpointer = Checkpointer(tmp_path, keep=99)
    original = np.arange(2**20, dtype=np.float32).reshape(1024, 1024)
    for step in range(4):
        memory = aligned(original)
        shared = jax.device_put(
            memory
        )  # is this memory: so whoever overwrites it overwrites the array, as donation may
        array = jax.device_put(original, sharding)
        checkpointer.save(step, {"donated": array, "shared": shared}, {}, {})
        overwrite(overwrite(array)).block_until_ready()
        memory[:] = -1
    checkpointer.close()
    for step in range(4):
        got = restore(
            tmp_path / str(step),
            {name: jax.ShapeDtypeStruct((1024, 1024), np.float32) for name in ("donated", "shared")},
        )
        np.testing.assert_array_equal(got["donated"], original)
        np.testing.assert_array_equal(got["shared"], original)


def test_what_was_restored_may_be_donated(two):
    template = abstract(killed.state(0))
    halve = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = halve(halve(restore(two / "2", template)))
    assert float(tree["params"]["w"][0, 0]) == 4.0
    assert_same(restore(two / "2", template), killed.state(2))


def test_only_arrays_are_saved(tmp_path):
    checkpointer = Checkpointer(tmp_path, 1)
    with pytest.raises(TypeError, match="leaf step"):
        checkpointer.save(1, {"step": 1}, {}, {})
    with pytest.raises(TypeError, match="int64"):
        checkpointer.save(1, {"step": np.int64(1)}, {}, {})


# --- templates that do not fit


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w": ((64, 33), "float32")}, r"params/w: saved float32\[64, 32\], expected float32\[64, 33\]"),
        ({"w": ((64, 32), "bfloat16")}, r"params/w: saved float32\[64, 32\], expected bfloat16\[64, 32\]"),
        (
            {"w": ((64, 32), "float32"), "b": ((3,), "float32")},
            r"params/b: saved nothing, expected float32\[3\]",
        ),
        ({}, r"params/w: saved float32\[64, 32\], expected nothing"),
    ],
    ids=["shape", "dtype", "added", "removed"],
)
def test_a_changed_architecture_is_refused_not_passed_over(two, change, said):
    template = abstract(killed.state(0))
    template["params"] = {name: jax.ShapeDtypeStruct(*leaf) for name, leaf in change.items()}
    with pytest.raises(MismatchError, match=said) as caught:
        restore_newest(two, template)
    assert caught.value.exit_code == 2


def test_a_subset_reads_what_it_names(two):
    template = abstract(killed.state(0))
    assert_same(restore_subset(two / "2", {"step": template["step"]}), {"step": jnp.int32(2)})
    with pytest.raises(MismatchError, match="params/x: saved nothing"):
        restore_subset(two / "2", {"params": {"x": template["params"]["w"]}})


def test_parameters_are_found_trained_or_frozen(tmp_path):
    state = {
        "params": {"block": {"kernel": bits("float32", (4, 2))}, "head": {}},
        "frozen": {"block": {"bias": bits("float32", (2,))}, "head": {"kernel": bits("bfloat16", (2, 3))}},
        "opt_state": {"mu": bits("float32", (4, 2))},
    }
    checkpointer = Checkpointer(tmp_path / "run" / "checkpoints", 1)
    checkpointer.save(5, state, {}, {})
    checkpointer.close()
    whole = {"block": state["params"]["block"] | state["frozen"]["block"], "head": state["frozen"]["head"]}
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints", tmp_path / "run" / "checkpoints" / "5"):
        assert_same(load_params(path, abstract(whole)), whole)
    with pytest.raises(MismatchError, match="head/kernel: saved bfloat16"):
        load_params(tmp_path / "run", abstract({"block": whole["block"]}))
    with pytest.raises(CheckpointError, match="No checkpoint"):
        load_params(tmp_path, abstract(whole))


# --- damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "emptied": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_named_and_the_step_before_is_used(two, damage):
    names = [*manifest.list_files(two / "2"), manifest.NAME]
    for name in names:
        if not (two / "2" / name).stat().st_size and damage in ("flipped", "emptied", "halved"):
            continue  # an empty file cannot be smaller
        shutil.copytree(two / "2", two / "whole")
        DAMAGES[damage](two / "2" / name)
        step, said = newest(two)
        assert step == 1
        assert len(said) == 1 and f"2/{name}" in said[0] or name == manifest.NAME in said[0]
        shutil.rmtree(two / "2")
        os.rename(two / "whole", two / "2")
    assert newest(two) == (2, [])


def test_foreign_and_swapped_files_are_named(two):
    (two / "2" / "state" / "extra").write_bytes(b"")
    with pytest.raises(CheckpointError, match="2/state/extra does not belong"):
        verify(two / "2")
    (two / "2" / "state" / "extra").unlink()
    shutil.copy(two / "1" / "_CHECKPOINT_METADATA", two / "2" / "_CHECKPOINT_METADATA")
    assert newest(two)[0] == 1
    shutil.copy(two / "1" / manifest.NAME, two / "2" / manifest.NAME)
    assert steps(two) == [1]


def test_no_flipped_bit_of_a_manifest_is_believed(two):
    path = two / "2" / manifest.NAME
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in (0, 5):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(CheckpointError):
                manifest.read_manifest(two / "2")


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"{}", b"\xff", b'{"digest": 1}', b"[" * 100000, b'{"version": "x"}']
)
def test_garbage_is_no_manifest(two, content):
    (two / "2" / manifest.NAME).write_bytes(content)
    assert steps(two) == [1]
    assert newest(two)[0] == 1


def test_order_is_numeric_and_strays_are_ignored(tmp_path):
    directory = saved(tmp_path, 9, 10)
    (directory / "11").write_text("a file")
    for stray in ("step-abc", "12.tmp", "012", "-3", "1e3", "13"):
        (directory / stray).mkdir()
    shutil.copytree(directory / "10", directory / "14")  # a renamed checkpoint
    os.utime(directory / "9", (2e9, 2e9))
    assert steps(directory) == [9, 10]
    step, said = newest(directory)
    assert step == 10 and len(said) == 2
    assert "13 is no checkpoint" in said[1] and "of step 10, not 14" in said[0]


def test_nothing_saved_is_a_fresh_start_and_nothing_usable_is_not(two, tmp_path):
    template = abstract(killed.state(0))
    assert restore_newest(tmp_path / "none", template) is None
    Checkpointer(tmp_path / "empty", 1).close()
    assert restore_newest(tmp_path / "empty", template) is None
    for step in (1, 2):
        flip(two / str(step) / "_CHECKPOINT_METADATA")
    with pytest.raises(CheckpointError, match=r"\[2, 1\] are damaged") as caught:
        restore_newest(two, template)
    assert caught.value.exit_code == 5


def test_a_checkpoint_of_format_1_can_be_read(tmp_path):
    """Written by the first version of this code. A change that cannot read it needs a converter and a new number."""
    with tarfile.open(Path(__file__).with_name("checkpoint_v1.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    assert newest(tmp_path) == (2, [])


def test_a_later_format_is_refused(two):
    path = two / "2" / manifest.NAME
    path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 2'))
    fields = json.loads(path.read_bytes())
    del fields["digest"]
    path.write_text(json.dumps({**fields, "digest": manifest.digest(fields)}))
    with pytest.raises(MismatchError, match="format version 2"):
        newest(two)


# --- retention and saving again


@pytest.mark.parametrize(
    ("keep", "every", "scores", "stays"),
    [
        (1, None, {}, {9}),
        (3, None, {}, {7, 8, 9}),
        (20, None, {}, set(range(10))),
        (2, 4, {}, {0, 4, 8, 9}),
        (1, None, {2: 0.5, 5: 0.25, 8: 0.75}, {5, 9}),
        (1, None, {2: 0.25, 5: 0.25}, {2, 9}),
        (2, 5, {9: 0.1, 3: 0.2}, {0, 5, 8, 9}),
        (0, None, {}, {9}),
    ],
)
def test_retention(keep, every, scores, stays):
    assert retained(range(9, -1, -1), keep, every, scores) == stays


def test_retention_on_disk_keeps_the_best_by_its_metric(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2, keep_every=4, best="loss")
    for step, loss in enumerate([5.0, 3.0, 4.0, float("nan"), 3.5, 2.0, 2.5, 2.25, 2.125], 1):
        checkpointer.save(step, killed.state(step), {}, {"loss": loss})
        checkpointer.wait()
        if step == 4:
            assert steps(tmp_path) == [2, 3, 4]
    checkpointer.close()
    assert steps(tmp_path) == [4, 6, 8, 9]
    assert not list((tmp_path / manifest.DELETING).iterdir()) and not list((tmp_path / manifest.INCOMING).iterdir())


def test_damaged_later_steps_push_out_no_good_one(tmp_path):
    directory = saved(tmp_path, 10, 20, 30)
    for step in (20, 30):
        flip(directory / str(step) / "_CHECKPOINT_METADATA")
    assert newest(directory)[0] == 10
    saved(directory, 15, keep=1)
    assert newest(directory)[0] == 15
    saved(directory, 20, 30, keep=1)  # in the place of the damaged ones
    assert newest(directory) == (30, []) and steps(directory) == [30]


def test_saving_a_step_again_changes_nothing(two):
    before = {path: path.stat().st_mtime_ns for path in (two / "2").rglob("*")}
    saved(two, 2)
    assert {path: path.stat().st_mtime_ns for path in (two / "2").rglob("*")} == before


def test_leftovers_are_swept(two):
    (two / manifest.INCOMING / "3").mkdir()
    shutil.copytree(two / "2", two / manifest.INCOMING / "2")
    shutil.copytree(two / "1", two / manifest.DELETING / "0")
    assert steps(two) == [1, 2]
    Checkpointer(two, 1)
    assert not list((two / manifest.INCOMING).iterdir()) and not list((two / manifest.DELETING).iterdir())


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint\.keep is 0"):
        Checkpointer(tmp_path / "x", 0)
    assert not (tmp_path / "x").exists()


# --- disks that fail


def test_a_path_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file.*Not a directory") as caught:
        Checkpointer(tmp_path / "file" / "checkpoints", 1)
    assert caught.value.exit_code == 6


def test_a_vanished_directory_is_an_error_of_the_next_call(two):
    checkpointer = Checkpointer(two, 2)
    shutil.rmtree(two)
    with pytest.raises(StorageError, match=str(two)):
        checkpointer.save(3, killed.state(3), {}, {})
        checkpointer.wait()
    checkpointer.check()  # told once


FILL = """
import resource, sys, time
import jax, jax.numpy as jnp
from pathlib import Path
from data.cli import run_command
from train.checkpoint import Checkpointer

def main(arguments):
    checkpointer = Checkpointer(Path(arguments[0]), keep=1)
    state = {"w": jax.random.normal(jax.random.key(0), (1000, 1000))}
    if len(arguments) > 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(arguments[1]),) * 2)
    checkpointer.save(3, state, {}, {})
    while True:
        time.sleep(0.05)
        checkpointer.check()

run_command(main)
"""


def fill(*arguments) -> subprocess.CompletedProcess:
    """A process that saves 4 MB and then asks after it, in vain."""
    command = [sys.executable, "-c", FILL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def assert_told(done: subprocess.CompletedProcess, number: int) -> None:
    assert done.returncode == 6
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and f"(errno {number})" in lines[0] and ".incoming/3" in lines[0], done.stderr


def test_a_limit_on_file_size_ends_a_save_loudly(two):
    assert_told(fill(two, 500_000), 27)
    assert steps(two) == [1, 2] and newest(two) == (2, [])
    assert not list((two / manifest.INCOMING).glob("*"))  # the space is given back


@pytest.mark.slow
def test_a_full_disk_ends_a_save_loudly(two, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        shutil.copytree(two, disk / "checkpoints")
        assert_told(fill(disk / "checkpoints"), 28)
        assert newest(disk / "checkpoints") == (2, [])
    finally:
        subprocess.run(["umount", disk], check=True)


# --- kills


def run_killed(*arguments) -> list[int]:
    """The wait statuses that `killed.py` prints."""
    command = [sys.executable, "-m", "tests.train.killed", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def killed_at_calls(directory: Path, names: str) -> int:
    """Kill at every call of `names`; whatever is left is whole, and the run goes on. Returns how often."""
    saved(directory / "start", 1, 2)
    statuses = run_killed(directory, "calls", names)
    assert set(statuses[:-1]) == {9} and statuses[-1] == 0
    for number in range(1, len(statuses) + 1):
        step, said = newest(directory / str(number))
        assert step in (2, 3) and said == []
        for committed in steps(directory / str(number)):
            verify(directory / str(number) / str(committed))
        saved(directory / str(number), 3, keep=2)
        assert steps(directory / str(number)) == [2, 3]
    return len(statuses)


def test_a_kill_at_each_rename_leaves_a_whole_checkpoint(tmp_path):
    assert killed_at_calls(tmp_path, "rename,replace") >= 3


@pytest.mark.slow
def test_a_kill_at_each_call_that_touches_the_disk_leaves_a_whole_checkpoint(tmp_path):
    assert killed_at_calls(tmp_path, "open,mkdir,rename,replace,fsync,unlink,rmdir") >= 50


@pytest.mark.slow
def test_a_kill_at_any_time_leaves_a_whole_checkpoint(tmp_path):
    last = 0
    for seed in range(20):
        assert run_killed(tmp_path, "times", 1, seed) == [9]
        step, said = newest(tmp_path)
        assert step >= last and said == []
        last = step
    assert last > 20


def test_one_save_at_a_time(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=9)
    for step in range(1, 6):
        checkpointer.save(step, killed.state(step), {}, {})
        assert steps(tmp_path) in (list(range(1, step)), list(range(1, step + 1)))
    checkpointer.wait()
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


# --- several processes


def run_pair(directory: Path, what: str) -> list[str]:
    """What two processes print that run `pair.py` together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    pair = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.pair", port, str(index), str(directory), what],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip
    ended = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], ended
    return [out for out, _ in ended]


def test_two_processes_save_and_restore_as_one(tmp_path):
    run_pair(tmp_path, "whole")
    assert steps(tmp_path) == [1, 2]
    assert not list((tmp_path / manifest.INCOMING).iterdir())
    got = restore(
        tmp_path / "1",
        {"w": jax.ShapeDtypeStruct((8, 8), np.float32), "step": jax.ShapeDtypeStruct((), np.int32)},
    )
    np.testing.assert_array_equal(got["w"], np.arange(64).reshape(8, 8) + 1)


@pytest.mark.slow
def test_a_process_that_does_not_deliver_is_named(tmp_path):
    first, second = run_pair(tmp_path, "silent")
    assert "HungError" in first and "process 1 wrote no digests within 2 s" in first
    assert "StorageError" in second and "process 0 gave up" in second


def test_a_relative_path_is_one_too(tmp_path, monkeypatch):
    """Orbax takes only absolute paths; a person types `--run runs/first`."""
    tree = {"params": {"kernel": jnp.arange(6.0)}}
    writer = Checkpointer(tmp_path / "run" / "checkpoints", keep=1)
    writer.save(1, tree, {}, {})
    writer.close()
    monkeypatch.chdir(tmp_path)
    abstract = {"kernel": jax.ShapeDtypeStruct((6,), jnp.float32)}
    assert jnp.array_equal(load_params(Path("run"), abstract)["kernel"], tree["params"]["kernel"])
