"""What a batch holds, declared once by each objective, so that shapes are known without data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.config import Data
from data.packing import DTYPES

Spec = dict[str, tuple[tuple[int, ...], np.dtype, tuple[str, ...]]]


def causal_spec(config: Data) -> Spec:
    """The keys of `data.packing.Rows.row`: predict the next token."""
    return {key: ((config.length,), np.dtype(dtype), ("batch", "length")) for key, dtype in DTYPES.items()}


SPECS: dict[str, Callable[[Data], Spec]] = {"causal": causal_spec}


def batch_spec(config: Data) -> Spec:
    """{key: (shape without the batch axis, numpy dtype, logical axes with the batch axis)} of a batch."""
    return SPECS[config.objective.name](config)
