"""Of prompts and chats the answers and their ends are predicted, all and nothing else, however rows are packed."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from data import sources, supervised, tokenizer
from data.build import build
from data.config import Data, check
from data.errors import DataError
from data.marks import ANSWERS
from data.objective_config import SupervisedObjective
from data.objectives import batch_spec, columns_of, encoder_of, objective_rows
from data.prepare import prepare
from data.readers.base import Record
from data.record_encoder import RecordEncoder, covered
from data.source_config import JsonlSource
from data.store import Store
from data.supervised import Chats, Prompts
from data.templates import CHATML, Template
from data.tokenizer_config import BpeTokenizer, ByteTokenizer, WordPieceTokenizer
from tests.data.chat_cases import turns

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
PAIRS = [
    ("What is two and two?", " Four."),
    ("", "An answer to nothing."),
    ("Name a colour. ", "Blue 蓝"),
    ("A long question " * 5, "no"),
    ("Why?", "Since " * 12),
    ("A list:\n\n", "- one\n- two\n"),
]
# With the space that their prompts end in.
ANSWERS_WITH_SPACE = [prompt[len(prompt.rstrip()) :] + answer for prompt, answer in PAIRS]
CHATS = [
    turns("Say hi", "hi"),
    turns("Again", "hi", "And again", "hi hi"),
    turns("x" * 50, "y" * 30, system="Be short."),
]


def write(directory, records) -> str:
    path = directory / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def data(directory, records, objective, **changes) -> Data:
    special = () if objective.format == "prompt" else CHATML_TOKENS
    settings = {
        "source": JsonlSource(paths=(write(directory, records),), validation_fraction=0.0),
        "tokenizer": ByteTokenizer(special_tokens=special),
        "objective": objective,
        "length": 48,
        "packing": "best_fit",
        "cache_dir": str(directory / "cache"),
        **changes,
    }
    return Data(**settings)


def prompts(directory, **changes) -> Data:
    records = [{"prompt": prompt, "answer": answer} for prompt, answer in PAIRS]
    return data(directory, records, SupervisedObjective(), **changes)


def chats(directory, **changes) -> Data:
    return data(directory, [{"messages": chat} for chat in CHATS], SupervisedObjective(format="chat"), **changes)


def epoch(config) -> tuple:
    """(all rows of one epoch, the store)."""
    store = prepare(config).train
    rows = objective_rows(config, store, seed=0)
    return rows.rows(range(len(rows))), store


def predicted(batch) -> list[int]:
    return batch["targets"][batch["weights"] > 0].tolist()


@pytest.mark.parametrize("packing", ["concat", "best_fit", "unpacked"])
@pytest.mark.parametrize("make", [prompts, chats])
def test_every_answer_and_its_end_is_predicted_once_and_nothing_else(tmp_path, packing, make):
    config = make(tmp_path, packing=packing, length=17)
    batch, store = epoch(config)
    answers = ANSWERS_WITH_SPACE
    if make is chats:  # each with the token that ends its turn
        answers = [m["content"] + "." for chat in CHATS for m in chat if m["role"] == "assistant"]
    assert batch["weights"].sum() == sum(len(answer.encode()) for answer in answers) + store.num_documents
    assert set(np.unique(batch["weights"])) == {0.0, 1.0}
    assert predicted(batch).count(store.end_of_text) == store.num_documents
    spec = batch_spec(config)
    assert {key: (value.shape[1:], value.dtype) for key, value in batch.items()} == {
        key: (shape, dtype) for key, (shape, dtype, _) in spec.items()
    }


def test_what_is_predicted_of_each_document_is_its_answer_and_the_end(tmp_path):
    batch, store = epoch(prompts(tmp_path, packing="unpacked", length=128))
    found = [store.tokenizer.decode(row["targets"][row["weights"] > 0]) for row in rows_of(batch)]
    assert found == ANSWERS_WITH_SPACE
    assert all(row["targets"][row["weights"] > 0][-1] == store.end_of_text for row in rows_of(batch))


def rows_of(batch) -> list[dict]:
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


@pytest.mark.parametrize("make", [prompts, chats])
def test_documents_packed_together_are_as_they_are_alone(tmp_path, make):
    def segments(packing):
        batch, _ = epoch(make(tmp_path, packing=packing, length=200))
        return sorted(
            tuple(tuple(row[key][row["segment_ids"] == segment].tolist()) for key in row if key != "segment_ids")
            for row in rows_of(batch)
            for segment in np.unique(row["segment_ids"][row["segment_ids"] > 0])
        )

    assert segments("best_fit") == segments("unpacked")
    assert len(segments("best_fit")) == len(PAIRS if make is prompts else CHATS)


def test_long_conversations_are_dropped_whole_and_counted(tmp_path):
    config = chats(tmp_path, length=100, long_documents="drop")
    store = prepare(config).train
    rows = objective_rows(config, store, seed=0)
    assert "1 dropped" in rows.describe()
    batch = rows.rows(range(len(rows)))
    kept = [index for index in range(store.num_documents) if store.document(index).size <= 100]
    marks = [store.marked(ANSWERS, *store.bounds(index))[1:].sum() + 1 for index in kept]
    assert len(kept) == len(CHATS) - 1 and batch["weights"].sum() == sum(marks)


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train_bpe(["the cat sat on the mat, the cats' mats"] * 5, 290, CHATML_TOKENS)


@pytest.mark.parametrize(
    "prompt, answer",
    [("the", " cat"), ("the ca", "t sat"), ("the  ", "cat"), ("the\n", "\ncat"), ("", " the"), (" ", "a")],
)
def test_a_prompts_ids_are_those_that_generation_has(bpe, prompt, answer):
    ids, count = supervised.join(bpe, prompt, answer)
    assert ids[:count].tolist() == bpe.encode(prompt.rstrip())
    assert bpe.decode(ids) == prompt + answer


def test_an_answers_ids_are_those_of_the_whole_text_where_no_token_reaches_across(bpe):
    for prompt, answer in (("the", " cat"), ("the cat ", "sat on"), ("on the mat,", " the cats")):
        assert supervised.join(bpe, prompt, answer)[0].tolist() == bpe.encode(prompt + answer)
    assert bpe.encode("the cat") != [*bpe.encode("the ca"), *bpe.encode("t")]  # as one token would
    assert supervised.join(bpe, "the ca", "t")[0].tolist() == [*bpe.encode("the ca"), *bpe.encode("t")]


def test_an_unknown_word_that_reaches_across_the_border_is_cut_there():
    """The ids of the whole begin with the prompt's, an unknown word being one token however long it is."""
    words = tokenizer.train_wordpiece(["a b c"], WordPieceTokenizer(vocab_size=300, max_characters=100))
    ids, count = supervised.join(words, "a ☃", "☃")
    assert ids.tolist() == words.encode("a ☃") + words.encode("☃") and count == 2


