"""Pairs of sentences are those of BERT's data creation, once and for all, whoever makes them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from data import sentence_pairs, store, tokenizer
from data.errors import StorageError
from data.marks import SENTENCES, WORDS
from data.sentence_pairs import PairRows, Sentences, pair_index
from data.store import Store
from data.tokenizer_config import WordPieceTokenizer

WORD = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def made():
    """Single letters are tokens."""
    return tokenizer.train_wordpiece([" ".join(WORD)], WordPieceTokenizer(vocab_size=300, max_characters=100))


def stored(directory: Path, made, documents) -> Store:
    """A store of documents given as lists of sentence lengths in tokens."""
    generator = np.random.default_rng(0)
    texts = ["\n".join(" ".join(generator.choice([*WORD], size)) for size in sizes) for sizes in documents]
    store.write(directory / "store", texts, made, about={}, marks=(SENTENCES, WORDS))
    return Store(directory / "store")


def drawn_documents(count=30, seed=0, longest=12):
    """2 to 20 sentences each; a document of one sentence would be split at its punctuation, of which there is none."""
    generator = np.random.default_rng(seed)
    return [generator.integers(1, longest + 1, generator.integers(1, 21)).tolist() for _ in range(count)]


@pytest.fixture(scope="module")
def many(tmp_path_factory, made):
    return stored(tmp_path_factory.mktemp("many"), made, drawn_documents())


def spans(index):
    """[(A, B, random)] with spans as (first, behind the last)."""
    return [((a, a + m), (b, b + n), bool(random)) for a, b, m, n, random in index.tolist()]


def place(opened: Store, token: int) -> int:
    """The document of a token."""
    return int(np.searchsorted(opened.document_starts, token, side="right")) - 1


def sentence_starts(opened: Store) -> set[int]:
    return set(np.flatnonzero(opened.marked(SENTENCES, 0, opened.num_tokens)).tolist())


def test_sentences_are_where_the_text_had_them(tmp_path, made):
    documents = [[3, 1, 4], [5], [2, 6]]
    opened = stored(tmp_path, made, documents)
    sentences = Sentences(opened)
    assert [sentences.number(i) for i in range(3)] == [3, 1, 2]
    assert [sentences.edges(i) for i in range(3)] == [[1, 4, 5, 9], [10, 15], [16, 18, 24]]
    assert sentences.edges(0, 1, 1) == [4, 5] and sentences.edges(0, 1, 9) == [4, 5, 9]
    assert sentences.edges(2, 1) == [18, 24]


def test_without_truncation_no_token_is_lost_and_none_repeated(many):
    """Sentences that a random B has driven out begin the next pair: A and true B are the documents, in order."""
    index = pair_index(many, 256, 0.0, 1, seed=0)
    expected = [(start, stop) for document in range(many.num_documents) for start, stop in [many.bounds(document)]]
    covered = []
    for a, b, random in spans(index):
        covered += [a] if random else [a, b]
    joined = []
    for first, last in covered:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    assert joined == [(start + 1, stop) for start, stop in expected]


@pytest.mark.parametrize("length", [16, 32, 64])
def test_pairs_are_neighbours_or_of_another_document(many, length):
    index, starts = pair_index(many, length, 0.0, 3, seed=0), sentence_starts(many)
    limit, truncated = length - 3, 0
    for a, b, random in spans(index):
        assert a[1] - a[0] > 0 and b[1] - b[0] > 0 and a[1] - a[0] + b[1] - b[0] <= limit
        assert place(many, a[0]) == place(many, a[1] - 1) and place(many, b[0]) == place(many, b[1] - 1)
        assert (place(many, a[0]) != place(many, b[0])) == random
        if a[1] - a[0] + b[1] - b[0] < limit:  # no token was taken away
            assert a[0] in starts and b[0] in starts
            assert random or a[1] == b[0]
        truncated += a[0] not in starts or b[0] not in starts
    assert truncated > 0 or length == 64
    share = np.mean([random for _, _, random in spans(index)])
    assert 0.45 < share < 0.75  # half, and those of a single sentence


def test_half_of_the_pairs_that_could_be_either_are_random(tmp_path, made):
    """With rows that hold a document, a chunk of several sentences is random half of the time."""
    opened = stored(tmp_path, made, [[2] * 4] * 400)
    index = pair_index(opened, 11, 0.0, 5, seed=0)  # 8 tokens: 4 sentences
    whole = {opened.bounds(i)[0] + 1 for i in range(400)}
    first = [random for a, _, random in spans(index) if a[0] in whole]
    assert len(first) == 2000 and abs(np.mean(first) - 0.5) < 5 * np.sqrt(0.25 / 2000)


def test_a_single_sentence_always_takes_a_random_one(tmp_path, made):
    opened = stored(tmp_path, made, [[4]] * 20)
    assert all(random for _, _, random in spans(pair_index(opened, 16, 0.1, 3, seed=0)))


@pytest.mark.parametrize("documents", [[[4]], [[1]], [[1, 1]], [[50]], [[3, 200, 1, 7]]])
@pytest.mark.parametrize("length", [5, 8, 64])
def test_a_store_of_one_document_does_not_hang(tmp_path, made, documents, length):
    opened = stored(tmp_path, made, documents)
    index = pair_index(opened, length, 0.1, 4, seed=0)
    assert len(index) >= 4
    assert all(m >= 1 and n >= 1 and m + n <= length - 3 for m, n in index[["a_length", "b_length"]].tolist())


def cut(a: int, b: int, limit: int) -> tuple[int, int]:
    """truncate_seq_pair of BERT's code, in lengths."""
    while a + b > limit:
        if a > b:
            a -= 1
        else:
            b -= 1
    return a, b


