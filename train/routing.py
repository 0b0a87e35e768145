"""What mixtures of experts add to a task: their losses beside its own, and statistics of each of their layers."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from model.config import CapacityExperts, Model, NoExperts

LENGTHS = {"decoder": "segment_ids", "encoder": "source_segment_ids"}  # the key that tells padding, by stack
BY_GROUP = ("load",)  # sums over groups; the other statistics are sums over tokens
BY_TOKEN = ("dropped", "entropy")


def expert_layers(model: Model) -> dict[str, list[int]]:
    """The indices of the layers with experts, of the decoder and of an encoder beside it, where they have any."""
    if isinstance(model.experts, NoExperts):
        return {}
    counts = {"decoder": model.num_layers, "encoder": model.encoder_layers}
    pattern = model.pattern
    found = {name: [i for i in range(count) if pattern[i % len(pattern)].experts] for name, count in counts.items()}
    return {name: layers for name, layers in found.items() if layers}


@dataclass(frozen=True)
class Routing:
    """The terms of a model's experts: `<stack>_groups`, weighted by groups, and `<stack>_routed`, by tokens.

    A group is a row, or an equal part of one, that holds a token; the loss of balance is the mean over groups of the
    sum over layers (Lepikhin et al. 2020, algorithm 1), the z-loss the mean over tokens. Empty without experts.
    """

    model: Model

    @property
    def layers(self) -> dict[str, list[int]]:
        return expert_layers(self.model)

    @property
    def draws(self) -> bool:
        """Whether the experts tell training from evaluation, by the keys of rows."""
        return isinstance(self.model.experts, CapacityExperts)

    def coefficients(self) -> dict[str, float]:
        experts, found = self.model.experts, {}
        for name in self.layers:
            found |= {f"{name}_groups": experts.balance_coefficient, f"{name}_routed": experts.z_coefficient}
        return found

    def weights(self, batch: dict) -> dict[str, jax.Array]:
        """Groups and tokens of a batch, float32."""
        found = {}
        for name in self.layers:
            real_BxL = batch[LENGTHS[name]] > 0
            real_BxGxS = real_BxL.reshape(real_BxL.shape[0], self.model.experts.groups, -1)
            found[f"{name}_groups"] = jnp.sum(jnp.any(real_BxGxS, axis=-1), dtype=jnp.float32)
            found[f"{name}_routed"] = jnp.sum(real_BxL, dtype=jnp.float32)
        return found

    def terms(self, aux: dict) -> dict[str, jax.Array]:
        """The sums of the losses, of the aux of a model."""
        found = {}
        for name in self.layers:
            found |= {f"{name}_groups": jnp.sum(aux[name]["balance"]), f"{name}_routed": jnp.sum(aux[name]["z"])}
        return found

    def metrics(self) -> dict[str, str]:
        """{metric: the term whose weight divides it}: the loss of balance of a stack, and statistics by layer."""
        found = {}
        for name, layers in self.layers.items():
            found[f"experts/{name}/balance"] = f"{name}_groups"
            for statistics, term in ((BY_GROUP, "groups"), (BY_TOKEN, "routed")):
                found |= {f"experts/{name}.{i}/{key}": f"{name}_{term}" for i in layers for key in statistics}
        return found

    def values(self, aux: dict) -> dict[str, jax.Array]:
        """The sums of the metrics, of the aux of a model."""
        found = {}
        for name, layers in self.layers.items():
            found[f"experts/{name}/balance"] = jnp.sum(aux[name]["balance"])
            for place, index in enumerate(layers):
                found |= {f"experts/{name}.{index}/{key}": aux[name][key][place] for key in (*BY_GROUP, *BY_TOKEN)}
        return found
