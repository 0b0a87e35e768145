"""Parts of parameters read from tensors of a checkpoint are those of the whole, and writing is reading's inverse."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from model.hub.layout import (
    Tensor,
    conv1d,
    convolution,
    interleaved,
    join,
    leading,
    linear,
    per_expert,
    plain,
    read_part,
    row,
    single,
    stacked_experts,
    tensor_shape,
    write_part,
)
from model.parameters import Declaration

VOCAB = 5  # of 8 stored rows
QUERY = Declaration((4, 3, 2), ("embed", "heads", "head_dim"), "kernel", (0,), (1, 2))
OUTPUT = Declaration((3, 2, 4), ("heads", "head_dim", "embed"), "kernel", (0, 1), (2,))
HEAD = Declaration((4, 8), ("embed", "vocab"), "kernel", (0,), (1,))
EMBEDDING = Declaration((8, 4), ("vocab", "embed"), "embedding")
CONVOLUTION = Declaration((3, 4, 2), ("width", "embed", "norm"), "kernel", (0, 1), (2,))
LOGIT_BIAS = Declaration((8,), ("vocab",), "bias")
BIAS = Declaration((3, 2), ("heads", "head_dim"), "bias")
UP = Declaration((3, 4, 2), ("experts", "embed", "hidden"), "kernel", (1,), (2,))


def numbered(shape) -> np.ndarray:
    return np.arange(1.0, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def taking(array: np.ndarray):
    def take(*selectors):
        for axis, selector in enumerate(selectors):
            array_part = take.array[(slice(None),) * axis + (selector,)]
            take.array = array_part
        found, take.array = take.array, array
        return found

    take.array = array
    return take


def whole(declaration: Declaration, tensor: Tensor, array: np.ndarray) -> np.ndarray:
    index = (slice(None),) * len(single(declaration, tensor.layout).shape)
    return read_part(taking(array), declaration, tensor, VOCAB, index)


CASES = {
    # what our parameter is, written out in numpy, of a tensor of the checkpoint
    "query": (QUERY, linear("q"), lambda w: w.T.reshape(4, 3, 2)),
    "output": (OUTPUT, linear("o"), lambda w: w.T.reshape(3, 2, 4)),
    "fused": (QUERY, conv1d("c", 1, 3), lambda w: np.split(w, 3, axis=1)[1].reshape(4, 3, 2)),
    "fused bias": (BIAS, conv1d("c", 2, 3), lambda b: np.split(b, 3)[2].reshape(3, 2)),
    "by head": (QUERY, interleaved("i", 1, 3), lambda w: w.reshape(3, 3, 2, 4)[:, 1].transpose(2, 0, 1)),
    "convolution": (CONVOLUTION, convolution("v"), lambda w: w.transpose(2, 1, 0)),
    "an expert": (UP, per_expert("x"), lambda w: w.T),
    "experts": (UP, stacked_experts("s"), lambda w: w.transpose(0, 2, 1)),
    "fused experts": (UP, stacked_experts("s", 1, 2), lambda w: w[:, 2:].transpose(0, 2, 1)),
    "row": (LOGIT_BIAS, row("b"), lambda b: np.pad(b[0], (0, 3))),
    "projection": (OUTPUT, conv1d("c"), lambda w: w.reshape(3, 2, 4)),
    "head": (HEAD, linear("h"), lambda w: np.pad(w.T, ((0, 0), (0, 3)))),
    "embedding": (EMBEDDING, plain("e"), lambda w: np.pad(w, ((0, 3), (0, 0)))),
}


@pytest.mark.parametrize("case", CASES)
def test_a_parameter_is_what_its_formula_says(case):
    declaration, tensor, formula = CASES[case]
    array = numbered(tensor_shape(declaration, tensor, VOCAB))
    np.testing.assert_array_equal(whole(declaration, tensor, array), formula(array))


@pytest.mark.parametrize("case", CASES)
def test_any_part_is_that_of_the_whole(case):
    """Every device's share of any sharding."""
    declaration, tensor, _ = CASES[case]
    array = numbered(tensor_shape(declaration, tensor, VOCAB))
    expected = whole(declaration, tensor, array)
    shape = single(declaration, tensor.layout).shape
    choices = [[slice(None), slice(0, size // 2), slice(size // 2, size)] for size in shape]
    for index in itertools.product(*choices):
        found = read_part(taking(array), declaration, tensor, VOCAB, index)
        np.testing.assert_array_equal(found, expected[index])


@pytest.mark.parametrize("case", CASES)
def test_writing_is_the_inverse_of_reading(case):
    declaration, tensor, _ = CASES[case]
    array = numbered(tensor_shape(declaration, tensor, VOCAB))
    parts = [
        write_part(whole(declaration, tensor._replace(part=part), array), declaration, tensor, VOCAB)
        for part in range(tensor.parts)
    ]
    np.testing.assert_array_equal(join(parts, declaration, tensor), array)


def test_only_what_is_asked_for_is_read():
    seen = []

    def take(rows, columns):
        seen.append((rows, columns))
        return np.zeros((rows.stop - rows.start, columns.stop - columns.start))

    read_part(take, QUERY, linear("q"), VOCAB, (slice(2, 4), slice(1, 2), slice(None)))
    assert seen == [(slice(2, 4), slice(2, 4))]


def test_layers_and_experts_stand_in_tensors_of_their_own():
    stacked = replace(UP, shape=(5, *UP.shape), axes=("layers", *UP.axes))
    for declaration, layers in ((UP, ()), (stacked, (5,))):
        assert leading(declaration, "stacked_experts") == layers
        assert single(declaration, "stacked_experts") == UP
        assert leading(declaration, "per_expert") == (*layers, 3)
        assert single(declaration, "per_expert") == Declaration((4, 2), ("embed", "hidden"), "kernel", (0,), (1,))


def test_rows_that_only_padding_has_are_not_asked_for():
    def take(*_):
        raise AssertionError

    assert not read_part(take, EMBEDDING, plain("e"), VOCAB, (slice(5, 8), slice(None))).any()
