"""Byte-level BPE (Radford et al. 2019), and the raw bytes, as the content of a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from data.special_tokens import END_OF_TEXT


def train(documents: Iterable[str], vocab_size: int, special: Sequence[str]) -> dict:
    """The end of text, `special`, 256 bytes, and as many merges as fit, of GPT-2's pre-tokens."""
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = _byte_level(models.BPE())
    tokenizer.train_from_iterator(iter(documents), trainer)
    return json.loads(tokenizer.to_str())


def raw_bytes(special: Sequence[str]) -> dict:
    """Ids 0-255 are the bytes of the UTF-8 text, 256 is the end of text, those behind it are `special`."""
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
    tokenizer = _byte_level(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([END_OF_TEXT, *special])
    return json.loads(tokenizer.to_str())


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte: Latin-1 where it prints, then 256 and up in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]
