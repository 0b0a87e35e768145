"""Recipes that cannot be are refused with the key, the value and what to do; nothing here needs datatrove."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data import curate
from data.curation import config as asked
from data.curation.config import Curation, check
from data.errors import ConfigError
from data.settings import dumps, from_plain, load, to_plain

ROOT = Path(__file__).resolve().parents[3]


def refused(**fields) -> str:
    problems = check(from_plain(Curation, {"stages": [{"name": "pii"}], **fields}))
    return " ".join(f"{key} {clash}." for key, clash in problems)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stages": []}, "stages is empty, must name what is to be done: extract, language, "),
        ({"stages": [{"name": "bad_words"}]}, "stages.0.path is empty, must be a local list.*none is downloaded"),
        ({"stages": [{"name": "fasttext", "label": "x"}]}, "stages.0.path is empty, must be the file of a local"),
        ({"stages": [{"name": "fasttext", "path": "x"}]}, "stages.0.label is empty"),
        ({"stages": [{"name": "decontaminate"}]}, "stages.0.paths is empty, must be the files or globs"),
        ({"stages": [{"name": "decontaminate", "paths": ["x"], "shortest": 20}]}, "is 20, must be at most n = 13"),
        ({"stages": [{"name": "language", "languages": []}]}, "stages.0.languages is empty"),
        ({"stages": [{"name": "language", "threshold": 1.5}]}, "stages.0.threshold is 1.5, must be at least 0 and at"),
        ({"stages": [{"name": "pii", "kinds": ["emails"]}]}, "holds 'emails', each must be one of email, phone"),
        ({"stages": [{"name": "pii", "kinds": []}]}, "stages.0.kinds is empty"),
        ({"stages": [{"name": "gopher_repetition", "top": [0.2]}]}, "stages.0.top is .0.2., must be 3 numbers"),
        ({"stages": [{"name": "minhash", "buckets": 0}]}, "stages.0.buckets is 0, must be at least 1"),
        ({"stages": [{"name": "minhash", "buckets": 1000, "hashes": 100}]}, "is 100000, must be at most 16384"),
        ({"stages": [{"name": "minhash"}, {"name": "minhash"}]}, "stages holds minhash twice"),
        ({"executor": {"name": "slurm"}}, "executor.partition is empty, must name a partition"),
        ({"executor": {"name": "slurm", "partition": "x", "arguments": ["--qos=a"]}}, "must be without dashes"),
        ({"executor": {"workers": 0}}, "executor.workers is 0, must be at least 1"),
        ({"tasks": 0}, "tasks is 0, must be at least 1"),
        ({"output": ""}, 'output is "", must be a directory'),
        ({"source": {"name": "text"}, "keep": ["url"]}, "keep is .'url'., but source.name=text has no columns"),
    ],
)
def test_what_cannot_be_is_refused(fields, said):
    assert re.search(said, refused(**fields)), refused(**fields)


def test_the_defaults_of_each_stage_are_sound():
    told = {"path": "x", "label": "x", "paths": ["x"]}
    for stage in asked.Stage.__args__:
        given = {key: value for key, value in told.items() if hasattr(stage(), key)}
        assert refused(stages=[{"name": stage().name, **given}]) == ""


@pytest.mark.parametrize("name", sorted(asked.FETCHING))
def test_filters_that_fetch_something_are_refused_with_the_local_way(tmp_path, name):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"stages": [{"name": name}]}))
    with pytest.raises(ConfigError, match=rf"stages.0.name is .{name}., must be one of .* fetches .*; take \w+"):
        curate.main(["--config", str(path)])


def test_an_unknown_stage_lists_the_known_ones(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"stages": [{"name": "minhsh"}]}))
    with pytest.raises(ConfigError, match="must be one of .*minhash.*did you mean minhash"):
        curate.main(["--config", str(path)])


def test_a_source_without_files_is_asked_for(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"stages": [{"name": "pii"}]}))
    with pytest.raises(ConfigError, match="source.paths is empty.*--config.source.paths=FILE"):
        curate.main(["--config", str(path)])


def test_a_recipe_goes_to_json_and_back():
    made = Curation(stages=(asked.MinHash(seed=3), asked.Pii(kinds=("ip",))), executor=asked.RayExecutor())
    assert from_plain(Curation, json.loads(json.dumps(to_plain(made)))) == made


@pytest.mark.parametrize(("size", "asks_for"), [("", ["stages.8.paths"]), (":zh", ["stages.7.paths"]), (":debug", [])])
def test_the_recipes_ask_for_evaluation_sets_alone(size, asks_for):
    config = load(f"{ROOT}/configs/curate.py{size}", [], Curation)
    assert [key for key, _ in check(config)] == asks_for


@pytest.mark.parametrize("size", ["", ":zh", ":debug"])
def test_the_resolved_recipe_is_golden(size, golden):
    name = f"curate{size.replace(':', '_')}.txt"
    golden(name, dumps(load(f"{ROOT}/configs/curate.py{size}", [], Curation)))


def test_without_the_packages_the_command_says_what_to_install(tmp_path):
    """In a Python that cannot see them."""
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    path = tmp_path / "recipe.json"
    path.write_text(
        json.dumps(
            {"source": {"paths": [str(tmp_path / "in.jsonl")]}, "stages": [{"name": "extract"}, {"name": "pii"}]}
        )
    )
    code = (
        "import importlib.util as util, sys; found = util.find_spec; "
        "util.find_spec = lambda name, *rest: None if name in ('datatrove', 'trafilatura') else found(name, *rest); "
        "from data.cli import exit_code; from data.curate import main; sys.exit(exit_code(main, sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "--config", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "needs datatrove" in done.stderr and "pip install -r requirements-curate.txt" in done.stderr
    assert "trafilatura" in done.stderr and done.stderr.count("\n") == 1
