"""Windows on contexts are those of BERT's run_squad.py, and every answer is given back by its characters."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data import qa, sources, tokenizer
from data.config import Data, check
from data.errors import ConfigError, DataError
from data.objective_config import QaObjective
from data.objectives import batch_spec, check_tokenizer, objective_rows
from data.prepare import prepare
from data.readers.fields import Malformed
from data.source_config import JsonlSource, SquadSource
from data.tokenizer_config import ByteTokenizer, WordPieceTokenizer

WORDPIECE = WordPieceTokenizer(vocab_size=400, max_characters=150)
CONTEXT = "Zoë Müller (1895–1943), of São Paulo; U.S. $1,000.50! Cafe\u0301 and naïve co\u0302te\u0301 \u200bend."
CHINESE = "《黑暗之魂》由From Software开发,2011年9月发行。🙂 👨\u200d👩\u200d👧是家庭;ＡＢＣ全角。"
LONG = " ".join(f"word{number} is {number}" for number in range(60))
# (context, question, (answer, which of its occurrences), ...)
ASKED = [
    (CONTEXT, "Who?", ("Zoë Müller", 0)),
    (CONTEXT, "When was she born?", ("1895", 0), ("1895–1943", 0)),
    (CONTEXT, "Where?", ("São Paulo", 0)),
    (CONTEXT, "How much?", ("$1,000.50", 0)),
    (CONTEXT, "What with accents of their own?", ("Cafe\u0301", 0)),
    (CONTEXT, "What else?", ("co\u0302te\u0301", 0)),
    (CONTEXT, "Behind what is not seen?", ("end.", 0)),
    (CHINESE, "谁开发?", ("From Software", 0)),
    (CHINESE, "哪年?", ("2011年9月", 0)),
    (CHINESE, "第一个字?", ("《", 0)),
    (CHINESE, "什么表情?", ("🙂", 0)),
    (CHINESE, "什么是家庭?", ("👨\u200d👩\u200d👧", 0)),
    (CHINESE, "全角?", ("ＡＢＣ", 0)),
    (LONG, "First?", ("word0", 0)),
    (LONG, "Last? " * 30, ("59", 1)),
    (LONG, "Middle?", ("word30 is 30", 0)),
    (LONG, "All of it?", (LONG, 0)),
]


def squad(questions, impossible=False) -> dict:
    paragraphs = []
    for number, (context, question, *answers) in enumerate(questions):
        starts = [[i for i in range(len(context)) if context.startswith(text, i)][nth] for text, nth in answers]
        entries = [{"text": text, "answer_start": start} for (text, _), start in zip(answers, starts, strict=True)]
        entry = {"id": f"q{number}", "question": question, "answers": entries}
        paragraphs.append({"context": context, "qas": [{**entry, **({"is_impossible": True} if impossible else {})}]})
    return {"version": "1.1", "data": [{"title": "T", "paragraphs": paragraphs}]}


def data(directory, content, **changes) -> Data:
    path = directory / "squad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    settings = {
        "source": SquadSource(paths=(str(path),)),
        "tokenizer": WORDPIECE,
        "objective": QaObjective(stride=16, max_question=12),
        "length": 48,
        "cache_dir": str(directory / "cache"),
    }
    return Data(**{**settings, **changes})


def questions_of(config) -> list[qa.Question]:
    reader = sources.reader(config.source, config.cache_dir, qa.COLUMNS)
    return [qa.question_of(record.fields) for record in reader.documents("train")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(configuration, store, its questions)."""
    config = data(tmp_path_factory.mktemp("qa"), squad(ASKED))
    return config, prepare(config).train, questions_of(config)


def test_every_answer_is_given_back(made):
    config, store, questions = made
    for question in questions:
        ids, offsets = qa.encode_context(store.tokenizer, question.context)
        for answer in question.answers:
            first, last = qa.answer_tokens(question._replace(answers=[answer]), offsets)
            assert question.context[offsets[first, 0] : offsets[last, 1]] == answer.text


def test_the_space_before_a_word_is_no_part_of_an_answer():
    made = tokenizer.train_bpe(["the cat sat on the mat"] * 3, 300)
    ids, offsets = qa.encode_context(made, "the cat  sat")
    assert made.decode(ids[1:2]) == " cat" and offsets[1].tolist() == [4, 7]
    assert offsets[-1].tolist() == [9, 12]


