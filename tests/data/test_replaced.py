"""A discriminator reads a generator's tokens in place of masks; one that is right counts as the text's."""

import jax.numpy as jnp
import numpy as np
import pytest

from data import store, tokenizer
from data.config import Data
from data.objective_config import MaskedObjective, ReplacedTokenObjective
from data.objectives import objective_rows
from data.packing import make_rows
from data.replaced import replace
from data.store import Store
from data.tokenizer_config import WordPieceTokenizer

WORDPIECE = WordPieceTokenizer(vocab_size=300, max_characters=100)
OBJECTIVE = ReplacedTokenObjective(max_predictions=6)
LENGTH = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(store, masked batch, the clean tokens of its rows)."""
    generator, words = np.random.default_rng(0), ["several", "words", "of", "a", "text", "and", "others"]
    texts = [" ".join(generator.choice(words, generator.integers(3, 30))) for _ in range(30)]
    directory = tmp_path_factory.mktemp("replaced") / "store"
    store.write(directory, texts, tokenizer.train_wordpiece(texts, WORDPIECE), about={})
    opened = Store(directory)
    rows = objective_rows(Data(tokenizer=WORDPIECE, objective=OBJECTIVE, length=LENGTH), opened, 0)
    return (
        opened,
        rows.rows(range(len(rows)), len(rows) + 1),
        make_rows(opened, LENGTH, "concat").rows(range(len(rows))),
    )


def replaced(batch, sampled, array=np.asarray):
    keys = ("tokens", "masked_positions", "targets", "weights")
    return replace(*(array(batch[key]) for key in keys), array(sampled))


def test_all_predictions_are_masked_and_all_tokens_judged(made):
    opened, batch, clean = made
    real = batch["weights"] > 0
    places = np.nonzero(real)[0], batch["masked_positions"][real]
    assert (batch["tokens"][places] == opened.tokenizer.mask).all() and real[:-1].any(axis=1).all()
    assert (batch["tokens"] == opened.tokenizer.mask).sum() == real.sum()
    assert (batch["label_weights"] == (batch["segment_ids"] > 0)).all() and not batch["label_weights"][-1].any()
    assert (batch["label_weights"][:-1].sum(), real.sum(axis=1).max()) == (clean["weights"].sum(), 4)  # 24 * .15 = 3.6


def test_a_right_sample_is_the_text(made):
    _, batch, clean = made
    read, labels = replaced(batch, batch["targets"])
    assert (read[:-1] == clean["tokens"]).all() and not labels.any()


def test_samples_stand_where_the_masks_were(made):
    _, batch, clean = made
    generator = np.random.default_rng(1)
    sampled = np.where(generator.random(batch["targets"].shape) < 0.3, batch["targets"], 5 + generator.integers(90))
    read, labels = replaced(batch, sampled)
    expected = np.concatenate((clean["tokens"], np.zeros((1, LENGTH), np.int32)))
    wrong = np.zeros_like(expected)
    for row, slot in np.argwhere(batch["weights"] > 0):
        place = batch["masked_positions"][row, slot]
        wrong[row, place] = sampled[row, slot] != expected[row, place]
        expected[row, place] = sampled[row, slot]
    assert (read == expected).all() and (labels == wrong).all() and 0 < labels.sum() < (batch["weights"] > 0).sum()
    assert read.dtype == labels.dtype == np.int32


def test_jax_does_what_numpy_does(made):
    _, batch, _ = made
    sampled = np.random.default_rng(2).integers(5, 200, batch["targets"].shape)
    for left, right in zip(replaced(batch, sampled), replaced(batch, sampled, jnp.asarray), strict=True):
        assert isinstance(right, jnp.ndarray) and (left == np.asarray(right)).all() and right.dtype == jnp.int32


def test_masks_are_those_of_the_masked_objective(made):
    opened, batch, _ = made
    masked = MaskedObjective(max_predictions=6, keep_share=0.0, random_share=0.0, copies=None)
    rows = objective_rows(Data(tokenizer=WORDPIECE, objective=masked, length=LENGTH), opened, 0)
    other = rows.rows(range(len(rows)), len(rows) + 1)
    assert set(batch) == {*other, "label_weights"} and all((batch[key] == other[key]).all() for key in other)
