"""A store is the same with any number of workers; a build that was killed goes on behind its finished parts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import part_files, store
from data.build import _together, build, clean
from data.build_progress import BuildProgress
from data.encoding import TextEncoder
from data.errors import DataError
from data.store import Store
from data.store_writer import Piece
from data.tokenizer import byte_tokenizer, train_bpe
from tests.data.line_reader import LineReader

ROOT = Path(__file__).parents[2]
FILES = 6


@pytest.fixture
def lines(tmp_path, monkeypatch) -> Path:
    """Files of lines, each a part by itself."""
    monkeypatch.setattr("data.build.SMALL_BYTES", 0)
    directory = tmp_path / "lines"
    directory.mkdir()
    for number in range(FILES):
        texts = [f"line {i} of file {number}, é" for i in range(40 * number)]
        (directory / f"{number}.txt").write_text("\n".join([*texts, "", "# passed over", f"last of {number}"]))
    return directory


def encoder(marks=("words", "sentences")) -> TextEncoder:
    return TextEncoder(byte_tokenizer(), marks)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def reads(lines: Path) -> list[str]:
    """The files that were read, in order, since the last time this was asked."""
    log = lines / "read.log"
    found = [Path(json.loads(line)[1]).name for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    return found


@pytest.mark.parametrize("made", [byte_tokenizer(), train_bpe(["line of file last"], 260)])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_changes_no_byte(workers, made, lines, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_TOKENS", 1001)
    monkeypatch.setattr(part_files, "CHUNK", 700)
    texts = list(LineReader(lines).documents("train"))
    store.write(tmp_path / "expected", texts, made, about={"why": "test"}, marks=("words", "sentences"))
    reads(lines)
    reader = LineReader(lines)
    build(tmp_path / "store", reader, "train", TextEncoder(made, ("words", "sentences")), {"why": "test"}, workers)
    assert content(tmp_path / "store") == content(tmp_path / "expected")
    assert sorted(reads(lines)) == [f"{number}.txt" for number in range(FILES)]
    assert reader.counts == {"malformed": FILES}
    assert Store(tmp_path / "store").header["empty_documents"] == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "lines", "store"]


@pytest.mark.parametrize("small, count", [(0, 6), (2000, 5), (3000, 4), (100_000, 1)])
def test_small_files_are_one_part_together(small, count, lines, tmp_path, monkeypatch):
    """In order, up to a size; what a file holds changes no byte of the store."""
    sizes = [path.stat().st_size for path in sorted(lines.glob("*.txt"))]
    assert sum(sizes[:2]) < 2000 < sum(sizes[:3]) and sum(sizes[:3]) < 3000 < sum(sizes[2:4])
    build(tmp_path / "expected", LineReader(lines), "train", encoder(), {})
    monkeypatch.setattr("data.build.SMALL_BYTES", small)
    reader = LineReader(lines)
    assert len(_together(reader.parts("train"))) == count
    reads(lines)
    build(tmp_path / "store", reader, "train", encoder(), {}, 2)
    assert content(tmp_path / "store") == content(tmp_path / "expected")
    assert sorted(reads(lines)) == [f"{number}.txt" for number in range(FILES)] and reader.counts["malformed"] == FILES


def test_a_source_of_one_part_starts_no_process(tmp_path, monkeypatch):
    (tmp_path / "one.txt").write_text("a\nb")
    build(tmp_path / "store", LineReader(tmp_path), "train", encoder(), {}, 2)
    assert Store(tmp_path / "store").num_documents == 2
    assert json.loads((tmp_path / "read.log").read_text())[0] == os.getpid()


def test_killed_at_any_moment_it_goes_on_behind_its_finished_parts(lines, tmp_path):
    build(tmp_path / "expected", LineReader(lines), "train", encoder(("words",)), {})
    expected = content(tmp_path / "expected")
    command = [sys.executable, str(Path(__file__).parent / "killed_builder.py"), str(tmp_path), str(lines), "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    killed = [json.loads(line) for line in result.stdout.splitlines()]
    assert [status for _, status, _ in killed] == [signal.SIGKILL] * (len(killed) - 1) + [0]
    kept = [len(parts) for _, _, parts in killed[:-1]]
    assert len(killed) > 4 and max(kept) == FILES and killed[-1][2] == []
    for number, _, parts in killed:
        directory = tmp_path / str(number) / "store"
        reads(lines)
        if directory.exists():
            assert content(directory) == expected
            clean(directory)
        else:
            build(directory, LineReader(lines), "train", encoder(("words",)), {}, workers=1)
            assert content(directory) == expected
            missing = [f"{i}.txt" for i in range(FILES) if f"{i:06d}.part" not in parts]
            assert reads(lines) == missing
        assert [path.name for path in directory.parent.iterdir()] == ["store"]


def unfinished(lines: Path, directory: Path, bad: str):
    """Leaves the part files of a build that a malformed line has ended."""
    with pytest.raises(DataError, match="is malformed. Mend it"):
        build(directory, LineReader(lines, bad=bad), "train", encoder(), {}, workers=1)
    reads(lines)
    return next(directory.parent.glob(".store.parts-*"))


def test_what_was_passed_over_counts_in_parts_of_an_earlier_launch(lines, tmp_path, capsys):
    folder = unfinished(lines, tmp_path / "store", bad="line 3 of file 4")
    assert len(list(folder.glob("*.part"))) == 4
    assert not list(folder.glob("*.tmp")) and "4 of 6 parts are kept" in capsys.readouterr().err
    reader = LineReader(lines)
    build(tmp_path / "store", reader, "train", encoder(), {}, workers=1)
    assert reads(lines) == ["4.txt", "5.txt"] and reader.counts == {"malformed": FILES}
    assert "4 of 6 parts are there from an earlier launch" in capsys.readouterr().err


def test_a_damaged_part_is_made_again(lines, tmp_path):
    folder = unfinished(lines, tmp_path / "store", bad="line 3 of file 4")
    for path, offset in zip(sorted(folder.glob("*.part")), (0, -1, -50), strict=False):
        changed = bytearray(path.read_bytes())
        changed[offset] ^= 1
        path.write_bytes(changed)
    (folder / "000003.part").write_bytes(b"")
    (folder / "000005.part.77.tmp").write_bytes(b"what a killed worker left")
    build(tmp_path / "store", LineReader(lines), "train", encoder(), {}, workers=1)
    assert reads(lines) == [f"{i}.txt" for i in range(FILES)]
    build(tmp_path / "expected", LineReader(lines), "train", encoder(), {})
    assert content(tmp_path / "store") == content(tmp_path / "expected")


@pytest.mark.parametrize("change", ["text", "marks", "tokenizer"])
def test_parts_of_another_source_or_encoder_are_not_used(change, lines, tmp_path):
    unfinished(lines, tmp_path / "store", bad="line 3 of file 4")
    other = encoder(("words",)) if change == "marks" else encoder()
    if change == "tokenizer":
        other = TextEncoder(train_bpe(["line of file last"], 260), ("words", "sentences"))
    if change == "text":
        (lines / "0.txt").write_text("other text")
    build(tmp_path / "store", LineReader(lines), "train", other, {}, workers=1)
    assert len(reads(lines)) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines", "store"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_ends_the_build(workers, lines, tmp_path):
    with pytest.raises(DataError, match=r"killed by SIGKILL while it read .*/4.txt, .*Set data.workers to a smaller"):
        build(tmp_path / "store", LineReader(lines, kill="line 3 of file 4"), "train", encoder(), {}, workers)
    assert not (tmp_path / "store").exists()
    kept = [int(path.stem) for path in tmp_path.glob(".store.parts-*/*.part")]
    assert 4 not in kept and (kept or workers > 1)
    reads(lines)
    build(tmp_path / "store", LineReader(lines), "train", encoder(), {}, workers)
    assert sorted(reads(lines)) == [f"{i}.txt" for i in range(FILES) if i not in kept]


def test_more_workers_than_can_be_started_is_an_error(lines, tmp_path):
    script = (
        "import resource, sys; from data import build; from data.errors import DataError\n"
        "from data.encoding import TextEncoder; from data.tokenizer import byte_tokenizer\n"
        "from tests.data.line_reader import LineReader\n"
        "build.SMALL_BYTES = 0; resource.setrlimit(resource.RLIMIT_NOFILE, (14, 14))\n"
        "try: build.build(sys.argv[1], LineReader(sys.argv[2]), 'train', TextEncoder(byte_tokenizer()), {}, 6)\n"
        "except DataError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "store"), str(lines)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "cannot be started: Too many open files. Set data.workers to a smaller number" in result.stdout


def test_a_full_disk_is_a_storage_error(lines, tmp_path):
    script = (
        "import resource, signal, sys; from data import build; from data.errors import StorageError\n"
        "from data.encoding import TextEncoder; from data.tokenizer import byte_tokenizer\n"
        "from tests.data.line_reader import LineReader\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "build.SMALL_BYTES = 0\n"
        "try: build.build(sys.argv[1], LineReader(sys.argv[2]), 'train', TextEncoder(byte_tokenizer()), {}, 2)\n"
        "except StorageError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "store"), str(lines)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "File too large" in result.stdout and "Traceback" not in result.stderr
    assert not (tmp_path / "store").exists()


def workers_of(pid: int) -> set[int]:
    """The children of a process, from Linux's /proc."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes as Linux shows them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_build(number, lines, tmp_path):
    os.mkfifo(lines / "7.txt")  # a part whose reading never ends
    script = (
        "import signal, sys; from data import build; from data.encoding import TextEncoder\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore\n"
        "from data.tokenizer import byte_tokenizer; from tests.data.line_reader import LineReader\n"
        "LineReader.identity = lambda self: {}\n"
        "build.SMALL_BYTES = 0\n"
        "build.build(sys.argv[1], LineReader(sys.argv[2]), 'train', TextEncoder(byte_tokenizer()), {}, 2)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "store"), str(lines)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".store.parts-*/*.part"))) < FILES and time.monotonic() < deadline:
        time.sleep(0.02)
    children = workers_of(process.pid)
    assert len(children) == 2
    os.killpg(process.pid, number)
    assert process.wait(timeout=30) != 0
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, children))


def test_no_document_at_all_is_an_error_and_leaves_nothing(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text("\n#\n")
    with pytest.raises(DataError, match="all 4 of them are empty"):
        build(tmp_path / "below" / "store", LineReader(tmp_path), "train", encoder(), {}, 2)
    assert not (tmp_path / "below" / "store").exists()


def test_a_part_file_gives_back_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(part_files, "CHUNK", 10)
    generator = np.random.default_rng(0)
    pieces = []
    for lengths in ([3, 25, 1], [], [2] * 9):
        size = sum(lengths)
        ids = generator.integers(0, 300, size).astype("<u2")
        marks = {"words": generator.random(size) < 0.5}
        pieces.append(Piece(ids, np.array(lengths, np.uint64), marks, int(ids.max(initial=0)), 7, 1))
    path = tmp_path / "000000.part"
    part_files.write_part(path, pieces, "uint16", ["words"], lambda: {"malformed": 3})
    assert part_files.is_whole(path) and part_files.read_footer(path)["passed_over"] == {"malformed": 3}
    found = list(part_files.read_part(path))
    assert len(found) > 3
    for field in ("ids", "lengths"):
        together = [np.concatenate([getattr(part, field) for part in parts]) for parts in (pieces, found)]
        assert together[0].tolist() == together[1].tolist()
    words = [np.concatenate([part.marks["words"] for part in parts]).tolist() for parts in (pieces, found)]
    assert words[0] == words[1]
    assert sum(part.text_bytes for part in found) == 21 and sum(part.left_out for part in found) == 3
    assert all(part.ids.size == part.lengths.sum() for part in found)


def test_progress_says_what_there_is(capsys, monkeypatch):
    monkeypatch.setattr("data.build_progress.INTERVAL", 0.0)
    progress = BuildProgress("train", 4, finished=1)
    progress.add(10, 2000, 5000)
    assert "part 1/4  10 documents  2,000 tokens" in capsys.readouterr().err
    progress.part_done()
    line = capsys.readouterr().err
    assert line.startswith("prepare: train: part 2/4") and "MB/s  left 0:00:0" in line


def test_workers_import_no_accelerator():
    script = "import sys, data.build_worker; assert not {'jax', 'tensorflow', 'torch', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
