"""Fields of records: found by name, checked to be text, and the place of a record for errors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Malformed(ValueError):
    """Completes "FILE, line 12": what is wrong with the record there."""


class Place(NamedTuple):
    """Where a record stands. Prints as "FILE, line 12"; lines before a part are counted only then."""

    path: str
    unit: str  # line, row, record, example
    number: int  # from 1
    behind: int = 0  # bytes of the file before the first line that is counted

    def __str__(self):
        return f"{self.path}, {self.spot()}"

    def spot(self) -> str:
        """Where in the file."""
        if not self.behind:
            return f"{self.unit} {self.number}"
        if not os.path.exists(self.path):  # of another machine
            return f"{self.unit} {self.number} behind byte {self.behind}"
        return f"{self.unit} {self.number + _lines_before(self.path, self.behind)}"


def _lines_before(path: str, stop: int) -> int:
    lines = 0
    with open(path, "rb") as file:
        while stop > 0 and (content := file.read(min(stop, 1 << 22))):
            lines += content.count(b"\n")
            stop -= len(content)
    return lines


def pick(record: object, name: str, key: str) -> object:
    """The value of a field; `meta.text` is the field `text` of the object `meta`, unless one is named so itself.

    `key` names it in errors. Raises Malformed, with the names there are, when there is none.
    """
    if not isinstance(record, Mapping):
        raise Malformed(f" holds a JSON {type(record).__name__}, expected an object with a key {name!r}.")
    if name in record:
        return record[name]
    value, path = record, ""
    for step in name.split("."):
        if not isinstance(value, Mapping) or step not in value:
            names = ", ".join(map(repr, value)) if isinstance(value, Mapping) else "none"
            keys = f"the keys of {path!r}" if path else "its keys"
            raise Malformed(f" has no key {key}; {keys} are {names or 'none'}.")
        value, path = value[step], f"{path}.{step}" if path else step
    return value


def text_of(value: object, key: str) -> str:
    """A value that is text, as str; bytes are UTF-8. Raises Malformed on anything else, and on nothing."""
    if isinstance(value, bytes):
        value = _decoded(value, key)
    if not isinstance(value, str):
        raise Malformed(f": {key} is {json.dumps(value, default=repr)[:80]}, expected text.")
    _check_unicode(value, key)
    if not value or value.isspace():
        raise Malformed(f": {key} is empty.")
    return value


def plain(value: object, key: str) -> object:
    """A value as JSON has it: arrays as lists, bytes as text. Raises Malformed where JSON has no such thing."""
    if isinstance(value, str):
        _check_unicode(value, key)
        return value
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes):
        return _decoded(value, key)
    if isinstance(value, Mapping):
        return {plain(name, key): plain(item, key) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, key) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), key)
    raise Malformed(f": {key} is {type(value).__name__}, expected text, a number, a list or an object.")


def _decoded(value: bytes, key: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f": {key} is not UTF-8: byte {error.start} of it is 0x{value[error.start]:02x}.") from error


def _check_unicode(text: str, key: str):
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Malformed(
            f": {key} holds half of a surrogate pair at character {error.start}, which is no text."
        ) from error
