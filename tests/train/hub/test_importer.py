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


EXPERTS = "model.layers.{}.block_sparse_moe.experts"


def restacked(arrays: dict, module: str = "mlp") -> dict:
    """Mixtral's arrays as version 5 of transformers holds them in memory: a layer's experts in two."""
    found = {name: value for name, value in arrays.items() if ".experts." not in name}
    for layer in range(5):
        experts = [[arrays[f"{EXPERTS.format(layer)}.{i}.w{part}.weight"] for i in range(3)] for part in (1, 2, 3)]
        gates, downs, ups = map(np.stack, experts)
        found[f"model.layers.{layer}.{module}.experts.gate_up_proj"] = np.concatenate([gates, ups], axis=1)
        found[f"model.layers.{layer}.{module}.experts.down_proj"] = downs
    return {name.replace("block_sparse_moe.gate", f"{module}.gate"): value for name, value in found.items()}


def test_mixtral_has_a_tensor_for_each_projection_of_each_expert():
    """Written out in numpy: ours are [layers, experts, inputs, outputs]; w1 is the gate, w3 goes up, w2 down."""
    mixture, arrays = parameters(model_of("mixtral"))["stack"]["0"]["feed_forward"], exported("mixtral")[1]
    for layer in range(5):
        gate = arrays[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        np.testing.assert_array_equal(gate, mixture["router"]["kernel"][layer].T)
        for expert in range(3):
            for theirs, ours in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
                found = arrays[f"{EXPERTS.format(layer)}.{expert}.{theirs}.weight"]
                np.testing.assert_array_equal(found, mixture[ours]["kernel"][layer, expert].T)
    assert sum(".experts." in name for name in arrays) == 5 * 3 * 3


@pytest.mark.parametrize("module", ["mlp", "block_sparse_moe"])
def test_experts_may_be_stacked(module):
    config, arrays = exported("mixtral")
    stacked = restacked(arrays, module)
    assert len(stacked) == len(arrays) - 5 * (3 * 3 - 2)
    assert stacked[f"model.layers.4.{module}.experts.gate_up_proj"].shape == (3, 2 * 24, 16)
    same(from_memory(config, stacked)[1], from_memory(config, arrays)[1])


def test_an_expert_that_is_missing_is_named_in_either_layout():
    assert "missing: layers.2.block_sparse_moe.experts.1.w3.weight." in refused(
        "mixtral", lambda arrays: arrays.pop(f"{EXPERTS.format(2)}.1.w3.weight")
    )

    def stack(arrays):
        found = restacked(arrays)
        found["model.layers.1.mlp.experts.down_proj"] = found["model.layers.1.mlp.experts.down_proj"][:2]
        del found["model.layers.0.mlp.experts.gate_up_proj"]
        arrays.clear()
        arrays.update(found)

    said = refused("mixtral", stack)
    assert "missing: layers.0.block_sparse_moe.experts.gate_up_proj;" in said
    assert "model.layers.1.mlp.experts.down_proj has shape [2, 16, 24], must have [3, 16, 24]" in said


def test_a_file_has_its_experts_in_one_layout():
    def both(arrays):
        arrays["model.layers.0.mlp.experts.down_proj"] = np.ones((3, 16, 24), np.float32)

    said = refused("mixtral", both)
    assert "missing" in said and f"unexpected: {EXPERTS.format(0)}.0.w1.weight" in said


class Counting(ArrayTensor):
    """Remembers the largest part that was asked for."""

    largest = 0

    def take(self, *selectors):
        found = super().take(*selectors)
        Counting.largest = max(Counting.largest, found.size)
        return found


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 1, 2), (8, 1, 1)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert_pretraining", "mixtral"])
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


@pytest.mark.parametrize("stacked", [False, True])
def test_a_device_reads_its_own_experts_alone(stacked):
    """Of 4 experts of 24 hidden units a device has 2, and of their inputs a half; the largest read is another's."""
    config = {**CONFIGS["mixtral"], "num_local_experts": 4, "num_hidden_layers": 1, "vocab_size": 8}
    model = from_config(config)
    tree, params = declared(model), parameters(model)
    _, arrays = to_memory(model, params, 64)
    if stacked:
        prefix = "model.layers.0.block_sparse_moe.experts"
        gates, downs, ups = (
            np.stack([arrays.pop(f"{prefix}.{i}.w{part}.weight") for i in range(4)]) for part in (1, 2, 3)
        )
        arrays |= {f"{prefix}.gate_up_proj": np.concatenate([gates, ups], axis=1), f"{prefix}.down_proj": downs}
    shardings = mesh.param_shardings(tree, mesh.RULES, mesh.make_mesh(Mesh(1, 2, 2, expert=2)))
    Counting.largest = 0
    matched = match(family_of(config), model, tree, {name: Counting(array) for name, array in arrays.items()})
    same(jax.device_get(read_params(matched, model, tree, shardings)), params)
    assert Counting.largest == (2 if stacked else 1) * 12 * 8


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
