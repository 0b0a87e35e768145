"""Documents that share thirteen words with an evaluation set fall, whatever their case, stops and script."""

import gzip
import json

import pytest

pytest.importorskip("datatrove", reason="needs requirements-curate.txt")

from data.curation.config import Decontaminate
from data.curation.run import curate
from data.errors import DataError

QUESTION = "What did the committee decide about the second bridge after the flood of nineteen fifty three?"
CHINESE = "委员会在洪水之后对第二座桥梁作出了怎样的决定并且何时开始施工"


@pytest.fixture
def evaluation(tmp_path):
    squad = {"data": [{"title": "Bridges", "paragraphs": [{"context": "Too short.", "qas": [{"question": QUESTION}]}]}]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad))
    return path


def test_a_shared_run_of_words_is_found_and_a_shorter_one_is_not(recipe, write, left, report, evaluation, text):
    words = QUESTION.split()
    inside = "  ".join(words[2:15]).upper().replace("BRIDGE", "Bridge,")
    clean = text.document()
    write("in0.jsonl", [f"{clean} {inside} {clean}", f"{clean} {' '.join(words[:12])} {clean}", clean, QUESTION])
    curate(recipe(Decontaminate(paths=(str(evaluation),))))
    assert [record["id"] for record in left()] == ["in0.jsonl:0:1", "in0.jsonl:0:2"]
    stage = report()["decontaminate"]
    assert stage["dropped"] == {"in_squad.json": 2}
    assert "the committee decide" in stage["samples"]["in_squad.json"][0][3]  # the words that are shared


def test_chinese_characters_are_words(recipe, write, left, tmp_path):
    path = tmp_path / "eval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"q": CHINESE}, ensure_ascii=False).encode()))
    write("in0.jsonl", [f"前言。{CHINESE[3:10]}，{CHINESE[10:17]}！后记。", f"前言{CHINESE[3:15]}后记"])
    curate(recipe(Decontaminate(paths=(str(path),))))
    assert [record["id"] for record in left()] == ["in0.jsonl:0:1"]


def test_only_the_named_fields_count(recipe, write, left, evaluation, tmp_path):
    write("in0.jsonl", [QUESTION])
    path = tmp_path / "more.txt"
    path.write_text("Paragraphs of text\nthat go on over lines\nare one: one two three four five.\n\nAnother.")
    write("in1.jsonl", ["of text that go on over lines are one one two three four"])
    curate(recipe(Decontaminate(paths=(str(evaluation), str(path)), fields=("answers",))))
    assert [record["text"] for record in left()] == [QUESTION]  # a text file has no fields: it counts whole


def test_shorter_texts_are_found_when_asked_for(recipe, write, left, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("Where is the second bridge over the river?\n\nWho?")
    write("in0.jsonl", ["It asks: where is the second bridge over the river. Nobody knows.", "Who is the second?"])
    curate(recipe(Decontaminate(paths=(str(path),), shortest=8)))
    assert [record["text"] for record in left()] == ["Who is the second?"]


def test_an_evaluation_set_without_a_text_long_enough_is_refused(recipe, write, evaluation):
    write("in0.jsonl", ["text"])
    with pytest.raises(DataError, match="no text of at least 13 words in their fields .title.*lower shortest"):
        curate(recipe(Decontaminate(paths=(str(evaluation),), fields=("title",))))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("bad.jsonl", b'{"a": "b"}\n{"a": \n', "bad.jsonl, line 2 .*not valid JSON"),
        ("bad.json", b"{", "bad.json .*not valid JSON"),
        ("bad.txt", b"good\n\xff\n", "bad.txt, line 2 .*not UTF-8"),
        ("bad.jsonl.gz", b"no gzip", "bad.jsonl.gz .*cannot be read"),
    ],
)
def test_what_is_wrong_with_an_evaluation_set_is_said(recipe, write, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    write("in0.jsonl", ["text"])
    with pytest.raises(DataError, match=said):
        curate(recipe(Decontaminate(paths=(str(tmp_path / name),))))


def test_an_unmatched_glob_is_named(recipe, write, tmp_path):
    write("in0.jsonl", ["text"])
    with pytest.raises(DataError, match=r"gone\*\.jsonl .*matches no file"):
        curate(recipe(Decontaminate(paths=(str(tmp_path / "gone*.jsonl"),))))
