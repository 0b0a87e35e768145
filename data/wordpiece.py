"""BERT's tokenizer (Devlin et al. 2018) as the content of a tokenizer.json: its rules, its files, its training.

Text is cleaned of control characters, Chinese characters stand alone, capitals and accents go where it
lower-cases; words end at space and punctuation, and each is the longest pieces of the vocabulary from left to
right, `##` before those inside it. A word that does not come out, or has more than 100 characters, is [UNK].
(Google's own code says 200; the files that people exchange, and the libraries that read them, 100.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data.errors import DataError

PAD, UNK, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
INSIDE = "##"
LONGEST_WORD = 100  # characters


def content(vocabulary: dict[str, int], lowercase: bool, more: Sequence[str] = ()) -> dict:
    """A parsed tokenizer.json of BERT's rules over `vocabulary` {piece: id}: its special pieces, `more`, and others."""
    model = models.WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=LONGEST_WORD)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizer(lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(INSIDE)
    tokenizer.add_special_tokens(sorted((*SPECIAL, *more), key=vocabulary.get))
    return json.loads(tokenizer.to_str())


def normalizer(lowercase: bool) -> normalizers.Normalizer:
    """BERT's, which takes accents away where it lower-cases."""
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )


def read_vocabulary(path: Path) -> dict[str, int]:
    """{piece: id} of a vocab.txt, one piece a line. DataError where it is no BERT's."""
    try:
        pieces = [line.rstrip("\r") for line in path.read_text(encoding="utf-8").split("\n")]
    except OSError as error:
        raise DataError(
            f"The vocabulary {path} cannot be read: {error.strerror}. Check data.tokenizer.path."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"The vocabulary {path} is not UTF-8: {error}. Check data.tokenizer.path.") from error
    pieces = pieces[:-1] if pieces[-1] == "" else pieces
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    missing = [piece for piece in SPECIAL if piece not in vocabulary]
    if missing:
        raise DataError(
            f"The vocabulary {path} has no {', '.join(missing)}, so it is not the vocab.txt of a BERT. Choose another "
            "file, or a tokenizer.json."
        )
    return vocabulary


def train(
    documents: Iterable[str], vocab_size: int, lowercase: bool, max_characters: int, more: Sequence[str] = ()
) -> dict:
    """A parsed tokenizer.json whose pieces are trained on `documents`: the same bytes on every training.

    Pieces are joined by how often they stand beside one another, as the tokenizers library trains WordPiece
    (not by Schuster and Nakajima's likelihood). Left to itself the library numbers the characters inside words
    in an order that no two trainings share, and ties fall accordingly; here they have their places beforehand.
    """
    words = Counter(word for text in documents for word in _words(text, lowercase))
    seen: Counter[str] = Counter()
    for word, count in words.items():
        seen.update({character: count * word.count(character) for character in set(word)})
    ranked = sorted(seen, key=lambda character: (-seen[character], character))
    kept = set(ranked[:max_characters])
    inside = {character for word in words for character in word[1:]} & kept
    pieces = [*SPECIAL, *more, *sorted(kept), *(INSIDE + character for character in sorted(inside))]
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=pieces,
        limit_alphabet=len(kept),
        initial_alphabet=sorted(kept),
        continuing_subword_prefix=INSIDE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_repeated(words), trainer)
    return content(tokenizer.get_vocab(), lowercase, more)


def _words(text: str, lowercase: bool) -> Iterator[str]:
    normal = normalizer(lowercase).normalize_str(text)
    return (word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normal))


def _repeated(words: Counter) -> Iterator[str]:
    """Every word as often as it was seen, in lines of some thousand characters."""
    for word in sorted(words):
        count, most = words[word], max(1, 4096 // (len(word) + 1))
        while count > 0:
            yield " ".join([word] * min(count, most))
            count -= most
