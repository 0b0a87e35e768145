"""What holds of two texts in a row, whatever the model: neither sees the other, nor padding."""

import numpy as np

from tests.model.small import close, draw, logits, pack, same, tokens

A, B = tokens(5, 1, high=40), tokens(7, 2, low=40)  # no token of A is one of B


def check_packed_is_alone(config):
    """B behind A, B at the front of a padded row, and B in a row of its own length are one."""
    params = draw(config)
    packed = logits(config)(params, pack([A, B], []))[0, len(A) :, :100]
    close(packed, logits(config)(params, pack([B], []))[0, : len(B), :100], 1e-5)
    close(packed, logits(config)(params, pack([B], length=len(B)))[0, :, :100], 1e-5)


def check_another_segment_changes_not_a_bit(config):
    params, other = draw(config), tokens(5, 7)
    packed, changed = (logits(config)(params, pack([first, B], [B, first])) for first in (A, other))
    same(packed[0, len(A) :], changed[0, len(A) :])
    same(packed[1, : len(B)], changed[1, : len(B)])
    assert np.any(packed[0, : len(A)] != changed[0, : len(A)])


def check_padding_changes_not_a_bit(config):
    params, batch = draw(config), pack([A], [B])
    changed = {**batch, "tokens": np.where(batch["segment_ids"] > 0, batch["tokens"], 77)}
    expected, actual = (logits(config)(params, batch) for batch in (batch, changed))
    same(actual[0, : len(A)], expected[0, : len(A)])
    same(actual[1, : len(B)], expected[1, : len(B)])
