"""Engines: what Slurm is given, and that a failure stops what follows on each of them."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="needs requirements-curate.txt")

from data import curate as command
from data.curation import executors, run
from data.curation.config import ExactDedup, LocalExecutor, Pii, RayExecutor, SlurmExecutor
from data.curation.plan import Step
from data.errors import ConfigError, DataError
from data.settings import to_plain

HERE = Path(__file__).parent
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine with sbatch, srun, scontrol and squeue; the folder where the stand-in keeps its jobs."""
    programs, jobs = tmp_path / "programs", tmp_path / "jobs"
    programs.mkdir(), jobs.mkdir()
    shutil.copy(HERE / "sbatch", programs / "sbatch")
    (programs / "srun").write_text(
        '#!/usr/bin/env bash\nwhile [ "${1#-}" != "$1" ] || [ "$1" = 1 ]; do shift; done\nexec "$@"\n'
    )
    (programs / "scontrol").write_text("#!/usr/bin/env bash\necho here\n")
    (programs / "squeue").write_text(f"#!/usr/bin/env bash\ncat {jobs}/queue 2>/dev/null\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STAND_IN", str(jobs))
    return jobs


@pytest.fixture
def cluster(recipe):
    def make(*stages, **fields):
        settings = SlurmExecutor(partition="cpu", time="1:00:00", arguments=("account=lab", "exclusive"), workers=8)
        return recipe(*stages, executor=settings, **fields)

    return make


def test_the_scripts_are_golden(cluster, write, golden, tmp_path, capsys):
    """They are printed where no Slurm is."""
    for name in ("in0.jsonl", "in1.jsonl"):
        write(name, ["text"])
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(to_plain(cluster(ExactDedup(), Pii()))))
    command.main(["--config", str(recipe), "--dry_run"])
    assert not (tmp_path / "out").exists()
    printed = capsys.readouterr().out
    for path, name in ((tmp_path, "HERE"), (Path(sys.executable).parent, "BIN"), (ROOT, "ROOT")):
        printed = printed.replace(str(path), name)
    golden("slurm.txt", printed)


def test_slurm_comes_to_the_same_bytes(cluster, recipe, write, text, slurm, tmp_path):
    documents = [text.document() for _ in range(6)]
    write("in0.jsonl", documents)
    write("in1.jsonl", [*documents[:2], text.document()])
    run.curate(recipe(ExactDedup(), Pii(), output=str(tmp_path / "local")))
    submitted = run.curate(cluster(ExactDedup(), Pii()))["jobs"]
    assert list(submitted) == ["00-read", "01-exact_dedup-find", "02-curate", "03-report"]
    assert "--dependency=afterok:2" in (slurm / "3.arguments").read_text()
    summary = run.curate(cluster(ExactDedup(), Pii()))  # asks how far it is
    assert summary["documents"] == 7
    for path in (tmp_path / "local/documents").iterdir():
        assert (tmp_path / "out/documents" / path.name).read_bytes() == path.read_bytes()


def test_a_failed_task_stops_the_chain_on_slurm(cluster, write, slurm, tmp_path):
    write("in0.jsonl", ["text"])
    write("in1.jsonl", ["more", b"{"])
    run.curate(cluster(ExactDedup(), Pii()))
    assert {path.stem for path in slurm.glob("*.failed")} == {"1", "2", "3", "4"}
    assert not list(slurm.glob("2.*.out")) and not (tmp_path / "out/documents").exists()
    told = (tmp_path / "out/work/00-read/errors/00001").read_text()
    assert "in1.jsonl, line 2 is not valid JSON" in told


def test_jobs_that_wait_are_not_submitted_again(cluster, write, slurm, capsys):
    write("in0.jsonl", [b"{"])
    with pytest.raises(DataError, match="not valid JSON"):
        run.curate(cluster(Pii()))
    write("in0.jsonl", ["good", b"{"])
    run.curate(cluster(Pii()))
    before = sorted(slurm.iterdir())
    (slurm / "queue").write_text("2\n")
    run.curate(cluster(Pii()))
    assert "0 of 2 steps are done; Slurm still holds jobs 2" in capsys.readouterr().err
    assert sorted(slurm.iterdir()) == sorted([*before, slurm / "queue"])
    (slurm / "queue").unlink()
    run.curate(cluster(Pii()))
    assert (slurm / "3.script").exists()


def test_slurm_that_is_not_there_is_said(cluster, write, monkeypatch):
    write("in0.jsonl", ["text"])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="no sbatch on this machine.*executor.name=local"):
        run.curate(cluster(Pii()))


def test_a_worker_that_is_killed_is_noticed(tmp_path, monkeypatch):
    """datatrove's own pool would wait for it for ever."""
    monkeypatch.syspath_prepend(str(HERE))
    from dying import Dying

    step = Step("00-test", 3, [Dying()])
    with pytest.raises(DataError, match="A worker of 00-test was killed.*executor.workers lower"):
        executors.local(step, tmp_path / "00-test", LocalExecutor(workers=2)).run()


def test_workers_leave_with_the_process_that_started_them(tmp_path):
    """Otherwise they would write on beside those of the next command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen([sys.executable, str(HERE / "dying.py"), str(tmp_path)], env=environment)
    pids = [tmp_path / f"{rank}.pid" for rank in range(2)]
    assert soon(lambda: all(path.exists() and path.read_text() for path in pids))
    started.kill()
    started.wait()
    assert soon(lambda: not any(Path("/proc", path.read_text()).exists() for path in pids))


def soon(holds, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < end:
        time.sleep(0.05)
    return held


def test_ray_comes_to_the_same_bytes(recipe, write, tmp_path):
    ray = pytest.importorskip("ray", reason="needs ray[default]")
    write("in0.jsonl", ["one", "two a@corp.com"])
    write("in1.jsonl", ["two a@corp.com", "three"])
    stages = (ExactDedup(), Pii())
    run.curate(recipe(*stages, output=str(tmp_path / "local")))
    try:
        run.curate(recipe(*stages, executor=RayExecutor(address="local", memory=0.1)))
        for path in (tmp_path / "local/documents").iterdir():
            assert (tmp_path / "out/documents" / path.name).read_bytes() == path.read_bytes()
        ray.shutdown()
        write("in1.jsonl", ["good", b"{"])
        with pytest.raises(DataError, match="1 of 2 tasks of 00-read failed.*in1.jsonl, line 2"):
            run.curate(
                recipe(*stages, output=str(tmp_path / "failed"), executor=RayExecutor("ray", None, "local", 1, 0.1))
            )
    finally:
        ray.shutdown()


def test_the_scripts_name_what_runs_them(cluster, write, slurm, tmp_path):
    write("in0.jsonl", ["text"])
    run.curate(cluster(Pii()))
    script = (slurm / "1.script").read_text()
    printed = "".join(run.show(cluster(Pii(), output=str(tmp_path / "out"))))
    same = re.sub(r"srun\s+", "srun ", script)
    assert same.strip() in re.sub(r"srun\s+", "srun ", printed)