def test_what_is_too_long_is_cut_as_bert_cuts_it():
    draws = sentence_pairs.Draws("cut")
    for a in range(1, 30):
        for b in range(1, 30):
            for limit in range(2, 61, 3):
                first, second = sentence_pairs._truncated((100, 100 + a), (500, 500 + b), limit, draws)
                assert (first[1] - first[0], second[1] - second[0]) == cut(a, b, limit)
                assert first[0] >= 100 and first[1] <= 100 + a and second[0] >= 500 and second[1] <= 500 + b


def test_tokens_go_from_the_front_and_the_back_alike():
    """A coin a token: the front loses Binomial(100, 1/2) of 100, also beyond the 64 coins of one word."""
    draws = sentence_pairs.Draws("coins")
    fronts = np.array([sentence_pairs._shortened((0, 1000), 100, draws)[0] for _ in range(4000)])
    assert abs(fronts.mean() - 50) < 5 * 5 / np.sqrt(4000) and abs(fronts.std() - 5) < 0.3
    assert sentence_pairs._shortened((7, 9), 0, draws) == (7, 9)


def test_some_documents_are_cut_shorter(tmp_path, made):
    """`short_rate` of the documents draw a target of 2 to the limit; all of a document's pairs keep to it."""
    opened = stored(tmp_path, made, [[1] * 300] * 150)
    for rate in (0.0, 0.1, 1.0):
        index = pair_index(opened, 103, rate, 1, seed=0)
        longest = np.zeros(150, int)
        documents = np.searchsorted(opened.document_starts, index["a"], side="right") - 1
        np.maximum.at(longest, documents, (index["a_length"] + index["b_length"]).astype(int))
        assert abs((longest < 100).mean() - rate * 98 / 99) <= 5 * np.sqrt(rate * (1 - rate) / 150) + 0.02
        if rate == 1.0:
            assert longest.min() < 20 and abs(longest.mean() - 51) < 12


def test_pairs_follow_seed_copy_and_document_alone(many, tmp_path, made):
    """The first copy of two is the only one of one; what stands behind a document changes no draw of its A."""
    one, two = (pair_index(many, 32, 0.1, copies, seed=0) for copies in (1, 2))
    assert (two[: len(one)] == one).all() and not np.array_equal(two[len(one) : 2 * len(one)], one)
    assert not np.array_equal(pair_index(many, 32, 0.1, 1, seed=1), one)
    again = stored(tmp_path, made, drawn_documents())
    assert (pair_index(again, 32, 0.1, 1, seed=0) == one).all()


def test_pairs_are_the_golden_ones(many, golden):
    """Whoever changes them raises sentence_pairs.VERSION."""
    index = pair_index(many, 24, 0.1, 2, seed=3)
    shown = [" ".join(map(str, record)) for record in index[:12].tolist()]
    digest = hashlib.sha256(index.tobytes()).hexdigest()
    golden("sentence_pairs.txt", "\n".join([*shown, f"{len(index)} pairs, {digest}"]) + "\n")


def test_pairs_are_made_once_and_again_where_they_are_damaged(tmp_path, made, monkeypatch):
    opened = stored(tmp_path, made, drawn_documents(5))
    expected = pair_index(opened, 32, 0.1, 2, seed=0).copy()
    (path,) = tmp_path.glob("store.pairs-*.bin")
    written, content = path.stat().st_mtime_ns, path.read_bytes()
    assert (pair_index(opened, 32, 0.1, 2, seed=0) == expected).all() and path.stat().st_mtime_ns == written
    for damage in (content[:50] + b"?" + content[51:], content[:-1], content[:10], b""):
        path.write_bytes(damage)
        assert (pair_index(opened, 32, 0.1, 2, seed=0) == expected).all() and path.read_bytes() == content

    def dies(*_):
        yield b"half"
        raise OSError(28, "No space left on device")

    path.unlink()
    monkeypatch.setattr(sentence_pairs, "_blocks", dies)
    with pytest.raises(StorageError, match="No space left"):
        pair_index(opened, 32, 0.1, 2, seed=0)
    assert not path.exists()
    opened.verify()  # nothing foreign lies in the store


def test_rows_are_pairs_between_special_tokens(many, made):
    index = pair_index(many, 32, 0.1, 2, seed=0)
    rows = PairRows(many, 32, index)
    order = np.random.default_rng(0).permutation(len(rows))[:50]
    batch = rows.rows(order, 52)
    words = rows.marked(WORDS, order)
    for at, (a, b, random) in enumerate([spans(index)[i] for i in order]):
        first, second = many.tokens(*a).tolist(), many.tokens(*b).tolist()
        ids = [made.cls, *first, made.sep, *second, made.sep]
        padding = [0] * (32 - len(ids))
        assert batch["tokens"][at].tolist() == ids + padding
        assert batch["token_types"][at].tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1) + padding
        assert batch["segment_ids"][at].tolist() == [1] * len(ids) + padding
        assert batch["positions"][at].tolist() == [*range(len(ids)), *padding]
        assert batch["next_sentence"][at] == random
        expected = [False, *many.marked(WORDS, *a), False, *many.marked(WORDS, *b), False, *map(bool, padding)]
        assert words[at].tolist() == expected
    assert not any(value[50:].any() for value in batch.values())
    assert {value.dtype for value in batch.values()} == {np.dtype(np.int32)}
    for outside in (-1, len(rows)):
        with pytest.raises(IndexError):
            rows.rows([outside])
