"""One update is its formula, stacked or alone, on the parameters it was declared for and no others."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.errors import ConfigError
from model.parameters import Declaration
from tests.train.small import DECLARATIONS, LAYER, LAYERS, draw, stacked
from train import config as cfg
from train import optim

OPTIMIZERS = (
    cfg.Sgd(weight_decay=0.1),
    cfg.Sgd(momentum=0.9, nesterov=True),
    cfg.Adam(),
    cfg.AdamW(),
    cfg.AdamW(bias_correction=False),
    cfg.Adafactor(min_dim_size_to_factor=8, weight_decay=0.01),
    cfg.Lion(),
    cfg.Muon(),
)
names = pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.name)

KERNEL = {"w": Declaration((8, 24), ("embed", "hidden"), "kernel", (0,), (1,))}

GOLDEN_ADAMW = """\
decayed: 6
  embedding/token                           embedding  adamw      rate x 1  decay 0.1
  head                                      kernel     adamw      rate x 1  decay 0.1
  stack/0/attention/key/kernel              kernel     adamw      rate x 1  decay 0.1
  stack/0/attention/output/kernel           kernel     adamw      rate x 1  decay 0.1
  stack/0/attention/query/kernel            kernel     adamw      rate x 1  decay 0.1
  stack/0/feed_forward/up/kernel            kernel     adamw      rate x 1  decay 0.1
not decayed: 4
  embedding/position                        table      adamw      rate x 1  decay 0
  final_norm/scale                          scale      adamw      rate x 1  decay 0
  stack/0/attention/query/bias              bias       adamw      rate x 1  decay 0
  stack/0/norm/scale                        scale      adamw      rate x 1  decay 0
frozen: 0
"""

GOLDEN_MUON_GROUPS = """\
decayed: 5
  embedding/position                        table      adamw      rate x 0.05  decay 0.3  group '^embedding'
  embedding/token                           embedding  adamw      rate x 0.05  decay 0.3  group '^embedding'
  head                                      kernel     adamw      rate x 0.1  decay 0.1
  stack/0/attention/query/kernel            kernel     muon       rate x 2  decay 0.1  group 'query'
  stack/0/feed_forward/up/kernel            kernel     muon       rate x 1  decay 0.1
not decayed: 2
  final_norm/scale                          scale      adamw      rate x 0.1  decay 0
  stack/0/attention/query/bias              bias       adamw      rate x 0.2  decay 0  group 'query'
frozen: 3
  stack/0/attention/key/kernel              kernel     group 'attention|/norm'
  stack/0/attention/output/kernel           kernel     group 'attention|/norm'
  stack/0/norm/scale                        scale      group 'attention|/norm'
"""


def build(optimizer, declarations=KERNEL, **fields):
    return optim.build(cfg.Optim(optimizer=optimizer, **fields), declarations)


def run(optimizer, params, gradients, learning_rate=0.1):
    """The parameters after each update."""
    state, update, seen = optimizer.init(params), jax.jit(optimizer.update), []
    for grads in gradients:
        params, state = update(grads, state, params, learning_rate)
        seen.append(params)
    return seen


def one_kernel(optimizer, gradients, learning_rate=0.1, start=None):
    """The values of a lone kernel after each update, as float64."""
    params = draw(KERNEL, 0) if start is None else {"w": start}
    seen = run(build(optimizer), params, [{"w": gradient} for gradient in gradients], learning_rate)
    return [np.asarray(params["w"], np.float64) for params in seen]


def kernel_gradients(count):
    return [draw(KERNEL, seed, scale=10.0 ** (seed - 2))["w"] for seed in range(1, count + 1)]


@names
def test_one_update_stacked_is_one_update_per_layer(optimizer):
    """Bit for bit; Muon's matrix products, which XLA orders by how many there are, to 1e-6 of an update."""
    stack, learning_rate = jax.tree.map(stacked, LAYER), 0.1
    alone = {str(layer): LAYER for layer in range(LAYERS)}

    def layer_of(tree, layer):
        return jax.tree.map(lambda part: part[layer], tree)

    def apart(tree):
        return {str(layer): layer_of(tree, layer) for layer in range(LAYERS)}

    # Layers differ in scale by factors of 100, so that statistics shared between them would show.
    scale = 100.0 ** np.arange(LAYERS, dtype=np.float32)
    params, gradients = (
        [
            jax.tree.map(lambda part: part * scale.reshape(-1, *[1] * (part.ndim - 1)), draw(stack, seed))
            for seed in seeds
        ]
        for seeds in ((0,), (1, 2, 3))
    )
    together = run(build(optimizer, stack), params[0], gradients, learning_rate)
    separate = run(build(optimizer, alone), apart(params[0]), [apart(grads) for grads in gradients], learning_rate)
    for whole, parts in zip(together, separate, strict=True):
        if optimizer.name == "muon":
            close = partial(np.testing.assert_allclose, rtol=2e-7, atol=1e-6 * learning_rate)
            jax.tree.map(close, apart(whole), parts)
        else:
            jax.tree.map(np.testing.assert_array_equal, apart(whole), parts)


