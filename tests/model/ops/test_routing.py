"""Gating with capacity is the loops of the papers and of the reference code, and padding is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops.routing import Gating, busiest, capacity, grouped, route, router_statistics, ungrouped
from tests.model import gating
from tests.model.small import close, jit, same

G, S, E = 3, 16, 4
PAPER, CODE, SWITCH = Gating(), Gating(rule="code"), Gating(top_k=1)
RULES = {"paper": (PAPER, gating.paper), "code": (CODE, gating.code), "switch": (SWITCH, gating.switch)}
every_rule = pytest.mark.parametrize(("settings", "loop"), RULES.values(), ids=RULES)
routed = jit(route, static_argnums=(2, 3))


def make(seed: int = 0, spread: float = 1.5):
    """Logits that lean towards the first expert, so that it overflows; tokens, of which some are padding; draws."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, spread, (G, S, E)) + np.array([1.0, 0.5, 0.0, -0.5])
    real = generator.random((G, S)) < 0.8
    return logits.astype(np.float32), real, generator.random((G, S)).astype(np.float32)


@every_rule
@pytest.mark.parametrize("drawn", (True, False), ids=("drawn", "all"))
@pytest.mark.parametrize("places", (3, pytest.param(S, marks=pytest.mark.slow)))
def test_routes_and_statistics_are_the_loop(settings, loop, drawn, places):
    logits, real, draws = make(places)
    routes, found = routed(logits, real, settings, places, draws if drawn else None)
    expected = [loop(logits[g], real[g], places, draws[g] if drawn else None) for g in range(G)]
    combine, dispatch, losses, missed = (np.stack(part) for part in zip(*expected, strict=True))
    same(routes.dispatch, dispatch)
    np.testing.assert_allclose(routes.combine, combine, rtol=0, atol=2e-7)  # a float32 of at most 1
    np.testing.assert_allclose(found["balance"], losses.sum(), rtol=1e-6)
    np.testing.assert_allclose(found["dropped"], missed.sum(), rtol=1e-6, atol=0)
    assert (missed.sum() > 0) == (places < S)


def test_the_rules_part_where_a_choice_is_drawn_out():
    """By the paper it holds its place all the same, by the code the next token has it."""
    logits = np.log(np.array([[[0.6, 0.39, 0.01], [0.6, 0.01, 0.39], [0.6, 0.39, 0.01]]], np.float32))
    draws, real = np.array([[0.99, 0.0, 0.0]], np.float32), np.ones((1, 3), bool)  # 2 * 0.39 / 0.99 < 0.99
    by_paper, by_code = (route(logits, real, rule, 1, draws)[0].dispatch[0, :, 1, 0] for rule in (PAPER, CODE))
    same(by_paper, [0, 0, 0])
    same(by_code, [0, 0, 1])


@every_rule
def test_groups_do_not_know_of_one_another(settings, loop):
    logits, real, draws = make(1)
    whole, _ = routed(logits, real, settings, 3, draws)
    for g in range(G):
        part = slice(g, g + 1)
        alone, _ = routed(logits[part], real[part], settings, 3, draws[part])
        same(jax.tree.map(lambda x, part=part: x[part], whole), alone)


@every_rule
def test_padding_takes_no_place_and_is_in_no_statistic(settings, loop):
    """Real tokens are routed as in a group without it, wherever it stands and whatever it says."""
    logits, _, draws = make(2)
    kept = np.array([0, 1, 3, 4, 5, 6, 8, 9, 10, 11])
    real = np.zeros((G, S), bool)
    real[:, kept] = True
    padded, with_padding = routed(logits, real, settings, 3, draws)
    short, without = routed(logits[:, kept], real[:, kept], settings, 3, draws[:, kept])
    same(jax.tree.map(lambda x: x[:, kept], padded), short)
    assert not np.delete(padded.dispatch, kept, axis=1).any() and not np.delete(padded.combine, kept, axis=1).any()
    close(with_padding, without, 1e-6)


@every_rule
def test_a_group_of_padding_adds_nothing(settings, loop):
    logits, real, draws = make(3)
    real[-1] = False
    _, found = routed(logits, real, settings, 3, draws)
    close(found, routed(logits[:-1], real[:-1], settings, 3, draws[:-1])[1], 1e-6)
    routes, nothing = routed(logits, np.zeros_like(real), settings, 3, draws)
    assert not routes.dispatch.any() and not any(nothing.values())


