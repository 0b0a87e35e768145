"""The objective supervised: prompts with their answers, or chats, of which the answers alone are predicted.

A document is `<end of text> prompt answer`, or a chat as its template renders it. The mark `answers` says which of
its tokens are predicted. The end of text that begins the next document is the end of this one, and is predicted too,
so that a model learns to stop; where a tokenizer ends texts by a token of its own, that stands behind the answer.

A prompt's ids are those of the prompt alone, as generation has them. Space at its end belongs to the answer, as in
lm-evaluation-harness: vocabularies have " word", which nothing can follow a space with. Behind them stand the ids of
the answer as both together are encoded; where a token would reach across the border, the answer's by itself. Of a
chat, which is encoded as one text, a token that holds any character of an answer is the answer's.

Text never becomes a special token: a message that spells one is refused, since a template's own could be forged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from data.config import Data
from data.encoding import Encoded
from data.errors import DataError
from data.kinds import Spec, sequence
from data.marks import ANSWERS
from data.mixture_config import MixtureSource
from data.objective_config import SupervisedObjective
from data.packing import DTYPES, Rows, make_rows
from data.readers.base import Record
from data.readers.fields import Malformed
from data.schema import to_plain
from data.source_config import StoredSource
from data.store import Store
from data.tokenizer import Tokenizer
from data.tokenizer_config import FileTokenizer

if TYPE_CHECKING:
    from data.templates import Template

CHAT = "chat"
NEUTRAL = "\u00b7"  # in no special token


class Example(NamedTuple):
    """A document of a store, without its end of text."""

    ids: np.ndarray  # uint32
    marked: np.ndarray  # bool, of each: in Prompts and Chats, whether it is to be predicted
    text: str


class Maker(Protocol):
    """Makes an example of the fields of a record."""

    tokenizer: Tokenizer
    mark: str  # the name of what an example's `marked` says

    def identity(self) -> dict:
        """JSON-able facts, beside the tokenizer, that change when the examples do."""

    def __call__(self, fields: dict[str, object]) -> Example:
        """Malformed, which completes "FILE, line 12", where there is none."""


class Prompts:
    """Prompts with their answers."""

    mark = ANSWERS

    def __init__(self, tokenizer: Tokenizer, prompt: str, answer: str):
        """`prompt`, `answer`: the columns."""
        self.tokenizer, self.prompt, self.answer = tokenizer, prompt, answer

    def identity(self):
        return {"prompt": self.prompt, "answer": self.answer}

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
        self._special: dict[tuple, list[int]] = {}

    def identity(self):
        return {"messages": self.column, "template": self.template.fingerprint}

    def __call__(self, fields):
        from data.chat import messages_of, rendered

        messages = messages_of(fields[self.column], self.column)
        self._check_spelling(messages)
        text, spans = rendered(self.template, messages, self.tokenizer.special_tokens)
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
            for token in self.tokenizer.special_tokens:
                if token in message["content"]:
                    raise Malformed(
                        f": message {number} of {self.column!r} spells the special token {token}, which would forge "
                        "what only the template writes."
                    )

    def _check_special(self, messages: list[dict[str, str]], ids: np.ndarray):
        """Malformed where what surrounds a message has made a special token of it: other text makes others."""
        special = set(self.tokenizer.special_tokens.values())
        shape = tuple((message["role"], bool(message["content"].strip())) for message in messages)
        if shape not in self._special:
            plain = [{"role": role, "content": NEUTRAL if filled else ""} for role, filled in shape]
            try:
                text, _ = self.template.render(plain)
            except ValueError as error:
                raise Malformed(f": {error}") from error
            self._special[shape] = [i for i in self.tokenizer.encode_trusted(text)[0].tolist() if i in special]
        if [i for i in ids.tolist() if i in special] != self._special[shape]:
            raise Malformed(
                f": a message of {self.column!r} and what the chat template {self.template.name} puts around it spell "
                "a special token together, which would forge what only the template writes."
            )


def covered(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool [tokens]: whether each holds a character of a span; `offsets` int64 [tokens, 2].

    A token of no character, as some vocabularies have before a word, stands with the character behind it.
    """
    starts, stops = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)
    found = np.zeros(len(offsets), bool)
    for start, stop in spans:
        found |= (starts < stop) & (stops > start)
    return found


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f": {column!r} is {value!r:.80}, expected text.")
    return value


class RecordEncoder:
    """Records to documents with one mark."""

    def __init__(self, make: Maker, tolerance: float):
        """`tolerance`: 0: the first record that is refused is an error; above: such are left out and counted."""
        self.make, self.tokenizer, self.tolerance = make, make.tokenizer, tolerance
        self.marks = (make.mark,)

    def identity(self):
        facts = {
            "encoder": f"{self.make.mark} 1",
            "tokenizer": self.tokenizer.fingerprint,
            "tolerance": self.tolerance > 0,
        }
        return {**facts, **self.make.identity()}

    def __call__(self, documents: Sequence[Record]) -> Encoded:
        found = [example for example in map(self._example, documents) if example is not None]
        return Encoded(
            [example.ids for example in found],
            {self.make.mark: [example.marked for example in found]},
            sum(len(example.text.encode()) for example in found),
            len(documents) - len(found),
        )

    def _example(self, record: Record) -> Example | None:
        try:
            return self.make(record.fields)
        except Malformed as error:
            if self.tolerance:
                return None
            raise DataError(
                f"{record.where}{error} Mend or remove it, or set data.source.tolerance to the share that may be "
                "passed over."
            ) from error


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


def stop_of(config: Data, tokenizer: Tokenizer) -> int:
    """The token that ends texts. Of a tokenizer from a file `data.tokenizer.stop` says it, which no store keeps."""
    stop = config.tokenizer.stop if isinstance(config.tokenizer, FileTokenizer) else None
    return tokenizer.end_of_text if stop is None else tokenizer.id_of(stop)


def check_refused(config: Data, store: Store):
    """DataError where more records were left out of a store than `data.source.tolerance` allows."""
    source = config.source
    parts = [part.source for part in source.components] if isinstance(source, MixtureSource) else [source]
    tolerances = [part.tolerance for part in parts if not isinstance(part, StoredSource)]
    if not tolerances:  # whoever made the stores has judged them
        return
    refused, tolerance = store.header.get("empty_documents", 0), max(tolerances)
    whole = refused + store.num_documents
    if refused > tolerance * whole:
        raise DataError(
            f"{refused:,} of {whole:,} records of {store.directory} were refused as {config.objective.name} rows, more "
            f"than data.source.tolerance={tolerance:g} allows. Set it to 0 to be told the first of them."
        )
