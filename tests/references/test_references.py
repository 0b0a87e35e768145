"""Every family beside transformers, with random weights: outputs, loss, every gradient, and the way back."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from model.config import Model
from model.parameters import path_name
from tests.references import golden, ours
from tests.references.families import CASES, Case, build, rows, trained
from train import convert

WHY = "PyTorch or transformers is not installed: `make test-references` installs them beside, and runs this"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

from tests.references import theirs  # noqa: E402  it imports PyTorch

pytestmark = pytest.mark.references


class Pair(NamedTuple):
    name: str
    case: Case
    reference: Any  # the module of PyTorch
    directory: Path  # in which it is saved
    model: Model
    params: dict  # the reference's, imported
    batch: dict

    def expected(self) -> dict:
        """The reference's outputs as arrays."""
        with torch.no_grad():
            found = theirs.outputs(self.case, self.reference, self.batch)
        return {name: value.numpy() for name, value in found.items()}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory) -> Pair:
    case = CASES[request.param]
    reference = build(case)
    directory = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(directory, **case.saving)
    return Pair(request.param, case, reference, directory, *ours.imported(directory), rows(case))


def test_outputs_are_the_references(pair):
    found = ours.outputs(pair.model, pair.params, pair.batch)
    for name, value in golden.real(pair.expected(), pair.batch).items():
        assert np.std(value) > 0.1, name  # or equal logits say nothing
        near(name, golden.real(found, pair.batch)[name], value)


def test_loss_and_every_gradient_are_the_references(pair, tmp_path):
    expected, by_their_names = theirs.loss_and_gradients(pair.case, pair.reference, pair.batch)
    loss, gradient = ours.loss_and_gradients(pair.case, pair.model, pair.params, pair.batch)
    assert loss == pytest.approx(expected, rel=1e-6, abs=1e-5)
    for name, value in by_their_names.items():  # the tolerance would let vanishing gradients pass
        assert np.abs(value).max() > 1e-2 or name.endswith(pair.case.dead), name
    # A gradient goes through the same map as the weights: save it as a checkpoint, and import that.
    slopes = copy.deepcopy(pair.reference)
    for name, parameter in trained(slopes).items():
        parameter.data = torch.from_numpy(by_their_names[name])
    slopes.save_pretrained(tmp_path, **pair.case.saving)
    _, expected = ours.imported(tmp_path)
    jax.tree_util.tree_map_with_path(lambda path, *pair: near(path_name(path), *pair), gradient, expected)


def test_what_is_exported_is_what_the_reference_reads(pair, tmp_path):
    """By the commands: imported into a run, and exported from its checkpoint."""
    run, export = tmp_path / "run", tmp_path / "export"
    convert.main(["import", "--hf", str(pair.directory), "--workdir", str(run)])
    convert.main(["export", "--run", str(run), "--hf", str(export)])
    again, report = type(pair.reference).from_pretrained(
        export, attn_implementation="eager", output_loading_info=True, local_files_only=True
    )
    assert not any(report.values()), report
    assert again.config.architectures == [pair.case.architecture]
    expected = pair.expected()
    for name, value in pair._replace(reference=again.eval()).expected().items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_golden_files_are_what_the_reference_computes(pair, request):
    outputs = pair.expected()
    if request.config.getoption("--update-goldens"):
        golden.write(pair.name, pair.reference, pair.case.saving, pair.batch, outputs)
    batch, expected = golden.read(pair.name)
    jax.tree.map(np.testing.assert_array_equal, batch, pair.batch)
    for name, value in golden.real(outputs, batch).items():
        near(name, golden.real(expected, batch)[name], value)


def near(name: str, found, expected):
    """Within 1e-5, or within 1e-4 of the expected value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, name
    error = np.abs(found - expected) / np.maximum(1e-5, 1e-4 * np.abs(expected))
    assert np.max(error, initial=0.0) <= 1, f"{name} is off by {np.max(error):.3g} times what is allowed"