@every_rule
def test_the_auxiliary_loss_of_even_gates_and_of_a_collapse(settings, loop):
    """1 and E by the code's normalisation, E^2 less by the paper's."""
    scale = E**-2 if settings is PAPER else 1.0
    real, even = np.ones((1, S), bool), np.tile(10.0 * np.eye(E, dtype=np.float32), (1, S // E, 1))
    one = np.zeros((1, S, E), np.float32) + np.array([50.0, 0, 0, 0], np.float32)
    assert route(even, real, settings, 3)[1]["balance"] == pytest.approx(scale)
    assert route(one, real, settings, 3)[1]["balance"] == pytest.approx(E * scale)
    assert busiest(jax.nn.one_hot(jnp.argmax(even, -1), E), real) == pytest.approx(1.0)
    assert busiest(jax.nn.one_hot(jnp.argmax(one, -1), E), real) == pytest.approx(E)


@every_rule
def test_the_auxiliary_loss_teaches_the_mean_gates(settings, loop):
    """Its gradient, where the shares of first choices are held, which have none."""
    logits, real, _ = make(4)
    first = jax.nn.one_hot(jnp.argmax(logits, -1), E) * real[..., None]

    def formula(logits):
        shares, weight = ((x * real[..., None]).sum(1) / real.sum(1)[:, None] for x in (first, jax.nn.softmax(logits)))
        return jnp.sum(shares * weight) * (1 / E if settings is PAPER else E)

    found = jax.grad(lambda logits: route(logits, real, settings, 3)[1]["balance"])(logits)
    close(found, jax.grad(formula)(logits), 1e-5)


def test_z_entropy_and_load_are_their_formulas():
    logits, real, _ = make(5)
    gates = gating.gates_of(logits)
    found = router_statistics(logits, real)
    log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    np.testing.assert_allclose(found["z"], (log_z**2)[real].sum(), rtol=1e-6)
    np.testing.assert_allclose(found["entropy"], -(gates * np.log(gates)).sum(-1)[real].sum(), rtol=1e-6)
    first = gates.argmax(-1)
    shares = [np.bincount(first[g][real[g]], minlength=E).max() / real[g].sum() for g in range(G)]
    assert routed(logits, real, PAPER, 3)[1]["load"] == pytest.approx(E * sum(shares))


def test_two_choices_are_two_experts_where_one_gate_is_all():
    """A gate of 1 leaves none to others: the second choice is another all the same, and weighs nothing."""
    logits = np.zeros((1, 1, E), np.float32) + np.array([500.0, 0, 0, 0], np.float32)
    routes, found = route(logits, np.ones((1, 1), bool), PAPER, 1)
    assert routes.dispatch[0, 0, :, 0].tolist() == [1, 1, 0, 0] and routes.combine[0, 0, :, 0].tolist() == [1, 0, 0, 0]
    assert found["dropped"] == 0 and found["entropy"] == 0 and np.isfinite(found["z"])


def test_gates_have_a_gradient_through_the_weights():
    """Of float32 weights by finite differences, at logits whose choices do not change."""
    logits, real, _ = make(6)
    pull = np.random.default_rng(1).standard_normal((G, S, E, 8)).astype(np.float32)
    step = np.random.default_rng(2).standard_normal(logits.shape).astype(np.float32)

    def of(logits):
        return jnp.sum(route(logits, real, CODE, 8)[0].combine * pull)

    value = jit(of)
    slope = jnp.vdot(jit(jax.grad(of))(logits), step)
    difference = float(value(logits + 1e-3 * step) - value(logits - 1e-3 * step)) / 2e-3
    assert slope == pytest.approx(difference, rel=1e-2) and abs(slope) > 0.1


PLACES = (
    # tokens, experts, factor, least: by the paper's rule, by the code's, by Switch's
    ((1024, 2048, 2.0, 1), (1, 4, 1)),  # GShard, a group of 1024: 2 S / E
    ((4096, 128, 2.0, 1), (64, 64, 64)),
    ((512, 128, 1.25, 1), (5, 8, 5)),
    ((512, 128, 1.0, 4), (4, 4, 4)),
    ((100, 8, 1.0, 4), (12, 12, 12)),
    ((101, 8, 1.1, 4), (13, 16, 13)),
    ((2, 8, 2.0, 4), (2, 2, 2)),  # no more than there are tokens
    ((1, 8, 2.0, 1), (1, 1, 1)),
)


@pytest.mark.parametrize(("sizes", "expected"), PLACES)
def test_places_are_rounded_as_the_rule_says(sizes, expected):
    tokens, experts, factor, least = sizes
    found = [capacity(tokens, experts, factor, least, settings) for settings, _ in RULES.values()]
    assert found == list(expected)


def test_more_places_than_tokens_would_change_nothing():
    logits, real, draws = make(7)
    for settings, _ in RULES.values():
        routes, found = routed(logits, real, settings, S, draws)
        wider, also = routed(logits, real, settings, S + 3, draws)
        same(jax.tree.map(lambda x: x[..., :S], wider), routes)
        assert not wider.dispatch[..., S:].any()
        same(also, found)


@pytest.mark.parametrize("groups", (1, 2, 3, 5))
def test_rows_are_cut_into_equal_parts_and_put_together_again(groups):
    x = np.random.default_rng(0).integers(1, 9, (2, 6, 3))
    cut = grouped(x, groups)
    assert cut.shape == (2 * groups, -(-6 // groups), 3)
    flat = np.asarray(cut).reshape(2, -1, 3)
    same(flat[:, :6], x)
    assert not flat[:, 6:].any()
    same(ungrouped(cut, 2, 6), x)
