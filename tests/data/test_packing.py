"""Every stored token is an input once, with the right target, segment and position, whatever the row length."""

from collections import Counter

import numpy as np
import pytest

from data import store
from data.config import Data
from data.errors import DataError
from data.objectives import batch_spec
from data.packing import DTYPES, PACKINGS, make_rows
from data.tokenizer import byte_tokenizer

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


def best_fit_reference(documents, length):
    """Decreasing best fit in the plainest way; of rows with equal room the one that was touched last."""
    pieces = []
    for ids in documents:
        pairs = list(zip(ids, [*ids[1:], END], strict=True))
        pieces += [pairs[start : start + length] for start in range(0, len(pairs), length)]
    rows, touched = [], []  # touched: indices of rows, the latest one last
    for piece in sorted(pieces, key=len, reverse=True):
        fitting = [row for row in touched if sum(map(len, rows[row])) + len(piece) <= length]
        if fitting:
            fullest = max(sum(map(len, rows[row])) for row in fitting)
            chosen = [row for row in fitting if sum(map(len, rows[row])) == fullest][-1]
            touched.remove(chosen)
        else:
            chosen = len(rows)
            rows.append([])
        rows[chosen].append(piece)
        touched.append(chosen)
    return [
        [(*pair, number, place) for number, piece in enumerate(row, 1) for place, pair in enumerate(piece)]
        for row in rows
    ]


REFERENCES = {"concat": concat_reference, "best_fit": best_fit_reference, "unpacked": unpacked_reference}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("packing", PACKINGS)
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
@pytest.mark.parametrize("packing", PACKINGS)
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


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_in_any_order_and_padding(stored, packing):
    rows = make_rows(stored[0], 5, packing)
    order = np.random.default_rng(0).permutation(len(rows))
    batch = rows.rows(order, len(rows) + 2)
    for place, index in enumerate(order):
        for key, value in rows.row(index).items():
            assert (batch[key][place] == value).all()
    for value in batch.values():
        assert not value[-2:].any()


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_outside_are_an_error(stored, packing):
    rows = make_rows(stored[0], 5, packing)
    for index in (-1, len(rows)):
        with pytest.raises(IndexError):
            rows.row(index)


@pytest.mark.parametrize("packing", PACKINGS)
def test_batches_are_what_the_objective_declares(make_store, packing):
    spec = batch_spec(Data(length=6, packing=packing))
    batch = make_rows(make_store(["some text"]), 6, packing).rows([0, 1])
    assert list(batch) == list(spec) == list(DTYPES)
    for key, (shape, dtype, axes) in spec.items():
        assert (batch[key].shape, batch[key].dtype) == ((2, *shape), dtype)
        assert len(axes) == 1 + len(shape) and axes[0] == "batch"


def documents_in(rows):
    """For each row the tokens of each of its segments, as bytes."""
    batch = rows.rows(range(len(rows)))
    found = []
    for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
        found.append([tokens[segments == number].tolist() for number in range(1, segments.max() + 1)])
    return found


def test_best_fit_cuts_no_document_that_fits(make_store):
    sizes = np.random.default_rng(0).integers(1, 70, 400)
    opened = make_store(["x" * int(size) for size in sizes])
    rows = make_rows(opened, 40, "best_fit")
    whole = Counter(len(part) for row in documents_in(rows) for part in row if part[0] == END)
    expected = Counter(min(int(size) + 1, 40) for size in sizes)
    assert whole == expected
    assert rows.plan.facts["cut_documents"] == (sizes + 1 > 40).sum()


def test_best_fit_pads_little_and_plans_by_blocks(make_store, monkeypatch):
    sizes = np.random.default_rng(1).lognormal(4, 1, 3000).astype(int) + 1
    opened = make_store(["x" * int(size) for size in sizes])
    assert opened.num_tokens / (len(make_rows(opened, 256, "best_fit")) * 256) > 0.99
    monkeypatch.setattr("data.packing_plan.BLOCK", 1000)
    rows = make_rows(opened, 256, "best_fit")
    assert rows.rows(range(len(rows)))["weights"].sum() == opened.num_tokens
    blocks = np.repeat(np.arange(3), 1000)
    for first, behind in zip(rows.plan.rows[:-1].tolist(), rows.plan.rows[1:].tolist(), strict=True):
        starts = rows.plan.pieces["start"][first:behind]
        assert len(set(blocks[np.searchsorted(opened.document_starts, starts, side="right") - 1])) == 1


@pytest.mark.parametrize("packing", ["best_fit", "unpacked"])
def test_documents_longer_than_a_row_are_dropped_on_request(make_store, packing):
    texts = ["abc", "x" * 30, "de", "y" * 9, "z" * 10]
    rows = make_rows(make_store(texts), 10, packing, long_documents="drop")
    found = sorted(bytes(part[1:]).decode() for row in documents_in(rows) for part in row)
    assert found == sorted(["abc", "de", "y" * 9])
    assert (rows.dropped, rows.num_targets) == (31 + 11, 4 + 3 + 10)
    assert "2 dropped" in rows.describe()
    with pytest.raises(DataError, match="data.long_documents=split"):
        make_rows(make_store(texts), 2, packing, long_documents="drop")


def test_a_plan_is_made_once_and_made_again_where_it_is_damaged(make_store, capfd):
    opened = make_store(["x" * size for size in range(1, 60)])
    first = make_rows(opened, 32, "best_fit")
    again = make_rows(opened, 32, "best_fit")
    assert capfd.readouterr().err.count("rows planned") == 1
    assert first.fingerprint == again.fingerprint != make_rows(opened, 33, "best_fit").fingerprint
    assert first.fingerprint != make_rows(opened, 32, "best_fit", "drop").fingerprint
    files = sorted(opened.directory.parent.glob("*.packing-*/*"))
    assert {path.name for path in files} == {"pieces.bin", "rows.bin", "plan.json"}
    capfd.readouterr()
    for path in files:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert make_rows(opened, 32, "best_fit").fingerprint == first.fingerprint
        make_rows(opened, 33, "best_fit"), make_rows(opened, 32, "best_fit", "drop")
        assert capfd.readouterr().err.count("rows planned") == 1, path


@pytest.mark.parametrize("packing", PACKINGS)
def test_weights_are_the_mark_of_the_target(tmp_path, packing):
    """Under a weight mark each target counts as the store marks it, the end of the last document too."""
    texts = ["two words", "a", "and then five of them"]
    store.write(tmp_path / "store", texts, byte_tokenizer(), about={}, marks=("words",))
    rows = make_rows(store.Store(tmp_path / "store"), 8, packing, weight_mark="words")
    batch = rows.rows(range(len(rows)))
    # A byte that begins a word counts, a space does, and so does each end.
    starts = [ord(text[i]) for text in texts for i in range(len(text)) if " " in text[max(i - 1, 0) : i + 1] or i == 0]
    counted = Counter(batch["targets"][batch["weights"] > 0].tolist())
    assert counted == Counter([*starts, *[END] * len(texts)])
