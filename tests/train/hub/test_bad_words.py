"""The padding of a Marian model is suppressed where its files call it a bad word; what else they name is told."""

import json

import jax
import numpy as np
import pytest

from data.errors import DataError
from model.hub.families import family_of, from_config
from tests.model.hub.small import CONFIGS
from tests.train.hub.published import arrays_of, publish
from train.hub.bad_words import SUPPRESSED, suppressed
from train.hub.importer import declared, match, read_params
from train.hub.safetensors import DTYPES
from train.hub.source import open_source
from train.hub.tensors import in_memory

PAD, VOCAB, BIAS = 99, 100, "final_logits_bias"
CONFIG = {**CONFIGS["marian"], "pad_token_id": PAD, "eos_token_id": 0, "bad_words_ids": [[PAD]]}


def row(values=None) -> dict:
    return in_memory({} if values is None else {BIAS: np.asarray(values)[None]})


@pytest.mark.parametrize("lost", [False, True])
def test_an_imported_model_has_all_but_its_paddings_bias(lost, tmp_path):
    """A file may leave the bias out, which then is 0."""
    arrays = arrays_of(CONFIG)
    expected = np.zeros(VOCAB, np.float32) if lost else arrays[BIAS][0].copy()
    if lost:
        del arrays[BIAS]
    source = open_source(publish(tmp_path / "hf", CONFIG, arrays))
    model = from_config(source.config, source.tensors)
    tree, device = declared(model), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    matched = match(family_of(source.config), model, tree, source.tensors)
    found = read_params(matched, model, tree, jax.tree.map(lambda _: device, tree))["head_bias"]
    expected[PAD] = SUPPRESSED
    np.testing.assert_array_equal(found[:VOCAB], expected)
    assert "its padding, id 99, is never written" in source.notes[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_part_of_a_row_in_any_dtype_is_suppressed(dtype):
    values = np.linspace(-3, 3, VOCAB).astype(DTYPES[dtype])
    found = suppressed(CONFIG, {}, row(values))[0][BIAS]
    assert np.isfinite(DTYPES[dtype].type(SUPPRESSED))
    whole = values.astype(np.float32)
    whole[PAD] = SUPPRESSED
    for part in (slice(None), slice(0, 50), slice(50, 100), np.array([3, PAD, 7])):
        np.testing.assert_array_equal(found.take(slice(None), part), whole[None, part])


@pytest.mark.parametrize(
    ("changes", "generation", "applied", "told"),
    [
        ({"bad_words_ids": None}, {}, False, None),
        ({"bad_words_ids": []}, {}, False, None),
        ({"bad_words_ids": None}, {"bad_words_ids": [[PAD]]}, True, None),
        ({}, {"bad_words_ids": None}, False, None),  # as the newer file says
        ({"bad_words_ids": [[PAD], [3, 4]]}, {}, True, "[3, 4]"),
        ({"bad_words_ids": [[index] for index in range(1, 9)]}, {}, False, "[1], [2], [3], ..."),
        ({"eos_token_id": PAD}, {}, False, None),  # what ends a text is exempt
        ({"eos_token_id": [0, PAD]}, {}, False, None),
        ({"pad_token_id": None}, {}, False, "[99]"),
        ({"model_type": "t5"}, {}, False, "[99]"),
        ({"model_type": "mamba"}, {}, False, "[99]"),
        ({"vocab_size": "many"}, {}, False, "[99]"),
        ({"model_type": ["marian"]}, {}, False, "[99]"),
    ],
)
def test_what_is_not_suppressed_is_told(changes, generation, applied, told):
    tensors, notes = suppressed({**CONFIG, **changes}, generation, row())
    assert tensors.keys() == ({BIAS} if applied else set())
    assert [note for note in notes if "not read" in note] == list(notes[applied:])
    assert len(notes) == applied + (told is not None)
    assert told is None or f"bad_words_ids names {told}, which is not read" in notes[-1]


@pytest.mark.parametrize("words", ["pad", {"99": 1}, [99], [["99"]], [[-1]], [[True]], [[99.0]], 7, False])
def test_bad_words_that_are_none_are_refused(words, tmp_path):
    source = publish(tmp_path / "hf", CONFIG, arrays_of(CONFIG))
    (source / "generation_config.json").write_text(json.dumps({"bad_words_ids": words}))
    with pytest.raises(DataError, match="bad_words_ids of config.json or generation_config.json is .* must be lists"):
        open_source(source)
