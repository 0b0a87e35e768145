"""Mixtral (Jiang et al. 2024): Mistral's layers, each with experts in place of its feed-forward network."""

from __future__ import annotations

from dataclasses import replace

from model.config import DroplessExperts, Layer, Model
from model.hub.family import (
    MOST_LAYERS,
    Config,
    Field,
    HubError,
    fixed,
    get_path,
    layer_count,
    rope_scaling,
    rotary,
    same,
    value_of,
)
from model.hub.layout import linear, per_expert, stacked_experts
from model.hub.llama import SILU, TENSORS, family, head_dim

MIXTURE = "layers.{}.block_sparse_moe"
DENSE = {name: tensor for name, tensor in TENSORS.items() if not name.startswith("feed_forward/")}
EXPERTS = {
    "feed_forward/router": linear(f"{MIXTURE}.gate"),
    "feed_forward/gate": per_expert(MIXTURE + ".experts.{}.w1"),
    "feed_forward/up": per_expert(MIXTURE + ".experts.{}.w3"),
    "feed_forward/down": per_expert(MIXTURE + ".experts.{}.w2"),
}
STACKED = {
    "feed_forward/gate/kernel": stacked_experts(f"{MIXTURE}.experts.gate_up_proj", 0, 2),
    "feed_forward/up/kernel": stacked_experts(f"{MIXTURE}.experts.gate_up_proj", 1, 2),
    "feed_forward/down/kernel": stacked_experts(f"{MIXTURE}.experts.down_proj"),
}


def experts() -> Field:
    """The number of experts of a layer. Each has tensors of its own, of which files do not hold any number."""

    def read(config: Config):
        found, layers = value_of(config, "num_local_experts", 8), layer_count(config, "num_hidden_layers")
        if not isinstance(found, int) or found * layers > MOST_LAYERS:
            raise HubError(
                f"config.json has num_local_experts {found!r}, must be a whole number, of all {layers} layers together "
                f"at most {MOST_LAYERS}"
            )
        return found

    return Field(
        "experts.num_experts", read, lambda model: {"num_local_experts": get_path(model, "experts.num_experts")}
    )


def pattern() -> Field:
    """Layers alike, each with experts; a window is one of all layers."""

    def read(config: Config):
        base, scaling = rotary(config, "full_attention", 1_000_000.0)
        return (Layer(config.get("sliding_window"), base, scaling, experts=True),)

    def write(model: Model):
        layer = model.pattern[0]
        scaling = rope_scaling(layer.rotary_scaling)
        return {"sliding_window": layer.window, "rope_theta": layer.rotary_base, "rope_scaling": scaling}

    return Field("pattern", read, write)


MIXTRAL = replace(
    family(
        "mixtral",
        "MixtralForCausalLM",
        (
            SILU,
            head_dim(),
            pattern(),
            same("rms_norm_eps", "norm.epsilon", 1e-5, float),
            experts(),
            same("num_experts_per_tok", "experts.top_k", 2),
            same("router_aux_loss_coef", "experts.balance_coefficient", 0.001, float),
            fixed("router_jitter_noise", 0.0),
        ),
        Model(experts=DroplessExperts(), pattern=(Layer(experts=True),)),
    ),
    tensors={**DENSE, **EXPERTS},
    stacked=STACKED,
    renamed=((r"\.mlp\.", ".block_sparse_moe."),),
)