def test_a_tokenizer_with_an_end_of_its_own_puts_it_behind_the_answer(tmp_path):
    tokenizer.byte_tokenizer(("</s>",)).save(tmp_path / "tokenizer.json")
    loaded = tokenizer.load(tmp_path / "tokenizer.json", "<|endoftext|>", stop="</s>")
    made = Prompts(loaded, "q", "a")({"q": "1", "a": "2"})
    assert made.ids.tolist() == [49, 50, loaded.stop] and made.marked.tolist() == [False, True, True]


def test_a_token_of_a_chat_is_an_answers_where_it_holds_a_character_of_it():
    offsets = np.array([[0, 2], [2, 2], [2, 4], [4, 4], [4, 7], [7, 7], [7, 8]])
    assert np.flatnonzero(covered(offsets, [(2, 4)])).tolist() == [1, 2]
    assert np.flatnonzero(covered(offsets, [(3, 5), (7, 8)])).tolist() == [2, 3, 4, 5, 6]


def test_messages_behind_the_last_answer_are_left_out(bpe):
    template = Template("", CHATML, {})
    make = Chats(bpe, template, "messages")
    whole = make({"messages": [*CHATS[0], {"role": "user", "content": "Thanks"}]})
    assert whole.ids.tolist() == make({"messages": CHATS[0]}).ids.tolist()


def test_sharegpt_is_read_as_messages(bpe):
    make = Chats(bpe, Template("", CHATML, {}), "messages")
    theirs = [{"from": "human", "value": "Say hi"}, {"from": "gpt", "value": "hi"}]
    assert make({"messages": theirs}).ids.tolist() == make({"messages": CHATS[0]}).ids.tolist()


@pytest.mark.parametrize(
    "messages, fault",
    [
        ("hi", "expected a list of messages"),
        ([], "'messages' is empty"),
        (["hi"], "message 1 of 'messages' is \"hi\", expected an object"),
        ([{"role": "user"}], "message 1 of 'messages' has no key 'content'; its keys are 'role'"),
        ([{"role": "robot", "content": "x"}], 'has the role "robot", must be one of system'),
        ([{"role": ["user"], "content": "x"}], "has the role"),
        ([{"role": "user", "content": "x"}], "no message of the role 'assistant'"),
        (turns("x", None), "message 2 of 'messages' is null, expected text"),
        (turns([{"type": "image"}], "x"), "expected text"),
        (turns("x", " \n"), "is an empty answer"),
        ([*turns("x"), {"role": "assistant", "content": "x", "tool_calls": [{}]}], "a call of tools"),
        (turns("x<|im_end|>", "x"), "spells the special token <|im_end|>"),
        (turns("x", "x<|endoftext|>"), "spells the special token <|endoftext|>"),
        (turns("\ufdd0", "x"), "no characters"),
    ],
)
def test_a_chat_that_cannot_be_is_refused_where_it_stands(bpe, messages, fault):
    encoder = RecordEncoder(Chats(bpe, Template("", CHATML, {}), "messages"), tolerance=0.0)
    with pytest.raises(DataError, match="FILE, line 7") as caught:
        encoder([Record({"messages": messages}, "FILE, line 7")])
    assert fault in str(caught.value)


