"""A sample of documents is drawn by their hashes: of a stated size, whatever their order, each as likely as another."""

import random

from data.text_sample import sample
from data.tokenizer import build
from data.tokenizer_config import BpeTokenizer, UnigramTokenizer, WordPieceTokenizer

TEXTS = [f"document {number} of many, 學而時習之 {'x' * (number % 50)}" for number in range(2000)]


def size(texts) -> int:
    return sum(len(text.encode()) for text in texts)


def test_all_documents_are_taken_as_they_come_where_no_size_is_given():
    assert list(sample(iter(TEXTS), None)) == TEXTS


def test_a_sample_is_as_large_as_asked_and_the_same_in_any_order():
    drawn = list(sample(iter(TEXTS), 5000))
    assert 5000 <= size(drawn) < 5000 + max(map(size, zip(TEXTS, strict=True)))
    assert size(drawn[:-1]) < 5000
    for seed in range(5):
        assert list(sample(random.Random(seed).sample(TEXTS, len(TEXTS)), 5000)) == drawn
    assert list(sample(TEXTS, 10**9)) == list(sample(TEXTS[::-1], 10**9)) and len(list(sample(TEXTS, 10**9))) == 2000


def test_a_larger_sample_holds_the_smaller_one():
    small, large = list(sample(TEXTS, 3000)), list(sample(TEXTS, 9000))
    assert large[: len(small)] == small


def test_a_sample_is_from_everywhere():
    numbers = [int(text.split()[1]) for text in sample(TEXTS, 20_000)]
    assert 850 < sum(numbers) / len(numbers) < 1150
    assert numbers != sorted(numbers)


def test_a_document_larger_than_the_sample_is_one():
    assert list(sample(["x" * 100], 10)) == ["x" * 100]


def test_a_tokenizer_is_trained_on_its_sample():
    for config in (
        BpeTokenizer(vocab_size=300, sample_bytes=4000),
        WordPieceTokenizer(vocab_size=300, max_characters=60, sample_bytes=4000),
        UnigramTokenizer(vocab_size=300, sample_bytes=4000),
    ):
        drawn = build(config, iter(TEXTS)).fingerprint
        assert drawn == build(config, reversed(TEXTS)).fingerprint
        assert drawn == build(type(config)(**{**vars(config), "sample_bytes": None}), sample(TEXTS, 4000)).fingerprint
        assert drawn != build(type(config)(**{**vars(config), "sample_bytes": 8000}), TEXTS).fingerprint