def test_sgd_is_its_formula():
    gradients = kernel_gradients(4)
    start = draw(KERNEL, 0)["w"].astype(np.float64)
    for momentum, nesterov, decay in ((0.0, False, 0.0), (0.9, False, 0.01), (0.9, True, 0.0)):
        w, v = start, np.zeros_like(start)
        seen = one_kernel(cfg.Sgd(momentum=momentum, nesterov=nesterov, weight_decay=decay), gradients)
        for gradient, value in zip(gradients, seen, strict=True):
            v = momentum * v + gradient
            direction = gradient + momentum * v if nesterov else v
            w = w - 0.1 * (direction + decay * w)
            np.testing.assert_allclose(value, w, rtol=1e-6, atol=1e-6)


def test_plain_sgd_keeps_no_state():
    assert not jax.tree.leaves(build(cfg.Sgd()).init(draw(KERNEL, 0)))


def test_adams_first_step_is_the_sign_of_the_gradient():
    """With bias correction m / sqrt(v) is g / |g|; without, (1 - b1) / sqrt(1 - b2) of that.

    1 - b2 of b2 = 0.999 has 14 significant bits left in float32, so the step is the rate to 1e-5.
    """
    gradient = kernel_gradients(1)[0]
    zero = np.zeros_like(gradient)
    for optimizer in (cfg.Adam(epsilon=1e-30), cfg.AdamW(epsilon=1e-30)):
        (value,) = one_kernel(optimizer, [gradient], start=zero)
        np.testing.assert_allclose(value, -0.1 * np.sign(gradient), rtol=1e-5)


def test_adam_and_adamw_are_their_formulas():
    """Epsilon is outside the root and after the correction; decay is outside the moments, times the rate."""
    gradients = kernel_gradients(5)
    for optimizer, decay in ((cfg.Adam(epsilon=0.3), 0.0), (cfg.AdamW(epsilon=0.3), 0.1)):
        w = draw(KERNEL, 0)["w"].astype(np.float64)
        m = v = np.zeros_like(w)
        seen = one_kernel(optimizer, gradients)
        for t, (gradient, value) in enumerate(zip(gradients, seen, strict=True), 1):
            gradient = gradient.astype(np.float64)
            m = optimizer.b1 * m + (1 - optimizer.b1) * gradient
            v = optimizer.b2 * v + (1 - optimizer.b2) * gradient**2
            corrected = m / (1 - optimizer.b1**t) / (np.sqrt(v / (1 - optimizer.b2**t)) + optimizer.epsilon)
            w = w - 0.1 * (corrected + decay * w)
            np.testing.assert_allclose(value, w, rtol=1e-5, atol=1e-6)


def test_adamw_without_bias_correction_is_berts():
    """AdamWeightDecayOptimizer of its code: the moments as they are, epsilon outside the root, decay apart."""
    settings = cfg.AdamW(b2=0.999, epsilon=1e-6, weight_decay=0.01, bias_correction=False)
    gradients = kernel_gradients(5)
    w = draw(KERNEL, 0)["w"].astype(np.float64)
    m = v = np.zeros_like(w)
    for gradient, value in zip(gradients, one_kernel(settings, gradients), strict=True):
        gradient = gradient.astype(np.float64)
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        w = w - 0.1 * (m / (np.sqrt(v) + 1e-6) + 0.01 * w)
        np.testing.assert_allclose(value, w, rtol=1e-5, atol=1e-6)
    zero = np.zeros_like(gradients[0])
    (first,) = one_kernel(replace(settings, epsilon=1e-30), gradients[:1], start=zero)
    np.testing.assert_allclose(first, -0.1 * np.sqrt(10) * np.sign(gradients[0]), rtol=1e-5)


def test_berts_decay_holds_tables_too():
    """Its pattern leaves out norms and biases alone; positions and token types decay as the embedding does."""
    settings = cfg.AdamW(bias_correction=False)
    built = build(settings, DECLARATIONS, decay_kinds=("kernel", "embedding", "table"))
    kinds = {plan.declaration.kind: plan.weight_decay for plan in built.plans.values()}
    assert kinds == {"kernel": 0.1, "embedding": 0.1, "table": 0.1, "bias": 0.0, "scale": 0.0}


