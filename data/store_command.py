"""Looks at token stores and adds to them: `python -m data.store verify|describe|sample|append`.

verify DIR                         every changed, cut, missing or foreign file is named; exit code 3 if there is one
describe DIR                       JSON: what it holds
sample DIR [--documents N]         some documents as text, the same ones for the same --seed
append --store DIR --config C      the documents of recipe C's source behind those of DIR, which is made where missing
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data import sources, store_append, tokenizer
from data.build import build, encoded
from data.cli import Parser
from data.config import Data, check, missing_inputs
from data.errors import ConfigError, DataError
from data.files import sha256_file
from data.mixture_config import MixtureSource
from data.objectives import columns_of, encoder_of
from data.prepare import Section, say_passed_over
from data.schema import to_plain
from data.settings import load
from data.store import Store, problems
from data.store_format import HEADER, read_header, remedy
from data.tokenizer_config import ByteTokenizer, FileTokenizer

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
MEASURED = 1_000_000  # documents whose lengths are looked at, evenly taken


def main(arguments: Sequence[str]) -> None:
    name, *rest = arguments or [""]
    if name in COMMANDS:
        COMMANDS[name](rest)
        return
    parser = Parser("data.store", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=COMMANDS)
    parser.parse_args(arguments)


def _directory(name: str, rest: Sequence[str], **options: tuple[int, str]) -> argparse.Namespace:
    """The arguments of a command that looks at one store; `options`: number by default, and what it is."""
    parser = Parser(f"data.store {name}", __doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR", help="a token store")
    for option, (default, text) in options.items():
        parser.add_argument(f"--{option}", type=int, default=default, metavar="N", help=f"{text}; default {default}")
    return parser.parse_args(rest)


def _verify(rest: Sequence[str]):
    _print(verify(_directory("verify", rest).directory))


def _describe(rest: Sequence[str]):
    _print(describe(Store(_directory("describe", rest).directory)))


def _sample(rest: Sequence[str]):
    known = _directory("sample", rest, documents=(3, "how many"), seed=(0, "which ones"))
    print("\n".join(sample(Store(known.directory), known.documents, known.seed)))


def _append(rest: Sequence[str]):
    about = "The documents of a recipe's source behind those of a token store, which is made where it is missing."
    parser = Parser("data.store append", about)
    parser.add_argument("--store", type=Path, required=True, metavar="DIR", help="a token store, or where to make it")
    parser.add_argument("--config", required=True, metavar="FILE.py[:arg]", help="a recipe, or a run's config.json")
    parser.add_argument(
        "--split", choices=("train", "validation"), default="train", help="of the source; default train"
    )
    known, overrides = parser.parse_known_args(rest)
    config = load(known.config, overrides, Section, ignore_other_sections=True).data
    _print(append(known.store, config, known.split))


def _print(found: dict):
    print(json.dumps(found, indent=1, ensure_ascii=False))


COMMANDS = {"verify": _verify, "describe": _describe, "sample": _sample, "append": _append}


def verify(directory: Path) -> dict:
    """Reads every byte of a store and of what is kept beside it; what was read.

    Raises DataError that names every file that is not as it was written.
    """
    header = read_header(directory / HEADER)
    found = problems(directory, header)
    plans = beside(directory)
    found += [f"{path} is damaged: it is made again when it is next read." for path, sound in plans if not sound]
    if found:
        raise DataError(f"{' '.join(found)} {remedy(directory)}")
    return {
        "path": str(directory),
        "whole": True,
        "files": len(header["files"]) + 1,
        "bytes": sum(record["bytes"] for record in header["files"].values()),
        "beside": [str(path) for path, _ in plans],
        "fingerprint": header["fingerprint"],
    }


def beside(directory: Path) -> list[tuple[Path, bool]]:
    """(file or folder, whether it is whole) of each packing plan and index of pairs that is kept beside a store."""
    found = []
    for path in sorted(directory.parent.glob(f"{directory.name}.packing-*")):
        try:
            files = json.loads((path / "plan.json").read_bytes())["files"]
            sound = all(sha256_file(path / name) == digest for name, digest in files.items())
        except (OSError, ValueError, KeyError, TypeError):
            sound = False
        found.append((path, sound))
    for path in sorted(directory.parent.glob(f"{directory.name}.pairs-*.bin")):
        with open(path, "rb") as file:
            digest = file.read(hashlib.sha256().digest_size)
            found.append((path, hashlib.file_digest(file, "sha256").digest() == digest))
    return found


def describe(store: Store) -> dict:
    """What a store holds, for a person or a program."""
    header = store.header
    taken = np.unique(np.linspace(0, store.num_documents - 1, min(MEASURED, store.num_documents)).astype(np.int64))
    stops = np.append(store.document_starts[taken[:-1] + 1], store.bounds(int(taken[-1]))[1])
    lengths = (stops - store.document_starts[taken]).astype(np.int64) - 1
    return {
        "path": str(store.directory),
        "fingerprint": store.fingerprint,
        "documents": store.num_documents,
        "empty_documents": header["empty_documents"],
        "tokens": store.num_tokens,
        "text_bytes": store.text_bytes,
        "bytes_per_token": round(store.text_bytes / store.num_tokens, 4),
        "dtype": store.dtype.name,
        "marks": list(store.marks),
        "tokenizer": {
            "fingerprint": header["tokenizer_fingerprint"],
            "vocab_size": header["vocab_size"],
            "end_of_text": header["end_of_text_token"],
        },
        "document_tokens": {
            "min": int(lengths.min()),
            **{f"{100 * q:g}%": int(np.quantile(lengths, q, method="lower")) for q in QUANTILES},
            "max": int(lengths.max()),
            "mean": round(store.num_tokens / store.num_documents - 1, 2),
            "measured": int(lengths.size),
        },
        "bytes": sum(record["bytes"] for record in header["files"].values()),
        "files": {name: record["bytes"] for name, record in header["files"].items()},
        "about": header["about"],
        "appended": header.get("appended", []),
    }


def sample(store: Store, count: int, seed: int) -> list[str]:
    """Some documents as text, each under a line that says which; a function of the store's size, `count` and `seed`."""
    if count < 1:
        raise ConfigError(f"--documents is {count}, must be at least 1")
    chosen: dict[int, None] = {}
    draw = 0
    while len(chosen) < min(count, store.num_documents):
        digest = hashlib.sha256(f"plumbline sample {seed}:{draw}".encode()).digest()
        chosen[int.from_bytes(digest[:8], "big") % store.num_documents] = None
        draw += 1
    lines = []
    for index in chosen:
        ids = store.document(index)[1:]
        lines += [
            f"--- document {index:,} of {store.num_documents:,}, {ids.size:,} tokens",
            store.tokenizer.decode(ids),
        ]
    return lines


