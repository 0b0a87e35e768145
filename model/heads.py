"""Heads that read the final hidden states: the pooler, classifiers, answer spans (Devlin et al. 2018, section 3), and
that of replaced tokens.

Sizes in names: B batch, L length, D embed_dim. Logits are float32.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from model import config as cfg
from model.layers import ACTIVATIONS, OUTER_ACTIVATIONS, Norm, Projection


def dense(config: cfg.Model, output: tuple[str, int], name: str | None = None) -> Projection:
    """A projection with a bias from `embed_dim` to `output`, a logical axis and its size."""
    inputs, init = (("embed", config.embed_dim),), config.init
    return Projection(
        inputs, (output,), True, init.kernel_std, jnp.dtype(config.dtype), truncation=init.truncation, name=name
    )


class Transform(nn.Module):
    """BERT's step before the masked-token logits: a projection, the feed-forward's activation, a norm."""

    config: cfg.Model

    @nn.compact
    def __call__(self, x):
        """`[..., D]` of `[..., D]`, in the compute dtype."""
        # An axis that no mesh divides, as a norm follows: over divided ones XLA's gradients were wrong on 2 x 2 x 2.
        x = dense(self.config, ("norm", self.config.embed_dim), "dense")(x)
        return Norm(self.config.norm, name="norm")(ACTIVATIONS[self.config.feed_forward.activation](x))


class Replaced(nn.Module):
    """DeBERTa v3's logit that a token is not the text's: of its state and of that of its text's first token."""

    config: cfg.Model

    @nn.compact
    def __call__(self, hidden_BxLxD, first_BxLxD):
        """`[B, L]`, float32: a norm of the sum, a projection, the feed-forward's activation, a projection."""
        config = self.config
        x_BxLxD = Norm(config.norm, name="norm")(hidden_BxLxD + first_BxLxD)
        x_BxLxD = dense(config, ("hidden", config.embed_dim), "dense")(x_BxLxD)
        x_BxLxD = ACTIVATIONS[config.feed_forward.activation](x_BxLxD)
        return dense(config, ("classes", 1), "output")(x_BxLxD)[..., 0].astype(jnp.float32)


class Heads(nn.Module):
    """Those of `config.heads`; each exists where the configuration has it."""

    config: cfg.Model

    def setup(self):
        heads, embed = self.config.heads, self.config.embed_dim
        project = partial(dense, self.config)
        if heads.pooler:
            self.pooler = project(("hidden", embed))
        if heads.next_sentence:
            self.next_sentence = project(("classes", 2))
        if heads.spans:
            self.spans = project(("classes", 2))
        if heads.sequence_classes:
            self.sequence = project(("classes", heads.sequence_classes))
        if heads.token_classes:
            self.token = project(("classes", heads.token_classes))
        if heads.replaced:
            self.replaced = Replaced(self.config)

    def pooled(self, hidden_BxLxD):
        """`[B, D]` of each row's first token: its projection, activated, or itself where there is no pooler."""
        first_BxD, heads = hidden_BxLxD[:, 0], self.config.heads
        return OUTER_ACTIVATIONS[heads.pooler_activation](self.pooler(first_BxD)) if heads.pooler else first_BxD

    def next_sentence_logits(self, hidden_BxLxD):
        """`[B, 2]`: that the second sentence follows the first (0), or is random (1)."""
        return self.next_sentence(self.pooled(hidden_BxLxD)).astype(jnp.float32)

    def span_logits(self, hidden_BxLxD):
        """`[B, L, 2]`: that an answer starts (0) or ends (1) at a token."""
        return self.spans(hidden_BxLxD).astype(jnp.float32)

    def sequence_logits(self, pooled_BxD):
        """`[B, classes]` of what `pooled` gives, perhaps after dropout."""
        return self.sequence(pooled_BxD).astype(jnp.float32)

    def token_logits(self, hidden_BxLxD):
        """`[B, L, classes]`."""
        return self.token(hidden_BxLxD).astype(jnp.float32)

    def replaced_logits(self, hidden_BxLxD, first_BxLxD):
        """`[B, L]`: that a token is not the text's. `first_BxLxD`: of each token, the state of its text's first."""
        return self.replaced(hidden_BxLxD, first_BxLxD)

    def all(self, hidden_BxLxD) -> dict:
        """Every configured head's output by name, of rows that hold one text each."""
        heads, found = self.config.heads, {}
        if heads.pooler:
            found["pooled"] = self.pooled(hidden_BxLxD)
        if heads.next_sentence:
            found["next_sentence"] = self.next_sentence_logits(hidden_BxLxD)
        if heads.spans:
            found["spans"] = self.span_logits(hidden_BxLxD)
        if heads.sequence_classes:
            found["sequence"] = self.sequence_logits(self.pooled(hidden_BxLxD))
        if heads.token_classes:
            found["token"] = self.token_logits(hidden_BxLxD)
        if heads.replaced:
            found["replaced"] = self.replaced_logits(
                hidden_BxLxD, jnp.broadcast_to(hidden_BxLxD[:, :1], hidden_BxLxD.shape)
            )
        return found
