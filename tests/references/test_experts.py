"""Layers of experts beside transformers' NLLB-MoE (top-2 by the reference code's rule), Switch, Mixtral. Needs PyTorch.

A row is a group here as there. NLLB-MoE's own layer, of transformers 5, takes the ones and zeros of its router's mask
for numbers of experts; so its experts are added up here by its router's weights, which is what they are for.
"""

import jax
import numpy as np
import pytest

WHY = "PyTorch or transformers is not installed: `make test-references` installs them beside, and runs this"
torch = pytest.importorskip("torch", reason=WHY)
pytest.importorskip("transformers", reason=WHY)

from transformers import NllbMoeConfig, SwitchTransformersConfig  # noqa: E402
from transformers.models.mixtral import modeling_mixtral as mixtral  # noqa: E402
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeDenseActDense, NllbMoeTop2Router  # noqa: E402
from transformers.models.switch_transformers.modeling_switch_transformers import (  # noqa: E402
    SwitchTransformersSparseMLP,
    load_balancing_loss_func,
    router_z_loss_func,
)

from model.config import CapacityExperts, DroplessExperts, FeedForward, Layer, Model  # noqa: E402
from model.experts import Experts  # noqa: E402
from model.transformer import identity  # noqa: E402
from tests.model.small import close  # noqa: E402

pytestmark = pytest.mark.references
B, L, D, F, E = 3, 16, 12, 20, 4
SEGMENTS = np.ones((B, L), np.int32)
PADDED = np.where(np.arange(L)[None] < np.array([16, 11, 5])[:, None], 1, 0)
FACTORS = {"overflow": 1.0, "room for all": 4.0}
factors = pytest.mark.parametrize("factor", FACTORS.values(), ids=FACTORS)


