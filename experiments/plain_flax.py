"""The decoder that a person writes in an afternoon: Flax's own layers, a Python loop, full logits, plain optax.

The yardstick of `experiments.bench`: same sizes, same arithmetic per token, none of our code.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class PlainDecoder(nn.Module):
    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    max_length: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens):
        """float32 logits `[batch, length, vocab_size]` of int32 tokens `[batch, length]`."""
        embed = nn.Embed(self.vocab_size, self.embed_dim, dtype=self.dtype)
        x = (
            embed(tokens)
            + nn.Embed(self.max_length, self.embed_dim, dtype=self.dtype)(jnp.arange(tokens.shape[1]))[None]
        )
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.num_layers):
            h = nn.LayerNorm(dtype=self.dtype)(x)
            x = x + nn.MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype)(h, mask=mask)
            h = nn.LayerNorm(dtype=self.dtype)(x)
            x = x + nn.Dense(self.embed_dim, dtype=self.dtype)(
                nn.gelu(nn.Dense(4 * self.embed_dim, dtype=self.dtype)(h))
            )
        return embed.attend(nn.LayerNorm(dtype=self.dtype)(x)).astype(jnp.float32)


def make_step(model: PlainDecoder, learning_rate: float):
    """(init, step) of AdamW with clipping: `init(key, tokens)`, `step(state, tokens, targets) -> (state, loss)`."""
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, b2=0.95, weight_decay=0.1))

    def init(key, tokens):
        params = model.init(key, tokens)
        return params, tx.init(params)

    def step(state, tokens, targets):
        def loss_of(params):
            logits = model.apply(params, tokens)
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    return jax.jit(init), jax.jit(step, donate_argnums=0)
