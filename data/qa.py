"""The objective qa: where in a context the answer to a question stands, over windows of long contexts.

A row is `[CLS] question [SEP] window [SEP]` (Devlin et al. 2018, section 4.2). A question keeps its first
`max_question` tokens. Windows are as in BERT's run_squad.py: each holds as much of the context as fits, and begins
`stride` tokens behind the one before it. `start_positions` and `end_positions` are the places in the row of the
answer's first and last token; both are 0, the place of [CLS], where the window does not hold all of the answer, or
where there is none. Of several answers the first one counts.

A stored document is the question, [SEP] and the context, with the mark `answer_span` on the tokens of the answer.
Evaluation makes the same windows of the records themselves, by `features`, and finds the text of any span by
offsets into the context: no text is put together again from pieces.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.config import Data
from data.errors import ConfigError
from data.files import canonical_json
from data.kinds import Spec, sequence
from data.objective_config import QA_SPECIAL_TOKENS, QaObjective
from data.readers.base import Record
from data.readers.fields import Malformed
from data.record_encoder import Example, RecordEncoder, check_refused, covered
from data.store import SHARD_TOKENS, Store
from data.tokenizer import Tokenizer

ANSWER_SPAN = "answer_span"
COLUMNS = ("id", "question", "context", "answers")
KEYS = dict.fromkeys(("tokens", "token_types", "segment_ids", "positions"), np.int32)
OUTSIDE = -1  # the offsets of a place of a row that is no token of the context
Row = dict[str, np.ndarray]


class Answer(NamedTuple):
    start: int  # character of the context
    text: str

    @property
    def stop(self) -> int:
        return self.start + len(self.text)


class Question(NamedTuple):
    id: str
    text: str
    context: str
    answers: list[Answer]  # empty: it has none


class Window(NamedTuple):
    """One row of a question, and what of its context it holds."""

    row: Row  # the keys of a batch, the [length] ones without padding
    offsets: np.ndarray  # int64 [size, 2]: the characters of the context each place is from and up to, or OUTSIDE
    max_context: np.ndarray  # bool [size]: whether no window of the question shows a token with more around it


def question_of(fields: dict[str, object]) -> Question:
    """The question of a record: SQuAD's answers, or those of Hugging Face's data sets, a list of each field.

    Malformed where it is none, or an answer does not stand where it is said to.
    """
    name, text, context, found = (fields[column] for column in COLUMNS)
    where = f": question {name!r}"
    for column, value in (("id", name), ("question", text), ("context", context)):
        if not isinstance(value, str) or not value.strip():
            raise Malformed(f"{where}: {column!r} is {value!r:.80}, expected text.")
    if isinstance(found, dict):
        starts, texts = found.get("answer_start"), found.get("text")
        if not isinstance(starts, list) or not isinstance(texts, list) or len(starts) != len(texts):
            raise Malformed(f"{where}: 'answers' has no lists answer_start and text of one length.")
        found = [{"answer_start": start, "text": text} for start, text in zip(starts, texts, strict=True)]
    if not isinstance(found, list):
        raise Malformed(f"{where}: 'answers' is {found!r:.80}, expected a list.")
    return Question(name, text, context, [_answer(answer, context, where) for answer in found])


def _answer(found: object, context: str, where: str) -> Answer:
    start, text = (found.get("answer_start"), found.get("text")) if isinstance(found, dict) else (None, None)
    if type(start) is not int or not isinstance(text, str) or not text.strip():
        raise Malformed(f"{where}: an answer is {found!r:.80}, expected its text and answer_start.")
    if start < 0 or context[start : start + len(text)] != text:
        stands = f"where {context[start : start + len(text)]!r:.80} stands" if start >= 0 else "before the context"
        raise Malformed(f"{where}: its answer {text!r:.80} is said to start at character {start}, {stands}.")
    return Answer(start, text)


def encode_context(tokenizer: Tokenizer, context: str) -> tuple[np.ndarray, np.ndarray]:
    """(uint32 ids, int64 [ids, 2] characters each is from and up to) of a context.

    A token's characters begin behind its space, and end behind the accents that it has lost.
    """
    ((ids, offsets),) = tokenizer.encode_batch_with_offsets([context])
    offsets = offsets.copy()
    for place, (start, stop) in enumerate(offsets.tolist()):
        while start < stop - 1 and context[start].isspace():
            start += 1
        following = offsets[place + 1, 0] if place + 1 < len(offsets) else len(context)
        while stop < following and unicodedata.category(context[stop]) == "Mn":
            stop += 1
        offsets[place] = start, stop
    return ids, offsets


def windows(context: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(first token, the one behind the last) of each window on a context of so many tokens; `room` is a window's."""
    step, last = min(room, stride), max(context - room, 0)
    starts = range(0, last + step, step)  # up to the first that reaches the end
    return [(start, min(start + room, context)) for start in starts]


