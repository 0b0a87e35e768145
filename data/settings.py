"""Recipes: a file in, overrides applied, one checked instance of a schema out.

A recipe `FILE.py` defines `get_config()` or `get_config(arg)`, starts from the complete tree
(`to_config_dict(Schema())`) and sets what differs. `FILE.json` holds a whole tree or a part of one, such as
the `config.json` of a run. Overrides are `--config.a.b=value`. Whatever cannot be is a ConfigError of one
paragraph that names the file and line or the override, the key, its value and what would be valid.
"""

from __future__ import annotations

import inspect
import json
import re
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from data.errors import ConfigError
from data.schema import (
    choose,
    config_hash,
    dumps,
    entry_hint,
    flatten,
    from_plain,
    hints,
    join,
    leaves,
    nearest,
    parse,
    read,
    scalar_types,
    to_plain,
    unknown_key,
    variants,
)

__all__ = [
    "config_hash",
    "dumps",
    "flatten",
    "from_plain",
    "leaves",
    "load",
    "to_config_dict",
    "to_plain",
]

PREFIX = "--config."
SPEC = re.compile(r"(?P<path>.+?\.(?:py|json))(?::(?P<arg>.*))?")


class Section(ConfigDict):
    """A locked ConfigDict that knows its schema: what is assigned is checked where it is assigned.

    Sections and choices also take an instance of their schema: `config.optim.optimizer = Lion()`. Assigning
    the `name` of a choice brings that variant's fields and defaults, so it stands before them.
    """

    def __setitem__(self, key, value):
        if not self.is_locked:  # filling
            super().__setitem__(key, value)
            return
        fields = hints(type(self._instance))
        if key not in fields:
            raise ConfigError(unknown_key(type(self._instance), key, self._path, self._choices))
        if isinstance(value, FieldReference):
            super().__setitem__(key, value)
            return
        path, hint = join(self._path, key), fields[key]
        value = read(hint, _plain(value), path)
        if key == "name" and len(self._choices) > 1:
            self._switch(choose(self._choices, value, self._path))
        elif variants(hint):
            super().__setitem__(key, _section(value, variants(hint), path).lock())
        else:
            super().__setitem__(key, value)

    def __getattr__(self, attribute):
        if not attribute.startswith("_") and attribute not in self._fields:
            raise AttributeError(unknown_key(type(self._instance), attribute, self._path, self._choices))
        return super().__getattr__(attribute)

    def _switch(self, schema: type):
        if schema is type(self._instance):
            return
        original = to_plain(self._instance)
        changed = [key for key, value in to_plain(_plain(self)).items() if value != original[key]]
        if changed:
            raise ConfigError(
                f"{self._path}.name is set after {join(self._path, changed[0])}, which it would throw away; "
                f"set name first, or assign the whole choice: config.{self._path} = {schema.__name__}(...)"
            )
        with self.unlocked():
            for key in list(self):
                del self[key]
            _fill(self, schema(), self._choices, self._path)


def _fill(section: Section, instance: Any, choices: tuple[type, ...], path: str):
    for name, value in (("_instance", instance), ("_choices", choices), ("_path", path)):
        object.__setattr__(section, name, value)
    for key, hint in hints(type(instance)).items():
        value = getattr(instance, key)
        if variants(hint):
            section[key] = _section(value, variants(hint), join(path, key))
        elif entry_hint(hint) is not None:
            section[key] = value
        else:
            kinds, optional = scalar_types(hint)
            kind = next(iter(kinds)) if len(kinds) == 1 else object
            section[key] = FieldReference(value, field_type=kind) if optional or kind is object else value


def _section(instance: Any, choices: tuple[type, ...], path: str) -> Section:
    section = Section(sort_keys=False)
    _fill(section, instance, choices, path)
    return section


def to_config_dict(instance: Any) -> ConfigDict:
    """The complete ConfigDict of an instance, locked, type-safe; optional fields are typed placeholders."""
    return _section(instance, (type(instance),), "").lock()


