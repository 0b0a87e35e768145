"""Pairs for an encoder and a decoder: every token of both sides once, the decoder reading what came before."""

import json

import numpy as np
import pytest

from data import tokenizer
from data.config import Data, check
from data.errors import DataError
from data.objective_config import Seq2SeqObjective
from data.objectives import batch_spec, objective_rows
from data.prepare import prepare
from data.seq2seq import PairRows
from data.source_config import JsonlSource
from data.tokenizer_config import ByteTokenizer, FileTokenizer

PAIRS = [("a b", "A"), ("one two three", "1 2 3"), ("x", "a long target"), ("两", "2")]
OBJECTIVE = Seq2SeqObjective(source="from", target="to", target_length=8)


def data(directory, pairs=PAIRS, **changes) -> Data:
    path = directory / "pairs.jsonl"
    path.write_text("".join(json.dumps({"from": source, "to": target}) + "\n" for source, target in pairs))
    settings = {
        "source": JsonlSource(paths=(str(path),), validation_fraction=0.0),
        "tokenizer": ByteTokenizer(),
        "objective": OBJECTIVE,
        "length": 12,
        "cache_dir": str(directory / "cache"),
        **changes,
    }
    return Data(**settings)


def rows_of(config):
    return objective_rows(config, prepare(config).train, seed=0)


def test_a_row_is_its_pair(tmp_path):
    """Golden: bytes, and 256 the end of text."""
    row = {key: value[0].tolist() for key, value in rows_of(data(tmp_path)).rows([0]).items()}
    assert row == {
        "source_tokens": [97, 32, 98, 256] + [0] * 8,
        "source_segment_ids": [1] * 4 + [0] * 8,
        "source_positions": [0, 1, 2, 3] + [0] * 8,
        "tokens": [256, 65] + [0] * 6,
        "targets": [65, 256] + [0] * 6,
        "weights": [1.0] * 2 + [0.0] * 6,
        "segment_ids": [1, 1] + [0] * 6,
        "positions": [0, 1] + [0] * 6,
    }


def test_both_sides_of_every_pair_are_given_back_up_to_their_lengths(tmp_path):
    config = data(tmp_path)
    rows, spec = rows_of(config), batch_spec(config)
    batch, text = rows.rows(range(len(rows)), len(rows) + 1), rows.store.tokenizer.decode
    assert {k: (v.shape[1:], v.dtype) for k, v in batch.items()} == {k: (s, d) for k, (s, d, _) in spec.items()}
    for place, (source, target) in enumerate(PAIRS):
        assert text(batch["source_tokens"][place][batch["source_segment_ids"][place] > 0]) == source[:11]
        targets = batch["targets"][place][batch["weights"][place] > 0]
        assert text(targets) == target[:8]
        assert (targets[-1] == 256) == (len(target) < 8)  # one that is cut has no end
        read = batch["tokens"][place][batch["segment_ids"][place] > 0]
        assert read.tolist() == [256, *targets[:-1].tolist()]
    assert not any(value[len(rows) :].any() for value in batch.values())
    assert "1 sources cut, 1 targets cut, 0 pairs dropped" in rows.describe()


def test_long_pairs_are_dropped_and_counted(tmp_path):
    rows = rows_of(data(tmp_path, long_documents="drop", packing="unpacked"))
    assert len(rows) == 2 and "0 sources cut, 0 targets cut, 2 pairs dropped" in rows.describe()
    targets = rows.rows([0, 1])["targets"]
    assert targets[:, 0].tolist() == [ord("A"), ord("2")]
    with pytest.raises(DataError, match="Every pair of .* has more than data.length=2 tokens"):
        rows_of(data(tmp_path, length=2, long_documents="drop", packing="unpacked"))


def test_a_tokenizer_with_an_end_of_its_own_ends_both_sides_with_it(tmp_path):
    tokenizer.byte_tokenizer(("</s>",)).save(tmp_path / "tokenizer.json")
    file = FileTokenizer(path=str(tmp_path / "tokenizer.json"), end_of_text="<|endoftext|>", stop="</s>")
    batch = rows_of(data(tmp_path, tokenizer=file)).rows([0])
    assert batch["source_tokens"][0][:4].tolist() == [97, 32, 98, 257]
    assert (batch["tokens"][0][:2].tolist(), batch["targets"][0][:2].tolist()) == ([256, 65], [65, 257])


@pytest.mark.parametrize("pair, fault", [(("", "x"), "'from' is empty"), (("x", None), "'to' is null")])
def test_a_pair_that_cannot_be_is_refused_where_it_stands(tmp_path, pair, fault):
    with pytest.raises(DataError, match=f"pairs.jsonl, line 2: {fault}"):
        prepare(data(tmp_path, [PAIRS[0], pair]))


def test_lengths_decide_the_fingerprint_and_not_the_store(tmp_path):
    one, other = rows_of(data(tmp_path)), rows_of(data(tmp_path, length=13))
    assert one.store.directory == other.store.directory and one.fingerprint != other.fingerprint
    settings = [(12, 8, 256, False), (12, 9, 256, False), (12, 8, 255, False), (12, 8, 256, True)]
    assert len({PairRows(one.store, *setting).fingerprint for setting in settings}) == 4


def test_settings_that_cannot_be_are_refused(tmp_path):
    same = data(tmp_path, objective=Seq2SeqObjective(source="to", target="to"))
    assert check(same) == [("objective.target", 'is "to", as data.objective.source is; name two columns')]
    assert check(data(tmp_path, length=1))[0][0] == "length"
    short = data(tmp_path, objective=Seq2SeqObjective(target_length=1))
    assert check(short)[0][0] == "objective.target_length"
    assert np.all([not check(data(tmp_path, length=length)) for length in (2, 3)])
