"""Weights out and in again bit for bit, for every family and on any mesh; what does not fit is listed."""

import re
from functools import cache

import jax
import numpy as np
import pytest

from data.errors import DataError
from model.hub.families import FAMILIES, family_of, from_config
from tests.model.hub.small import CONFIGS, model_of, parameters
from train import mesh
from train.config import Mesh
from train.hub.exporter import export_tensors, tensor_shapes, to_memory
from train.hub.importer import by_path, declared, from_memory, match, read_params
from train.hub.tensors import ArrayTensor, in_memory


@cache
def written(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    model = model_of(name)
    return to_memory(model, parameters(model), 64)


def exported(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """A copy of (config.json, arrays) that a test may change."""
    config, arrays = written(name)
    return dict(config), {name: array.copy() for name, array in arrays.items()}


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_exported_is_imported_bit_for_bit(name):
    config, arrays = exported(name)
    model, params = from_memory(config, arrays)
    same(params, parameters(model_of(name)))
    again, back = to_memory(model, params, 64)
    assert again == config and list(back) == list(arrays)
    same(back, arrays)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_known_before_the_values_are(name):
    model, family, tree = model_of(name), family_of(CONFIGS[name]), by_path(declared(model_of(name)))
    shapes = tensor_shapes(family, model, tree)
    given = list(export_tensors(family, model, tree, by_path(parameters(model)).__getitem__))
    assert list(shapes.items()) == [(name, value.shape) for name, value in given]


def test_padding_of_the_vocabulary_is_not_exported():
    arrays = exported("llama")[1]
    assert arrays["model.embed_tokens.weight"].shape == arrays["lm_head.weight"].shape == (100, 16)


def test_gpt2_joins_queries_keys_and_values():
    """Written out in numpy: our kernels are [inputs, heads, width], theirs [inputs, 3 * heads * width]."""
    attention = parameters(model_of("gpt2"))["stack"]["0"]["attention"]
    arrays = exported("gpt2")[1]
    for layer in range(2):
        parts = [attention[part]["kernel"][layer].reshape(16, 16) for part in ("query", "key", "value")]
        np.testing.assert_array_equal(arrays[f"transformer.h.{layer}.attn.c_attn.weight"], np.hstack(parts))
        parts = [attention[part]["bias"][layer].reshape(16) for part in ("query", "key", "value")]
        np.testing.assert_array_equal(arrays[f"transformer.h.{layer}.attn.c_attn.bias"], np.hstack(parts))


def test_deberta_joins_queries_keys_and_values_head_by_head():
    """Written out in numpy: theirs is [heads, (query, key, value), width, inputs], with no bias of its own."""
    attention = parameters(model_of("deberta"))["stack"]["0"]["attention"]
    arrays = exported("deberta")[1]
    for layer in range(2):
        parts = [attention[part]["kernel"][layer] for part in ("query", "key", "value")]
        expected = np.stack(parts).transpose(2, 0, 3, 1).reshape(48, 16)
        np.testing.assert_array_equal(arrays[f"encoder.layer.{layer}.attention.self.in_proj.weight"], expected)
        expected = attention["query"]["bias"][layer].reshape(16)
        np.testing.assert_array_equal(arrays[f"encoder.layer.{layer}.attention.self.q_bias"], expected)
    assert not any("in_proj.bias" in name or "k_bias" in name or "pos_proj.bias" in name for name in arrays)


def test_a_published_deberta_has_other_names_and_absolute_positions_that_are_not_read():
    """Those are the decoder's of masked tokens, which only a key of our own asks for."""
    config, arrays = exported("deberta2")
    expected = from_memory(config, arrays)[1]
    old = {
        re.sub(r"^cls\.predictions\.(transform\.)?", "lm_predictions.lm_head.", name): value
        for name, value in arrays.items()
    }
    assert "lm_predictions.lm_head.LayerNorm.weight" in old and "lm_predictions.lm_head.bias" in old
    absolute = "deberta.embeddings.position_embeddings.weight"
    old[absolute] = np.ones((12, 16), np.float32)
    model, params = from_memory(config, old)
    same(params, expected)
    assert match(family_of(config), model, declared(model), in_memory(old)).unused == [absolute]
    decoding, params = from_memory({**config, "mask_decoder_passes": 2, "max_position_embeddings": 12}, old)
    assert decoding.mask_decoder_passes == 2
    np.testing.assert_array_equal(params["mask_decoder"]["table"], old[absolute])


class Counting(ArrayTensor):
    """Remembers the largest part that was asked for."""

    largest = 0

    def take(self, *selectors):
        found = super().take(*selectors)
        Counting.largest = max(Counting.largest, found.size)
        return found


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 1, 2), (8, 1, 1)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_pretraining"])
def test_any_mesh_gives_the_same_parameters_where_they_belong(name, sizes):
    config, arrays = exported(name)
    model = from_config(config, arrays)
    tree, devices = declared(model), mesh.make_mesh(Mesh(*sizes))
    shardings = mesh.param_shardings(tree, mesh.RULES, devices)
    matched = match(family_of(config), model, tree, in_memory(arrays))
    params = read_params(matched, model, tree, shardings)
    same(jax.device_get(params), parameters(model))
    wanted = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), params, shardings)
    assert all(jax.tree.leaves(wanted))