def test_lion_is_its_formula():
    gradients = kernel_gradients(4)
    w = draw(KERNEL, 0)["w"].astype(np.float64)
    m = np.zeros_like(w)
    for gradient, value in zip(gradients, one_kernel(cfg.Lion(), gradients), strict=True):
        w = w - 0.1 * (np.sign(0.9 * m + 0.1 * gradient) + 1.0 * w)
        m = 0.99 * m + 0.01 * gradient
        np.testing.assert_allclose(value, w, rtol=1e-5, atol=1e-6)


def test_adafactor_is_its_formula():
    """Algorithm 4 of Shazeer and Stern 2018 on a matrix, with relative step sizes."""
    gradients = kernel_gradients(4)
    w = draw(KERNEL, 0)["w"].astype(np.float64)
    row, column = np.zeros(8), np.zeros(24)
    seen = one_kernel(cfg.Adafactor(min_dim_size_to_factor=8), gradients)
    for t, (gradient, value) in enumerate(zip(gradients, seen, strict=True), 1):
        decay, square = 1 - t**-0.8, gradient.astype(np.float64) ** 2
        row = decay * row + (1 - decay) * square.mean(1)
        column = decay * column + (1 - decay) * square.mean(0)
        direction = gradient / np.sqrt(np.outer(row, column) / row.mean())
        direction /= max(1.0, np.sqrt((direction**2).mean()))
        w = w - 0.1 * max(1e-3, np.sqrt((w**2).mean())) * direction
        np.testing.assert_allclose(value, w, rtol=1e-5, atol=1e-6)


def test_adafactor_is_optaxs():
    params = draw(LAYER, 0)
    gradients = [draw(LAYER, seed, scale=10.0 ** (seed - 2)) for seed in range(1, 5)]
    for scaled in (True, False):
        theirs = optax.adafactor(0.1, min_dim_size_to_factor=8, multiply_by_parameter_scale=scaled)
        state, expected = theirs.init(params), params
        ours = cfg.Adafactor(min_dim_size_to_factor=8, multiply_by_parameter_scale=scaled)
        seen = run(build(ours, LAYER), params, gradients)
        for grads, value in zip(gradients, seen, strict=True):
            updates, state = jax.jit(theirs.update)(grads, state, expected)
            expected = optax.apply_updates(expected, updates)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), value, expected)


def matrix(declaration, array):
    """[fan_in, fan_out], by hand for the kernels of the small tree."""
    return np.asarray(array, np.float64).reshape(declaration.fan_in, declaration.fan_out)


@pytest.mark.parametrize("name", ("query", "key", "output"))
def test_muon_orthogonalises_the_declared_matrix(name):
    """A direction is U S V' of the gradient's U and V; S, ones in the limit, is within [0.6, 1.3]."""
    declaration = LAYER["attention"][name]["kernel"]
    declarations, zeros = {"w": declaration}, {"w": np.zeros(declaration.shape, np.float32)}
    grads = draw(declarations, 5)
    (moved,) = run(build(cfg.Muon(weight_decay=0.0), declarations), zeros, [grads], learning_rate=1.0)
    scale = np.sqrt(max(1.0, declaration.fan_out / declaration.fan_in))
    direction = -matrix(declaration, moved["w"]) / scale
    assert np.abs(np.linalg.svd(direction, compute_uv=False) - 0.95).max() < 0.35
    u, _, v = np.linalg.svd(matrix(declaration, grads["w"]), full_matrices=False)
    core = u.T @ direction @ v.T
    np.testing.assert_allclose(core, np.diag(np.diag(core)), atol=1e-4)


def test_muon_multiplies_wide_matrices_by_the_root_of_their_shape():
    wide = {"w": Declaration((8, 4, 18), ("embed", "heads", "head_dim"), "kernel", (0,), (1, 2))}
    tall = {"w": Declaration((4, 18, 8), ("heads", "head_dim", "embed"), "kernel", (0, 1), (2,))}
    grads = draw(wide, 5)["w"]
    flipped = grads.reshape(8, 72).T.reshape(4, 18, 8)
    zero, settings = np.zeros_like(grads), cfg.Muon(weight_decay=0.0)
    moved = run(build(settings, wide), {"w": zero}, [{"w": grads}])[0]["w"]
    opposite = run(build(settings, tall), {"w": zero.reshape(4, 18, 8)}, [{"w": flipped}])[0]["w"]
    np.testing.assert_allclose(
        np.asarray(moved).reshape(8, 72), 3.0 * np.asarray(opposite).reshape(72, 8).T, rtol=1e-4, atol=1e-6
    )


