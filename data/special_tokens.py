"""Special tokens inside a parsed tokenizer.json: adding them, and keeping them out of reach of plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

import tokenizers

from data.errors import DataError

END_OF_TEXT = "<|endoftext|>"
CUTTING = {"behavior": "MergedWithPrevious", "invert": False}
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
HEXADECIMAL = "0123456789ABCDEF"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how the bytes of what is no piece are named
BYTE_NAME = ("<", "0", "x", HEXADECIMAL, HEXADECIMAL, ">")


def with_special(added: Sequence[dict], token: str, index: int) -> list[dict]:
    """The added tokens with `token` among them as a special one.

    Unless it is, the library looks for it inside text and spells it out when it decodes.
    """
    if all(entry["content"] != token for entry in added):
        return [*added, {"id": index, "content": token, **FLAGS, "special": True}]
    return [{**entry, "special": entry["special"] or entry["content"] == token} for entry in added]


def extended(content: dict, tokens: Iterable[str]) -> dict:
    """A tokenizer.json in which `tokens` are special: with the ids they have, or those behind the largest, in order.

    ValueError where the library would give them other ids, because those that are taken have gaps.
    """
    vocabulary, new = vocabulary_of(content), {}
    added = {entry["content"]: entry for entry in content.get("added_tokens") or []}
    following = max(vocabulary.values()) + 1
    for token in tokens:
        if token not in vocabulary:
            vocabulary[token] = new[token] = following
            following += 1
        entry = added.get(token, {"id": vocabulary[token], "content": token, **FLAGS})
        added[token] = {**entry, "special": True}
    content = {**content, "added_tokens": [*added.values()]}
    words = content["model"]["vocab"]
    if vocabulary_of(content) != vocabulary and isinstance(words, dict):  # what the model has, has its id
        content = {**content, "model": {**content["model"], "vocab": {**words, **new}}}
    if vocabulary_of(content) != vocabulary:
        raise ValueError("the ids of its vocabulary have gaps, behind which no special token can be added")
    return content


def vocabulary_of(content: dict) -> dict[str, int]:
    """{token: id} of a tokenizer.json, added tokens included."""
    return tokenizers.Tokenizer.from_str(json.dumps(content)).get_vocab(with_added_tokens=True)


def guarded(content: dict, tokenizer: tokenizers.Tokenizer) -> dict:
    """A tokenizer.json in which no text becomes a special token, or one of the bytes of what is no piece, by its name.

    A unigram model looks for every piece of its vocabulary, these among them; so their names are cut where text has
    them. `tokenizer` is made of `content`, and takes what spells a special token for text. DataError where such a
    name is a single character, which cannot be cut.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    names = {entry["content"] for entry in content["added_tokens"] if entry["special"]}
    if content["model"].get("byte_fallback"):
        names |= {name for name in vocabulary if BYTE.fullmatch(name)}
    reached = {name for name in names if _reaches(tokenizer, name, vocabulary[name])}
    if not reached:
        return content
    whole = min(reached, key=len)
    if len(whole) == 1:
        raise DataError(
            f"The tokenizer has a special token {whole!r}, a character that text may hold, so that text could become "
            'it. Say "special": false of it in its added_tokens, or choose another token to begin documents.'
        )
    before = content.get("pre_tokenizer")
    parts = before["pretokenizers"] if before and before["type"] == "Sequence" else [before] if before else []
    split = {"type": "Split", "pattern": {"Regex": cut(reached, vocabulary.keys() - names)}, **CUTTING}
    return {**content, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*parts, split]}}


def _reaches(tokenizer: tokenizers.Tokenizer, name: str, index: int) -> bool:
    """Whether text that is `name` becomes the token; not whether it holds what is unknown, were that its id."""
    encoding = tokenizer.encode(name, add_special_tokens=False)
    return (index, (0, len(name))) in zip(encoding.ids, encoding.offsets, strict=True)


def cut(names: Iterable[str], pieces: Iterable[str]) -> str:
    """A regular expression that matches the beginning of each of `names`, behind which text is to be cut.

    That is between two characters that stand side by side in none of `pieces`, and of which one is a piece, if
    there are such: then the cut changes no id of any text. Two that are none would be unknown as one.
    """
    pieces = set(pieces)
    pairs = {text[place : place + 2] for text in pieces for place in range(len(text) - 1)}
    spelt = {tuple(BYTE_NAME) if BYTE.fullmatch(name) else tuple(name) for name in names}
    ends: dict[str, list[str]] = {}
    for classes in sorted(spelt):
        sides = ((classes[place - 1], classes[place]) for place in range(1, len(classes)))
        costs = [(_met(*side, pairs), not pieces & {*side[0], *side[1]}) for side in sides]
        place = 1 + costs.index(min(costs))
        start, rest = (("".join(map(_regex, part))) for part in (classes[:place], classes[place:]))
        ends.setdefault(start, []).append(rest)
    return "|".join(f"{start}(?={'|'.join(rest)})" for start, rest in ends.items())


def _met(left: str, right: str, pairs: set[str]) -> bool:
    return any(first + second in pairs for first in left for second in right)


def _regex(characters: str) -> str:
    return re.escape(characters) if len(characters) == 1 else f"[{characters}]"
