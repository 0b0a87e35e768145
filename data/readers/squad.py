"""SQuAD's JSON (Rajpurkar et al. 2016, 2018): a record is a question, with its paragraph and its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator

from data.errors import ConfigError, DataError
from data.readers.base import REMEDY
from data.readers.fields import Malformed, Place, pick
from data.readers.file_reader import FileReader
from data.readers.files import opened


class SquadReader(FileReader):
    """Versions 1.1 and 2.0; the fields of a record are id, title, context, question and answers.

    `answers` are as they stand there, {text, answer_start} each; none where `is_impossible`.
    """

    suffix = ".json"

    def parts(self, split):
        if self.columns is None:
            raise ConfigError(
                "data.source.name=squad holds questions and no running text. Set data.objective.name=qa, or take "
                "another source."
            )
        return super().parts(split)

    def records(self, part):
        with opened(part.path) as file:
            content = file.read()
        try:
            whole = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{part.path} is not valid JSON: {error}. Restore it, or take another file.") from error
        for number, (found, fault) in enumerate(_questions(whole), 1):
            where = Place(part.path, "question", number)
            yield DataError(f"{where}{fault} {REMEDY}") if found is None else self.document(found, where)


def _questions(whole: object) -> Iterator[tuple[dict | None, Malformed | None]]:
    """(the fields of each question in order, or None and what is wrong with it or with what holds it)."""
    try:
        for article in _list(whole, "data"):
            title = article.get("title", "") if isinstance(article, dict) else ""
            for paragraph in _list(article, "paragraphs"):
                for entry in _list(paragraph, "qas"):
                    try:
                        found = {key: pick(entry, key, repr(key)) for key in ("id", "question")}
                        context = pick(paragraph, "context", "'context'")
                        yield {**found, "title": title, "context": context, "answers": _answers(entry)}, None
                    except Malformed as error:
                        yield None, error
    except Malformed as error:
        yield None, error


def _list(holder: object, key: str) -> list:
    found = pick(holder, key, repr(key))
    if not isinstance(found, list):
        raise Malformed(f": {key!r} is a JSON {type(found).__name__}, expected a list.")
    return found


def _answers(entry: dict) -> list:
    if entry.get("is_impossible"):
        return []
    answers = _list(entry, "answers")
    if not answers and "is_impossible" not in entry:
        raise Malformed(f": {entry['id']!r} has no answer, and does not say by is_impossible that there is none.")
    return answers
