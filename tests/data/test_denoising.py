"""Corrupted rows give the stream of a store back, in every arrangement, and hold nothing that does not belong there."""

from dataclasses import replace

import numpy as np
import pytest

from data import store
from data.config import Data
from data.denoising import choose
from data.objective_config import DENOISERS, SpanCorruptionObjective, Ul2Objective
from data.objectives import batch_spec, objective_rows
from data.span_lengths import Denoiser
from data.store import Store
from data.tokenizer_config import FileTokenizer
from tests.data.words import MODES, SENTINELS, SPECIAL, random_texts, word_tokenizer

T5, UL2 = SpanCorruptionObjective(), Ul2Objective()
OBJECTIVES = {"span_corruption": T5, "ul2": UL2}
ARRANGEMENTS = ("encoder_decoder", "decoder", "prefix_decoder")
LENGTH, END = 40, 0
MARKS = range(SPECIAL.index(SENTINELS[0]), SPECIAL.index(SENTINELS[-1]) + 1)
MODE_IDS = {SPECIAL.index(name): name for name in MODES}


def data(objective, packing="concat", length=LENGTH) -> Data:
    return Data(tokenizer=FileTokenizer(path="x"), objective=objective, length=length, packing=packing)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    directory = tmp_path_factory.mktemp("denoising") / "store"
    store.write(directory, random_texts(60, 50), word_tokenizer(), about={})
    return Store(directory)


def halves(row: dict, arrangement: str) -> tuple[list[int], list[int]]:
    """(inputs, targets) of a row, by its keys alone."""
    weights = row["weights"] > 0
    targets = row["targets"][weights].tolist()
    if arrangement == "encoder_decoder":
        return row["source_tokens"][row["source_segment_ids"] > 0].tolist(), targets
    return row["tokens"][: np.flatnonzero(weights)[0] + 1].tolist(), targets


def text_of(inputs: list[int], targets: list[int]) -> list[int]:
    """The tokens of text, in order."""
    assert inputs[-1] == targets[-1] == END
    inputs, spans, held = inputs[:-1], {}, None
    if inputs[0] in MODE_IDS:
        inputs = inputs[1:]
    for token in targets[:-1]:
        if token in MARKS:
            held = spans.setdefault(token, [])
        else:
            held.append(token)
    return sum((spans.pop(token) if token in MARKS else [token] for token in inputs), [])


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("packing", ["concat", "unpacked", "best_fit"])
def test_the_rows_are_the_text(opened, name, arrangement, packing):
    """Every token of the store is in the inputs or the targets of one row, in its place."""
    config = data(replace(OBJECTIVES[name], arrangement=arrangement), packing)
    rows = objective_rows(config, opened, seed=3)
    clean = rows.inputs.rows(range(len(rows)))
    batch = rows.rows(range(len(rows)))
    total = 0
    for index in range(len(rows)):
        row = {key: value[index] for key, value in batch.items()}
        inputs, targets = halves(row, arrangement)
        found = text_of(inputs, targets)
        assert found == clean["tokens"][index][clean["segment_ids"][index] > 0].tolist()
        marks = sum(token in MARKS for token in targets)
        assert (
            row["weights"].sum() == len(targets) == len(found) - (len(inputs) - 1 - marks - (name == "ul2")) + marks + 1
        )
        total += len(found)
    assert total == opened.num_tokens and (
        packing != "concat" or found == opened.tokens(total - len(found), total).tolist()
    )


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_span_corruption_pads_nothing(opened, arrangement):
    """But the last row of the store, and up to two positions of a decoder, in which no span more has room."""
    config = data(replace(T5, arrangement=arrangement))
    rows = objective_rows(config, opened, seed=0)
    batch = rows.rows(range(len(rows) - 1))
    assert (batch["segment_ids"] > 0).sum(axis=1).min() >= batch["segment_ids"].shape[1] - 2
    if arrangement == "encoder_decoder":
        assert batch["source_segment_ids"].all() and batch["segment_ids"].all() and batch["weights"].all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_decoder_beside_an_encoder_reads_what_it_has_predicted(opened, name):
    batch = objective_rows(data(OBJECTIVES[name]), opened, seed=0).rows(range(20))
    for row in range(20):
        size = int(batch["weights"][row].sum())
        assert batch["tokens"][row, :size].tolist() == [END, *batch["targets"][row, : size - 1]]
        assert batch["positions"][row, :size].tolist() == list(range(size)) and not batch["positions"][row, size:].any()
        source = int(batch["source_segment_ids"][row].sum())
        assert batch["source_positions"][row, :source].tolist() == list(range(source))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_end_may_be_another_token_than_the_beginning(opened, name):
    """As T5's: a decoder begins with what begins documents, and inputs and targets end with the tokenizer's stop."""
    plain = data(OBJECTIVES[name])
    stopped = replace(plain, tokenizer=replace(plain.tokenizer, stop=SENTINELS[-1]))
    expected, found = (objective_rows(config, opened, seed=0).rows(range(20)) for config in (plain, stopped))
    stop = SPECIAL.index(SENTINELS[-1])
    for row in range(20):
        for key in ("source_tokens", "targets"):
            real = expected[key.replace("tokens", "segment_ids").replace("targets", "segment_ids")][row] > 0
            before, after = expected[key][row][real], found[key][row][real]
            assert after[-1] == stop and before[-1] == END and (after[:-1] == before[:-1]).all()
        assert found["tokens"][row, 0] == END