def test_muon_takes_axes_that_are_neither_input_nor_output_for_a_batch():
    experts = {"w": Declaration((2, 8, 24), ("experts", "embed", "hidden"), "kernel", (1,), (2,))}
    params, gradients = draw(experts, 0), [draw(experts, seed) for seed in (1, 2)]
    together = run(build(cfg.Muon(), experts), params, gradients)[-1]["w"]
    for expert in range(2):
        lone = run(build(cfg.Muon()), {"w": params["w"][expert]}, [{"w": grads["w"][expert]} for grads in gradients])
        np.testing.assert_allclose(together[expert], lone[-1]["w"], rtol=1e-5, atol=1e-6)


def test_muon_leaves_the_rest_to_adamw_at_its_share_of_the_rate():
    params, gradients = draw(DECLARATIONS, 0), [draw(DECLARATIONS, seed) for seed in (1, 2, 3)]
    ours = run(build(cfg.Muon(adam_learning_rate_factor=0.25), DECLARATIONS), params, gradients, 0.1)[-1]
    adamw = run(build(cfg.AdamW(), DECLARATIONS), params, gradients, 0.025)[-1]
    for path in (("embedding",), ("final_norm",), ("head",), ("stack", "0", "norm")):
        a, b = ours, adamw
        for key in path:
            a, b = a[key], b[key]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b)


@names
def test_only_declared_kinds_decay(optimizer):
    """With no gradient, what decays shrinks by rate * factor * decay, and the rest keeps its bits."""
    built, params = build(optimizer, DECLARATIONS), draw(DECLARATIONS, 0)
    (after,) = run(built, params, [jax.tree.map(jnp.zeros_like, params)])
    factor = {"muon": 0.1}.get(optimizer.name, 1.0)

    def check(path, declaration, before, after):
        decays = declaration.kind in ("kernel", "embedding") and optimizer.name != "adam"
        rate = 0.1 * (factor if declaration.kind == "embedding" or "vocab" in declaration.axes else 1.0)
        if not decays or optimizer.weight_decay == 0:
            np.testing.assert_array_equal(after, before, err_msg=str(path))
        else:
            np.testing.assert_allclose(after, before * (1 - rate * optimizer.weight_decay), rtol=1e-6)

    jax.tree_util.tree_map_with_path(check, DECLARATIONS, params, after)


def test_decay_kinds_are_the_configurations():
    plans = build(cfg.AdamW(), DECLARATIONS, decay_kinds=("bias", "table")).plans
    assert {name for name, plan in plans.items() if plan.weight_decay} == {
        "embedding/position",
        "stack/0/attention/query/bias",
    }


def test_lists_for_the_log_are_the_golden_ones():
    assert build(cfg.AdamW(), DECLARATIONS).describe() == GOLDEN_ADAMW
    groups = (
        cfg.Group("attention|/norm", freeze=True),
        cfg.Group("query", learning_rate_factor=2.0),
        cfg.Group("^embedding", learning_rate_factor=0.5, weight_decay=0.3),
    )
    assert build(cfg.Muon(), DECLARATIONS, groups=groups).describe() == GOLDEN_MUON_GROUPS


def test_the_last_group_that_matches_holds_alone():
    """Nothing of an earlier match is kept: `query` is thawed, and its own decay holds again."""
    groups = (
        cfg.Group("attention", learning_rate_factor=3.0, weight_decay=0.0, freeze=True),
        cfg.Group("query/kernel$", learning_rate_factor=0.5),
    )
    plans = build(cfg.AdamW(), LAYER, groups=groups).plans
    query = plans["attention/query/kernel"]
    assert (query.learning_rate_factor, query.weight_decay, query.frozen) == (0.5, 0.1, False)
    assert plans["attention/query/bias"].frozen and plans["attention/key/kernel"].frozen


def test_a_groups_factor_and_decay_enter_the_update():
    params, grads = draw(KERNEL, 0), draw(KERNEL, 1)
    group = cfg.Group("w", learning_rate_factor=0.5, weight_decay=0.2)
    (after,) = run(build(cfg.Sgd(), groups=(group,)), params, [grads])
    np.testing.assert_allclose(after["w"], params["w"] - 0.05 * (grads["w"] + 0.2 * params["w"]), rtol=1e-5)


