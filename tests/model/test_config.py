"""An architecture that cannot be is refused by name, before anything is compiled."""

from dataclasses import replace

import pytest

from model.checks import check
from model.config import (
    Attention,
    CapacityExperts,
    FeedForward,
    Initialization,
    Layer,
    LearnedPositions,
    LinearScaling,
    Model,
    NoPositions,
    Norm,
    RelativePositions,
    SinusoidalPositions,
)
from tests.model.small import MODELS

REFUSED = {
    "vocab_size": ({"vocab_size": 0}, "is 0, must be at least 1"),
    "num_layers": ({"num_layers": 0}, "must be at least 1"),
    "embed_dim": ({"embed_dim": -8}, "must be at least 1"),
    "unroll": ({"unroll": 0}, "must be at least 1"),
    "attention.num_heads": ({"attention": Attention(num_heads=7)}, "does not divide embed_dim 256"),
    "attention.num_kv_heads": ({"attention": Attention(num_kv_heads=3)}, "does not divide num_heads 8"),
    "attention.head_dim": ({"attention": Attention(head_dim=5)}, "must be even"),
    "attention.dropout": ({"attention": Attention(dropout=1.0)}, "below 1"),
    "attention.soft_cap": ({"attention": Attention(soft_cap=0.0)}, "above 0"),
    "attention.kernel": ({"attention": Attention(kernel="flash")}, "must be one of auto"),
    "feed_forward.hidden_dim": ({"feed_forward": FeedForward(hidden_dim=0)}, "must be at least 1"),
    "feed_forward.activation": ({"feed_forward": FeedForward(activation="swish")}, "must be one of gelu"),
    "norm.name": ({"norm": Norm("batchnorm")}, "must be one of layernorm"),
    "norm.placement": ({"norm": Norm(placement="sandwich")}, "must be one of pre"),
    "norm.bias": ({"norm": Norm("rmsnorm", bias=True)}, "rmsnorm has no bias"),
    "norm.epsilon": ({"norm": Norm(epsilon=0.0)}, "above 0"),
    "positions.length": ({"positions": LearnedPositions(length=0)}, "must be at least 1"),
    "pattern": ({"pattern": ()}, "must hold at least one layer"),
    "pattern.1.window": ({"pattern": (Layer(), Layer(window=0))}, "must be at least 1"),
    "pattern.0.rotary_base": ({"pattern": (Layer(rotary_base=0.0),)}, "above 0"),
    "pattern.0.rotary_scaling.factor": ({"pattern": (Layer(rotary_scaling=LinearScaling(factor=0.0)),)}, "above 0"),
    "experts.capacity_factor": (
        {"pattern": (Layer(experts=True),), "experts": CapacityExperts(capacity_factor=1e308)},
        "at most num_experts, 8: all tokens",
    ),
    "positions.max_distance": ({"positions": RelativePositions(max_distance=2**31)}, "at most 2147483647"),
    "init.embedding_std": ({"init": Initialization(embedding_std=-0.02)}, "at least 0"),
    "dropout": ({"dropout": -0.1}, "at least 0 and below 1"),
    "dtype": ({"dtype": "float16"}, "must be one of float32, bfloat16"),
    "remat": ({"remat": "some"}, "must be one of none"),
}


@pytest.mark.parametrize(("key", "case"), REFUSED.items(), ids=REFUSED)
def test_an_impossible_architecture_is_refused_by_name(key, case):
    changes, clash = case
    problems = check(replace(Model(), **changes))
    assert [path for path, _ in problems] == [key]
    assert clash in problems[0][1]


def test_sinusoids_want_an_even_width():
    model = replace(Model(), embed_dim=7, attention=Attention(num_heads=1), positions=SinusoidalPositions())
    assert [(path, clash[:8]) for path, clash in check(model)] == [("embed_dim", "is 7; si")]
    assert not check(replace(model, embed_dim=8))


ENCODER, BESIDE = Attention(causal=False), {"encoder_layers": 2}
RELATIVE = {
    "positions.buckets": (
        ({}, 1, 128, "is 1, must be at least 2"),
        ({"attention": ENCODER}, 2, 128, "an even number of at least 4"),
        (BESIDE, 33, 128, "is 33, must be an even number"),
    ),
    "positions.max_distance": (
        ({}, 32, 16, "must be above 16"),
        ({"attention": ENCODER}, 32, 8, "must be above 8"),
        (BESIDE, 32, 16, "must be above 16"),
    ),
}


@pytest.mark.parametrize(("key", "case"), [(key, case) for key, cases in RELATIVE.items() for case in cases])
def test_buckets_of_distances_are_whole_and_ascend(key, case):
    changes, buckets, farthest, clash = case
    [(path, found)] = check(replace(Model(), positions=RelativePositions("relative", buckets, farthest), **changes))
    assert path == key and clash in found


@pytest.mark.parametrize(
    ("changes", "buckets", "farthest"), [({}, 3, 2), ({"attention": ENCODER}, 4, 2), (BESIDE, 4, 3), (BESIDE, 32, 17)]
)
def test_buckets_may_be_few(changes, buckets, farthest):
    assert check(replace(Model(), positions=RelativePositions("relative", buckets, farthest), **changes)) == []


@pytest.mark.parametrize("config", (Model(), *MODELS.values()), ids=("default", *MODELS))
def test_a_possible_one_is_not(config):
    assert check(config) == []


def test_only_a_learned_table_bounds_the_context():
    assert Model(positions=LearnedPositions(length=64)).max_length == 64
    assert Model().max_length is None and Model(positions=NoPositions()).max_length is None


def test_heads_take_their_sizes_from_the_model_unless_given():
    assert (Model().head_dim, Model().num_kv_heads) == (32, 8)
    given = Model(attention=Attention(num_heads=8, num_kv_heads=2, head_dim=48))
    assert (given.head_dim, given.num_kv_heads) == (48, 2)
