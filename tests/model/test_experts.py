"""Experts are each token's own feed-forward networks, one at a time; what finds no place passes by the residual."""

from dataclasses import replace
from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import config as cfg
from model.attention import Shared
from model.block import Block
from model.experts import SECOND_CHOICE, Experts, jittered, rule_and_places, uniform
from model.generate import empty_cache, extend, read_source
from model.ops.attention import Places
from model.ops.expert_projection import project_experts, reference
from model.parameters import declarations, path_name
from model.transformer import Transformer, identity
from tests.model import formulas, gating
from tests.model.small import LENGTH, LLAMA, close, draw, jit, logits, pack, same, tokens
from tests.model.test_generate import check_read

B, L, D, F, E = 2, 12, 8, 10, 4
GSHARD = cfg.Model(
    embed_dim=D,
    feed_forward=cfg.FeedForward(F, "relu", gated=False),
    experts=cfg.CapacityExperts(num_experts=E, capacity_factor=1.0, min_capacity=1),
    pattern=(cfg.Layer(experts=True),),
)


def varied(config=GSHARD, **experts):
    return replace(config, experts=replace(config.experts, **experts))


GATED = varied(replace(GSHARD, feed_forward=cfg.FeedForward(F, "silu", gated=True, bias=True)), rule="code", groups=2)
MIXTURES = {
    "paper": (GSHARD, gating.paper),
    "paper in groups": (varied(groups=3), gating.paper),
    "code, gated, biases, groups": (GATED, gating.code),
    "switch": (varied(top_k=1), gating.switch),
    "room for all": (varied(capacity_factor=4.0), gating.paper),
}
SLOW = pytest.mark.slow
SEGMENTS = np.array([[1] * 7 + [2] * 5, [1] * 9 + [0] * 3], np.int32)
KEYS = jax.random.split(jax.random.key(3), B)


@cache
def module(config):
    """Compiled `(params, x, segments, row keys, key) -> (y, aux)`."""
    return jit(lambda params, *inputs: Experts(config, identity).apply({"params": params}, *inputs))


@cache
def weights(config, seed: int = 0):
    """Random parameters, biases included, and those of the router such that the first experts are in demand."""
    boxed = jax.eval_shape(Experts(config, identity).init, jax.random.key(0), jnp.zeros((1, 1, D)), SEGMENTS[:1, :1])
    generator = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: generator.standard_normal(leaf.shape).astype(np.float32) * D**-0.5, declarations(boxed["params"])
    )
    params["router"]["kernel"][0] = [3.0, 1.0, 0.0, -1.0]
    return params


def states(seed: int = 1, length: int = L):
    x = np.random.default_rng(seed).standard_normal((B, length, D)).astype(np.float32)
    x[..., 0] = 1.0  # what the router's first row leans on
    return x


def network(x, params, expert: int, config):
    """One expert's feed-forward network on one token, float64."""
    settings = config.feed_forward

    def linear(name, x):
        y = x @ params[name]["kernel"][expert].astype(np.float64)
        return y + params[name]["bias"][expert] if settings.bias else y

    hidden = linear("up", x)
    gate = formulas.activation(settings.activation, linear("gate", x) if settings.gated else hidden)
    return linear("down", gate * hidden if settings.gated else gate)


