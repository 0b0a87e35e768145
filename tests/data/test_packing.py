"""Every stored token is an input once, with the right target, segment and position, whatever the row length."""

from collections import Counter

import numpy as np
import pytest

from data import store
from data.config import Data
from data.objectives import batch_spec
from data.packing import DTYPES, ROWS, make_rows

END = 256
DOCUMENTS = {
    "mixed": ["ab", "", "c", "a longer document", "d", "ef" * 20, "g"],
    "one token": ["a", "b", "c", "d", "e"],
    "one document": ["all in one, and longer than any row of this test: " * 3],
    "exact rows": ["abc", "abc", "abcdefg", "abcdefg"],
    "a single token": ["a"],
}
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 61, 200]


@pytest.fixture(params=DOCUMENTS, scope="module")
def stored(request, tmp_path_factory):
    """A store of several shards, and its documents as lists of ids."""
    from data.tokenizer import byte_tokenizer

    directory = tmp_path_factory.mktemp("packing") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SHARD_TOKENS", 11)
        store.write(directory, DOCUMENTS[request.param], byte_tokenizer(), about={})
    return store.Store(directory), [[END, *text.encode()] for text in DOCUMENTS[request.param] if text]


def concat_reference(documents, length):
    """The rows, each a list of (token, target, segment, position), in the plainest way."""
    stream = [(number, token) for number, ids in enumerate(documents) for token in ids]
    rows = []
    for start in range(0, len(stream), length):
        row, segment, position, last = [], 0, 0, None
        for place in range(start, min(start + length, len(stream))):
            number, token = stream[place]
            segment, position = (segment, position + 1) if number == last else (segment + 1, 0)
            target = stream[place + 1][1] if place + 1 < len(stream) else END
            row.append((token, target, segment, position))
            last = number
        rows.append(row)
    return rows


def unpacked_reference(documents, length):
    rows = []
    for ids in documents:
        pairs = list(zip(ids, [*ids[1:], END], strict=True))
        for start in range(0, len(pairs), length):
            part = pairs[start : start + length]
            rows.append([(token, target, 1, place) for place, (token, target) in enumerate(part)])
    return rows


REFERENCES = {"concat": concat_reference, "unpacked": unpacked_reference}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("packing", ROWS)
def test_equals_the_reference(stored, packing, length):
    opened, documents = stored
    rows, expected = make_rows(opened, length, packing), REFERENCES[packing](documents, length)
    assert len(rows) == len(expected)
    for index, reference in enumerate(expected):
        row = rows.row(index)
        count = len(reference)
        for key, values in zip(
            ("tokens", "targets", "segment_ids", "positions"), zip(*reference, strict=True), strict=True
        ):
            assert row[key].tolist() == [*values, *[0] * (length - count)], key
        assert row["weights"].tolist() == [1.0] * count + [0.0] * (length - count)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("packing", ROWS)
def test_no_token_is_lost(stored, packing, length):
    """Inputs of an epoch = tokens stored, as a multiset of (token, next token); each end of text is a target once."""
    opened, documents = stored
    rows = make_rows(opened, length, packing)
    batch = rows.rows(range(len(rows)))
    real = batch["weights"] > 0
    assert ((batch["segment_ids"] > 0) == real).all()
    stream = opened.tokens(0, opened.num_tokens).tolist()
    inputs = Counter(zip(batch["tokens"][real].tolist(), batch["targets"][real].tolist(), strict=True))
    assert inputs == Counter(zip(stream, [*stream[1:], END], strict=True))
    assert batch["weights"].sum() == rows.num_targets == opened.num_tokens == sum(map(len, documents))
    assert rows.dropped == 0
    assert (batch["targets"][real] == END).sum() == len(documents)


@pytest.mark.parametrize("packing", ROWS)
def test_rows_in_any_order_and_padding(stored, packing):
    rows = make_rows(stored[0], 5, packing)
    order = np.random.default_rng(0).permutation(len(rows))
    batch = rows.rows(order, len(rows) + 2)
    for place, index in enumerate(order):
        for key, value in rows.row(index).items():
            assert (batch[key][place] == value).all()
    for value in batch.values():
        assert not value[-2:].any()


@pytest.mark.parametrize("packing", ROWS)
def test_rows_outside_are_an_error(stored, packing):
    rows = make_rows(stored[0], 5, packing)
    for index in (-1, len(rows)):
        with pytest.raises(IndexError):
            rows.row(index)


@pytest.mark.parametrize("packing", ROWS)
def test_batches_are_what_the_objective_declares(make_store, packing):
    spec = batch_spec(Data(length=6, packing=packing))
    batch = make_rows(make_store(["some text"]), 6, packing).rows([0, 1])
    assert list(batch) == list(spec) == list(DTYPES)
    for key, (shape, dtype, axes) in spec.items():
        assert (batch[key].shape, batch[key].dtype) == ((2, *shape), dtype)
        assert len(axes) == 1 + len(shape) and axes[0] == "batch"
