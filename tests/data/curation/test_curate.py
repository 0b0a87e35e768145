"""A curation as a whole: the same bytes however it is run, stopped where anything failed, and every count told."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="needs requirements-curate.txt")

from data import sources
from data.curation.config import (
    Curation,
    Decontaminate,
    ExactDedup,
    GopherQuality,
    Language,
    LocalExecutor,
    MinHash,
    Pii,
    RayExecutor,
)
from data.curation.run import curate
from data.errors import ConfigError, DataError, StorageError
from data.settings import to_plain
from data.source_config import JsonlSource, TextSource, WarcSource

ROOT = Path(__file__).resolve().parents[3]
STAGES = (GopherQuality(), ExactDedup(), MinHash(), Pii())


@pytest.fixture
def inputs(write, text):
    """Three files of documents, some of them twice, some nearly, some short, some with an address in them."""
    for name in ("in0.jsonl", "in1.jsonl", "in2.jsonl"):
        texts = [text.document() for _ in range(25)]
        texts += [texts[3], f"{texts[4]} And more.", "Short.", f"{texts[5][::-1]} {text.document()} a.b@corp.com"]
        write(name, texts)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def outcome(output: Path) -> dict[str, str]:
    """What a curation is asked for: its documents and its report, byte by byte."""
    found = {f"documents/{name}": value for name, value in digests(output / "documents").items()}
    return found | {name: digests(output)[name] for name in ("report.json", "report.md")}


def command(config: Curation, *spoil: str, **settings) -> subprocess.CompletedProcess:
    """The command in a process of its own; `spoil`: what worker.py puts in its way."""
    recipe = Path(config.output).parent / "recipe.json"
    recipe.write_text(json.dumps(to_plain(config)))
    arguments = [sys.executable, str(Path(__file__).with_name("worker.py")), str(recipe), *(spoil or ("nothing",))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, **settings)


def test_the_output_does_not_depend_on_the_workers(recipe, inputs, tmp_path):
    for workers in (1, 2, 3):
        curate(recipe(*STAGES, output=str(tmp_path / f"out{workers}"), executor=LocalExecutor(workers=workers)))
    assert outcome(tmp_path / "out1") == outcome(tmp_path / "out2") == outcome(tmp_path / "out3")


def test_the_report_counts_every_document(recipe, inputs, left, report):
    summary = curate(recipe(*STAGES))
    stages = report()
    assert list(stages) == ["read", "gopher_quality", "exact_dedup", "minhash", "pii"]
    before = stages["read"]["totals"]["documents_in"]
    assert before == 3 * 29
    for stage in stages.values():
        totals = stage["totals"]
        assert totals["documents_in"] == before
        before = totals["documents_out"]
        assert totals["documents_in"] - before == sum(stage["dropped"].values())
    assert before == summary["documents"] == len(left()) == 3 * 26
    assert stages["gopher_quality"]["dropped"] == {"gopher_short_doc": 3}
    assert stages["exact_dedup"]["dropped"] == {"copy": 3} and stages["minhash"]["dropped"] == {"near_copy": 3}
    assert stages["pii"]["changes"] == {"email": 3}
    page = (Path(summary["output"]) / "report.md").read_text()
    assert "## gopher_quality: gopher_short_doc, 3 documents dropped" in page and "Short." in page
    assert "⟦a.b@corp.com⟧" in page and "| exact_dedup | 84 | 81 | 3 |" in page


def test_a_source_reads_what_is_left(recipe, inputs, left, tmp_path):
    curate(recipe(*STAGES))
    source = JsonlSource(paths=(str(tmp_path / "out/documents/*.gz"),), validation_fraction=0.0)
    assert list(sources.documents(source, "train", str(tmp_path))) == [record["text"] for record in left()]


def test_the_same_command_again_does_nothing(recipe, inputs, tmp_path, capsys):
    curate(recipe(*STAGES))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    capsys.readouterr()
    curate(recipe(*STAGES, executor=LocalExecutor(workers=2)))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert capsys.readouterr().err.count("done before") == 8


@pytest.mark.parametrize("step", ["00-read", "06-curate"])
def test_killed_and_run_again_it_comes_to_the_same(recipe, inputs, tmp_path, step):
    config = recipe(*STAGES)
    curate(replace(config, output=str(tmp_path / "undisturbed")))
    assert command(config, "killed_at", step).returncode == -9
    assert not (tmp_path / "out/documents").exists()
    again = command(config)
    assert again.returncode == 0 and f"{step}: 3 tasks, 1 of them done before" in again.stderr
    assert outcome(tmp_path / "out") == outcome(tmp_path / "undisturbed")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_task_stops_what_follows_until_it_is_mended(recipe, inputs, write, tmp_path, workers):
    config = recipe(*STAGES, executor=LocalExecutor(workers=workers))
    good = (tmp_path / "in1.jsonl").read_bytes()
    (tmp_path / "in1.jsonl").write_bytes(good + b'{"text": "cut o')
    failed = command(config)
    assert failed.returncode == 3
    assert "in1.jsonl, line 30 is not valid JSON" in failed.stderr and "data.source" not in failed.stderr
    assert "Traceback" not in failed.stderr and "exact_dedup" not in failed.stderr
    assert {path.name for path in (tmp_path / "out/work").iterdir()} <= {"00-read", "tally", "digests"}
    assert not (tmp_path / "out/documents").exists() and not (tmp_path / "out/report.json").exists()
    (tmp_path / "in1.jsonl").write_bytes(good)
    changed = command(config)
    assert changed.returncode == 2 and "in1.jsonl" in changed.stderr  # what is done was made of other input


def test_no_step_begins_behind_a_task_that_is_not_done(recipe, inputs, tmp_path):
    """Whatever an engine believes: the mark of one task is taken away and the next step begun."""
    from data.curation.executors import local
    from data.curation.plan import plan

    config = recipe(*STAGES)
    curate(config)
    work = tmp_path / "out/work"
    (work / "00-read/completions/00001").unlink()
    step = plan(config, 3)[1]
    shutil.rmtree(work / step.name)
    with pytest.raises(DataError, match="00-read has 1 of 3 tasks that are not done, so the next step does not begin"):
        local(step, work / step.name, config.executor).run()


@pytest.mark.parametrize("size", [900, 4000, 9000])
def test_a_full_disk_stops_it_and_is_got_over(recipe, inputs, tmp_path, size):
    """Files that cannot grow: in datatrove's own files, in documents, in the last bytes that are flushed."""
    config = recipe(*STAGES)
    curate(replace(config, output=str(tmp_path / "undisturbed")))
    failed = command(config, "small_files", str(size))
    assert failed.returncode == 6, failed.stderr
    assert "errno 27" in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "out/documents").exists()
    assert command(config).returncode == 0
    assert outcome(tmp_path / "out") == outcome(tmp_path / "undisturbed")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_file_between_steps_is_noticed(recipe, inputs, tmp_path, damage):
    config = recipe(ExactDedup())
    assert command(config, "killed_at", "02-curate").returncode == -9
    path = tmp_path / "out/work/00-read/documents/00002.jsonl.gz"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-9])
    elif damage == "flipped":
        content[100] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"00002.jsonl.gz is not as a step of this curation wrote it"):
        curate(config)