def looped(params, config, loop, x, segments, draws=None):
    """(`[B, L, D]`, auxiliary loss, tokens' shares without a place), a token and an expert at a time."""
    settings, y, loss, missed = config.experts, np.zeros(x.shape), 0.0, 0.0
    size = x.shape[1] // settings.groups
    for row in range(len(x)):
        for start in range(0, x.shape[1], size):
            part = slice(start, start + size)
            real = segments[row, part] > 0
            if not real.any():
                continue
            scores = x[row, part] @ params["router"]["kernel"]
            drawn = None if draws is None else draws[row, part]
            _, places = rule_and_places(settings, size, training=draws is not None)
            combine, _, own_loss, own_missed = loop(scores, real, places, drawn)
            loss, missed = loss + own_loss, missed + own_missed.sum()
            for token, expert, place in np.argwhere(combine):
                given = x[row, start + token].astype(np.float64)
                y[row, start + token] += combine[token, expert, place] * network(given, params, expert, config)
    return y, loss, missed


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("training", (True, pytest.param(False, marks=SLOW)), ids=("training", "evaluation"))
def test_experts_are_the_loop(name, training):
    config, loop = MIXTURES[name]
    params, x = weights(config), states()
    keys = KEYS if training else None
    y, aux = module(config)(params, x, SEGMENTS, keys, None)
    draws = np.asarray(uniform(KEYS, SECOND_CHOICE, (L,))) if training else None
    expected, loss, missed = looped(params, config, loop, x, SEGMENTS, draws)
    close(y, expected, 1e-5)
    np.testing.assert_allclose([aux["balance"], aux["dropped"]], [loss, missed], rtol=1e-5)
    assert (missed > 0) == (config.experts.capacity_factor < E)
    assert all(value.dtype == jnp.float32 and value.shape == () for value in aux.values())


def dense(config, params, x, weights_BxLxE):
    """Every token through every expert, added up by weights: what a mixture is where weights of most are 0."""

    def linear(name, x):
        y = jnp.einsum("bl...i,eio->bleo" if x.ndim == 3 else "blei,eio->bleo", x, params[name]["kernel"])
        return y + params[name]["bias"][None, None] if config.feed_forward.bias else y

    hidden = linear("up", x)
    activate = {"relu": jax.nn.relu, "silu": jax.nn.silu}[config.feed_forward.activation]
    hidden = activate(linear("gate", x)) * hidden if config.feed_forward.gated else activate(hidden)
    return jnp.einsum("ble,bled->bld", weights_BxLxE, linear("down", hidden))


@pytest.mark.parametrize("config", (GSHARD, GATED, varied(top_k=1)), ids=("gshard", "gated", "switch"))
def test_gradients_are_those_of_every_token_through_its_experts(config):
    """Of parameters, the router's included, and inputs; who has a place is held, the weights of places are not."""
    params, x = weights(config), states()
    pull = np.random.default_rng(5).standard_normal(x.shape).astype(np.float32)
    settings, loop = config.experts, gating.switch if config.experts.top_k == 1 else gating.paper
    loop = gating.code if settings.rule == "code" else loop
    size = L // settings.groups
    kept = np.zeros((B, L, E), bool)
    for row in range(B):
        for start in range(0, L, size):
            part = slice(start, start + size)
            scores, real = x[row, part] @ params["router"]["kernel"], SEGMENTS[row, part] > 0
            if real.any():
                kept[row, part] = loop(scores, real, rule_and_places(settings, size, training=False)[1])[1].any(-1)

    def expected(params, x):
        gates = jax.nn.softmax(x @ params["router"]["kernel"])
        if settings.top_k == 2:  # renormalised over the two best, whether or not they have places
            gates = gates / jnp.sum(jax.lax.top_k(gates, 2)[0], axis=-1, keepdims=True)
        return jnp.sum(pull * dense(config, params, x, gates * kept))

    def found(params, x):
        return jnp.sum(pull * Experts(config, identity).apply({"params": params}, x, SEGMENTS)[0])

    actual, wanted = (jit(jax.grad(function, argnums=(0, 1)))(params, x) for function in (found, expected))
    close(actual, wanted, 2e-5)
    assert np.abs(wanted[0]["router"]["kernel"]).max() > 1e-3


def test_what_finds_no_place_passes_by_the_residual_to_the_bit():
    """One place at an expert that all want: a block without attention gives other tokens as it was given them."""
    config = varied(replace(GSHARD, positions=cfg.NoPositions()), top_k=1, capacity_factor=0.1)
    block, x = Block(config, config.pattern[0], identity), states()
    nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), jax.eval_shape(init_of(block), x))
    params = {**nothing, "feed_forward": weights(config), "feed_forward_norm": {"scale": np.ones(D, np.float32)}}
    params["feed_forward"]["router"]["kernel"] = np.float32([[90.0, 0, 0, 0]] + [[0.0] * E] * (D - 1))
    y, aux, _ = jit(lambda params, x: block.apply({"params": params}, x, shared(), None))(params, x)
    same(np.any(np.asarray(y) != x, axis=-1), np.eye(1, L, dtype=bool).repeat(B, 0))
    assert aux["dropped"] == np.sum(SEGMENTS > 0) - B


