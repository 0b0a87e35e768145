"""Dataclasses as schemas: what each field may hold, read strictly from JSON, recipes and command lines.

A schema is a frozen dataclass whose fields all have defaults. A field holds a bool, int, float or str, one
of these or None, a duration (`int | str`), a tuple of any of these, another schema, or a choice: a union of
schemas that are told apart by their field `name`. A plain tree is the same thing as JSON has it: dicts,
lists, scalars. Nothing here knows a particular schema.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from data.errors import ConfigError
from data.files import canonical_json

HASH_DIGITS = 10  # 40 bits: two of a thousand different configurations meet once in two million times
LARGEST_INT = 2**63 - 1
UNITS = {"step": "steps", "token": "tokens", "epoch": "epochs", "%": "%"}
DURATION = re.compile(r"\s*(\d+(?:\.\d*)?(?:[eE]\+?\d{1,2})?)\s*(?:(step|token|epoch)s?|(%))\s*")
DURATION_SHAPE = 'a number of steps, or text such as "500 steps", "1e6 tokens", "2 epochs", "10%"'


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the type of a field does not say: which of its values can be."""

    holds: Callable[[Any], bool]
    wanted: str  # completes "must be"


COUNT = Rule(lambda value: value >= 1, "at least 1")
POSITIVE = Rule(lambda value: value > 0, "above 0")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "at least 0")
SHARE = Rule(lambda value: 0 <= value <= 1, "at least 0 and at most 1")
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")


def one_of(*values: str) -> Rule:
    return Rule(lambda value: value in values, f"one of {', '.join(values)}")


@functools.cache
def hints(schema: type) -> dict[str, Any]:
    """The declared type of each field of `schema`, in the order of declaration."""
    resolved = typing.get_type_hints(schema)
    return {field.name: resolved[field.name] for field in dataclasses.fields(schema)}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; the hint alone where it is none."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def variants(hint: Any) -> tuple[type, ...]:
    """The schemas a field may hold: one for a section, several for a choice, none for a value or a tuple."""
    members = alternatives(hint)
    return members if all(dataclasses.is_dataclass(member) for member in members) else ()


def variant_name(schema: type) -> str:
    """The name that selects `schema` in a choice: the default of its field `name`."""
    return next(field.default for field in dataclasses.fields(schema) if field.name == "name")


