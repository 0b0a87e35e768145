"""What is imported: a directory in the Hugging Face layout or a GGUF file, opened and not yet read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import ConfigError, DataError
from train.hub import gguf, gguf_llama, safetensors, tokenizer_files
from train.hub.bad_words import suppressed
from train.hub.tensors import Tensor

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Source:
    path: Path
    config: Mapping[str, Any]  # a config.json
    tensors: Mapping[str, Tensor]
    tokenizer: dict | None  # content of a tokenizer.json
    end_of_text: str | None  # what data.tokenizer.end_of_text must say
    stop: str | None  # what data.tokenizer.stop must say
    notes: tuple[str, ...]  # what its user should know


def open_source(path: Path) -> Source:
    """ConfigError where there is nothing at `path`; DataError where it is a pickle or malformed."""
    if path.is_dir():
        return open_directory(path)
    if not path.exists():
        raise ConfigError(f"--hf is {path}, and there is no such directory or file.")
    if any(path.match(pattern) for pattern in PICKLES):
        raise pickled(path)
    if path.suffix != ".gguf":
        raise ConfigError(f"--hf is {path}, must be a directory with a config.json, or a .gguf file.")
    found = gguf.read(path)
    config = gguf_llama.config_of(found, path)
    tokenizer, why = gguf_llama.tokenizer_of(found, path)
    end = tokenizer_files.end_of_text(tokenizer, {}, config, path)
    stop = tokenizer_files.stop(tokenizer, {}, config, path)
    notes = () if why is None else (f"no tokenizer.json was made: {why}",)
    return Source(path, config, gguf_llama.tensors_of(found, config), tokenizer, end, stop, notes)


def open_directory(path: Path) -> Source:
    config = tokenizer_files.read_object(path / "config.json")
    if config is None:
        raise ConfigError(f"--hf is {path}, and there is no config.json in it.")
    if not (path / safetensors.SINGLE).exists() and not (path / safetensors.INDEX).exists():
        pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
        if pickles:
            raise pickled(path / pickles[0])
        raise DataError(f"{path} holds neither {safetensors.SINGLE} nor {safetensors.INDEX}: there are no weights.")
    tokenizer, settings = tokenizer_files.read(path)
    end = tokenizer_files.end_of_text(tokenizer, settings, config, path / "tokenizer.json")
    stop = tokenizer_files.stop(tokenizer, settings, config, path / "tokenizer.json")
    generation = tokenizer_files.read_object(path / "generation_config.json") or {}
    tensors, notes = suppressed(config, generation, safetensors.read_directory(path))
    notes = notes if tokenizer is not None else (*notes, tokenizer_files.absence(path))
    return Source(path, config, tensors, tokenizer, end, stop, notes)


def pickled(path: Path) -> DataError:
    return DataError(
        f"{path} is a pickle, which can run any code when it is read, and is refused. Where it is trusted, save the "
        f"model once more as {safetensors.SINGLE}, as `save_pretrained` does."
    )