def shared():
    return Shared(Places(np.zeros_like(SEGMENTS), SEGMENTS), (None,))


def init_of(block):
    return lambda x: nn.meta.unbox(block.init(jax.random.key(0), x, shared(), None)["params"])


def test_padding_gives_and_takes_nothing():
    """Whatever it says, real tokens' outputs are the same bit for bit, and its own are 0."""
    params, x = weights(GSHARD), states()
    changed = np.where(SEGMENTS[..., None] > 0, x, 7.0).astype(np.float32)
    before, after = (module(GSHARD)(params, x, SEGMENTS, KEYS, None) for x in (x, changed))
    same(before, after)
    assert not np.any(np.asarray(before[0])[SEGMENTS == 0])


def test_draws_depend_on_a_rows_key_and_a_tokens_column_alone():
    rows = uniform(KEYS, SECOND_CHOICE, (L,))
    same(uniform(KEYS, SECOND_CHOICE, (2 * L,))[:, :L], rows)  # of a longer row
    same(uniform(KEYS[1:], SECOND_CHOICE, (L,)), rows[1:])  # of a row alone
    assert len(np.unique(rows)) == B * L
    params, x = weights(GSHARD), states()
    first, again = (module(GSHARD)(params, x, SEGMENTS, KEYS, None)[0] for _ in range(2))
    same(first, again)
    turned = module(GSHARD)(params, x[::-1], SEGMENTS[::-1], KEYS[::-1], None)[0]
    same(turned[::-1], first)
    assert np.any(module(GSHARD)(params, x, SEGMENTS, KEYS[::-1], None)[0] != first)


def test_evaluation_draws_nothing_and_has_its_own_capacity():
    """Its experts are those of the policy `all`; training's too where nothing is random."""
    params, x = weights(GSHARD), states()
    everyone = module(varied(second_policy="all"))(params, x, SEGMENTS, KEYS, None)
    same(module(GSHARD)(params, x, SEGMENTS, None, None), everyone)
    assert np.any(module(GSHARD)(params, x, SEGMENTS, KEYS, None)[0] != everyone[0])
    roomy = module(varied(eval_capacity_factor=4.0, jitter=0.5, second_policy="all"))
    assert (
        roomy(params, x, SEGMENTS, None, None)[1]["dropped"] == 0 < roomy(params, x, SEGMENTS, KEYS, None)[1]["dropped"]
    )


def test_jitter_is_the_routers_alone():
    """Uniform between 1 - jitter and 1 + jitter, in float32; experts read what is not jittered."""
    x = jnp.ones((B, 64, D), jnp.bfloat16)
    shaken = np.asarray(jittered(x, 0.25, KEYS))
    assert shaken.dtype == np.float32 and 0.75 <= shaken.min() < 0.77 and 1.23 < shaken.max() < 1.25
    assert shaken.mean() == pytest.approx(1.0, abs=0.02) and len(np.unique(shaken)) > 0.9 * shaken.size
    same(jittered(x, 0.25, None), x)
    config = varied(top_k=1, capacity_factor=4.0)
    params = {**weights(config), "router": {"kernel": np.zeros((D, E), np.float32)}}  # gates that no jitter changes
    inputs = (params, states(), SEGMENTS, KEYS, None)
    same(module(varied(config, jitter=0.5))(*inputs), module(config)(*inputs))


