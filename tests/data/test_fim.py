"""Rearranged documents give the text back, cost no token, and end where the middle does."""

from dataclasses import replace

import numpy as np
import pytest

from data import store
from data.config import Data
from data.fim import Names, middle_last
from data.objective_config import FimObjective
from data.objectives import objective_rows
from data.store import Store
from data.tokenizer_config import FileTokenizer
from tests.data.words import FIM, SPECIAL, random_texts, word_tokenizer

END = 0
PREFIX, SUFFIX, MIDDLE = (SPECIAL.index(name) for name in FIM)
NAMES = Names(PREFIX, SUFFIX, MIDDLE, END)
ALWAYS = FimObjective(rate=1.0, segments=8)
LENGTH = 64


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fim") / "store"
    store.write(directory, random_texts(80, 40), word_tokenizer(), about={})
    return Store(directory)


def rows_of(opened, objective, packing="concat", seed=0, length=LENGTH):
    config = Data(tokenizer=FileTokenizer(path="x"), objective=objective, length=length, packing=packing)
    return objective_rows(config, opened, seed)


def put_back(tokens: list[int]) -> tuple[list[int], str]:
    """(the tokens of text of a segment, how it was rearranged), read as an editor would that knows the sentinels."""
    lead = [END] if tokens[0] == END else []
    rest = tokens[len(lead) :]
    if PREFIX not in rest:
        return tokens, "as it was"
    assert rest[0] == PREFIX and rest.count(PREFIX) == rest.count(SUFFIX) == rest.count(MIDDLE) == 1
    suffix, middle = rest.index(SUFFIX), rest.index(MIDDLE)
    assert suffix < middle
    if suffix == 1 and middle < len(rest):
        # Suffix first, or an empty prefix: what stands behind the middle's sentinel comes first either way.
        return lead + rest[middle + 1 :] + rest[suffix + 1 : middle], "suffix first"
    return lead + rest[1:suffix] + rest[middle + 1 :] + rest[suffix + 1 : middle], "prefix first"


def parts(batch):
    """(row, tokens, targets, weights, positions) of each segment."""
    for row, ids in enumerate(batch["segment_ids"]):
        for number in range(1, ids.max() + 1):
            chosen = ids == number
            yield row, *(batch[key][row][chosen].tolist() for key in ("tokens", "targets", "weights", "positions"))


@pytest.mark.parametrize("objective", [ALWAYS, FimObjective(), replace(ALWAYS, segments=1)], ids=str)
@pytest.mark.parametrize("packing", ["concat", "unpacked", "best_fit"])
def test_the_rows_are_the_text(opened, objective, packing):
    rows = rows_of(opened, objective, packing)
    clean = rows.inputs.rows(range(len(rows)))
    batch = rows.rows(range(len(rows)))
    found, moved = [[] for _ in range(len(rows))], np.zeros(len(rows), int)
    for row, tokens, targets, weights, positions in parts(batch):
        text, how = put_back(tokens)
        found[row] += text
        moved[row] += how != "as it was"
        assert weights == [1.0] * len(tokens) and positions == list(range(len(tokens)))
        assert targets[:-1] == tokens[1:]
        assert how == "as it was" or targets[-1] == END
    for row in range(len(rows)):
        assert found[row] == clean["tokens"][row][clean["segment_ids"][row] > 0].tolist()
    assert moved.max() <= objective.segments and moved.max() > 0
    assert rows.inputs.length == LENGTH - 3 * objective.segments
    assert (batch["segment_ids"] > 0).sum() == opened.num_tokens + 3 * moved.sum() == batch["weights"].sum()


def test_what_is_not_rearranged_is_the_packed_row(opened):
    """Its last target too: where the row cuts a document, the token that follows."""
    rows = rows_of(opened, FimObjective(rate=0.3))
    batch, clean = rows.rows(range(len(rows))), rows.inputs.rows(range(len(rows)))
    same = 0
    for row in range(len(rows)):
        if PREFIX not in batch["tokens"][row]:
            used = clean["segment_ids"][row] > 0
            assert all((batch[key][row, : used.sum()] == clean[key][row][used]).all() for key in clean)
            same += clean["targets"][row][used][-1] != END
    assert same > 0


def test_orders_and_rates_are_the_configured_ones(opened):
    rows = rows_of(opened, FimObjective(rate=0.7, spm_share=0.2, segments=20), length=200)
    found = {"as it was": 0, "prefix first": 0, "suffix first": 0}
    for epoch in range(30):
        for _, tokens, *_ in parts(rows.rows(range(len(rows)), epochs=np.full(len(rows), epoch))):
            text, how = put_back(tokens)
            found[how] += len(text) > 20  # in shorter ones empty prefixes are frequent, which read as suffix first
    total, moved = sum(found.values()), found["prefix first"] + found["suffix first"]
    assert total > 800 and abs(moved / total - 0.7) < 5 * np.sqrt(0.21 / total)
    assert abs(found["suffix first"] / moved - 0.2 - 0.8 / 25) < 5 * np.sqrt(0.16 / moved)


def test_the_middle_stands_last():
    tokens = np.array([50, 51, 52, 53], np.int32)
    assert middle_last(tokens, 1, 3, False, NAMES).tolist() == [PREFIX, 50, SUFFIX, 53, MIDDLE, 51, 52]
    assert middle_last(tokens, 1, 3, True, NAMES).tolist() == [PREFIX, SUFFIX, 53, MIDDLE, 50, 51, 52]
    assert middle_last(tokens, 0, 4, False, NAMES).tolist() == [PREFIX, SUFFIX, MIDDLE, 50, 51, 52, 53]


def test_all_cuts_are_drawn(opened):
    """Prefix, middle and suffix are each empty at times, and each the whole."""
    rows, seen = rows_of(opened, replace(ALWAYS, spm_share=0.0)), set()
    for epoch in range(20):
        for _, tokens, *_ in parts(rows.rows(range(len(rows)), epochs=np.full(len(rows), epoch))):
            rest = tokens[tokens[0] == END :]
            if PREFIX in rest and len(rest) < 9:
                suffix, middle = rest.index(SUFFIX), rest.index(MIDDLE)
                seen.add((suffix - 1 == 0, middle - suffix - 1 == 0, len(rest) - middle - 1 == 0))
    assert len(seen) == 7  # all but the three of them empty
