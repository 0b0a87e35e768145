"""Unigram pieces (Kudo 2018), trained by the `sentencepiece` library, as the content of a tokenizer.json.

Spaces are part of the text, none is added, and a piece holds one only where it begins, or nothing else: so a
decoded text is the encoded one, but that the character U+2581, which stands for a space inside pieces, comes
back as a space. Without byte fallback characters that are no piece are lost, and with NFKC what it takes away.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from tokenizers import normalizers

from data import sentencepiece_file
from data.errors import ConfigError, DataError
from data.special_tokens import END_OF_TEXT
from data.tokenizer_config import UnigramTokenizer, expanded

LONGEST = 4096  # characters of a sentence; what is longer is cut at a space where there is one
BORDERS = re.compile("[\n\u2585]+")  # sentencepiece ends sentences at the first, and drops those with the second
GRID = 1024  # scores are whole parts of it, so that sums are exact, and what is equally likely is so in any order
WHITE = "\t\n\r"  # pieces in any case: a tab ends words for the trainer, and no sentence holds a line feed


def train(documents: Iterable[str], config: UnigramTokenizer) -> dict:
    """<unk>, the end of text, special tokens, 256 bytes with byte fallback, and pieces by their frequency."""
    model = sentencepiece_file.read(train_model(documents, config), "trained here")
    pieces = [(text, round(score * GRID) / GRID, kind) for text, score, kind in model.pieces]
    model = dataclasses.replace(model, pieces=pieces)
    return sentencepiece_file.converted(model, nfkc=config.normalization == "nfkc")


def train_model(documents: Iterable[str], config: UnigramTokenizer) -> bytes:
    """The SentencePiece model that `train` converts: of text that is in its normal form already.

    The same bytes on every training. All sentences are held in memory, about 25 bytes a character.
    """
    import sentencepiece  # here, because only training needs it

    model = io.BytesIO()
    lines = _peeked(sentences(documents, config.normalization))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="unigram",
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,  # text that has fewer pieces gives fewer
            character_coverage=config.character_coverage,
            byte_fallback=config.byte_fallback,
            required_chars=WHITE,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=END_OF_TEXT,
            control_symbols=list(expanded(config.special_tokens)),
            max_sentence_length=8 * LONGEST,  # bytes; longer ones would be dropped
            input_sentence_size=0,  # all: data.text_sample draws
            num_threads=1,  # sums of floating-point numbers fall out otherwise in another order
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _refusal(str(error), config) from error
    return model.getvalue()


def sentences(documents: Iterable[str], normalization: str) -> Iterator[str]:
    """What the trainer reads: lines, of which long ones are cut and none is lost."""
    normal = normalizers.NFKC() if normalization == "nfkc" else None
    for text in documents:
        for line in BORDERS.split(normal.normalize_str(text) if normal else text):
            start = 0
            while len(line) - start > LONGEST:
                space = line.rfind(" ", start + 1, start + LONGEST)
                end = space if space > 0 else start + LONGEST
                yield line[start:end]
                start = end
            if start < len(line):
                yield line[start:]


def _peeked(lines: Iterator[str]) -> Iterator[str]:
    """The same lines; DataError where there are none."""
    first = next(lines, None)
    if first is None:
        raise DataError("The training documents hold no text, so no tokenizer can be trained. Check data.source.")
    return chain([first], lines)


def _refusal(message: str, config: UnigramTokenizer) -> ConfigError | DataError:
    """What sentencepiece refused, for people."""
    found = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if found is None:
        return DataError(f"sentencepiece cannot train on this text: {message}. Look at the documents of data.source.")
    return ConfigError(
        f"data.tokenizer.vocab_size is {config.vocab_size}, but the characters of this text, special tokens and bytes "
        f"are {found[1]} pieces already. Raise it to more than that, or lower data.tokenizer.character_coverage, which "
        f"is {config.character_coverage:g}."
    )