def test_gating_is_float32_in_a_bfloat16_model():
    """Tokens are routed and weighted as float32 has it; kernels' gradients are float32 sums."""
    config = replace(varied(capacity_factor=4.0), dtype="bfloat16")
    params, x = weights(config), states().astype(jnp.bfloat16)
    y, aux = module(config)(params, x, SEGMENTS, None, None)
    exact, loss, _ = looped(params, config, gating.paper, np.asarray(x, np.float64), SEGMENTS)
    assert y.dtype == jnp.bfloat16
    close(y, exact, 2**-6)
    gates = gating.gates_of(np.asarray(x, np.float64) @ params["router"]["kernel"])[SEGMENTS > 0]
    np.testing.assert_allclose(aux["entropy"], -np.sum(gates * np.log(gates)), rtol=1e-6)
    np.testing.assert_allclose(aux["balance"], loss, rtol=1e-6)
    slots, kernels = (np.random.default_rng(i).standard_normal(s) for i, s in enumerate(((E, 512, D), (E, D, F))))
    slots, pull = jnp.asarray(slots, jnp.bfloat16), jnp.ones((E, 512, F), jnp.bfloat16)
    out, back = jax.vjp(project_experts, slots, jnp.asarray(kernels, jnp.float32))
    same(out, reference(slots, kernels))
    d_slots, d_kernels = back(pull)
    assert d_slots.dtype == jnp.bfloat16 and d_kernels.dtype == jnp.float32
    summed = np.repeat(np.asarray(slots, np.float64).sum(1)[..., None], F, -1)
    np.testing.assert_allclose(d_kernels, summed, rtol=0, atol=1e-4)


def test_hidden_units_are_dropped_where_configured():
    config = replace(GSHARD, feed_forward=replace(GSHARD.feed_forward, dropout=0.5))
    params, x = weights(config), states()
    plain = module(GSHARD)(params, x, SEGMENTS, KEYS, None)
    same(module(config)(params, x, SEGMENTS, KEYS, None), plain)
    first, second = (module(config)(params, x, SEGMENTS, KEYS, jax.random.key(seed))[0] for seed in (0, 1))
    assert np.any(first != second) and np.any(first != plain[0])


def test_parameters_are_declared_by_expert():
    boxed = jax.eval_shape(Experts(GATED, identity).init, jax.random.key(0), jnp.zeros((1, 1, D)), SEGMENTS[:1, :1])
    leaves = jax.tree_util.tree_flatten_with_path(declarations(boxed["params"]))[0]
    found = {path_name(path): (leaf.shape, leaf.axes, leaf.kind, leaf.fan_in) for path, leaf in leaves}
    into = ((E, D, F), ("experts", "embed", "hidden"), "kernel", D)
    bias = ((E, F), ("experts", "hidden"), "bias", 1)
    assert found == {
        "router/kernel": ((D, E), ("embed", "router"), "kernel", D),
        **{"up/kernel": into, "gate/kernel": into, "up/bias": bias, "gate/bias": bias},
        "down/kernel": ((E, F, D), ("experts", "hidden", "embed"), "kernel", F),
        "down/bias": ((E, D), ("experts", "embed"), "bias", 1),
    }


def test_experts_begin_apart_and_as_spread_as_dense_networks():
    config = replace(GSHARD, embed_dim=64, init=cfg.Initialization(kernel_std=None, truncation=None))
    init = jit(lambda key: Experts(config, identity).init(key, jnp.zeros((1, 1, 64)), SEGMENTS[:1, :1])["params"])
    params = nn.meta.unbox(init(jax.random.key(0)))
    for name, fan_in in (("up", 64), ("down", F)):
        kernel = np.asarray(params[name]["kernel"])
        assert kernel.std() == pytest.approx(fan_in**-0.5, rel=0.1)
        assert not np.any(kernel[0] == kernel[1])


# A dense layer, one of experts, a dense one left over; room for all tokens, so that none depends on another's choice.
DECODER = replace(
    LLAMA,
    num_layers=3,
    pattern=(cfg.Layer(), cfg.Layer(experts=True)),
    experts=cfg.CapacityExperts(num_experts=4, capacity_factor=4.0),
)
PAIR = replace(DECODER, num_layers=2, encoder_layers=2)
FIRST, SECOND = tokens(5, 1, high=40), tokens(7, 2, low=40)


