"""What transformers computed of tiny models in its own files, without PyTorch: see `golden.py`."""

import json

import numpy as np
import pytest

from model.hub.families import FAMILIES
from tests.references import golden, ours
from tests.references.families import CASES


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_references(name):
    """Within 1e-5, or 1e-4 of the value: float32 sums in another order."""
    model, params = ours.imported(golden.directory(name))
    batch, expected = golden.read(name)
    found = golden.real(ours.outputs(model, params, batch), batch)
    assert expected.keys() == set(CASES[name].outputs)
    for head, value in golden.real(expected, batch).items():
        np.testing.assert_array_less(np.abs(found[head] - value), np.maximum(1e-5, 1e-4 * np.abs(value)), err_msg=head)


def test_every_family_has_golden_files():
    kinds = {json.loads((golden.directory(name) / "config.json").read_text())["model_type"] for name in CASES}
    assert kinds == {family.model_type for family in FAMILIES.values()}
    assert {path.name for path in golden.DIRECTORY.iterdir()} == set(CASES)
