"""The format of a token store: the names and widths of its files, and its header."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.files import canonical_json

FORMAT = "plumbline token store"
VERSION = 1
APPENDED_VERSION = 2  # of stores to which documents were appended
WIDTHS = ("uint8", "uint16", "uint32")
HEADER, DOCUMENTS, TOKENIZER = "header.json", "documents.bin", "tokenizer.json"


def width(vocab_size: int) -> str:
    """The narrowest unsigned type that holds the ids below `vocab_size`."""
    return next(name for name in WIDTHS if vocab_size - 1 <= np.iinfo(name).max)


def shard_name(index: int) -> str:
    return f"tokens-{index:05d}.bin"


def appended_name(index: int) -> str:
    """Of the folder that an append has added, the first one 1."""
    return f"appended-{index:05d}"


def fingerprint(files: dict, tokenizer_fingerprint: str) -> str:
    """SHA-256 of tokens, boundaries, marks and tokenizer; the same wherever and whenever the store is built."""
    digests = [record["sha256"] for name, record in sorted(files.items()) if name.endswith(".bin")]
    return hashlib.sha256(canonical_json([VERSION, digests, tokenizer_fingerprint])).hexdigest()


def header_bytes(header: dict) -> bytes:
    """The only spelling of a header, its own digest included; any other byte is damage."""
    header = {key: value for key, value in header.items() if key != "sha256"}
    header["sha256"] = hashlib.sha256(canonical_json(header)).hexdigest()
    return json.dumps(header, indent=1, ensure_ascii=False).encode() + b"\n"


def remedy(directory: Path) -> str:
    """What to do about a damaged store."""
    return f"Restore {directory} from a copy, or, where data.prepare has made it, delete it and run again."


def read_header(path: Path, name: str = FORMAT, versions: tuple[int, ...] = (VERSION, APPENDED_VERSION)) -> dict:
    """What header.json says; DataError where it is missing, damaged or of another format."""
    mend = remedy(path.parent)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Name the directory of a token store.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. {mend}") from error
    try:
        header = json.loads(content)
        found = (header["format"], header["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: it is not the header of a token store ({error!r}). {mend}") from error
    if found[0] != name or found[1] not in versions:
        raise DataError(f"{path} is a {found[0]!r} of version {found[1]!r}, expected {name!r} {versions[0]}. {mend}")
    if header_bytes(header) != content:
        raise DataError(f"{path} is damaged: its content does not match its own SHA-256. {mend}")
    return header


def check_size(path: Path, expected: int):
    """DataError where a file is missing or has another size."""
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. {remedy(path.parent)}") from error
    if actual != expected:
        raise DataError(f"{path} has {actual} bytes, the header says {expected}. {remedy(path.parent)}")
