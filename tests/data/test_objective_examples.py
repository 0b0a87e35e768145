"""One example of each objective as a person reads it: two rows of a small text before, and what they become."""

import numpy as np
import pytest

from data import store
from data.config import Data
from data.objective_config import (
    CausalObjective,
    Denoiser,
    FimObjective,
    MaskedObjective,
    PrefixObjective,
    ReplacedTokenObjective,
    SpanCorruptionObjective,
    Ul2Objective,
)
from data.objectives import batch_spec, objective_rows
from data.store import Store
from data.tokenizer_config import FileTokenizer
from tests.data.words import word_tokenizer

TEXTS = [
    "the quick brown fox jumps over the lazy dog and then sleeps under the old tree",
    "small birds sing of long warm days",
    "in the green valley where a river runs slowly to the sea that nobody has ever seen but every child knows",
]
TOKENS = ("tokens", "targets", "source_tokens")
EXAMPLES = {
    "causal": (CausalObjective(), 20),
    "masked": (MaskedObjective(rate=0.2, max_predictions=5), 20),
    "masked_independent": (MaskedObjective(rate=0.2, choice="independent", max_predictions=5), 20),
    "replaced_token": (ReplacedTokenObjective(rate=0.2, max_predictions=5), 20),
    "span_corruption": (SpanCorruptionObjective(rate=0.3, mean_span=2.0), 18),
    "span_corruption_decoder": (SpanCorruptionObjective(rate=0.3, mean_span=2.0, arrangement="decoder"), 26),
    "prefix_lm": (PrefixObjective(), 20),
    "ul2": (Ul2Objective(denoisers=(Denoiser("[S2S]", 0.25, suffix=True), Denoiser("[NLG]", 0.5, 4.0))), 20),
    "fim": (FimObjective(rate=0.7, segments=2), 26),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    directory = tmp_path_factory.mktemp("examples") / "store"
    store.write(directory, TEXTS, word_tokenizer(), about={})
    return Store(directory)


def shown(name: str, values: np.ndarray, used: int, opened: Store) -> str:
    """A line of a row: its real values, tokens by name, weights as digits; how many positions are padding."""
    if name in TOKENS:
        words = map(opened.tokenizer.name_of, values[:used].tolist())
    else:
        words = (f"{value:g}" for value in values[:used])
    return f"  {name:<20}{' '.join(words)}{f'  ({values.size - used} padding)' if used < values.size else ''}\n"


def used_of(name: str, row: dict) -> int:
    """Positions of a key that are no padding."""
    if name.startswith("source"):
        return int((row["source_segment_ids"] > 0).sum())
    if "masked_positions" in row and name in ("masked_positions", "targets", "weights"):
        return int((row["weights"] > 0).sum())
    return int((row["segment_ids"] > 0).sum())


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_the_golden_ones(opened, golden, name):
    """Whoever changes what is drawn raises DATA_ORDER_VERSION."""
    objective, length = EXAMPLES[name]
    config = Data(tokenizer=FileTokenizer(path="x"), objective=objective, length=length)
    rows = objective_rows(config, opened, seed=13)
    clean = getattr(rows, "inputs", rows).rows([0, 1])
    batch, text = rows.rows([0, 1]), ""
    for index in range(2):
        before = clean["tokens"][index][clean["segment_ids"][index] > 0]
        text += f"row {index}\n" + shown("tokens", before, before.size, opened).replace("tokens", "before", 1)
        row = {key: batch[key][index] for key in batch_spec(config)}
        text += "".join(shown(key, value, used_of(key, row), opened) for key, value in row.items())
    golden(f"objective_{name}.txt", text)
