"""Builds the token stores that a recipe reads: `python -m data.prepare --config FILE.py[:arg]`.

They lie in `data.cache_dir`, as `stores/<hash of source and tokenizer>/{train,validation}`. A store is
current while the identity of its source and tokenizer is; otherwise it is built anew. The tokenizer is
trained on the training documents alone and kept inside each store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from data import sources, store, tokenizer
from data.build import build, clean
from data.cli import Parser, run_command
from data.config import Data, check, missing_inputs
from data.errors import ConfigError, DataError, UserError
from data.files import canonical_json, locked, storage_errors, sync
from data.mixture_config import Component, MixtureSource
from data.objectives import check_tokenizer, columns_of, encoder_of, marks_of, stored_of, texts_of
from data.schema import to_plain
from data.settings import load
from data.source_config import StoredSource
from data.store import Store, Stream
from data.store_format import VERSION
from data.stored import open_stored
from data.tokenizer import Tokenizer
from data.tokenizer_config import ByteTokenizer, FileTokenizer, TokenizerConfig

HASH_DIGITS = 16
SPLITS = ("train", "validation")
KEPT_TOKENIZER = ".tokenizer-"  # how the file of a trained tokenizer begins while the stores are being built


@dataclass(frozen=True)
class Stores:
    """What one source has become."""

    train: Stream
    validation: Stream | None  # None: nothing is held out


@dataclass(frozen=True)
class Prepared:
    """The stores of each source by name, in the order of the configuration, and the tokenizer of them all."""

    sources: dict[str, Stores]
    tokenizer: Tokenizer

    @property
    def train(self) -> Stream:
        """The training store where there is one source."""
        return self._only.train

    @property
    def validation(self) -> Stream | None:
        """The held-out store where there is one source."""
        return self._only.validation

    @property
    def _only(self) -> Stores:
        (stores,) = self.sources.values()
        return stores

    @property
    def fingerprint(self) -> str:
        """Of all training text: a store's own, or one of the names and fingerprints of several."""
        found = {name: stores.train.fingerprint for name, stores in self.sources.items()}
        return self.train.fingerprint if len(found) == 1 else hashlib.sha256(canonical_json(found)).hexdigest()


@dataclass(frozen=True)
class Section:
    """The part of a recipe that this command reads."""

    data: Data = Data()


def prepare(config: Data, vocab_size: int | None = None) -> Prepared:
    """Opens the stores of `config`, or builds what is missing or no longer current.

    Safe to call from several processes at once: one builds, the others wait and open. Nothing is written
    before the source was found able to give its first documents. With `config.verify` every byte is
    checked, but for files of large stores that were found whole before and not written to since.
    `vocab_size`: ids of the model that shall read the stores; a token beyond them is a DataError, before any
    text is tokenized where the tokenizer's file tells.

    Each component of a mixture has stores of its own. A tokenizer that is trained, is trained on the training
    documents of all of them, so that another component makes all of them anew; one from a file leaves the others.

    Raises ConfigError, DataError, StorageError.
    """
    problems = check(config) + missing_inputs(config)
    if problems:
        raise ConfigError(" ".join(f"data.{key} {clash}." for key, clash in problems))
    if not isinstance(config.source, MixtureSource):
        stores = _prepare(config, vocab_size)
        return Prepared({config.source.name: stores}, stores.train.tokenizer)
    config = dataclasses.replace(config, tokenizer=_shared_tokenizer(config))
    found = {}
    for component in config.source.components:
        with _naming(component):
            found[component.name] = _prepare(dataclasses.replace(config, source=component.source), vocab_size)
    return Prepared(found, next(iter(found.values())).train.tokenizer)


def _prepare(config: Data, vocab_size: int | None) -> Stores:
    """The stores of one source, checked."""
    if isinstance(config.source, StoredSource):
        if vocab_size is not None and isinstance(config.tokenizer, FileTokenizer):
            _check_tokenizer(config, tokenizer.build(config.tokenizer, ()), vocab_size)
        prepared = Stores(*open_stored(config, marks_of(config.objective)))
    else:
        prepared = _built(config, vocab_size)
    for opened in filter(None, (prepared.train, prepared.validation)):
        if config.verify:
            opened.verify(every_byte=False)
        if vocab_size is not None:
            store.check_vocabulary(opened, vocab_size)
    return prepared