def _plain(value: Any) -> Any:
    """What a recipe holds without its ConfigDicts; instances of schemas stay, so that `read` sees their class."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def load(spec: str, overrides: Sequence[str], schema: type, ignore_other_sections: bool = False) -> Any:
    """The instance of `schema` that a recipe and the overrides on its command line describe.

    Args:
        spec: `FILE.py`, `FILE.py:arg` or `FILE.json`.
        overrides: strings `--config.a.b=value`, in any order.
        schema: a dataclass whose fields all have defaults.
        ignore_other_sections: leave out the recipe's sections that `schema` lacks, and overrides of them.

    Raises:
        ConfigError: on anything that cannot be.
    """
    tree = read_spec(spec)
    others: set[str] = set()
    if ignore_other_sections:
        others = set(tree) - set(hints(schema))
        tree = {key: value for key, value in tree.items() if key not in others}
    try:
        instance = from_plain(schema, tree)
    except ConfigError as error:
        raise ConfigError(f"{spec}: {error}") from None
    given = [item for item in _split_overrides(overrides, schema) if item[0][0] not in others]
    return apply_overrides(instance, given) if given else instance


def _split_overrides(overrides: Sequence[str], schema: type) -> list[tuple[list[str], str]]:
    """`(keys, text)` of each override, those first that decide which fields others have."""
    texts: dict[str, str] = {}
    for override in overrides:
        path, equals, text = override.removeprefix(PREFIX).partition("=")
        if not override.startswith(PREFIX):
            meant = nearest(path.lstrip("-"), leaves(schema)) if override.startswith("--") else ""
            raise ConfigError(
                f"{override!r} is not an argument of this command; settings are overridden with "
                f"{PREFIX}section.field=value{meant}"
            )
        if not equals:
            raise ConfigError(f"{override!r} has no value; write {override}=value, joined by =")
        if not all(path.split(".")):
            raise ConfigError(f"{override!r} has an empty key; write {PREFIX}section.field=value")
        if texts.setdefault(path, text) != text:
            raise ConfigError(f"{PREFIX}{path} is given twice, as {texts[path]} and {text}; keep one")
    split = [(path.split("."), text) for path, text in texts.items()]
    return sorted(split, key=lambda item: (len(item[0]), item[0][-1] != "name"))


def apply_overrides(instance: Any, overrides: Sequence[tuple[list[str], str]]) -> Any:
    """`instance` with each `(keys, text)` parsed by its field's type, in an order where names come first."""
    tree, schema = to_plain(instance), type(instance)
    for keys, text in overrides:
        try:
            container, hint, choices = _locate(schema, tree, keys)
            path, key = ".".join(keys), keys[-1]
            value = to_plain(read(hint, parse(hint, text, path), path))
            if key == "name" and len(choices) > 1:
                chosen = choose(choices, value, ".".join(keys[:-1]))
                if value != container["name"]:
                    container.clear()
                    container.update(to_plain(chosen()))
            else:
                container[int(key) if isinstance(container, list) else key] = value
        except ConfigError as error:
            raise ConfigError(f"{PREFIX}{'.'.join(keys)}={text}: {error}") from None
    return from_plain(schema, tree)


def _locate(schema: type, tree: Any, keys: list[str]) -> tuple[Any, Any, tuple[type, ...]]:
    """The dict or list that holds the last key, the type of what stands there, the holder's variants."""
    hint, node, path, holder, choices = schema, tree, "", tree, ()
    for key in keys:
        holder, choices, entry = node, variants(hint), entry_hint(hint)
        if choices:
            cls = choices[0] if len(choices) == 1 else choose(choices, node["name"], path)
            if key not in hints(cls):
                raise ConfigError(unknown_key(cls, key, path, choices, leaves(schema)))
            hint, node = hints(cls)[key], node[key]
        elif entry is not None:
            if not (key.isdecimal() and int(key) < len(node)):
                raise ConfigError(f"{path} holds {len(node)} entries, counted from 0; it has no entry {key}")
            hint, node = entry, node[int(key)]
        else:
            raise ConfigError(f"{path} holds a single value; it has no field {key}")
        path = join(path, key)
    return holder, hint, choices


def read_spec(spec: str) -> dict[str, Any]:
    """The plain tree of a recipe or a JSON file."""
    match = SPEC.fullmatch(spec)
    if match is None:
        raise ConfigError(f"--config is {spec!r}, must be FILE.py, FILE.py:arg or FILE.json")
    path, arg = Path(match["path"]), match["arg"]
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = nearest(path.name, (entry.name for entry in path.parent.glob("*.*")))
        raise ConfigError(f"--config is {spec}, but there is no file {path}{near}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config is {spec}, but {path} cannot be read: {error}") from None
    if path.suffix == ".json":
        if arg is not None:
            raise ConfigError(f"--config is {spec}, but a JSON file takes no argument; write {path}")
        return _read_json(path, text)
    return _run_recipe(spec, path, text, arg)


def _read_json(path: Path, text: str) -> dict[str, Any]:
    def refuse_duplicates(pairs):
        keys = [key for key, _ in pairs]
        repeated = {key for key in keys if keys.count(key) > 1}
        if repeated:
            raise ValueError(f"the key {sorted(repeated)[0]!r} is given twice")
        return dict(pairs)

    try:
        tree = json.loads(text, object_pairs_hook=refuse_duplicates)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}, must hold an object of sections")
    return tree


def _run_recipe(spec: str, path: Path, text: str, arg: str | None) -> dict[str, Any]:
    """What `get_config` returns, the file being compiled here so that no bytecode is left beside it."""
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
        get_config = module.__dict__.get("get_config")
        if not callable(get_config):
            raise ConfigError("a recipe must define get_config(arg=None), and this one does not")
        if arg is not None and not inspect.signature(get_config).parameters:
            raise ConfigError(f"this recipe takes no argument; write {path}")
        config = get_config() if arg is None else get_config(arg)
        if not isinstance(config, ConfigDict):
            raise ConfigError(f"get_config must return a ConfigDict, and it returned {type(config).__name__}")
        return _plain(config)
    except Exception as error:
        raise ConfigError(f"{spec}{_line(error, str(path))}: {_reason(error)}") from error


def _line(error: Exception, path: str) -> str:
    """`, line N` of the recipe where the error arose, if it arose there."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""


def _reason(error: Exception) -> str:
    message = " ".join(str(error).split())
    return message if isinstance(error, ConfigError | ValueError) else f"{type(error).__name__}: {message}"
