"""The largest published sizes: an export has the names and shapes that transformers expects. Nothing is allocated."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.hub.families import expressing
from train.checks import load
from train.hub.exporter import tensor_shapes
from train.hub.importer import by_path, declared

WHY = "PyTorch or transformers is not installed: `make test-references` installs them beside, and runs this"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

pytestmark = pytest.mark.references

ROOT = Path(__file__).resolve().parents[2]
SIZES = (
    "bert:large-uncased",
    "gpt2:1.5b",
    "llama:2-70b",
    "llama:405b",
    "qwen:2-72b",
    "qwen:3-32b",
    "mistral:7b-v0.1",
    "mixtral:8x7b",
    "mixtral:8x22b",
    "gemma:1-7b",
    "gemma:2-27b",
    "gemma:3-27b",
    "deberta:v1-large",
    "deberta:v2-xxlarge",
    "t5:11b",
)


@pytest.mark.parametrize("spec", SIZES)
def test_an_export_is_what_the_reference_is_made_of(spec):
    recipe, size = spec.split(":")
    config = load(f"{ROOT}/configs/{recipe}.py:{size}")
    tree = by_path(declared(config.model))
    family, published = expressing(config.model, config.data.length, list(tree))
    with torch.device("meta"):
        architecture = getattr(transformers, published["architectures"][0])
        reference = architecture(transformers.AutoConfig.for_model(**published))
    expected = {name: tuple(parameter.shape) for name, parameter in reference.named_parameters()}
    if config.model.mask_decoder_passes:  # whose absolute positions it leaves unread
        expected["deberta.embeddings.position_embeddings.weight"] = (512, config.model.embed_dim)
    if family.stacked:  # in memory; it saves experts apart, as test_references.py sees
        family = replace(family, tensors={**family.tensors, **family.stacked})
        expected = {name.replace(".mlp.", ".block_sparse_moe."): shape for name, shape in expected.items()}
    assert tensor_shapes(family, config.model, tree) == expected