def drawn(module, seed: int = 0):
    """`module`, all parameters drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    return module.eval()


def states():
    """Rows that lean one way, so that some experts are in more demand than others."""
    return np.random.default_rng(1).normal(0.3, 1.0, (B, L, D)).astype(np.float32)


def array(tensor):
    return tensor.detach().numpy()


def weights(experts, names: dict) -> dict:
    """Parameters of our projections from lists of theirs, `{ours: theirs}`."""
    found = {}
    for ours, theirs in names.items():
        parts = [getattr(expert, theirs) for expert in experts]
        found[ours] = {"kernel": np.stack([array(part.weight).T for part in parts])}
        if parts[0].bias is not None:
            found[ours]["bias"] = np.stack([array(part.bias) for part in parts])
    return found


def ours(settings: CapacityExperts | DroplessExperts, params: dict, x, segments, pull):
    """(outputs, auxiliary values, gradients of the parameters and of x) for the cotangent `pull`."""
    bias = "bias" in params["up"]
    config = Model(
        embed_dim=D,
        feed_forward=FeedForward(F, "relu", gated=False, bias=bias),
        experts=settings,
        pattern=(Layer(experts=True),),
    )

    def run(params, x):
        return Experts(config, identity).apply({"params": params}, x, segments)

    y, back, aux = jax.vjp(run, params, x, has_aux=True)
    return y, aux, back(pull)


@factors
@pytest.mark.parametrize("segments", (SEGMENTS, PADDED), ids=("full", "padded"))
def test_top_2_is_nllb_moe(factor, segments):
    places = int(L * factor / E)
    config = NllbMoeConfig(
        d_model=D,
        num_experts=E,
        expert_capacity=places,
        second_expert_policy="all",
        normalize_router_prob_before_dropping=True,
        moe_eval_capacity_token_fraction=-1.0,
        router_dtype="float32",
        activation_function="relu",
        dropout=0.0,
        activation_dropout=0.0,
    )
    router = drawn(NllbMoeTop2Router(config))
    experts = [drawn(NllbMoeDenseActDense(config, F), 1 + index) for index in range(E)]
    x, pull = torch.from_numpy(states()).requires_grad_(), np.random.default_rng(2).standard_normal((B, L, D))
    rows = []
    for row in range(B):
        _, combine, logits = router(x[row], torch.from_numpy(segments[row] == 0))
        rows.append(sum(combine[:, e : e + 1] * expert(x[row]) for e, expert in enumerate(experts)))
    theirs = torch.stack(rows)
    theirs.backward(torch.from_numpy(pull).float())

    params = {"router": {"kernel": array(router.classifier.weight).T}, **weights(experts, {"up": "fc1", "down": "fc2"})}
    settings = CapacityExperts(num_experts=E, rule="code", second_policy="all", capacity_factor=factor)
    y, aux, (gradient, d_x) = ours(settings, params, array(x), segments, np.float32(pull))
    assert (aux["dropped"] > 0) == (factor < E)
    close(y, array(theirs), 1e-5)
    close(d_x, array(x.grad), 1e-5)
    close(gradient["router"]["kernel"], array(router.classifier.weight.grad).T, 2e-5)
    for name, theirs in (("up", "fc1"), ("down", "fc2")):
        expected = np.stack([array(getattr(expert, theirs).weight.grad).T for expert in experts])
        close(gradient[name]["kernel"], expected, 1e-5)
        close(gradient[name]["bias"], np.stack([array(getattr(expert, theirs).bias.grad) for expert in experts]), 1e-5)


@factors
def test_top_1_is_switch(factor):
    places = int(L * factor / E)
    config = SwitchTransformersConfig(
        d_model=D, d_ff=F, num_experts=E, expert_capacity=places, dropout_rate=0.0, router_dtype="float32"
    )
    layer = drawn(SwitchTransformersSparseMLP(config))
    x, pull = torch.from_numpy(states()).requires_grad_(), np.random.default_rng(2).standard_normal((B, L, D))
    theirs = layer(x)
    theirs.backward(torch.from_numpy(pull).float())

    experts = [layer.experts[f"expert_{index}"] for index in range(E)]
    params = {"router": {"kernel": array(layer.router.classifier.weight).T}}
    params |= weights(experts, {"up": "wi", "down": "wo"})
    settings = CapacityExperts(num_experts=E, top_k=1, capacity_factor=factor)
    y, aux, (gradient, d_x) = ours(settings, params, array(x), SEGMENTS, np.float32(pull))
    assert (aux["dropped"] > 0) == (factor < E)
    close(y, array(theirs), 1e-5)
    close(d_x, array(x.grad), 1e-5)
    close(gradient["router"]["kernel"], array(layer.router.classifier.weight.grad).T, 2e-5)
    for name, theirs in (("up", "wi"), ("down", "wo")):
        expected = np.stack([array(getattr(expert, theirs).weight.grad).T for expert in experts])
        close(gradient[name]["kernel"], expected, 1e-5)


def test_losses_of_the_router_are_switchs():
    """Their means over rows are our sums over groups."""
    generator = np.random.default_rng(3)
    kernel, x = (generator.standard_normal(shape).astype(np.float32) for shape in ((D, E), (B, L, D)))
    logits = torch.from_numpy(x @ kernel)
    chosen = torch.argmax(logits, dim=-1)
    nothing = {"up": {"kernel": np.zeros((E, D, F), np.float32)}, "down": {"kernel": np.zeros((E, F, D), np.float32)}}
    settings = CapacityExperts(num_experts=E, top_k=1)
    _, aux, _ = ours(settings, {"router": {"kernel": kernel}, **nothing}, x, SEGMENTS, np.zeros_like(x))
    assert float(aux["balance"]) / B == pytest.approx(float(load_balancing_loss_func(logits.softmax(-1), chosen)))
    assert float(aux["z"]) / (B * L) == pytest.approx(float(router_z_loss_func(logits)))


@pytest.mark.parametrize("top_k", (1, 2, 3))
def test_the_loss_of_balance_is_mixtrals_where_a_batch_is_one_row(top_k):
    """Theirs takes the means over a whole batch and all layers, ours those of a row and a layer: equal for one of each.

    Of rows alike, it is the number of rows times theirs; padding is in neither.
    """
    generator = np.random.default_rng(4)
    kernel, x = (generator.standard_normal(shape).astype(np.float32) for shape in ((D, E), (1, L, D)))
    logits, mask = torch.from_numpy((x @ kernel)[0]), torch.from_numpy(PADDED[1:2])
    expected = float(mixtral.load_balancing_loss_func((logits,), E, top_k, mask))
    shapes = {"up": (E, D, F), "down": (E, F, D)}
    params = {name: {"kernel": np.zeros(shape, np.float32)} for name, shape in shapes.items()}
    params["router"] = {"kernel": kernel}
    for rows in (1, 3):
        batch = [np.repeat(array, rows, axis=0) for array in (x, PADDED[1:2], np.zeros_like(x))]
        _, aux, _ = ours(DroplessExperts(num_experts=E, top_k=top_k), params, *batch)
        assert float(aux["balance"]) == pytest.approx(rows * expected, rel=1e-5)
