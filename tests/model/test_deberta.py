"""DeBERTa is its formulas, mask decoder and convolution included, whatever stands beside a text or is unrolled."""

from dataclasses import replace
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import config as cfg
from model.checks import check
from model.deberta import neighbours
from model.parameters import path_name
from model.transformer import Transformer
from tests.model import formulas
from tests.model.segments import (
    A,
    B,
    check_another_segment_changes_not_a_bit,
    check_packed_is_alone,
    check_padding_changes_not_a_bit,
)
from tests.model.small import (
    LENGTH,
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

FIRST = cfg.Model(
    vocab_size=100,
    num_layers=3,
    embed_dim=16,
    attention=cfg.Attention(num_heads=4, qkv_bias=True, output_bias=True, causal=False),
    feed_forward=cfg.FeedForward(24, "gelu", gated=False, bias=True),
    norm=cfg.Norm("layernorm", placement="post", epsilon=1e-2, bias=True),
    positions=cfg.DisentangledPositions(span=4),
    embedding_norm=True,
)
LATER = replace(
    FIRST,
    positions=cfg.DisentangledPositions(span=8, buckets=4, shared_projections=True, norm=True),
    convolution=cfg.Convolution(3, "tanh"),
)


def decoding(config: cfg.Model, passes: int = 2) -> cfg.Model:
    return replace(config, positions=replace(config.positions, mask_decoder_passes=passes, absolute_length=LENGTH))


MODELS = {
    "1": FIRST,
    "1 decoding": decoding(FIRST),
    "1 keys": replace(FIRST, positions=replace(FIRST.positions, position_to_content=False)),
    "2": LATER,
    "2 decoding": decoding(replace(LATER, convolution=cfg.Convolution(5, "gelu")), passes=3),
    "2 queries": replace(LATER, positions=replace(LATER.positions, content_to_position=False, buckets=None)),
}
models = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
decoders = pytest.mark.parametrize("config", (MODELS["1 decoding"], MODELS["2 decoding"]), ids=("1", "2"))
PACKED = pack([A, B], [tokens(9, 3)])


def rows_of(positions: cfg.DisentangledPositions, distance: int) -> int:
    """Of four rows a side by distance, or of buckets 4 for distances up to 8: 1, 2, and 3 from there on."""
    if positions.buckets is None:
        return min(max(distance + positions.span, 0), 2 * positions.span - 1)
    assert (positions.buckets, positions.span) == (4, 8)
    bucket = abs(distance) if abs(distance) <= 2 else 3 if abs(distance) < 8 else 4  # log(7 / 2) / log(7 / 2) is 1
    return min(max(int(np.sign(distance)) * bucket + 4, 0), 7)


def attention(x, context, params, config: cfg.Model, relations, places):
    """He et al. 2020, equation 4, a score at a time: queries of x, keys and values of `context`."""
    positions, (at, segments) = config.positions, places
    project = {name: lambda x, name=name: formulas.linear(x, params[name], "ld,dhc->lhc") for name in params}
    q, k, v = project["query"](x), project["key"](context), project["value"](context)
    position_key = project["key" if positions.shared_projections else "position_key"]
    position_query = project.get("query" if positions.shared_projections else "position_query")
    as_keys = position_key(relations) if positions.content_to_position else None
    as_queries = position_query(relations) if positions.position_to_content else None
    terms = 1 + positions.content_to_position + positions.position_to_content
    out = np.zeros(q.shape)
    for i, h in np.ndindex(q.shape[:2]):
        seen = [j for j in range(len(k)) if segments[i] == segments[j] > 0]
        scores = []
        for j in seen:
            row = rows_of(positions, int(at[i]) - int(at[j]))
            score = q[i, h] @ k[j, h]
            score += q[i, h] @ as_keys[row, h] if as_keys is not None else 0
            score += as_queries[row, h] @ k[j, h] if as_queries is not None else 0
            scores.append(score / np.sqrt(terms * q.shape[-1]))
        if seen:
            weights = np.exp(np.array(scores) - max(scores))
            out[i, h] = (weights / weights.sum()) @ v[seen, h]
    return formulas.linear(out, params["output"], "lhc,hcd->ld")


def layer(x, context, params, config: cfg.Model, relations, places):
    x = x + attention(x, context, params["attention"], config, relations, places)
    x = formulas.norm(x, params["attention_norm"], config.norm)
    x = x + formulas.feed_forward(x, params["feed_forward"], config)
    return formulas.norm(x, params["feed_forward_norm"], config.norm)


def convolved(embedded, params, config: cfg.Model, segments):
    kernel = np.asarray(params["kernel"], np.float64)
    out = np.tile(np.asarray(params["bias"], np.float64), (len(embedded), 1))
    for i, at in np.ndindex(len(embedded), len(kernel)):
        j = i + at - len(kernel) // 2
        if 0 <= j < len(embedded) and segments[i] == segments[j] > 0:
            out[i] += embedded[j] @ kernel[at]
    return np.tanh(out) if config.convolution.activation == "tanh" else formulas.activation("gelu", out)


def row_logits(params: dict, config: cfg.Model, tokens, places):
    """Float64 logits `[L, vocab_size]` of one row."""
    table = np.asarray(params["embedding"]["token"], np.float64)
    x = embedded = formulas.norm(table[tokens], params["embedding"]["norm"], config.norm)
    relations = np.asarray(params["relations"]["table"], np.float64)
    if config.positions.norm:
        relations = formulas.norm(relations, params["relations"]["norm"], config.norm)
    layers = [formulas.layer_params(params, config, index) for index in range(config.num_layers)]
    passes = config.mask_decoder_passes
    for index, own in enumerate(layers[:-1] if passes else layers):
        x = layer(x, x, own, config, relations, places)
        if index == 0 and config.convolution.size:
            x = x + convolved(embedded, params["convolution"], config, places[1])
            x = formulas.norm(x, params["convolution"]["norm"], config.norm)
    hidden = x
    if passes:
        x = hidden + np.asarray(params["mask_decoder"]["table"], np.float64)[places[0]]
        for _ in range(passes):
            x = layer(x, hidden, layers[-1], config, relations, places)
    return (x @ table.T)[:, : config.vocab_size]


def expected(params: dict, config: cfg.Model, batch: dict):
    rows = zip(batch["tokens"], batch["positions"], batch["segment_ids"], strict=True)
    return np.stack([row_logits(params, config, row, places) for row, *places in rows])


@models
def test_the_encoder_is_its_formula(config):
    params, real = draw(config), PACKED["segment_ids"] > 0
    found = np.asarray(logits(config)(params, PACKED))[..., : config.vocab_size]
    wanted = expected(params, config, PACKED)
    close(found[real], wanted[real], 2e-5)
    assert np.std(wanted[real]) > 0.3


@models
def test_every_part_is_told_apart_by_the_formula(config):
    """Each parameter that is drawn anew changes the expected logits beyond what the test above lets pass."""
    params = draw(config)
    before = expected(params, config, PACKED)[PACKED["segment_ids"] > 0]
    other = draw(config, seed=1)
    for (path, _), own in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(other), strict=True):
        changed = jax.tree_util.tree_map_with_path(
            lambda p, leaf, path=path, own=own: own if p == path else leaf, params
        )
        after = expected(changed, config, PACKED)[PACKED["segment_ids"] > 0]
        name = path_name(path)
        if name == "stack/0/attention/key/bias" and not config.positions.position_to_content:
            continue  # the same for every key
        assert np.abs(after - before).max() > 1e-3 * np.abs(before).max(), name


