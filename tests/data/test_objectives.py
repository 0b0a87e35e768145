"""Batches are what their objective declares, in every epoch and process the same, and always so for validation."""

import numpy as np
import pytest

from data import masked_rows, store, tokenizer
from data.config import Data, check
from data.errors import ConfigError
from data.loader import Loader, evaluation_batches
from data.objective_config import (
    CausalObjective,
    FimObjective,
    MaskedObjective,
    PrefixObjective,
    ReplacedTokenObjective,
    SpanCorruptionObjective,
    Ul2Objective,
)
from data.objectives import batch_spec, check_tokenizer, marks_of, objective_rows
from data.packing import make_rows
from data.span_lengths import Denoiser
from data.store import Store
from data.tokenizer_config import BpeTokenizer, ByteTokenizer, FileTokenizer, WordPieceTokenizer

SPECIAL = ("<extra_id_{0..9}>", "[NLU]", "[S2S]", "[NLG]", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
WORDPIECE = WordPieceTokenizer(vocab_size=300, max_characters=100, special_tokens=SPECIAL)
MASKED = MaskedObjective(max_predictions=5)
PAIRS = MaskedObjective(max_predictions=5, next_sentence=True, copies=2)
OBJECTIVES = {
    "masked": MASKED,
    "whole words": MaskedObjective(max_predictions=5, whole_word=True),
    "dynamic": MaskedObjective(max_predictions=5, copies=None),
    "pairs": PAIRS,
    "pairs of whole words": MaskedObjective(max_predictions=5, next_sentence=True, whole_word=True, copies=None),
}
OTHERS = {  # whose rows are drawn from packed ones, anew in every epoch
    "replaced tokens": ReplacedTokenObjective(max_predictions=5),
    "spans": SpanCorruptionObjective(rate=0.3, mean_span=2.0),
    "spans of a decoder": SpanCorruptionObjective(rate=0.3, mean_span=2.0, arrangement="decoder"),
    "spans behind a prefix": SpanCorruptionObjective(rate=0.3, mean_span=2.0, arrangement="prefix_decoder"),
    "prefixes": PrefixObjective(),
    "ul2": Ul2Objective(),
    "ul2 of a decoder": Ul2Objective(arrangement="decoder"),
    "ul2 behind a prefix": Ul2Objective(arrangement="prefix_decoder"),
    "fim": FimObjective(segments=2),
}
ALL = {"causal": CausalObjective(), **OBJECTIVES, **OTHERS}
everyone = pytest.mark.parametrize("name", OBJECTIVES)


def data(objective, packing="concat", length=24):
    return Data(tokenizer=WORDPIECE, objective=objective, length=length, packing=packing)


@pytest.fixture(scope="module")
def made():
    return tokenizer.train_wordpiece(["several words of a text, and others"], WORDPIECE)


@pytest.fixture(scope="module")
def opened(tmp_path_factory, made):
    """A store with all marks."""
    generator, words = np.random.default_rng(0), ["several", "words", "of", "a", "text", "and", "others", ",", "sev"]
    texts = [
        "\n".join(" ".join(generator.choice(words, generator.integers(1, 9))) for _ in range(generator.integers(2, 9)))
        for _ in range(20)
    ]
    directory = tmp_path_factory.mktemp("objectives") / "store"
    store.write(directory, texts, made, about={}, marks=("sentences", "words"))
    return Store(directory)


def same(left, right) -> bool:
    assert left.keys() == right.keys()
    return all(np.array_equal(left[key], right[key]) for key in left)


@everyone
@pytest.mark.parametrize("packing", ["concat", "unpacked"])
def test_batches_are_what_the_objective_declares(opened, name, packing):
    config = data(OBJECTIVES[name], packing)
    spec, batch = batch_spec(config), objective_rows(config, opened, seed=0).rows([0, 3], 4)
    assert list(spec)[:7] == [
        *("tokens", "token_types", "segment_ids", "positions", "masked_positions", "targets", "weights"),
    ]
    assert set(batch) == set(spec) and ("next_sentence" in spec) == OBJECTIVES[name].next_sentence
    for key, (shape, dtype, axes) in spec.items():
        assert (batch[key].shape, batch[key].dtype) == ((4, *shape), dtype)
        assert len(axes) == 1 + len(shape) and axes[0] == "batch"
        assert not batch[key][2:].any()  # padding rows
    assert batch["weights"][:2].any(axis=1).all()


@pytest.mark.parametrize("packing", ["concat", "unpacked"])
def test_masked_rows_are_the_packed_ones(opened, made, packing):
    """But for the masks: the same tokens, segments and positions; documents begin with [CLS], which is no target."""
    config = data(MASKED, packing)
    rows, plain = objective_rows(config, opened, seed=0), make_rows(opened, 24, packing)
    assert len(rows) == len(plain) and rows.fingerprint == plain.fingerprint
    every = range(len(rows))
    batch, clean = rows.rows(every), plain.rows(every)
    tokens = batch["tokens"].copy()
    real = batch["weights"] > 0
    tokens[np.nonzero(real)[0], batch["masked_positions"][real]] = batch["targets"][real]
    assert (tokens == clean["tokens"]).all() and not batch["token_types"].any()
    assert (batch["segment_ids"] == clean["segment_ids"]).all() and (batch["positions"] == clean["positions"]).all()
    assert made.cls not in batch["targets"][real] and (tokens[:, 0] == made.cls).any()
    assert (batch["tokens"] != clean["tokens"]).any()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("packing", ["concat", "unpacked", "best_fit"])
def test_every_batch_is_what_its_objective_declares(opened, name, packing):
    """Each key, its shape and its type; whatever is padding is 0 in all of them, and behind all that is not."""
    config = data(ALL[name], packing)
    spec, rows = batch_spec(config), objective_rows(config, opened, seed=0)
    assert check(config) == []
    for count, epochs in ((len(rows), np.zeros(len(rows), np.int64)), (len(rows) + 2, np.full(len(rows), 10**6))):
        batch = rows.rows(range(len(rows)), count, epochs)
        assert set(batch) == set(spec)
        for key, (shape, dtype, axes) in spec.items():
            assert (batch[key].shape, batch[key].dtype) == ((count, *shape), dtype)
            assert len(axes) == 1 + len(shape) and axes[0] == "batch" and not batch[key][len(rows) :].any()
        for segments in (key for key in spec if key.endswith("segment_ids")):
            padding = batch[segments] == 0
            source = segments.startswith("source")
            beside = [key for key in spec if spec[key][2][1:] == ("length",) and key.startswith("source") == source]
            beside = [key for key in beside if spec[key][0] == spec[segments][0]]
            assert beside and not any(batch[key][padding].any() for key in beside)
            assert (np.diff(padding.astype(int), axis=1) >= 0).all()  # behind all that is not
    assert rows.rows([], 2).keys() == spec.keys() and not any(value.any() for value in rows.rows([], 2).values())


@pytest.mark.parametrize("name", ALL)
def test_any_split_over_processes_gives_the_same_batch(opened, name):
    config = data(ALL[name])
    loader = Loader({"text": objective_rows(config, opened, seed=0)}, 8, 0, True)
    for step in (0, 3, 50, 10**9):
        whole = loader.batch(step)
        halves = [
            Loader({"text": objective_rows(config, opened, seed=0)}, 8, 0, True).batch(step, at, at + 4)
            for at in (0, 4)
        ]
        assert same({key: np.concatenate([half[key] for half in halves]) for key in whole}, whole)


@everyone
def test_epochs_take_the_copies_in_turn(opened, name):
    """Three static copies come again after three epochs, dynamic masks never; pairs have their copies in one epoch."""
    objective = OBJECTIVES[name]
    copies = None if objective.copies is None else 3
    config = data(MaskedObjective(**{**vars(objective), "copies": copies}))
    rows, indices = objective_rows(config, opened, seed=0), [4, 7, 9]
    epochs = [rows.rows(indices, epochs=np.full(3, epoch)) for epoch in range(7)]
    static = [[same(a, b) for b in epochs] for a in epochs]
    if copies is None:
        assert np.array_equal(static, np.eye(7, dtype=bool))
    elif objective.next_sentence:
        assert np.all(static)
        single = objective_rows(data(MaskedObjective(**{**vars(objective), "copies": 1})), opened, seed=0)
        assert 2.5 < len(rows) / len(single) < 3.5
    else:
        assert np.array_equal(static, [[(a - b) % 3 == 0 for b in range(7)] for a in range(7)])
    mixed = rows.rows(indices, epochs=np.array([0, 5, 2]))
    for at, epoch in enumerate((0, 5, 2)):  # a batch may hold the end of one epoch and the start of the next
        assert all(np.array_equal(mixed[key][at], epochs[epoch][key][at]) for key in mixed)


@pytest.mark.parametrize("name", OTHERS)
def test_rows_are_drawn_anew_in_every_epoch(opened, name):
    """And alone, among others, in any order and epoch are the same: only seed, row and epoch are drawn from."""
    rows, indices = objective_rows(data(OTHERS[name]), opened, seed=0), [1, 2, 5]
    epochs = [rows.rows(indices, epochs=np.full(3, epoch)) for epoch in range(6)]
    assert np.array_equal([[same(a, b) for b in epochs] for a in epochs], np.eye(6, dtype=bool))
    assert same(rows.rows(indices), epochs[0])
    mixed = rows.rows([5, 5, 1], 4, epochs=np.array([0, 5, 2]))
    for at, (row, epoch) in enumerate(((2, 0), (2, 5), (0, 2))):
        assert all(np.array_equal(mixed[key][at], epochs[epoch][key][row]) for key in mixed)


def test_the_loader_says_which_epoch_a_row_is_of(opened):
    config = data(MaskedObjective(max_predictions=5, copies=None))
    rows = objective_rows(config, opened, seed=0)
    loader = Loader({"text": rows}, 8, 0, shuffle=False)
    step = len(rows) // 8  # holds the end of epoch 0 and the start of epoch 1
    batch = loader.batch(step)
    for at in range(8):
        _, epoch, row = loader.place(step * 8 + at)
        assert {epoch} <= {0, 1}
        assert all(np.array_equal(batch[key][at], value[0]) for key, value in rows.rows([row], 1, [epoch]).items())


@pytest.mark.parametrize("name", [*OBJECTIVES, *OTHERS])
def test_validation_is_always_drawn_alike(opened, name):
    config = data(ALL[name])
    rows = objective_rows(config, opened, seed=0, held_out=True)
    whole = 7 if len(rows) % 7 else 8  # rows of a batch, so that the last one is padded
    first, again = (list(evaluation_batches(rows, whole)) for _ in range(2))
    other = list(evaluation_batches(objective_rows(config, opened, seed=5, held_out=True), whole))
    assert all(map(same, first, again)) and all(map(same, first, other))
    for size in (1, 16):
        for key in ("tokens", "targets"):
            found = np.concatenate([batch[key] for batch in evaluation_batches(rows, size)])[: len(rows)]
            assert (found == np.concatenate([batch[key] for batch in first])[: len(rows)]).all()
    last = first[-1]
    padding = np.arange(whole) >= (len(rows) - 1) % whole + 1
    assert padding.any() and not last["segment_ids"][padding].any() and not last["weights"][padding].any()


def test_the_seed_decides(opened):
    for objective in (*OBJECTIVES.values(), *OTHERS.values()):
        one, two = (objective_rows(data(objective), opened, seed=seed).rows([1, 2]) for seed in (0, 1))
        assert not same(one, two)


def test_whole_words_are_those_of_the_store(opened, made):
    """A word of several pieces has all of them predicted or none."""
    objective = MaskedObjective(max_predictions=12, rate=0.4, whole_word=True)
    batch = objective_rows(data(objective), opened, seed=0).rows(range(20))
    clean = make_rows(opened, 24, "concat").rows(range(20))["tokens"]
    chosen = np.zeros((20, 25), bool)
    rows, slots = np.nonzero(batch["weights"])
    chosen[rows, batch["masked_positions"][rows, slots]] = True
    inside = np.array([[made.name_of(int(i)).startswith("##") for i in row] for row in clean])
    places = np.argwhere(inside[:, 1:])
    assert len(places) > 20
    for row, place in places:
        assert chosen[row, place] == chosen[row, place + 1]


def test_objectives_ask_for_the_marks_they_read():
    assert marks_of(CausalObjective()) == marks_of(MASKED) == ()
    assert marks_of(PAIRS) == ("sentences",)
    assert marks_of(OBJECTIVES["whole words"]) == ("words",)
    assert marks_of(ReplacedTokenObjective(whole_word=True)) == ("words",)
    assert all(marks_of(objective) == () for objective in OTHERS.values())
    assert marks_of(OBJECTIVES["pairs of whole words"]) == ("sentences", "words")


def test_a_tokenizer_without_a_mask_is_refused(made):
    plain = tokenizer.byte_tokenizer()
    check_tokenizer(data(CausalObjective()), plain, 257)
    check_tokenizer(data(MASKED), made, made.vocab_size)
    with pytest.raises(ConfigError, match="has no mask token"):
        check_tokenizer(data(MASKED), plain, 257)
    with pytest.raises(ConfigError, match="has no mask and no cls and no sep token"):
        check_tokenizer(data(PAIRS), plain, 257)
    with pytest.raises(ConfigError, match=f"model.vocab_size is {made.vocab_size - 1}"):
        check_tokenizer(data(MASKED), made, made.vocab_size - 1)


@pytest.mark.parametrize("name", OTHERS)
def test_a_tokenizer_without_the_special_tokens_is_refused(made, name):
    """Where a file has not told it before: which are missing, and which id is beyond the model."""
    config, plain = data(OTHERS[name]), tokenizer.byte_tokenizer()
    check_tokenizer(config, made, made.vocab_size)
    if name == "prefixes":
        return check_tokenizer(config, plain, 257)
    with pytest.raises(ConfigError, match="has no mask token" if "token" in name else "has no special tokens .*<"):
        check_tokenizer(config, plain, 257)
    with pytest.raises(ConfigError, match="model.vocab_size is 5, but .*(needs as many|to at least [0-9]+)"):
        check_tokenizer(config, made, 5)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (Data(tokenizer=ByteTokenizer(), objective=MaskedObjective()), "objective.name"),
        (data(MaskedObjective(max_predictions=25)), "objective.max_predictions"),
        (data(MaskedObjective(max_predictions=5, keep_share=0.6, random_share=0.5)), "objective.random_share"),
        (data(MaskedObjective(max_predictions=4, next_sentence=True), length=4), "length"),
        (data(MaskedObjective(rate=0.0)), "objective.rate"),
        (data(MaskedObjective(copies=0)), "objective.copies"),
        (Data(tokenizer=FileTokenizer(path="vocab.txt")), "tokenizer.lowercase"),
        (data(MaskedObjective(max_predictions=5, choice="some")), "objective.choice"),
        (Data(tokenizer=BpeTokenizer(), objective=ReplacedTokenObjective()), "objective.name"),
        (data(ReplacedTokenObjective(max_predictions=25)), "objective.max_predictions"),
        (data(ReplacedTokenObjective(max_predictions=5, keep_share=0.6, random_share=0.5)), "objective.random_share"),
        (data(SpanCorruptionObjective(rate=1.0)), "objective.rate"),
        (data(SpanCorruptionObjective(mean_span=0.5)), "objective.mean_span"),
        (data(SpanCorruptionObjective(sentinels="<s>")), "objective.sentinels"),
        (data(SpanCorruptionObjective(arrangement="encoder")), "objective.arrangement"),
        (data(SpanCorruptionObjective(), length=2), "length"),
        (data(SpanCorruptionObjective(arrangement="decoder"), length=4), "length"),
        (data(SpanCorruptionObjective(), length=512), "tokenizer.special_tokens"),
        (Data(objective=SpanCorruptionObjective()), "tokenizer.special_tokens"),
        (data(Ul2Objective(denoisers=())), "objective.denoisers"),
        (data(Ul2Objective(denoisers=(Denoiser(rate=1.0),))), "objective.denoisers.0.rate"),
        (data(Ul2Objective(denoisers=(Denoiser(weight=0.0),))), "objective.denoisers.0.weight"),
        (data(Ul2Objective(denoisers=(Denoiser(mode="[R]"),))), "tokenizer.special_tokens"),
        (data(FimObjective(segments=8)), "objective.segments"),
        (data(FimObjective(suffix="<|fim_prefix|>")), "objective.middle"),
        (Data(tokenizer=ByteTokenizer(), objective=FimObjective()), "tokenizer.special_tokens"),
    ],
)
def test_what_cannot_be_is_refused(config, key):
    assert [path for path, _ in check(config)] == [key]


def test_a_mask_may_be_named():
    config = Data(tokenizer=BpeTokenizer(special_tokens=("[MASK]",)), objective=MaskedObjective())
    assert check(config) == []


def test_a_word_does_not_reach_into_the_piece_behind_it(tmp_path):
    """In a best-fit row the rest of a cut document stands behind another one, and may begin inside a word."""
    texts = ["x" * 50, "y" * 45, "z" * 61, "w" * 3]
    store.write(tmp_path / "store", texts, tokenizer.byte_tokenizer(), about={}, marks=("words",))
    opened = store.Store(tmp_path / "store")
    packed = make_rows(opened, 32, "best_fit")
    masked = masked_rows.MaskedRows(packed, MaskedObjective(max_predictions=8, whole_word=True), None, 0)
    positions = packed.rows(range(len(packed)))["positions"]
    begins = masked._word_starts(positions, range(len(packed)))
    inside = (positions == 0) & ~packed.marked("words", range(len(packed)))
    assert inside[:, 1:].any() and begins[positions == 0].all()
    assert (begins == (packed.marked("words", range(len(packed))) | (positions == 0))).all()