def test_an_answer_inside_a_token_is_given_by_the_fewest_tokens_that_hold_it(made):
    _, store, _ = made
    ids, offsets = qa.encode_context(store.tokenizer, "a ☃☃☃ b")  # a word of unknown characters is one token
    first, last = qa.answer_tokens(qa.Question("", "", "", [qa.Answer(3, "☃")]), offsets)
    assert first == last == 1 and offsets[1].tolist() == [2, 5]


def test_every_window_that_holds_an_answer_gives_it_back_and_the_others_point_at_the_first_token(made):
    config, store, questions = made
    shown = 0
    for question in questions:
        for window in qa.features(question, store.tokenizer, config.objective, config.length):
            first, last = int(window.row["start_positions"]), int(window.row["end_positions"])
            if first:
                assert qa.span_text(question.context, window, first, last) == question.answers[0].text
                shown += 1
            else:
                assert last == 0
    assert shown >= len(ASKED) - 1  # all but the answer that is longer than a window


def test_rows_of_a_store_are_the_windows_of_its_records(made):
    config, store, questions = made
    rows = objective_rows(config, store, seed=0)
    windows = [
        window for question in questions for window in qa.features(question, store.tokenizer, config.objective, 48)
    ]
    assert len(rows) == len(windows) > len(questions)
    batch = rows.rows(range(len(rows)), len(rows) + 2)
    for place, window in enumerate(windows):
        for key, value in window.row.items():
            found = batch[key][place]
            np.testing.assert_array_equal(found[: value.size] if value.ndim else found, value)
            assert not value.ndim or not found[value.size :].any()
    assert not any(value[len(rows) :].any() for value in batch.values())
    spec = batch_spec(config)
    assert {key: (value.shape[1:], value.dtype) for key, value in batch.items()} == {
        key: (shape, dtype) for key, (shape, dtype, _) in spec.items()
    }


def test_a_row_is_cls_question_sep_window_sep(made):
    config, store, questions = made
    (window, *_) = qa.features(questions[0], store.tokenizer, config.objective, config.length)
    asked, context = store.tokenizer.encode("Who?"), store.tokenizer.encode(CONTEXT)
    room = config.length - len(asked) - 3
    row, made_of = window.row, store.tokenizer
    assert row["tokens"].tolist() == [made_of.cls, *asked, made_of.sep, *context[:room], made_of.sep]
    assert row["token_types"].tolist() == [0] * (len(asked) + 2) + [1] * (min(room, len(context)) + 1)
    assert row["positions"].tolist() == list(range(row["tokens"].size)) and set(row["segment_ids"]) == {1}
    assert (window.offsets[: len(asked) + 2] == qa.OUTSIDE).all() and (window.offsets[-1] == qa.OUTSIDE).all()


def test_a_long_question_keeps_its_first_tokens(made):
    config, store, questions = made
    long = next(question for question in questions if question.text.startswith("Last"))
    for window in qa.features(long, store.tokenizer, config.objective, config.length):
        assert window.row["tokens"][1:13].tolist() == store.tokenizer.encode(long.text)[:12]
        assert window.row["tokens"][13] == store.tokenizer.sep


