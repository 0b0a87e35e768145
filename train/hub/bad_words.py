"""The `bad_words_ids` of a published model: what it must not write, though its logits may have it as the likeliest.

OPUS-MT's models name their padding, which Marian does not have: in the files its logit is always 0. It is taken out of
the softmax, as Marian has it and `transformers` with `renormalize_logits`, by its entry in the bias of the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.errors import DataError
from model.hub.families import FAMILIES, LARGEST_SIZE
from train.hub.tensors import ArrayTensor, Selector, Tensor

# Its exponential beside any real logit's is 0 in float32. No lower, for float16 and for what goes by the size of a
# parameter or, as label smoothing, by the mean of logits.
SUPPRESSED = -1000.0
SHOWN = 3  # words that a note names


class Suppressing:
    """A row of logits' biases `[1, vocabulary]` with `SUPPRESSED` at one id."""

    floating = True

    def __init__(self, row: Tensor, token: int):
        self.row, self.token, self.shape = row, token, row.shape

    def take(self, *selectors: Selector) -> np.ndarray:
        found = self.row.take(*selectors).astype(np.float32)
        ids = np.arange(self.shape[-1])[selectors[-1]]
        return np.where(ids == self.token, np.float32(SUPPRESSED), found)


def suppressed(
    config: Mapping[str, Any], generation: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """(the tensors, of which one suppresses the padding where that is a bad word, lines for the model's user).

    `generation` is the content of a generation_config.json, which stands above the config.json. DataError where the
    bad words are none.
    """
    said = {**config, **generation}
    pad, ends = said.get("pad_token_id"), said.get("eos_token_id")
    ends = [[end] for end in (ends if isinstance(ends, list) else [ends])]
    words = [word for word in bad_words(said) if word not in ends]  # a text may end, as `transformers` has it
    others = [word for word in words if word != [pad]]
    bias, notes = bias_of(config, tensors), []
    if others != words and bias is not None:
        tensors = {**tensors, bias[0]: Suppressing(bias[1], pad)}
        notes.append(f"its padding, id {pad}, is never written, as its bad_words_ids says: its bias is {SUPPRESSED:g}")
        words = others
    if words:
        named = ", ".join(map(str, words[:SHOWN])) + (", ..." if len(words) > SHOWN else "")
        notes.append(f"its bad_words_ids names {named}, which is not read: texts may be written with it")
    return tensors, tuple(notes)


def bias_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    """(name, tensor) of the bias of the logits: zeros where files may leave it out; None where a family has none."""
    model_type, size = config.get("model_type"), config.get("vocab_size")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None or not family.logit_bias or not isinstance(size, int) or not 0 < size <= LARGEST_SIZE:
        return None
    for name, tensor in tensors.items():
        if name.removeprefix(family.prefix) == family.logit_bias:
            return (name, tensor) if tensor.floating else None
    return family.logit_bias, ArrayTensor(np.broadcast_to(np.float32(0), (1, size)))


def bad_words(said: Mapping[str, Any]) -> list[list[int]]:
    """The `bad_words_ids`; DataError where they are none."""
    words = said.get("bad_words_ids")
    words = [] if words is None else words
    if not isinstance(words, list) or not all(isinstance(word, list) and all(map(is_id, word)) for word in words):
        raise DataError(
            f"The bad_words_ids of config.json or generation_config.json is {words!r}, must be lists of ids, such as "
            "[[58100]]; leave it out, or get another copy of the file."
        )
    return words


def is_id(found: Any) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and found >= 0