def test_what_there_is_of_parameters():
    first = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(declared(decoding(FIRST)))}
    attention = {name.removeprefix("stack/0/attention/") for name in first if name.startswith("stack/0/attention/")}
    biased = ("query", "value", "position_query", "output")
    kernels = {f"{name}/kernel" for name in ("query", "key", "value", "position_key", "position_query", "output")}
    assert attention == kernels | {f"{name}/bias" for name in biased}
    assert {"relations/table", "mask_decoder/table"} < first
    later = declared(LATER)
    assert later["relations"]["table"].shape == (8, 16) and later["relations"]["table"].kind == "table"
    assert set(later["stack"]["0"]["attention"]) == {"query", "key", "value", "output"}
    assert "bias" in later["stack"]["0"]["attention"]["key"]
    kernel = later["convolution"]["kernel"]
    assert (kernel.shape, kernel.fan_in, kernel.fan_out) == ((3, 16, 16), 48, 16)


@decoders
def test_packed_is_alone(config):
    check_packed_is_alone(config)


@decoders
def test_another_segment_changes_not_a_bit(config):
    check_another_segment_changes_not_a_bit(config)


@decoders
def test_padding_changes_not_a_bit(config):
    check_padding_changes_not_a_bit(config)


def test_a_segments_gradient_at_anothers_inputs_is_exactly_zero():
    config = replace(decoding(LATER, passes=1), num_layers=2, tied_head=False)
    batch = with_targets(pack([A, B], []))
    for own, other, segment in ((B, A, 2), (A, B, 1)):
        weighted = {**batch, "weights": (batch["segment_ids"] == segment).astype(np.float32)}
        found = np.asarray(gradients(config)(draw(config), weighted, None)[1]["embedding"]["token"])
        assert not np.any(found[np.unique(other)])
        assert np.all(np.any(found[np.unique(own)], axis=1))