def test_packed_is_alone_and_padded_is_unpadded():
    params = draw(DECODER)
    packed = logits(DECODER)(params, pack([FIRST, SECOND], []))[0, len(FIRST) :, :100]
    close(packed, logits(DECODER)(params, pack([SECOND], []))[0, : len(SECOND), :100], 1e-5)
    close(packed, logits(DECODER)(params, pack([SECOND], length=len(SECOND)))[0, :, :100], 1e-5)


@pytest.mark.parametrize(
    "groups", (pytest.param(1, marks=SLOW), 5), ids=("a group", "groups that do not divide what is read")
)
def test_cached_is_full(groups):
    config = varied(DECODER, groups=groups, capacity_factor=4.0 * groups)
    check_read(config, [(4, (4, 2)), (1, (1, 1)), (3, (2, 3)), (4, (1, 4)), (4, (4, 2))], capacity=LENGTH + 4)


def source(*rows, length=LENGTH):
    return {f"source_{key}": value for key, value in pack(*rows, length=length).items()}


@SLOW
def test_an_encoder_decoder_packed_is_alone_and_cached_is_full():
    """Every second layer of both stacks has experts."""
    params, model = draw(PAIR), Transformer(PAIR)
    first, second = tokens(4, 8), tokens(6, 9)
    whole = logits(PAIR)(params, pack([FIRST, SECOND], []) | source([first, second], []))
    alone = logits(PAIR)(params, pack([SECOND], length=len(SECOND)) | source([second], length=len(second)))
    close(whole[0, len(FIRST) :, :100], alone[0, :, :100], 1e-5)

    @jit
    def begin(params):
        return read_source(model, params, empty_cache(PAIR, 1, LENGTH), np.array([second]), np.array([len(second)]))

    read = jit(lambda params, cached, token: extend(model, params, cached, token, np.array([1])))
    cached = begin(params)
    for place, token in enumerate(SECOND):
        found, cached = read(params, cached, np.array([[token]]))
        close(found[0, :100], alone[0, place, :100], 2e-5)


def test_statistics_come_by_stack_and_layer():
    config = replace(PAIR, num_layers=5, encoder_layers=2)
    batch = pack([FIRST, SECOND], []) | source([tokens(4, 8)], [tokens(6, 9)])
    _, aux, _ = jit(lambda params: Transformer(config).apply({"params": params}, batch))(draw(config))
    assert {name: part["load"].shape for name, part in aux.items()} == {"decoder": (2,), "encoder": (1,)}
    assert np.all(aux["decoder"]["entropy"] <= 12 * np.log(4)) and np.all(aux["decoder"]["load"] <= 1 * 4)


def test_layers_and_stacks_draw_apart():
    """Four layers that are given the same tokens, and add nothing to them: alike undrawn, each its own way drawn."""
    experts = cfg.CapacityExperts(num_experts=4, capacity_factor=1.0)
    config = replace(PAIR, pattern=(cfg.Layer(experts=True),), experts=experts)
    rows = [[tokens(LENGTH, seed)] for seed in range(16)]
    batch = pack(*rows) | source(*rows)
    router = np.random.default_rng(0).standard_normal((config.embed_dim, 4)).astype(np.float32)

    def alike(path, value):
        name = path_name(path)
        if name.endswith("router/kernel"):
            return np.broadcast_to(router, value.shape)
        nothing = name.endswith(("attention/output/kernel", "feed_forward/down/kernel"))
        return np.zeros_like(value) if nothing else np.ones_like(value) if name.endswith("scale") else value

    params = jax.tree_util.tree_map_with_path(alike, draw(config))
    run = jit(lambda params, keys: Transformer(config).apply({"params": params}, batch, row_keys=keys)[1])

    def dropped(keys):
        aux = run(params, keys)
        return [*np.asarray(aux["decoder"]["dropped"]), *np.asarray(aux["encoder"]["dropped"])]

    assert len(set(dropped(None))) == 1
    assert len(set(dropped(jax.random.split(jax.random.key(1), 16)))) == 4
