"""Ids that are looked up by pre-token are those that the library gives."""

import pickle
import random

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from data import pretokens
from data.tokenizer import Tokenizer, byte_tokenizer, train_bpe

ASCII = "".join(map(chr, range(128)))
LIKELY = "aaabcXYZ  012'\n\t\r.,-_\"(\x0b\x0c\x1c\x1f\x00"
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'l", "' s", "''s", " 's", "don't", "\n't")
OTHERS = ("é", "中文", "\u0301", "\u0660", "\xa0", "\x85", "\u2028", "\u200b", "\u3000", "ß", "ǅ", "²", "😀", "\ufeff")
TEXTS = ["The words, and what's in them: they've 12 lines.\n\n  I'd say 'that' is it.\n"] * 3 + [ASCII * 2]


@pytest.fixture(scope="module")
def made():
    return train_bpe(TEXTS, 400)


def drawn(generator: random.Random, pieces, count: int) -> str:
    return "".join(generator.choice(pieces) for _ in range(generator.randrange(count)))


def by_library(made: Tokenizer, text: str) -> list[int]:
    return made._tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("pieces", [ASCII, LIKELY, (*LIKELY, *CONTRACTIONS), (*LIKELY, *CONTRACTIONS, *OTHERS)])
def test_ids_are_the_librarys(made, monkeypatch, pieces):
    monkeypatch.setattr(pretokens, "worthwhile", lambda: True)
    generator = random.Random(0)
    texts = ["", *TEXTS, *(drawn(generator, pieces, 60) for _ in range(4000))]
    for text, ids in zip(texts, made.encode_batch(texts), strict=True):
        assert ids.tolist() == by_library(made, text), repr(text)
    assert len(made._pretokens) > 100


@pytest.mark.parametrize("pieces", [ASCII, LIKELY, (*LIKELY, *CONTRACTIONS)])
def test_ascii_is_cut_as_the_library_cuts_it(pieces):
    generator, library = random.Random(1), ByteLevel(add_prefix_space=False, use_regex=True)
    for text in (drawn(generator, pieces, 60) for _ in range(4000)):
        places = [place for _, place in library.pre_tokenize_str(text)]
        assert [match.span() for match in pretokens.PATTERN.finditer(text)] == places, repr(text)


def test_other_scripts_are_cut_out_at_lines():
    text = "one\ntwo é\nthree\n\nfour 中\n \n文\nfive"
    assert list(pretokens.stretches(text)) == [
        *((True, "one"), (False, "\ntwo é"), (True, "\nthree")),
        *((False, "\n\nfour 中\n \n文"), (True, "\nfive")),
    ]


def test_what_is_remembered_is_bounded_and_stays_here(made, monkeypatch):
    monkeypatch.setattr(pretokens, "worthwhile", lambda: True)
    monkeypatch.setattr(pretokens, "KEPT", 20)
    copy = pickle.loads(pickle.dumps(made))
    assert not copy._pretokens
    for text in ("word" * 100, *TEXTS):
        assert copy.encode_batch([text])[0].tolist() == by_library(made, text)
    assert len(copy._pretokens) == 20 and "word" * 100 not in copy._pretokens


def test_special_tokens_are_text(made, monkeypatch):
    monkeypatch.setattr(pretokens, "worthwhile", lambda: True)
    assert made.end_of_text not in made.encode_batch(["<|endoftext|> and more"])[0]


def test_only_gpt2s_pretokens_are_looked_up(made):
    assert byte_tokenizer().encode_batch(["any text"])[0].tolist() == list(b"any text")
    content = made._content
    splitter = content["pre_tokenizer"]
    for change in (
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {**splitter, "add_prefix_space": True}},
        {"pre_tokenizer": {**splitter, "use_regex": False}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, splitter],
            }
        },
        {"model": {**content["model"], "dropout": 0.1}},
        {
            "added_tokens": [
                *content["added_tokens"],
                {**content["added_tokens"][0], "content": "word", "special": False},
            ]
        },
    ):
        assert Tokenizer({**content, **change}, made.end_of_text_token)._pretokens is None, change
    assert made._pretokens is not None


def test_the_library_is_preferred_where_it_has_many_threads(monkeypatch):
    for threads, parallel, expected in (("1", "true", True), ("64", "true", False), ("64", "false", True)):
        monkeypatch.setenv("RAYON_NUM_THREADS", threads)
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        assert pretokens.worthwhile() == expected
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("RAYON_NUM_THREADS", "0")  # all cores, as the library has it
    monkeypatch.setattr(pretokens, "usable_cpus", lambda: 64)
    assert not pretokens.worthwhile()