def entry_hint(hint: Any) -> Any | None:
    """`T` of `tuple[T, ...]`; None for any other hint."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def join(path: str, key: str | int) -> str:
    return f"{path}.{key}" if path else str(key)


def nearest(path: str, candidates: Iterable[str]) -> str:
    """`; did you mean X?` for the valid path closest to `path`, or nothing."""
    candidates = list(candidates)
    last = path.rpartition(".")[2]
    pool = [candidate for candidate in candidates if candidate.rpartition(".")[2] == last]
    if pool:
        found = difflib.get_close_matches(path, pool, n=1, cutoff=0.0)
    else:
        found = difflib.get_close_matches(path, candidates, n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else ""


def unknown_key(
    schema: type, key: str, path: str, choices: tuple[type, ...] = (), elsewhere: Iterable[str] = ()
) -> str:
    """Why `key` is no field of the `schema` at `path`, and what was meant: here, in a variant, elsewhere."""
    full, names = join(path, key), list(hints(schema))
    listed = f"The fields of {path or 'the configuration'} are {', '.join(names)}"
    owners = [variant_name(choice) for choice in choices if key in hints(choice)]
    if owners:
        return (
            f"{full} is unknown where {path}.name is {variant_name(schema)}; {key} belongs to "
            f"{' and '.join(owners)}, so set {path}.name first. {listed}"
        )
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    meant = f"; did you mean {join(path, close[0])}?" if close else nearest(full, elsewhere)
    return f"{full} is unknown{meant or '.'} {listed}"


def split_duration(value: int | str) -> tuple[Fraction, str]:
    """Amount and unit (steps, tokens, epochs, %) of a duration, exactly; ValueError on another shape."""
    if isinstance(value, int):
        if isinstance(value, bool) or not 0 <= value <= LARGEST_INT:
            raise ValueError(f"must be {DURATION_SHAPE}")
        return Fraction(value), "steps"
    match = DURATION.fullmatch(value)
    if match is None:
        raise ValueError(f"must be {DURATION_SHAPE}")
    amount, unit = Fraction(match[1]), UNITS[match[2] or match[3]]
    if unit == "steps" and amount.denominator != 1:
        raise ValueError("must be a whole number of steps")
    return amount, unit


def _refuse(path: str, value: Any, wanted: str):
    raise ConfigError(f"{path} is {json.dumps(value, default=repr)}, must be {wanted}")


def _read_int(value: Any, path: str) -> int:
    whole = isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not (isinstance(value, int) or whole) or abs(value) > LARGEST_INT:
        _refuse(path, value, "an integer")
    return int(value)


def _read_float(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(path, value, "a finite number")
    return float(value)


def _read_exact(kind: type, wanted: str):
    def read(value: Any, path: str):
        if not isinstance(value, kind):
            _refuse(path, value, wanted)
        return value

    return read


def _read_duration(value: Any, path: str) -> int | str:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int | str):
        _refuse(path, value, DURATION_SHAPE)
    try:
        split_duration(value)
    except ValueError as error:
        raise ConfigError(f"{path} is {json.dumps(value)}, {error}") from None
    return value


SCALARS = {
    frozenset({bool}): _read_exact(bool, "true or false"),
    frozenset({int}): _read_int,
    frozenset({float}): _read_float,
    frozenset({str}): _read_exact(str, "text"),
    frozenset({int, str}): _read_duration,
}


def scalar_types(hint: Any) -> tuple[frozenset[type], bool]:
    """The types a value may have, and whether it may be None; TypeError on a hint that no field can have."""
    members = set(alternatives(hint))
    kinds = frozenset(members - {types.NoneType})
    if kinds not in SCALARS:
        raise TypeError(f"a configuration field cannot be declared as {hint}")
    return kinds, types.NoneType in members


def read(hint: Any, value: Any, path: str, default: Any = None) -> Any:
    """The value of a field declared as `hint`, from a plain tree or from instances of schemas.

    `default` is the instance whose fields stand where a given section is silent. Raises ConfigError naming
    the path, the value and what would be valid.
    """
    if variants(hint):
        return _read_section(variants(hint), value, path, default)
    entry = entry_hint(hint)
    if entry is not None:
        if not isinstance(value, list | tuple):
            _refuse(path, value, "a list")
        return tuple(read(entry, item, join(path, index)) for index, item in enumerate(value))
    kinds, optional = scalar_types(hint)
    if value is None and optional:
        return None
    return SCALARS[kinds](value, path)


def _read_section(choices: tuple[type, ...], value: Any, path: str, default: Any) -> Any:
    if dataclasses.is_dataclass(value):
        if type(value) not in choices:
            allowed = " or ".join(choice.__name__ for choice in choices)
            raise ConfigError(f"{path} is {type(value).__name__}(...), must be {allowed}")
        value = to_plain(value)
    if not isinstance(value, Mapping):
        _refuse(path or "the configuration", value, "a mapping of fields to values")
    schema = choices[0] if len(choices) == 1 else choose(choices, value.get("name"), path, default)
    base = default if type(default) is schema else schema()
    fields = hints(schema)
    for key in value:
        if key not in fields:
            raise ConfigError(unknown_key(schema, key, path, choices))
    given = {key: read(fields[key], item, join(path, key), getattr(base, key)) for key, item in value.items()}
    return dataclasses.replace(base, **given)


def choose(choices: tuple[type, ...], name: Any, path: str, default: Any = None) -> type:
    """The schema that `name` selects; without a name, the one of `default`."""
    names = {variant_name(choice): choice for choice in choices}
    if name is None and type(default) in choices:
        return type(default)
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
        meant = f"; did you mean {close[0]}?" if close else ""
        found = "missing" if name is None else json.dumps(name, default=repr)
        raise ConfigError(f"{join(path, 'name')} is {found}, must be one of {', '.join(names)}{meant}")
    return names[name]


def from_plain(schema: type, mapping: Mapping) -> Any:
    """The instance of `schema` that a plain tree describes; defaults fill what is missing."""
    return read(schema, mapping, "", schema())


def to_plain(value: Any) -> Any:
    """The complete plain tree of an instance: what `from_plain` reads and `json` writes."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """`{dotted path: value}` of a plain tree, in its order; lists of scalars and empty lists are values."""
    if isinstance(tree, Mapping):
        items: Iterable = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, Mapping) for item in tree):
        items = enumerate(tree)
    else:
        return {path: tree}
    return {key: value for name, item in items for key, value in flatten(item, join(path, name)).items()}


def leaves(hint: Any, path: str = "") -> list[str]:
    """The dotted path of every field that can hold a value, those of all variants; `*` is any entry."""
    if variants(hint):
        parts = [(join(path, key), item) for schema in variants(hint) for key, item in hints(schema).items()]
    elif entry_hint(hint) is not None and variants(entry_hint(hint)):
        parts = [(join(path, "*"), entry_hint(hint))]
    else:
        return [path]
    return list(dict.fromkeys(leaf for name, item in parts for leaf in leaves(item, name)))


def entry_path(path: str) -> str:
    """`path` as `leaves` spells it: `*` in place of each index."""
    return ".".join("*" if key.isdecimal() else key for key in path.split("."))


def refusals(instance: Any, rules: Mapping[str, Rule]) -> list[tuple[str, str]]:
    """`(path, clash)` of each value that breaks the rule of its path; None breaks none."""
    return [
        (path, f"is {json.dumps(value)}, must be {rule.wanted}")
        for path, value in flatten(to_plain(instance)).items()
        if value is not None and (rule := rules.get(entry_path(path))) and not rule.holds(value)
    ]


def dumps(instance: Any) -> str:
    """One `path = JSON value` line for each value, in the order of declaration."""
    lines = (f"{path} = {json.dumps(value)}\n" for path, value in flatten(to_plain(instance)).items())
    return "".join(lines)


def config_hash(instance: Any) -> str:
    """Ten hexadecimal digits of the SHA-256 of the complete tree as canonical JSON."""
    return hashlib.sha256(canonical_json(to_plain(instance))).hexdigest()[:HASH_DIGITS]


def parse(hint: Any, text: str, path: str) -> Any:
    """The plain value that `text` of a command line spells for a field declared as `hint`.

    `1e3` is an int; true and false are booleans; none or null empties an optional field; a tuple of values is
    a comma list or JSON, anything deeper JSON. Raises ConfigError on text that spells nothing of that type;
    text that reads as another type's value is left to `read` to refuse.
    """
    entry = entry_hint(hint)
    if variants(hint) or (entry is not None and (variants(entry) or text.lstrip().startswith("["))):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path} is {text!r}, must be JSON here: {error}") from None
    if entry is not None:
        items = text.split(",") if text else []
        return [parse(entry, item.strip(), join(path, index)) for index, item in enumerate(items)]
    kinds, optional = scalar_types(hint)
    if optional and text.lower() in ("none", "null"):
        return None
    if kinds == {bool}:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kinds == {str}:
        return text
    if kinds == {float}:
        number = _number(text)
        return text if number is None else float(number)
    number = _number(text)
    return int(number) if number is not None and number == number.to_integral_value() else text


def _number(text: str) -> Decimal | None:
    """The finite number that `text` spells, exactly; None where it spells none or one beyond every use."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number.adjusted()) < 400 else None
