"""The objective supervised: prompts with their answers, or chats, of which the answers alone are predicted.

A document is `<end of text> prompt answer`, or a chat as its template renders it. The mark `answers` says which of
its tokens are predicted. The end of text that begins the next document is the end of this one, and is predicted too,
so that a model learns to stop; where a tokenizer ends texts by a token of its own, that stands behind the answer.

A prompt's ids are those of the prompt alone, as generation has them. Space at its end belongs to the answer, as in
lm-evaluation-harness: the words of most vocabularies begin with their space, and none of these could stand behind
one. The answer's ids are those that both together have; where a token would reach across the border, those of the
answer by itself. A chat is encoded as one text, of which a token that holds a character of an answer is the answer's.

Text never becomes a special token: a message that spells one is refused, since a template's own could be forged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from data.config import Data
from data.kinds import Spec, sequence
from data.marks import ANSWERS
from data.objective_config import SupervisedObjective
from data.packing import DTYPES, Rows, make_rows
from data.readers.base import Record
from data.readers.fields import Malformed
from data.record_encoder import Example, Maker, RecordEncoder, check_refused, covered
from data.schema import to_plain
from data.store import Store
from data.tokenizer import Tokenizer
from data.tokenizer_config import FileTokenizer

if TYPE_CHECKING:
    from data.templates import Template

CHAT = "chat"
NEUTRAL = "\u00b7"  # in no special token


class Prompts:
    """Prompts with their answers."""

    mark = ANSWERS

    def __init__(self, tokenizer: Tokenizer, prompt: str, answer: str):
        """`prompt`, `answer`: the columns."""
        self.tokenizer, self.prompt, self.answer = tokenizer, prompt, answer

    def identity(self):
        return {"prompt": self.prompt, "answer": self.answer, "stop": self.tokenizer.stop}

    def __call__(self, fields):
        prompt, answer = (_text(fields[name], name) for name in (self.prompt, self.answer))
        if not answer.strip():
            raise Malformed(f": {self.answer!r} is empty, so nothing is to be predicted.")
        ids, count = join(self.tokenizer, prompt, answer)
        if ids.size == count:
            raise Malformed(f": {self.answer!r} holds nothing that is a token.")
        if self.tokenizer.stop != self.tokenizer.end_of_text:
            ids = np.append(ids, np.uint32(self.tokenizer.stop))
        return Example(ids, np.arange(ids.size) >= count, prompt + answer)


def join(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[np.ndarray, int]:
    """(uint32 ids of a prompt and its answer, how many of them are the prompt's)."""
    asked = prompt.rstrip()
    answer = prompt[len(asked) :] + answer
    (before, places), (both, all_places) = tokenizer.encode_batch_with_offsets([asked, asked + answer])
    count = before.size
    if np.array_equal(both[:count], before) and np.array_equal(all_places[:count], places):
        return both, count
    return np.concatenate([before, tokenizer.encode_batch([answer])[0]]), count


class Chats:
    """Conversations under a template."""

    mark = ANSWERS

    def __init__(self, tokenizer: Tokenizer, template: Template, column: str):
        self.tokenizer, self.template, self.column = tokenizer, template, column
        self._names = tokenizer.special_tokens
        self._ids = np.array(list(self._names.values()), np.uint32)
        self._expected: dict[tuple, np.ndarray] = {}  # the special tokens of conversations of the same shape

    def identity(self):
        return {"messages": self.column, "template": self.template.fingerprint}

    def __call__(self, fields):
        from data.chat import messages_of, rendered

        messages = messages_of(fields[self.column], self.column)
        self._check_spelling(messages)
        text, spans = rendered(self.template, messages, self._names)
        ids, offsets = self.tokenizer.encode_trusted(text)
        self._check_special(messages, ids)
        answers = covered(offsets, spans)
        if not answers.any():
            raise Malformed(f": the answers of {self.column!r} hold nothing that is a token.")
        if ids[0] == self.tokenizer.end_of_text:  # which the store puts there
            ids, answers = ids[1:], answers[1:]
        return Example(ids, answers, text)

    def _check_spelling(self, messages: list[dict[str, str]]):
        for number, message in enumerate(messages, 1):
            for token in self._names:
                if token in message["content"]:
                    raise Malformed(
                        f": message {number} of {self.column!r} spells the special token {token}, which would forge "
                        "what only the template writes."
                    )

    def _check_special(self, messages: list[dict[str, str]], ids: np.ndarray):
        """Malformed where what surrounds a message has made a special token of it: other text makes others."""
        shape = tuple((message["role"], bool(message["content"].strip())) for message in messages)
        if shape not in self._expected:
            plain = [{"role": role, "content": NEUTRAL if filled else ""} for role, filled in shape]
            try:
                text, _ = self.template.render(plain)
            except ValueError as error:
                raise Malformed(f": {error}") from error
            expected = self.tokenizer.encode_trusted(text)[0]
            self._expected[shape] = expected[np.isin(expected, self._ids)]
        if not np.array_equal(ids[np.isin(ids, self._ids)], self._expected[shape]):
            raise Malformed(
                f": a message of {self.column!r} and what the chat template {self.template.name} puts around it spell "
                "a special token together, which would forge what only the template writes."
            )


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f": {column!r} is {value!r:.80}, expected text.")
    return value


def columns(objective: SupervisedObjective) -> tuple[str, ...]:
    """The columns that are read of a record."""
    return (objective.messages,) if objective.format == CHAT else (objective.prompt, objective.answer)


def marks_of(objective: SupervisedObjective) -> tuple[str, ...]:
    return (ANSWERS,)


def encoder(config: Data, tokenizer: Tokenizer) -> RecordEncoder:
    """What makes documents of the records of a source. DataError where the template cannot be read."""
    objective = config.objective
    make: Maker = Prompts(tokenizer, objective.prompt, objective.answer)
    if objective.format == CHAT:
        from data import templates  # Jinja is for chats alone

        make = Chats(tokenizer, templates.load(objective.template, tokenizer), objective.messages)
    return RecordEncoder(make, config.source.tolerance)


def stored(config: Data) -> dict:
    """What decides, beside source and tokenizer, what a store holds."""
    objective = config.objective
    stop = config.tokenizer.stop if isinstance(config.tokenizer, FileTokenizer) else None
    if objective.format != CHAT:
        return {**to_plain(objective), "stop": stop}
    from data import templates

    return {**to_plain(objective), "stop": stop, "template": templates.read(objective.template)}


def texts(objective: SupervisedObjective, record: Record) -> Iterator[str]:
    """What a tokenizer is trained on of a record."""
    if objective.format != CHAT:
        yield "".join(str(record.fields[name]) for name in columns(objective))
        return
    from data.chat import messages_of

    with contextlib.suppress(Malformed):  # of which the encoder says more
        yield from (
            message["content"] for message in messages_of(record.fields[objective.messages], objective.messages)
        )


def spec(config: Data) -> Spec:
    return sequence(config.length, DTYPES)


def rows(config: Data, store: Store, seed: int, held_out: bool) -> Rows:
    """The packed rows of a store, weight on answers and ends alone. DataError where too many records were refused."""
    check_refused(config, store)
    return make_rows(store, config.length, config.packing, config.long_documents, weight_mark=ANSWERS)