def test_no_device_and_no_read_holds_a_whole_kernel_that_is_divided():
    config, arrays = exported("llama")
    model = from_config(config, arrays)
    tree = declared(model)
    shardings = mesh.param_shardings(tree, mesh.RULES, mesh.make_mesh(Mesh(1, 8, 1)))
    Counting.largest = 0
    matched = match(family_of(config), model, tree, {name: Counting(array) for name, array in arrays.items()})
    assert Counting.largest == 0  # nothing is read before everything fits
    params = read_params(matched, model, tree, shardings)
    assert Counting.largest == 100 * 16 // 8
    token = params["embedding"]["token"]
    assert {shard.data.shape for shard in token.addressable_shards} == {(128, 2)}


def refused(name: str, change) -> str:
    config, arrays = exported(name)
    change(arrays)
    with pytest.raises(DataError) as error:
        from_memory(config, arrays)
    return str(error.value)


def test_all_that_does_not_fit_is_listed_at_once():
    def change(arrays):
        del arrays["model.layers.3.mlp.up_proj.weight"]
        del arrays["model.norm.weight"]
        arrays["model.layers.5.mlp.up_proj.weight"] = np.ones((24, 16))
        arrays["lm_head.weight"] = arrays["lm_head.weight"].T
        arrays["model.layers.0.mlp.up_proj.weight"] = np.ones((24, 16), np.int64)

    said = refused("llama", change)
    assert "missing: norm.weight, layers.3.mlp.up_proj.weight" in said
    assert "unexpected: model.layers.5.mlp.up_proj.weight" in said
    assert "lm_head.weight has shape [16, 100], must have [100, 16]" in said
    assert "model.layers.0.mlp.up_proj.weight does not hold floating-point numbers" in said


def test_a_tied_head_is_absent_or_equal():
    config, arrays = exported("qwen3")
    assert "lm_head.weight" not in arrays
    expected = from_memory(config, arrays)[1]
    same(from_memory(config, {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"]})[1], expected)
    only = {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"]}
    del only["model.embed_tokens.weight"]
    same(from_memory(config, only)[1], expected)
    said = refused("qwen3", lambda arrays: arrays.update({"lm_head.weight": arrays["model.embed_tokens.weight"] + 1}))
    assert "lm_head.weight differs from embed_tokens.weight" in said


def test_a_bert_file_may_hold_its_decoder_and_its_old_names():
    config, arrays = exported("bert_pretraining")
    expected = from_memory(config, arrays)[1]
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in arrays.items()
    }
    old["cls.predictions.decoder.weight"] = arrays["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = arrays["cls.predictions.bias"]
    old["bert.embeddings.position_ids"] = np.arange(12)[None]
    same(from_memory(config, old)[1], expected)
    said = refused("bert_pretraining", lambda arrays: arrays.update({"cls.predictions.decoder.bias": np.ones(100)}))
    assert "cls.predictions.decoder.bias differs from cls.predictions.bias" in said


def test_numbers_that_are_not_finite_are_refused():
    def change(arrays):
        arrays["model.norm.weight"][3] = np.nan

    assert "norm.weight holds numbers that are not finite" in refused("llama", change)


def test_heads_that_are_missing_are_made_only_when_asked():
    model = model_of("bert_spans")
    tree = declared(model)
    arrays = {name: value for name, value in exported("bert_spans")[1].items() if not name.startswith("qa_outputs")}
    with pytest.raises(DataError, match="qa_outputs.bias, qa_outputs.weight; heads .* --initialise_missing_heads"):
        match(FAMILIES["bert"], model, tree, in_memory(arrays))
    matched = match(FAMILIES["bert"], model, tree, in_memory(arrays), heads_may_lack=True)
    assert matched.missing_heads == ["heads/spans/bias", "heads/spans/kernel"]
    del arrays["bert.embeddings.word_embeddings.weight"]
    with pytest.raises(DataError, match="missing: embeddings.word_embeddings.weight\\."):
        match(FAMILIES["bert"], model, tree, in_memory(arrays), heads_may_lack=True)


def test_heads_that_the_model_does_not_have_are_left_out_and_named():
    model = model_of("bert")
    matched = match(FAMILIES["bert"], model, declared(model), in_memory(exported("bert_pretraining")[1]))
    assert "cls.seq_relationship.weight" in matched.unused and "bert.pooler.dense.bias" in matched.unused
