"""What is tokenized already, opened for a recipe: a token store, or the files of another tool (`data.layouts`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from data import mirror, tokenizer
from data.config import Data
from data.errors import ConfigError, DataError
from data.layouts.opened import open_layout, tell_layout
from data.source_config import StoredSource
from data.store import Store, Stream
from data.store_format import HEADER
from data.tokenizer_config import ByteTokenizer, FileTokenizer

PLUMBLINE = "plumbline"


def open_stored(config: Data, marks: Sequence[str]) -> tuple[Stream, Stream | None]:
    """The training and the held-out stream that `config.source`, a StoredSource, names.

    `marks`: what the objective reads beside ids. Raises ConfigError where the recipe cannot read what is there,
    DataError where that is damaged.
    """
    source: StoredSource = config.source
    held_out = open_path(config, source.validation_path) if source.validation_path else None
    train = open_path(config, source.path)
    for path, found in ((source.path, train), (source.validation_path, held_out)):
        absent = [name for name in marks if found is not None and name not in found.marks]
        if absent:
            raise ConfigError(
                f"{path} has no marks of {' and '.join(absent)}, which data.objective.name={config.objective.name} "
                "reads as it is set. They are made from text: read the text itself, or choose another objective."
            )
    if held_out is not None and train.tokenizer.fingerprint != held_out.tokenizer.fingerprint:
        raise DataError(f"{source.path} and {source.validation_path} are ids of different tokenizers.")
    return train, held_out


def open_path(config: Data, path: str) -> Stream:
    """The stream at `path`, which may be a URL: then it is copied below `config.cache_dir` first."""
    source: StoredSource = config.source
    local = mirror.local(path, config.cache_dir)
    layout = _layout(local) if source.layout == "auto" else source.layout
    given = isinstance(config.tokenizer, FileTokenizer | ByteTokenizer)
    if layout == PLUMBLINE:
        store = Store(local)
        if given and (made := tokenizer.build(config.tokenizer, ())).fingerprint != store.tokenizer.fingerprint:
            raise ConfigError(
                f"data.tokenizer.name={config.tokenizer.name} is another tokenizer than the one that made {path}: "
                f"fingerprint {made.fingerprint[:12]}, there {store.tokenizer.fingerprint[:12]}. Set "
                f"data.tokenizer.path to {store.directory / 'tokenizer.json'}, whose end of text is "
                f"{store.tokenizer.end_of_text_token!r}."
            )
        return store
    if not given:
        raise ConfigError(
            f"data.tokenizer.name is {config.tokenizer.name}, which is trained on text; the files of {path} hold ids "
            "and not the tokenizer that made them. Set data.tokenizer.name=file and data.tokenizer.path to it."
        )
    return open_layout(local, layout, source.dtype, tokenizer.build(config.tokenizer, ()), config.cache_dir)


def _layout(path: str) -> str:
    if os.path.exists(os.path.join(path, HEADER)):
        return PLUMBLINE
    stores = sorted(header.parent.name for header in Path(path).glob(f"*/{HEADER}")) if os.path.isdir(path) else []
    if stores:
        raise ConfigError(f"{path} holds the token stores {' and '.join(stores)}; data.source.path must name one.")
    return tell_layout(path)