def test_a_pattern_without_a_match_is_refused():
    groups = (cfg.Group("attention"), cfg.Group("atention/query/kernel"))
    with pytest.raises(ConfigError, match=r"groups.1.pattern is 'at.* near it are stack/0/attention/query/kernel"):
        build(cfg.AdamW(), DECLARATIONS, groups=groups)


def test_freezing_everything_is_refused():
    with pytest.raises(ConfigError, match="freezes every parameter, by '.'"):
        build(cfg.AdamW(), DECLARATIONS, groups=(cfg.Group(".", freeze=True),))


@names
def test_frozen_parameters_have_no_state_and_do_not_move(optimizer):
    groups = (cfg.Group("^embedding/|query", freeze=True),)
    built, whole = build(optimizer, DECLARATIONS, groups=groups), draw(DECLARATIONS, 0)
    params, frozen = optim.split_frozen(whole, built.frozen_paths)
    assert set(params) == {"final_norm", "head", "stack"}  # no empty `embedding` is left behind
    assert set(params["stack"]["0"]["attention"]) == {"key", "output"}
    assert set(frozen) == {"embedding", "stack"} and set(frozen["stack"]["0"]) == {"attention"}
    params, state = jax.jit(built.update)(params, built.init(params), params, 0.1)
    assert set(state) == set(params)
    after = optim.merge(params, frozen)
    assert jax.tree.structure(after) == jax.tree.structure(whole)
    for part in ("token", "position"):
        np.testing.assert_array_equal(after["embedding"][part], whole["embedding"][part])
    assert not np.array_equal(after["head"], whole["head"])


def test_splitting_and_merging_gives_the_tree_again():
    whole = draw(DECLARATIONS, 0)
    for paths in ((), ("head",), tuple(build(cfg.Sgd(), DECLARATIONS).plans)):
        params, frozen = optim.split_frozen(whole, paths)
        assert len(jax.tree.leaves(frozen)) == len(paths)
        merged = optim.merge(params, frozen)
        assert jax.tree.structure(merged) == jax.tree.structure(whole)
        jax.tree.map(np.testing.assert_array_equal, merged, whole)


@names
def test_a_state_keeps_its_types(optimizer):
    """Else the second step would compile again; float32 whatever the gradient is, counts int32."""
    built = build(optimizer, DECLARATIONS)
    params = draw(DECLARATIONS, 0)
    before = jax.eval_shape(built.init, params)
    bf16 = jax.tree.map(lambda part: part.astype(jnp.bfloat16), params)
    after_params, after = jax.eval_shape(built.update, bf16, before, params, jnp.float32(0.1))

    def kind(leaf):
        return leaf.shape, leaf.dtype, leaf.weak_type

    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.map(kind, before) == jax.tree.map(kind, after)
    assert {leaf.dtype for leaf in jax.tree.leaves(after_params)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(before)} <= {jnp.dtype("float32"), jnp.dtype("int32")}


@names
def test_a_narrow_gradient_is_widened_before_it_is_squared(optimizer):
    params = draw(KERNEL, 0)
    narrow = jax.tree.map(lambda part: jnp.asarray(part, jnp.bfloat16), draw(KERNEL, 1))
    wide = jax.tree.map(lambda part: part.astype(jnp.float32), narrow)
    built = build(optimizer)
    jax.tree.map(np.testing.assert_array_equal, run(built, params, [narrow]), run(built, params, [wide]))


def test_norm_is_that_before_the_clip():
    grads = draw(DECLARATIONS, 1, scale=3.0)
    exact = np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in jax.tree.leaves(grads)))
    clipped, norm = jax.jit(optim.clip_by_global_norm, static_argnums=1)(grads, 1.0)
    np.testing.assert_allclose(norm, exact, rtol=1e-6)
    assert norm.dtype == jnp.float32
    np.testing.assert_allclose(optim.global_norm(clipped), 1.0, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b / exact, rtol=1e-6), clipped, grads)


@pytest.mark.parametrize("max_norm", (None, 1e6))
def test_gradients_within_the_bound_keep_their_bits(max_norm):
    grads = draw(DECLARATIONS, 1)
    clipped, _ = optim.clip_by_global_norm(grads, max_norm)
    jax.tree.map(np.testing.assert_array_equal, clipped, grads)


def test_clipping_zeros_gives_zeros_and_what_is_not_finite_is_reported():
    clipped, norm = optim.clip_by_global_norm({"w": jnp.zeros(3)}, 1.0)
    assert norm == 0 and not clipped["w"].any()
    for bad in (np.nan, np.inf):
        assert not np.isfinite(optim.clip_by_global_norm({"w": jnp.asarray([1.0, bad])}, 1.0)[1])