def run_squad(context: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Windows as the published script finds them, step by step."""
    found, start = [], 0
    while start < context:
        length = min(context - start, room)
        found.append((start, start + length))
        if start + length == context:
            break
        start += min(length, stride)
    return found


@pytest.mark.parametrize("stride", [1, 3, 7, 40])
@pytest.mark.parametrize("room", [1, 5, 7])
def test_windows_are_those_of_the_published_script(room, stride):
    for context in range(1, 40):
        assert qa.windows(context, room, stride) == run_squad(context, room, stride)


def test_the_window_of_most_context_is_that_of_the_published_script():
    for context, room, stride in ((30, 7, 3), (17, 5, 5), (9, 9, 2), (23, 10, 9)):
        found = qa.windows(context, room, stride)
        for token in range(context):
            scores = [
                min(token - start, stop - 1 - token) + 0.01 * (stop - start) if start <= token < stop else -1
                for start, stop in found
            ]
            best = scores.index(max(scores))
            most = zip(found, qa.most_context(found), strict=True)
            shown = [
                place
                for place, ((start, stop), flags) in enumerate(most)
                if start <= token < stop and flags[token - start]
            ]
            assert shown == [best]


def test_a_question_without_an_answer_points_at_the_first_token(tmp_path):
    asked = [(CONTEXT, "Who?"), (CONTEXT, "Who?", ("Zoë", 0))]  # to the second one there is a plausible answer
    config = data(tmp_path, squad(asked, impossible=True))
    rows = objective_rows(config, prepare(config).train, seed=0).rows([0, 1])
    assert rows["start_positions"].tolist() == rows["end_positions"].tolist() == [0, 0]


def test_answers_of_hugging_face_are_read_too():
    fields = {"id": "a", "question": "Who?", "context": "Ann and Bo", "answers": {"text": ["Bo"], "answer_start": [8]}}
    assert qa.question_of(fields).answers == [qa.Answer(8, "Bo")]
    assert qa.question_of({**fields, "answers": {"text": [], "answer_start": []}}).answers == []
    for answers in ({"text": ["Bo"], "answer_start": []}, {"text": ["Bo"]}, "Bo", [3]):
        with pytest.raises(Malformed, match="question 'a': "):
            qa.question_of({**fields, "answers": answers})


def broken(paragraph=(), entry=(), answer=(), without=()) -> dict:
    """Two questions, of the second of which the paragraph, the question or its first answer has other fields."""
    content = squad(ASKED[:2])
    changed = content["data"][0]["paragraphs"][1]
    changed["qas"][0]["answers"][0].update(answer)
    changed["qas"][0].update(entry)
    changed.update(paragraph)
    for name in without:
        changed.pop(name, None)
        changed["qas"][0].pop(name, None)
    return content


@pytest.mark.parametrize(
    "content, fault",
    [
        ("{", "is not valid JSON"),
        ("[]", "question 1 holds a JSON list, expected an object with a key 'data'"),
        ({"data": {}}, "question 1: 'data' is a JSON dict, expected a list"),
        ({"data": [{"title": "x"}]}, "question 1 has no key 'paragraphs'; its keys are 'title'"),
        (broken(without=["context"]), "question 2 has no key 'context'"),
        (broken(without=["id"]), "question 2 has no key 'id'"),
        (broken(entry={"answers": []}), "question 2: 'q1' has no answer, and does not say"),
        (
            broken(answer={"answer_start": 0}),
            "question 'q1': its answer '1895' is said to start at character 0, where 'Zoë ' stands",
        ),
        (broken(answer={"answer_start": -1}), "said to start at character -1, before the context"),
        (broken(answer={"answer_start": "9"}), "question 'q1': an answer is"),
        (broken(paragraph={"context": " "}), "question 'q1': 'context' is ' ', expected text"),
        (
            broken({"context": "\u200b"}, {"answers": [], "is_impossible": True}),
            "question 'q1': its context holds nothing that is a token",
        ),
    ],
)
def test_what_is_no_squad_is_refused_where_it_stands(tmp_path, content, fault):
    with pytest.raises(DataError, match="squad.json") as caught:
        prepare(data(tmp_path, content))
    assert fault in str(caught.value)


def test_refused_questions_are_counted_under_a_tolerance(tmp_path):
    content = broken(answer={"answer_start": 0})
    config = data(tmp_path, content)
    config = replace(config, source=replace(config.source, tolerance=0.5))
    store = prepare(config).train
    assert (store.num_documents, store.header["empty_documents"]) == (1, 1)
    assert len(objective_rows(config, store, seed=0)) == 1


def test_questions_are_no_running_text(tmp_path):
    config = data(tmp_path, squad(ASKED), tokenizer=ByteTokenizer())
    with pytest.raises(ConfigError, match="Set data.objective.name=qa"):
        sources.reader(config.source, config.cache_dir).check()


def test_records_of_json_lines_are_questions_as_well(tmp_path, made):
    config, store, _ = made
    records = [record.fields for record in sources.reader(config.source, "", qa.COLUMNS).documents("train")]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = JsonlSource(paths=(str(path),), validation_fraction=0.0)
    again = prepare(replace(config, source=source, cache_dir=str(tmp_path / "cache"))).train
    assert again.fingerprint == store.fingerprint


def test_what_windows_need_is_asked_for(tmp_path):
    config = data(tmp_path, squad(ASKED), length=15)
    assert check(config)[0][0] == "length" and not check(replace(config, length=16))
    with pytest.raises(ConfigError, match="has no cls and no sep token"):
        check_tokenizer(replace(config, tokenizer=ByteTokenizer()), tokenizer.byte_tokenizer(), 257)


def test_other_windows_have_another_fingerprint(made):
    config, store, _ = made
    objectives = [QaObjective(stride=stride, max_question=most) for stride, most in ((16, 12), (8, 12), (16, 9))]
    found = {objective_rows(replace(config, objective=objective), store, 0).fingerprint for objective in objectives}
    assert len(found) == 3
