"""The decoder is its formula; no token sees what comes later, other segments or padding, not by a bit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import config as cfg
from model.layers import Embedding
from model.parameters import path_name
from model.transformer import Transformer, identity
from tests.model import formulas
from tests.model.jaxprs import equations
from tests.model.segments import (
    A,
    B,
    check_another_segment_changes_not_a_bit,
    check_packed_is_alone,
    check_padding_changes_not_a_bit,
)
from tests.model.small import (
    GEMMA,
    GPT2,
    LENGTH,
    LLAMA,
    MODELS,
    POST,
    as_bfloat16,
    close,
    declared,
    draw,
    gradients,
    jit,
    logits,
    loss_of,
    pack,
    same,
    tokens,
    with_targets,
)

models = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
PACKED = pack([A, B], [tokens(9, 3)])
UNTIED = replace(GPT2, tied_head=False, head_bias=True)
TOLERANCE = 2e-5  # of the largest logit: float32 beside float64


@models
def test_the_decoder_is_its_formula(config):
    params = draw(config)
    actual = logits(config)(params, PACKED)[..., : config.vocab_size]
    close(actual, formulas.logits(params, config, PACKED), TOLERANCE)


@pytest.mark.parametrize(
    ("config", "change"),
    (
        (GEMMA, {"pattern": GEMMA.pattern[::-1]}),
        (GEMMA, {"pattern": tuple(replace(layer, window=None) for layer in GEMMA.pattern)}),
        (GEMMA, {"pattern": tuple(replace(layer, rotary_base=10.0) for layer in GEMMA.pattern)}),
        (GEMMA, {"pattern": tuple(replace(layer, rotary_scaling=cfg.NoScaling()) for layer in GEMMA.pattern)}),
        (GEMMA, {"attention": replace(GEMMA.attention, soft_cap=None)}),
        (GEMMA, {"attention": replace(GEMMA.attention, scale=None)}),
        (GEMMA, {"embedding_scale": None}),
        (GEMMA, {"logit_soft_cap": None}),
        (GEMMA, {"norm": replace(GEMMA.norm, unit_offset=False)}),
        (GPT2, {"feed_forward": replace(GPT2.feed_forward, activation="gelu")}),
        (GPT2, {"norm": replace(GPT2.norm, placement="post")}),
        (LLAMA, {"norm": replace(LLAMA.norm, name="layernorm")}),
    ),
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_every_setting_is_told_apart_by_the_formula(config, change):
    """The test above would see each setting: none is made harmless by these parameters."""
    params = draw(config)
    expected = formulas.logits(params, config, PACKED)
    changed = formulas.logits(params, replace(config, **change), PACKED)
    assert np.max(np.abs(changed - expected)) > 5 * TOLERANCE * np.max(np.abs(expected))


@models
def test_a_later_token_changes_nothing_before_it(config):
    params, before = draw(config), pack([A + B], [tokens(12, 4)])
    expected = logits(config)(params, before)
    for t in (1, 5, 11):
        after = {**before, "tokens": before["tokens"].copy()}
        after["tokens"][:, t] = (after["tokens"][:, t] + 1) % 100
        actual = logits(config)(params, after)
        same(actual[:, :t], expected[:, :t])
        assert np.all(np.any(actual[:, t] != expected[:, t], axis=-1))


@models
def test_packed_is_alone(config):
    check_packed_is_alone(config)


@models
def test_another_segment_changes_not_a_bit(config):
    check_another_segment_changes_not_a_bit(config)


@models
def test_padding_changes_not_a_bit(config):
    check_padding_changes_not_a_bit(config)


@pytest.mark.parametrize(
    "config", (UNTIED, LLAMA, replace(GEMMA, num_layers=2, tied_head=False)), ids=("learned", "rotary", "windows")
)
def test_a_segments_gradient_at_anothers_inputs_is_exactly_zero(config):
    """The loss of one segment alone, differentiated in the embedding of each token: A's and B's have none in common."""
    batch = with_targets(pack([A, B], []))
    for own, other, segment in ((B, A, 2), (A, B, 1)):
        weighted = {**batch, "weights": (batch["segment_ids"] == segment).astype(np.float32)}
        found = np.asarray(gradients(config)(draw(config), weighted, None)[1]["embedding"]["token"])
        assert not np.any(found[np.unique(other)])
        assert np.all(np.any(found[np.unique(own)], axis=1))


@pytest.mark.parametrize("config", (GPT2, UNTIED), ids=("tied", "untied with bias"))
def test_a_padded_vocabulary_is_an_unpadded_one(config):
    """Loss and gradient are those of a table of 100 tokens, though 128 are stored."""
    batch, stored = with_targets(PACKED), draw(config)
    assert config.vocab_size == 100 and stored["embedding"]["token"].shape[0] == 128
    loss, found = gradients(config)(stored, batch, None)
    head = {} if config.tied_head else {"head": stored["head"][:, :100], "head_bias": stored["head_bias"][:100]}
    cut = {"token": stored["embedding"]["token"][:100], **head}

    @jit
    @jax.value_and_grad
    def unpadded(cut):
        table = jnp.concatenate([cut["token"], jnp.full((28, config.embed_dim), 7.0)])
        params = {**stored, "embedding": {**stored["embedding"], "token": table}}
        states = Transformer(config).apply({"params": params}, batch)[0]
        raw = states @ (cut["token"].T if config.tied_head else cut["head"])
        raw = raw if config.tied_head else raw + jnp.broadcast_to(cut["head_bias"], raw.shape)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(raw), batch["targets"][..., None], axis=-1)[..., 0]
        partition = jax.nn.logsumexp(raw, axis=-1)
        return jnp.sum(batch["weights"] * (1e-2 * partition**2 - chosen))

    expected_loss, expected = unpadded(cut)
    close(loss, expected_loss, 1e-6)
    found = {"token": found["embedding"]["token"], **{name: found[name] for name in head}}
    vocab_axis = {"token": 0, "head": 1, "head_bias": 0}
    for name, axis in vocab_axis.items():
        if name in found:
            real, padding = np.split(np.asarray(found[name]), [100], axis=axis)
            close(real, expected[name], 1e-5)
            assert not np.any(padding)


@pytest.mark.parametrize("config", (GPT2, GEMMA), ids=("gpt2", "gemma"))
def test_bfloat16_keeps_gradients_and_logits_in_float32(config):
    narrow, params, batch = replace(config, dtype="bfloat16"), draw(config), with_targets(PACKED)
    states = jax.eval_shape(lambda: Transformer(narrow).apply({"params": params}, PACKED)[0])
    assert states.dtype == jnp.bfloat16
    gradient = jax.eval_shape(jax.grad(loss_of(narrow)), params, batch, None)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
    found, exact = (logits(one)(params, PACKED)[..., :100] for one in (narrow, config))
    assert found.dtype == jnp.float32
    assert 1e-4 < np.sqrt(np.mean((found - exact) ** 2)) / np.std(exact) < 0.05


def test_softmax_and_norms_of_a_bfloat16_model_are_float32():
    """No root, sum or maximum of the forward pass reads bfloat16; the exponential of SiLU does."""
    config = replace(LLAMA, dtype="bfloat16")
    traced = jax.make_jaxpr(lambda params: Transformer(config).apply({"params": params}, PACKED)[0])(draw(config))
    careful = {"rsqrt", "reduce_sum", "reduce_max", "cos", "sin", "log"}
    seen = [equation for equation in equations(traced) if equation.primitive.name in careful]
    assert {equation.primitive.name for equation in seen} >= {"rsqrt", "reduce_sum", "reduce_max", "cos", "sin"}
    assert {equation.invars[0].aval.dtype for equation in seen} == {jnp.dtype("float32")}


def paths(config: cfg.Model) -> set[str]:
    return {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(declared(config))}


@pytest.mark.parametrize(
    ("change", "added"),
    (
        ({"tied_head": False}, {"head"}),
        ({"head_bias": True}, {"head_bias"}),
        (
            {"attention": replace(LLAMA.attention, qkv_bias=True)},
            {f"stack/0/attention/{name}/bias" for name in ("query", "key", "value")},
        ),
        ({"attention": replace(LLAMA.attention, output_bias=True)}, {"stack/0/attention/output/bias"}),
        (
            {"attention": replace(LLAMA.attention, qk_norm=True)},
            {f"stack/0/attention/{name}_norm/scale" for name in ("query", "key")},
        ),
        (
            {"feed_forward": replace(LLAMA.feed_forward, bias=True)},
            {f"stack/0/feed_forward/{name}/bias" for name in ("up", "gate", "down")},
        ),
        (
            {"norm": replace(LLAMA.norm, placement="both")},
            {f"stack/0/{name}_post_norm/scale" for name in ("attention", "feed_forward")},
        ),
        ({"positions": cfg.LearnedPositions(length=8)}, {"embedding/position"}),
        ({"num_layers": 3, "pattern": 2 * LLAMA.pattern}, None),
    ),
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_add_the_parameters_they_name_and_no_others(change, added):
    base = replace(LLAMA, tied_head=True)
    if added is None:  # a pattern of two over three layers: two entries of the stack, and a remainder
        layer = {path.removeprefix("stack/0/") for path in paths(base) if path.startswith("stack/")}
        added = {f"{place}/{name}" for place in ("stack/1", "remainder/0") for name in layer}
    assert paths(replace(base, **change)) - paths(base) == added
    assert paths(base) <= paths(replace(base, **change))


def test_post_norm_has_no_norm_behind_the_last_layer():
    assert "final_norm/scale" in paths(LLAMA) and "final_norm/scale" not in paths(POST)


def test_a_token_or_position_outside_its_table_is_not_read_in_silence():
    params = draw(GPT2)
    outside = pack([A], [])
    outside["tokens"][0, 0] = 128
    late = pack([A], [])
    late["positions"][0, 2] = LENGTH
    assert np.all(np.isnan(logits(GPT2)(params, outside)[0, 0, :100]))
    assert np.all(np.isnan(logits(GPT2)(params, late)[0, 2, :100]))


def test_the_embedding_is_cast_after_it_is_scaled():
    config = replace(GEMMA, dtype="bfloat16", embedding_scale=1.01)
    params = draw(config)
    batch = pack([A])
    x = Embedding(config, identity).apply({"params": params["embedding"]}, batch)
    same(x, as_bfloat16(params["embedding"]["token"][batch["tokens"]] * np.float32(1.01)))