def most_context(found: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Of each window, bool [its tokens]: whether it is the one in which a token has most context.

    That is the fewer of the tokens before and behind it, and a hundredth of the window's; the first of equals.
    """
    size = found[-1][1]
    best, chosen = np.full(size, -1.0), np.zeros(size, np.int64)
    for place, (start, stop) in enumerate(found):
        inside = np.arange(stop - start)
        score = np.minimum(inside, inside[::-1]) + 0.01 * (stop - start)
        better = score > best[start:stop]
        best[start:stop][better], chosen[start:stop][better] = score[better], place
    return [chosen[start:stop] == place for place, (start, stop) in enumerate(found)]


def room_of(question: int, objective: QaObjective, length: int) -> int:
    """Tokens of context in a row of `length` behind a question of so many."""
    return length - min(question, objective.max_question) - QA_SPECIAL_TOKENS


def make_row(question: np.ndarray, context: np.ndarray, answer: tuple[int, int] | None, cls: int, sep: int) -> Row:
    """The row of a question and a window; `answer`: its first and last token in the window."""
    tokens = np.concatenate([[cls], question, [sep], context, [sep]]).astype(np.int32)
    types = (np.arange(tokens.size) >= question.size + 2).astype(np.int32)
    first, last = (0, 0) if answer is None else (question.size + 2 + place for place in answer)
    return {
        "tokens": tokens,
        "token_types": types,
        "segment_ids": np.ones_like(tokens),
        "positions": np.arange(tokens.size, dtype=np.int32),
        "start_positions": np.int32(first),
        "end_positions": np.int32(last),
    }


def inside(answer: tuple[int, int] | None, window: tuple[int, int]) -> tuple[int, int] | None:
    """An answer's first and last token, counted from a window's first; None where that does not hold both."""
    if answer is None or not (window[0] <= answer[0] and answer[1] < window[1]):
        return None
    return answer[0] - window[0], answer[1] - window[0]


def answer_tokens(question: Question, offsets: np.ndarray) -> tuple[int, int] | None:
    """The first and last token that hold a character of the answer; None where there is none."""
    if not question.answers:
        return None
    answer = question.answers[0]
    places = np.flatnonzero(covered(offsets, [(answer.start, answer.stop)]))
    if not places.size:
        raise Malformed(f": question {question.id!r}: its answer {answer.text!r:.80} holds nothing that is a token.")
    return int(places[0]), int(places[-1])


def features(question: Question, tokenizer: Tokenizer, objective: QaObjective, length: int) -> list[Window]:
    """The windows of a question, in order, the rows as those of a store have them."""
    asked = tokenizer.encode_batch([question.text])[0][: objective.max_question]
    ids, offsets = encode_context(tokenizer, question.context)
    answer = answer_tokens(question, offsets)
    found = windows(ids.size, room_of(asked.size, objective, length), objective.stride)
    made = []
    for (start, stop), most in zip(found, most_context(found), strict=True):
        row = make_row(asked, ids[start:stop], inside(answer, (start, stop)), tokenizer.cls, tokenizer.sep)
        places = np.full((row["tokens"].size, 2), OUTSIDE, np.int64)
        places[asked.size + 2 : -1] = offsets[start:stop]
        shown = np.zeros(row["tokens"].size, bool)
        shown[asked.size + 2 : -1] = most
        made.append(Window(row, places, shown))
    return made


def span_text(context: str, window: Window, first: int, last: int) -> str:
    """The text of the context from one place of a window's row to another; both must be tokens of the context."""
    return context[window.offsets[first, 0] : window.offsets[last, 1]]


class Questions:
    """Records to documents: the question, [SEP], the context."""

    mark = ANSWER_SPAN

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def identity(self):
        return {"columns": COLUMNS}

    def __call__(self, fields):
        question = question_of(fields)
        asked = self.tokenizer.encode_batch([question.text])[0]
        ids, offsets = encode_context(self.tokenizer, question.context)
        if not ids.size:
            raise Malformed(f": question {question.id!r}: its context holds nothing that is a token.")
        answer = answer_tokens(question, offsets)
        before = np.append(asked, np.uint32(self.tokenizer.sep))
        marked = np.zeros(before.size + ids.size, bool)
        if answer is not None:
            marked[before.size + answer[0] : before.size + answer[1] + 1] = True
        return Example(np.concatenate([before, ids]), marked, question.text + question.context)


class QaRows:
    """Every window of every question, in the order of the store."""

    def __init__(self, store: Store, objective: QaObjective, length: int):
        self.store, self.objective, self.length = store, objective, length
        self.cls, self.sep = store.tokenizer.cls, store.tokenizer.sep
        settings = [store.fingerprint, "qa 1", length, objective.max_question, objective.stride]
        self.fingerprint = hashlib.sha256(canonical_json(settings)).hexdigest()
        self._borders = self._found_borders()
        starts = store.document_starts.astype(np.int64)
        ends = np.append(starts[1:], store.num_tokens)
        room = length - np.minimum(self._borders - starts - 1, objective.max_question) - QA_SPECIAL_TOKENS
        beyond = np.maximum(ends - self._borders - 1 - room, 0)
        self._first = np.append(0, np.cumsum(1 + -(-beyond // np.minimum(room, objective.stride))))

    def _found_borders(self) -> np.ndarray:
        """Where the [SEP] of each document is; text holds none."""
        found = [np.empty(0, np.int64)]
        for start in range(0, self.store.num_tokens, SHARD_TOKENS):
            ids = self.store.tokens(start, min(start + SHARD_TOKENS, self.store.num_tokens))
            found.append(np.flatnonzero(ids == self.sep) + start)
        return np.concatenate(found)

    def __len__(self) -> int:
        return int(self._first[-1])

    def describe(self) -> str:
        return f"{len(self):,} windows of {self.store.num_documents:,} questions"

    def place(self, index: int) -> tuple[int, int]:
        """(document, which of its windows) of a row."""
        document = int(np.searchsorted(self._first, index, side="right")) - 1
        return document, index - int(self._first[document])

    def row(self, index: int) -> Row:
        """One row, without padding."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        document, number = self.place(index)
        begin, end = self.store.bounds(document)
        border = int(self._borders[document])
        ids, objective = self.store.tokens(begin, end), self.objective
        asked, context = ids[1 : border - begin][: objective.max_question], ids[border - begin + 1 :]
        marked = np.flatnonzero(self.store.marked(ANSWER_SPAN, border + 1, end))
        answer = (int(marked[0]), int(marked[-1])) if marked.size else None
        window = windows(context.size, room_of(asked.size, objective, self.length), objective.stride)[number]
        return make_row(asked, context[slice(*window)], inside(answer, window), self.cls, self.sep)

    def rows(
        self, indices: Sequence[int] | np.ndarray, count: int | None = None, epochs: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The rows `indices`, then padding up to `count` rows; the same in all `epochs`."""
        count = len(indices) if count is None else count
        batch = {key: np.zeros((count, *shape), dtype) for key, (shape, dtype, _) in _spec(self.length).items()}
        for place, index in enumerate(indices):
            for key, value in self.row(int(index)).items():
                batch[key][(place, slice(value.size)) if value.ndim else place] = value
        return batch


def _spec(length: int) -> Spec:
    places = dict.fromkeys(("start_positions", "end_positions"), ((), np.dtype(np.int32), ("batch",)))
    return {**sequence(length, KEYS), **places}


def spec(config: Data) -> Spec:
    """The keys of `QaRows.rows`."""
    return _spec(config.length)


def rows(config: Data, store: Store, seed: int, held_out: bool) -> QaRows:
    """The windows of a store. DataError where too many records were refused."""
    check_refused(config, store)
    return QaRows(store, config.objective, config.length)


def marks_of(objective: QaObjective) -> tuple[str, ...]:
    return (ANSWER_SPAN,)


def columns(objective: QaObjective) -> tuple[str, ...]:
    return COLUMNS


def encoder(config: Data, tokenizer: Tokenizer) -> RecordEncoder:
    return RecordEncoder(Questions(tokenizer), config.source.tolerance)


def texts(objective: QaObjective, record: Record) -> Iterator[str]:
    """What a tokenizer is trained on of a record."""
    yield from (str(record.fields[name]) for name in ("question", "context"))


def check_tokenizer(config: Data, tokenizer: Tokenizer, vocab_size: int):
    """ConfigError where the tokenizer has no [CLS] or [SEP]."""
    missing = [name for name in ("cls", "sep") if getattr(tokenizer, name) is None]
    if missing:
        raise ConfigError(
            f"The tokenizer of data.tokenizer.name={config.tokenizer.name} has no {' and no '.join(missing)} token, "
            "which rows of data.objective.name=qa hold. Take an encoder's tokenizer, or data.tokenizer.name=wordpiece."
        )
