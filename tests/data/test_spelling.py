"""Every token is legible by itself, and together they are the text."""

import json

import pytest
import tokenizers

from data import tokenizer
from data.spelling import Speller, legible
from data.tokenizer_config import UnigramTokenizer, WordPieceTokenizer

TEXT = "naïve café 中文 🙂\tand\nמזל טוב, 1,000!"


def spelt(made, ids) -> bytes:
    return b"".join(token.content for token in Speller(made).tokens(ids))


@pytest.mark.parametrize("name", ["bytes", "bpe", "unigram"])
def test_tokens_together_are_the_text(name):
    made = {
        "bytes": lambda: tokenizer.byte_tokenizer(("<x>",)),
        "bpe": lambda: tokenizer.train_bpe([TEXT] * 3, 300, ("<x>",)),
        "unigram": lambda: tokenizer.train_unigram([TEXT] * 30, UnigramTokenizer(vocab_size=300)),
    }[name]()
    assert spelt(made, made.encode(TEXT)).decode() == TEXT
    special = Speller(made).tokens([made.end_of_text])[0]
    assert special.special and special.content.decode() == made.end_of_text_token


def test_marks_of_words_are_text_where_the_vocabulary_has_none():
    pieces = [("<unk>", 0.0), ("<|endoftext|>", 0.0), ("##a", -1.0), ("b", -1.0), (" ", -1.0)]
    model = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0, byte_fallback=False))
    model.decoder = tokenizers.decoders.Fuse()
    made = tokenizer.Tokenizer(json.loads(model.to_str()), "<|endoftext|>")
    assert made.encode("##ab ##a") == [2, 3, 4, 2] and spelt(made, [2, 3, 4, 2]) == b"##ab ##a"


def test_words_are_apart_and_their_pieces_together():
    made = tokenizer.train_wordpiece(["sev several words"], WordPieceTokenizer(vocab_size=300, max_characters=100))
    ids = [made.cls, *made.encode("several words"), made.sep, *made.encode("sev")]
    assert spelt(made, ids) == b"[CLS]several words[SEP]sev"


@pytest.mark.parametrize(
    "content, shown",
    [
        (b"plain", "plain"),
        ("中文 עברית ﷺ 🙂 👨\u200d👩".encode(), "中文 עברית ﷺ 🙂 👨\u200d👩"),
        ("中".encode()[:2], "\\xe4\\xb8"),
        (b"a" + "é".encode()[1:] + b"b", "a\\xa9b"),
        (b"a\nb\r\n", "a␊\nb␍␊\n"),
        (b"\x00\x1b[31m\t\x7f", "␀␛[31m␉␡"),
        ("\x85\u2028\u202e\u200b\ufeff\ue000".encode(), "\\u{85}\\u{2028}\\u{202e}\\u{200b}\\u{feff}\\u{e000}"),
    ],
)
def test_what_cannot_be_seen_is_named(content, shown):
    assert legible(content) == shown