@decoders
def test_every_token_of_a_segment_reaches_every_other(config):
    params, before = draw(config), pack([A + B])
    found = logits(config)(params, before)
    for t in (0, 6, 11):
        after = {**before, "tokens": before["tokens"].copy()}
        after["tokens"][:, t] = (after["tokens"][:, t] + 1) % 100
        assert np.all(np.any(logits(config)(params, after) != found, axis=-1))


def test_neighbours_are_those_of_the_segment():
    x = np.arange(1.0, 13).reshape(2, 6, 1)
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 0, 0, 0, 0, 0]])
    found = np.asarray(neighbours(jnp.asarray(x), jnp.asarray(segments), 3))[..., 0]
    same(found[0], np.array([[0, 1, 2], [1, 2, 0], [0, 3, 4], [3, 4, 5], [4, 5, 0], [0, 0, 0]], np.float32))
    same(found[1], np.array([[0, 7, 0]] + 5 * [[0, 0, 0]], np.float32))


DROPPING = decoding(replace(LATER, dropout=0.2, attention=replace(LATER.attention, dropout=0.2)), passes=1)
BATCH = with_targets(PACKED)


@cache
def differentiated(config: cfg.Model):
    return jit(jax.value_and_grad(loss_of(config)))(
        draw(replace(DROPPING, num_layers=config.num_layers)), BATCH, jax.random.key(5)
    )


OTHERWISE = {
    "the reference kernel, and computed again": {
        "attention": replace(DROPPING.attention, kernel="reference"),
        "remat": "full",
    },
    "unrolled": {"num_layers": 5, "unroll": 3},
    "products kept": {"remat": "dots"},
}


@pytest.mark.parametrize(
    "change",
    [pytest.param(change, id=name, marks=pytest.mark.slow) for name, change in OTHERWISE.items()],
)
def test_no_way_of_computing_it_changes_anything(change):
    depth = {"num_layers": change.get("num_layers", DROPPING.num_layers)}
    close(differentiated(replace(DROPPING, **change)), differentiated(replace(DROPPING, **depth)), 1e-5)


def states(config: cfg.Model, params: dict, key=None):
    return jit(lambda params, key: Transformer(config).apply({"params": params}, PACKED, key)[0])(params, key)


def test_every_pass_of_the_decoder_draws_its_own_dropout():
    """Where a layer adds nothing but a bias, passes that drew alike would leave what one of them leaves."""
    config, real = replace(FIRST, num_layers=1, dropout=0.2), PACKED["segment_ids"] > 0
    params = jax.tree.map(np.zeros_like, draw(decoding(config)))
    layer = params["stack"]["0"]
    layer["feed_forward"]["down"]["bias"][:] = 1.0
    for name in ("attention_norm", "feed_forward_norm"):
        layer[name]["scale"][:] = 1.0
    key = jax.random.key(1)
    once, again, twice = (np.asarray(states(decoding(config, n), params, key))[real] for n in (1, 1, 2))
    same(once, again)
    assert np.mean((twice > 0) != (once > 0)) > 0.05


def test_absolute_positions_come_in_where_masked_tokens_are_decoded():
    """They change what is decoded, and begin anew with each text; without passes there are none."""
    config = decoding(FIRST)
    params = draw(config)
    found = states(config, params)
    moved = {**params, "mask_decoder": {"table": params["mask_decoder"]["table"][::-1]}}
    assert np.all(np.any(states(config, moved)[PACKED["segment_ids"] > 0] != found[PACKED["segment_ids"] > 0], axis=-1))
    cut = {**params, "mask_decoder": {"table": np.array(params["mask_decoder"]["table"])}}
    cut["mask_decoder"]["table"][9:] = np.nan  # the longest text has 9 tokens
    same(states(config, cut), found)
    assert "mask_decoder" not in declared(FIRST) and config.max_length == LENGTH and FIRST.max_length is None