def _built(config: Data, vocab_size: int | None) -> Stores:
    """The stores that a source of text has become; made here where they are missing or no longer current."""
    reader = sources.reader(config.source, config.cache_dir, columns_of(config.objective))
    loaded = tokenizer.build(config.tokenizer, ()) if isinstance(config.tokenizer, FileTokenizer) else None
    identity = _identity(config, reader, loaded)
    directory = Path(config.cache_dir) / "stores" / _name(config)
    prepared = _opened(directory, identity, reader.has_validation())
    if prepared is None:
        reader.check()
        if vocab_size is not None and loaded is not None:
            _check_tokenizer(config, loaded, vocab_size)
        waiting = f"prepare: waiting for another process that prepares {directory}"
        with locked(directory.parent / f".{directory.name}.lock", waiting):
            prepared = _opened(directory, identity, reader.has_validation())
            if prepared is None:
                _build(directory, config, reader, identity, loaded)
                prepared = _opened(directory, identity, reader.has_validation())
    _clean(directory)
    return prepared


@contextlib.contextmanager
def _naming(component: Component) -> Iterator[None]:
    """Says of which component of a mixture an error is."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"Component {component.name!r} of data.source: {error}") from error


def _shared_tokenizer(config: Data) -> TokenizerConfig:
    """The tokenizer of a mixture; one that must be trained is, on all components, and kept in `data.cache_dir`."""
    if isinstance(config.tokenizer, FileTokenizer | ByteTokenizer):
        return config.tokenizer
    readers = []
    for component in config.source.components:
        with _naming(component):
            readers.append(sources.reader(component.source, config.cache_dir, columns_of(config.objective)))
    components = [dataclasses.replace(config, source=component.source) for component in config.source.components]
    settings = [[_name(one), sources.identity(reader)] for one, reader in zip(components, readers, strict=True)]
    name = hashlib.sha256(canonical_json(settings)).hexdigest()[:HASH_DIGITS]
    path = Path(config.cache_dir) / "tokenizers" / f"{name}.json"
    with locked(path.with_suffix(".lock"), f"prepare: waiting for another process that trains {path}"):
        if not path.exists():
            for component, reader in zip(config.source.components, readers, strict=True):
                with _naming(component):
                    reader.check()
            _say(f"the {config.tokenizer.name} tokenizer from all components of data.source")
            documents = chain.from_iterable(reader.documents("train") for reader in readers)
            made = tokenizer.build(config.tokenizer, texts_of(config.objective, documents))
            made.save(path.with_suffix(".incoming"))
            with storage_errors(path):
                path.with_suffix(".incoming").replace(path)
    return FileTokenizer(path=str(path))


def _check_tokenizer(config: Data, made: Tokenizer, vocab_size: int):
    check_tokenizer(config, made, vocab_size)
    needed = made.text_vocab_size
    if needed > vocab_size:
        raise DataError(
            f"The tokenizer {config.tokenizer.path} gives ids up to {needed - 1}, but model.vocab_size is "
            f"{vocab_size}. Set model.vocab_size to at least {needed}, or choose a smaller tokenizer."
        )


def _identity(config: Data, reader: sources.Reader, loaded: Tokenizer | None) -> dict:
    """What must be equal for a prepared store to be the one that `config` describes today.

    Which marks it holds is part of its name. `loaded`: the tokenizer of a file; None: it is trained.
    """
    fingerprint = None if loaded is None else loaded.fingerprint
    return {
        "source": sources.identity(reader),
        "tokenizer": {**_deciding(config.tokenizer), "fingerprint": fingerprint},
    }


def _deciding(settings) -> dict:
    """The settings of a tokenizer on which what it makes of a text depends."""
    return {key: value for key, value in to_plain(settings).items() if key != "stop"}


def _name(config: Data) -> str:
    settings = [VERSION, to_plain(config.source), _deciding(config.tokenizer), *marks_of(config.objective)]
    settings += [stored] if (stored := stored_of(config)) else []
    return hashlib.sha256(canonical_json(settings)).hexdigest()[:HASH_DIGITS]


def _opened(directory: Path, identity: dict, has_validation: bool) -> Stores | None:
    """The stores below `directory`; None when one is missing or made from something else."""
    opened = []
    for split in SPLITS if has_validation else SPLITS[:1]:
        if not (directory / split).exists():
            return None
        found = Store(directory / split)
        if found.header["about"]["identity"] != identity:
            return None
        opened.append(found)
    if len({found.header["tokenizer_fingerprint"] for found in opened}) > 1:
        return None
    return Stores(opened[0], opened[1] if has_validation else None)


def _build(directory: Path, config: Data, reader: sources.Reader, identity: dict, loaded: Tokenizer | None):
    started = time.monotonic()
    made = _made_tokenizer(directory, config, reader, identity) if loaded is None else loaded
    for split in SPLITS if reader.has_validation() else SPLITS[:1]:
        if _is_current(directory / split, identity, made):
            continue  # a launch that was killed behind it
        about = {"identity": identity, "source": to_plain(config.source), "split": split}
        reader.counts.clear()  # of passes before this one
        build(directory / split, reader, split, encoder_of(config, made), about, config.workers)
        header = Store(directory / split).header
        _say(
            f"{split}: {header['num_documents']:,} documents, {header['num_tokens']:,} tokens, "
            f"{header['text_bytes']:,} bytes in {directory / split} after {time.monotonic() - started:.1f} s"
        )
        say_passed_over(reader, split)


def _made_tokenizer(directory: Path, config: Data, reader: sources.Reader, identity: dict) -> Tokenizer:
    """The tokenizer; one that was trained is kept until the stores are there, for a launch that goes on."""
    digest = hashlib.sha256(canonical_json(identity)).hexdigest()[:HASH_DIGITS]
    path = directory / f"{KEPT_TOKENIZER}{digest}.json"
    if path.exists():
        return tokenizer.load(path)
    started = time.monotonic()
    _say(f"the {config.tokenizer.name} tokenizer from data.source.name={config.source.name}")
    made = tokenizer.build(config.tokenizer, texts_of(config.objective, reader.documents("train")))
    _say(f"a vocabulary of {made.vocab_size:,} after {time.monotonic() - started:.1f} s")
    if not isinstance(config.tokenizer, ByteTokenizer):
        with storage_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            made.save(path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
            sync(directory)
    return made


def _is_current(directory: Path, identity: dict, made: Tokenizer) -> bool:
    if not directory.exists():
        return False
    header = Store(directory).header
    return header["about"]["identity"] == identity and header["tokenizer_fingerprint"] == made.fingerprint


def _clean(directory: Path):
    """Removes what launches that were killed left beside stores that are whole now."""
    for split in SPLITS:
        clean(directory / split)
    for stray in directory.glob(f"{KEPT_TOKENIZER}*"):
        stray.unlink(missing_ok=True)


def say_passed_over(reader: sources.Reader, split: str):
    """One line for each kind of what a reader has passed over."""
    for name, count in sorted(reader.counts.items()):
        _say(f"{split}: {count:,} {sources.PASSED_OVER[name]}")


def _say(line: str):
    print(f"prepare: {line}", file=sys.stderr, flush=True)


def gzip_bits_per_byte(store: Store, tokenizer: Tokenizer) -> float:
    """Bits per byte of UTF-8 text that `gzip -9` needs for the documents, each compressed by itself."""
    compressed = text_bytes = 0
    for index in range(store.num_documents):
        text = tokenizer.decode(store.document(index)[1:]).encode()
        text_bytes += len(text)
        compressor = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)  # with gzip's header and trailer
        compressed += len(compressor.compress(text)) + len(compressor.flush())
    return 8 * compressed / (store.text_bytes or text_bytes)


def summary(prepared: Prepared) -> dict:
    """What the command prints: where the stores lie and what they hold."""
    found = {name: _described(stores) for name, stores in prepared.sources.items()}
    tokenizer = {"vocab_size": prepared.tokenizer.vocab_size, "fingerprint": prepared.tokenizer.fingerprint}
    return {"tokenizer": tokenizer, **(next(iter(found.values())) if len(found) == 1 else {"sources": found})}


def _described(stores: Stores) -> dict:
    return {
        split: {
            "path": str(found.directory),
            "documents": found.num_documents,
            "empty_documents": found.header["empty_documents"],
            "tokens": found.num_tokens,
            "bytes_per_token": round(found.text_bytes / found.num_tokens, 4) if found.text_bytes else None,
            "fingerprint": found.fingerprint,
        }
        for split, found in vars(stores).items()
        if found is not None
    }


def main(arguments: Sequence[str]) -> None:
    """Prepares the stores of a recipe and prints their summary as JSON."""
    parser = Parser("data.prepare", __doc__)
    parser.add_argument("--config", required=True, metavar="FILE.py[:arg]", help="a recipe, or a run's config.json")
    known, overrides = parser.parse_known_args(arguments)
    config = load(known.config, overrides, Section, ignore_other_sections=True)
    print(json.dumps(summary(prepare(config.data)), indent=1))


if __name__ == "__main__":
    run_command(main)