@pytest.mark.parametrize("name", OBJECTIVES)
def test_both_arrangements_hold_the_same(opened, name):
    """A decoder reads inputs and targets one behind the other; the inputs of a prefix_decoder see one another."""
    config = data(replace(OBJECTIVES[name], arrangement="decoder"))
    plain = objective_rows(config, opened, seed=0).rows(range(30))
    ordered = objective_rows(data(replace(OBJECTIVES[name], arrangement="prefix_decoder")), opened, 0).rows(range(30))
    order = ordered.pop("order")
    assert all((plain[key] == ordered[key]).all() for key in plain) and plain.keys() == ordered.keys()
    for row in range(30):
        used = plain["segment_ids"][row] > 0
        tokens, targets = plain["tokens"][row][used], plain["targets"][row][used]
        assert (tokens[1:] == targets[:-1]).all() and targets[-1] == END
        first = np.flatnonzero(plain["weights"][row])[0]
        assert plain["weights"][row][used].tolist() == [0.0] * first + [1.0] * (used.sum() - first)
        assert tokens[first] == END and order[row][used].tolist() == [max(first, at) for at in range(used.sum())]
        assert not order[row][~used].any()


def test_the_kinds_of_noise_come_by_their_weights():
    kinds = (Denoiser(weight=1.0), Denoiser(weight=2.0), Denoiser(weight=5.0))
    generator = np.random.default_rng(0)
    words = generator.integers(0, 2**64, 8000, np.uint64)
    counts = np.bincount([choose(kinds, word) for word in words], minlength=3)
    assert abs(counts - [1000, 2000, 5000]).max() < 5 * np.sqrt(2000)
    assert choose(kinds, 2**64 - 1) == 2 and choose(kinds, 0) == 0


def test_the_kinds_are_those_of_the_paper():
    """Table 1 of Tay et al. 2022: two R, one S, four X, each told by its mode."""
    found = [(kind.mode, kind.rate, kind.mean_span, kind.suffix) for kind in DENOISERS]
    assert found == [
        ("[NLU]", 0.15, 3.0, False),
        ("[NLU]", 0.15, 8.0, False),
        ("[S2S]", 0.25, 3.0, True),
        ("[NLG]", 0.5, 3.0, False),
        ("[NLG]", 0.5, 8.0, False),
        ("[NLG]", 0.15, 64.0, False),
        ("[NLG]", 0.5, 64.0, False),
    ]


def test_a_mode_tells_the_noise_of_its_row(opened):
    """S: one span, at the end. R: 15 %. X: half, or one long span. Each row by its own key, whatever the batch."""
    rows = objective_rows(data(UL2, length=60), opened, seed=1)
    seen = dict.fromkeys(MODES, 0)
    for epoch in range(8):
        batch = rows.rows(range(len(rows) - 1), epochs=np.full(len(rows) - 1, epoch))
        for row in range(len(rows) - 1):
            inputs, targets = halves({key: value[row] for key, value in batch.items()}, "encoder_decoder")
            mode, spans = MODE_IDS[inputs[0]], sum(token in MARKS for token in targets)
            noise = len(targets) - spans - 1
            seen[mode] += 1
            if mode == "[S2S]":
                assert spans == 1 and inputs[-2] in MARKS
            elif mode == "[NLU]":
                assert noise == round(0.15 * rows.inputs.length)
            else:
                assert noise == round(0.5 * rows.inputs.length) or (noise, spans) == (
                    round(0.15 * rows.inputs.length),
                    1,
                )
    total = sum(seen.values())
    for mode, share in zip(MODES, (2 / 7, 1 / 7, 4 / 7), strict=True):
        assert abs(seen[mode] / total - share) < 5 * np.sqrt(share * (1 - share) / total)


def test_the_longest_targets_have_room(opened):
    """Those of any noise: of half of the tokens in spans of 3 here."""
    spec = batch_spec(data(UL2, length=60))
    rows = objective_rows(data(UL2, length=60), opened, seed=1)
    raw = rows.inputs.length
    assert spec["targets"][0] == (round(raw / 2) + round(raw / 2 / 3) + 1,)
    lengths = [
        (rows.rows(range(len(rows)), epochs=np.full(len(rows), e))["weights"].sum(axis=1)).max() for e in range(9)
    ]
    assert max(lengths) == spec["targets"][0][0]