def test_a_bfloat16_model_keeps_gradients_and_scores_in_float32():
    wide = replace(decoding(LATER, passes=1), num_layers=2)
    narrow, params = replace(wide, dtype="bfloat16"), draw(wide)
    gradient = jax.eval_shape(jax.grad(loss_of(narrow)), params, BATCH, None)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradient))
    found, exact = (logits(one)(params, PACKED)[..., :100] for one in (narrow, wide))
    assert 1e-4 < np.sqrt(np.mean((found - exact) ** 2)) / np.std(exact) < 0.05


def test_the_pooler_has_its_activation():
    heads = cfg.Heads(pooler=True, pooler_activation="gelu")
    config = replace(FIRST, heads=heads)
    params = draw(config)

    @jit
    def run(params):
        pooled = lambda model: (model(PACKED)[0], model.heads.all(model(PACKED)[0])["pooled"])  # noqa: E731
        return nn.apply(pooled, Transformer(config))({"params": params})

    hidden, pooled = run(params)
    own = formulas.linear(np.asarray(hidden[:, 0], np.float64), params["heads"]["pooler"], "bd,de->be")
    close(pooled, formulas.activation("gelu", own), 1e-5)


WITH = {"convolution": cfg.Convolution(3)}
PRE = {"norm": replace(FIRST.norm, placement="pre")}
EXPERTS = {"experts": cfg.DroplessExperts(), "pattern": (cfg.Layer(experts=True),)}
CAUSAL = {"attention": replace(FIRST.attention, causal=True)}
PASSES = ("positions.mask_decoder_passes", "from 0 to 16")
REFUSED = (
    (decoding(FIRST), PRE, "norm.placement", "must be post"),
    (decoding(FIRST), {"language_head": False}, "positions.mask_decoder_passes", "language_head alone"),
    (decoding(FIRST), {"heads": cfg.Heads(spans=True)}, "positions.mask_decoder_passes", "set it to 0"),
    (decoding(FIRST), {"heads": cfg.Heads(replaced=True)}, "positions.mask_decoder_passes", "no other head"),
    (decoding(FIRST), {"positions": replace(decoding(FIRST).positions, mask_decoder_passes=17)}, *PASSES),
    (LATER, {"positions": replace(LATER.positions, buckets=10_000)}, "positions.buckets", "at most 4096"),
    (decoding(FIRST), {"pattern": 2 * FIRST.pattern}, "pattern", "must have one"),
    (decoding(FIRST), EXPERTS, "pattern", "experts"),
    (decoding(LATER), {"num_layers": 1}, "num_layers", "at least 2"),
    (FIRST, {**WITH, **CAUSAL, "positions": cfg.NoPositions()}, "convolution.size", "reads later tokens"),
    (FIRST, {"convolution": cfg.Convolution(2)}, "convolution.size", "must be odd"),
    (FIRST, {**WITH, "pattern": 2 * FIRST.pattern}, "pattern", "must have one"),
    (FIRST, CAUSAL, "positions.name", "an encoder's alone"),
    (FIRST, {"attention": replace(FIRST.attention, qk_norm=True)}, "attention.qk_norm", "do not have"),
    (FIRST, {"attention": replace(FIRST.attention, num_kv_heads=2)}, "attention.num_kv_heads", "one of each"),
    (LATER, {"positions": replace(LATER.positions, buckets=5)}, "positions.buckets", "even number"),
    (LATER, {"positions": replace(LATER.positions, buckets=2)}, "positions.buckets", "at least 4"),
    (LATER, {"positions": replace(LATER.positions, span=3)}, "positions.span", "above 3"),
    (
        *(FIRST, {"positions": cfg.DisentangledPositions(content_to_position=False, position_to_content=False)}),
        *("positions.content_to_position", "positions.name to none"),
    ),
)


@pytest.mark.parametrize(("config", "changes", "key", "said"), REFUSED)
def test_what_cannot_be_joined_is_refused_by_name(config, changes, key, said):
    assert check(config) == []
    [(path, clash)] = check(replace(config, **changes))
    assert path == key and said in clash