def test_another_recipe_or_input_does_not_go_into_the_same_folder(recipe, inputs, write, tmp_path):
    curate(recipe(*STAGES))
    with pytest.raises(ConfigError, match=r"stages.0.min_words was 50, is 40.*--config.output=DIR"):
        curate(recipe(GopherQuality(min_words=40), *STAGES[1:]))
    write("in3.jsonl", ["new"])
    with pytest.raises(ConfigError, match="holds a curation of something else: input.paths"):
        curate(recipe(*STAGES))


def test_a_folder_of_something_else_is_left_alone(recipe, inputs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("dear")
    with pytest.raises(ConfigError, match="holds thesis.tex but no curation"):
        curate(recipe(*STAGES))


def test_documents_that_are_gone_are_missed(recipe, inputs, tmp_path):
    curate(recipe(*STAGES))
    (tmp_path / "out/documents/00001.jsonl.gz").unlink()
    with pytest.raises(DataError, match=r"00001.jsonl.gz is gone or not as it was written"):
        curate(recipe(*STAGES))


def test_when_no_document_is_left_that_is_an_error_with_a_report(recipe, write, tmp_path):
    write("in0.jsonl", ["Short.", "Too."])
    with pytest.raises(DataError, match="No document is left: .*report.md says which stage"):
        curate(recipe(GopherQuality()))
    assert "gopher_short_doc, 2 documents" in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": 3}\n', r"in0.jsonl, line 1.*'text' \(source.field\)"),
        (b'{"text": "a"}\n{"txt": "b"}\n', r"in0.jsonl, line 2.* 'text' \(source.field\)"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "in0.jsonl.*UTF-8"),
        (b"", "in0.jsonl .*is empty"),
    ],
)
def test_what_is_wrong_with_the_input_is_said(recipe, tmp_path, content, said):
    (tmp_path / "in0.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=said):
        curate(recipe(Pii()))


def test_an_unmatched_glob_is_named(recipe):
    with pytest.raises(DataError, match=r"in\*.jsonl in source.paths matches no file"):
        curate(recipe(Pii()))


def test_an_output_that_cannot_be_written_is_said(recipe, inputs):
    with pytest.raises(StorageError, match="/proc/out"):
        curate(recipe(Pii(), output="/proc/out"))


def test_tolerated_records_are_counted(recipe, write, report, tmp_path):
    write("in0.jsonl", ["good one", b"{", "good two", "good three"])
    source = JsonlSource(paths=(str(tmp_path / "in0.jsonl"),), tolerance=0.3)
    curate(recipe(Pii(), source=source))
    assert report()["read"]["dropped"] == {"malformed": 1} and report()["read"]["totals"]["documents_in"] == 4


def test_columns_and_parts_are_kept(recipe, tmp_path, left):
    rows = [{"text": f"number {index}", "url": f"http://x/{index}", "other": 1} for index in range(40)]
    (tmp_path / "in0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curate(recipe(Pii(), keep=("url",), part_bytes=500))
    assert [(record["text"], record["url"]) for record in left()] == [(row["text"], row["url"]) for row in rows]
    assert len(list((tmp_path / "out/documents").iterdir())) > 3 and "other" not in left()[0]


def test_text_files_and_uncompressed_output(recipe, tmp_path):
    (tmp_path / "a.txt").write_text("One paragraph.\n\nAnother.\n")
    curate(recipe(Pii(), source=TextSource(paths=(str(tmp_path / "a.txt"),), document="paragraph"), compress=False))
    lines = (tmp_path / "out/documents/00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["One paragraph.", "Another."]


def test_a_crawl_is_extracted(recipe, tmp_path, left, report):
    from data.curation.config import Extract

    page = "<!doctype html><html><body><article><p>{}</p></article><script>x()</script></body></html>"
    body = page.format("The bridge was built after the flood and has carried the road since then. " * 4).encode()
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
    head = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.org/\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
        "WARC-Record-ID: <urn:uuid:0>\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http)}\r\n\r\n"
    )
    (tmp_path / "a.warc").write_bytes(head.encode() + http + b"\r\n\r\n")
    curate(recipe(Extract(), Language(), source=WarcSource(paths=(str(tmp_path / "a.warc"),)), keep=("url",)))
    (record,) = left()
    assert record["text"].startswith("The bridge was built") and "<" not in record["text"]
    assert record["url"] == "http://a.org/" and record["language"] == "en"


def test_nothing_touches_the_network(recipe, inputs, write, tmp_path):
    write("eval.jsonl", ["one two three four five six seven eight nine ten eleven twelve thirteen fourteen"])
    stages = [Language(threshold=0.0, languages=("en",)), *STAGES, Decontaminate(paths=(str(tmp_path / "eval.jsonl"),))]
    config = recipe(*stages, source=JsonlSource(paths=(str(tmp_path / "in*.jsonl"),)))
    done = command(config, "no_network")
    assert "network" not in done.stderr and done.returncode in (0, 3), done.stderr
    assert (tmp_path / "out/report.json").exists()


def test_without_ray_the_command_says_what_to_install(recipe, inputs):
    try:
        import ray  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"Ray is not installed: pip install 'ray\[default\]'"):
            curate(recipe(Pii(), executor=RayExecutor()))


def test_progress_is_a_line_a_step_and_nothing_else(recipe, inputs):
    done = command(recipe(*STAGES))
    assert done.returncode == 0
    assert all(line.startswith("curate: ") for line in done.stderr.splitlines()), done.stderr
    assert json.loads(done.stdout)["documents"] == 3 * 26