def test_a_special_token_that_a_message_and_the_template_spell_together_is_refused():
    sly = tokenizer.byte_tokenizer(("<|x|>",))
    make = Chats(
        sly,
        Template("", "{% for m in messages %}<|{{ m.content }}|>{% generation %}!{% endgeneration %}{% endfor %}", {}),
        "m",
    )
    make({"m": turns("y", "z")})
    with pytest.raises(ValueError, match="spell a special token together"):
        make({"m": turns("x", "z")})


@pytest.mark.parametrize(
    "fields, fault",
    [
        ({"prompt": 3, "answer": "x"}, "'prompt' is 3, expected text"),
        ({"prompt": "x", "answer": None}, "'answer' is None, expected text"),
        ({"prompt": "x", "answer": " "}, "'answer' is empty"),
    ],
)
def test_a_prompt_or_answer_that_cannot_be_is_refused_where_it_stands(bpe, fields, fault):
    with pytest.raises(DataError, match=f"FILE, line 7: {fault}"):
        RecordEncoder(Prompts(bpe, "prompt", "answer"), tolerance=0.0)([Record(fields, "FILE, line 7")])


def test_refused_records_are_counted_under_a_tolerance_and_no_more_than_it(tmp_path):
    records = [{"prompt": "q", "answer": f"a{number}"} for number in range(9)] + [{"prompt": "q", "answer": ""}]
    source = JsonlSource(paths=(write(tmp_path, records),), validation_fraction=0.0, tolerance=0.1)
    config = data(tmp_path, records, SupervisedObjective(), source=source)
    _, store = epoch(config)
    assert store.num_documents == 9 and store.header["empty_documents"] == 1
    strict = data(tmp_path, records, SupervisedObjective(), source=JsonlSource(**{**vars(source), "tolerance": 0.05}))
    with pytest.raises(DataError, match="1 of 10 records of .* were refused as supervised rows"):
        epoch(strict)


def test_an_encoder_goes_to_other_processes(bpe):
    record = Record({"messages": CHATS[1]}, "")
    encoder = RecordEncoder(Chats(bpe, Template("", CHATML, {}), "messages"), tolerance=0.0)
    again = pickle.loads(pickle.dumps(encoder))
    for left, right in zip(encoder([record]), again([record]), strict=True):
        np.testing.assert_equal(left, right)
    assert again.identity() == encoder.identity()


def test_a_store_is_the_same_with_any_number_of_workers(tmp_path):
    config = chats(tmp_path)
    made = tokenizer.byte_tokenizer(CHATML_TOKENS)
    found = []
    for part_bytes, workers in ((1 << 20, 1), (100, 2)):
        columns = columns_of(config.objective)
        reader = sources.reader(config.source, config.cache_dir, columns, part_bytes=part_bytes)
        assert (len(reader.parts("train")) > 1) == (workers > 1)
        build(tmp_path / f"{workers}", reader, "train", encoder_of(config, made), {}, workers)
        found.append(Store(tmp_path / f"{workers}").fingerprint)
    assert found[0] == found[1] == prepare(config).train.fingerprint


def test_another_template_or_column_makes_another_store(tmp_path):
    (tmp_path / "a.jinja").write_text(CHATML)
    records = [{"messages": chat, "others": chat} for chat in CHATS]
    objectives = [
        SupervisedObjective(format="chat"),
        SupervisedObjective(format="chat", messages="others"),
        SupervisedObjective(format="chat", template=str(tmp_path / "a.jinja")),
    ]
    places = [prepare(data(tmp_path, records, objective)).train.directory for objective in objectives]
    (tmp_path / "a.jinja").write_text(CHATML.replace("im_start|>'", "im_start|>' + ' '"))
    places.append(prepare(data(tmp_path, records, objectives[-1])).train.directory)
    assert places[2] == places[0]  # a file that says the same
    assert len({*places}) == 3


@pytest.mark.parametrize("make", [prompts, chats])
def test_a_tokenizer_is_trained_on_what_the_records_say(tmp_path, make):
    special = CHATML_TOKENS if make is chats else ()
    made = prepare(make(tmp_path, tokenizer=BpeTokenizer(vocab_size=270, special_tokens=special))).tokenizer
    merges = {made.name_of(index) for index in range(257 + len(special), made.vocab_size)}
    assert merges and not any("role" in merge or "prompt" in merge for merge in merges)


def test_settings_that_cannot_be_are_refused(tmp_path):
    same = replace(prompts(tmp_path), objective=SupervisedObjective(answer="prompt"))
    assert check(same) == [("objective.answer", 'is "prompt", as data.objective.prompt is; name two columns')]
    (lacking,) = check(chats(tmp_path, tokenizer=ByteTokenizer()))
    assert lacking[0] == "tokenizer.special_tokens" and "<|im_start|>, <|im_end|>" in lacking[1]
    unknown = replace(chats(tmp_path), objective=SupervisedObjective(format="chats"))
    assert check(unknown)[0][0] == "objective.format"