def append(directory: Path, config: Data, split: str) -> dict:
    """Appends the documents of a source to the store at `directory`, or makes it of them; what was added.

    A source that is in the store already, unchanged, is not added again. Raises ConfigError, DataError, StorageError.
    """
    clashes = check(config) + missing_inputs(config)
    if clashes:
        raise ConfigError(" ".join(f"data.{key} {clash}." for key, clash in clashes))
    if isinstance(config.source, MixtureSource):
        raise ConfigError("data.source.name is mixture; append its components one by one, or train on the mixture.")
    _check_place(directory)
    reader = sources.reader(config.source, config.cache_dir, columns_of(config.objective))
    identity = {"source": {"reader_version": sources.READER_VERSION, **reader.identity()}}
    about = {"identity": identity, "source": to_plain(config.source), "split": split}
    if directory.exists():
        store = Store(directory)
        earlier = [store.header["about"], *(part["about"] for part in store.header.get("appended", ()))]
        if any(_same(about, other) for other in earlier):
            return {"path": str(directory), "added": 0, "why": "these documents are in the store already"}
        encoder = encoder_of(config, store.tokenizer)
        store_append.check(store, encoder)
        reader.check()
        with encoded(directory, reader, split, encoder, config.workers) as found:
            store_append.append(store, found, encoder, about)
        before = store.num_documents
    else:
        if not isinstance(config.tokenizer, FileTokenizer | ByteTokenizer):
            raise ConfigError(
                f"{directory} is not there yet, and data.tokenizer.name={config.tokenizer.name} would be trained for "
                "its first source alone. Set data.tokenizer.name=file to have it made with a tokenizer that stays."
            )
        reader.check()
        encoder = encoder_of(config, tokenizer.build(config.tokenizer, ()))
        build(directory, reader, split, encoder, about, config.workers)
        before = 0
    say_passed_over(reader, split)
    store = Store(directory)
    return {
        "path": str(directory),
        "added": store.num_documents - before,
        "documents": store.num_documents,
        "tokens": store.num_tokens,
        "fingerprint": store.fingerprint,
    }


def _same(about: dict, other: dict) -> bool:
    identity = other.get("identity") or {}
    return other.get("split") == about["split"] and identity.get("source") == about["identity"]["source"]


def _check_place(directory: Path):
    """Raises ConfigError where a recipe keeps stores, which must hold what the recipe says and nothing more."""
    if directory.resolve().parent.parent.name == "stores":
        raise ConfigError(
            f"--store {directory} is kept for a recipe, whose text alone it holds. Copy it elsewhere (cp -r), append "
            "to the copy, and read that with data.source.name=store."
        )
