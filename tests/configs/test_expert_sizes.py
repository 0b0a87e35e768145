"""The counts of GShard's and Switch's sizes follow from their papers, added up by hand."""

import pytest

from tests.configs.test_parameters import COUNTS

GOLDEN = {spec: int(count.replace(",", "")) for spec, count in COUNTS}
BUCKETS = 32  # of relative positions, a table for each stack


def encoder_decoder(vocabulary, layers, embed, hidden, heads, head_dim, experts) -> int:
    """An encoder and a decoder of `layers` each, without biases, every second of them with a router and experts."""
    attention = 4 * embed * heads * head_dim  # queries, keys, values, output
    network = 2 * embed * hidden
    mixture = embed * experts + experts * network
    networks = layers // 2 * (network + mixture)
    encoder = layers * (attention + 2 * embed) + networks + embed  # two norms a layer, and one at the end
    decoder = layers * (2 * attention + 3 * embed) + networks + embed  # and cross-attention with its norm
    return vocabulary * embed + encoder + decoder + 2 * BUCKETS * heads


GSHARD = {f"{experts}e-{2 * layers}l": (experts, layers) for experts in (2048, 512, 128) for layers in (18, 6)}
SWITCH = {f"base-{experts}": (12, 768, 3072, 12, experts) for experts in (8, 16, 32, 64, 128, 256)}
SWITCH["large-128"] = (24, 1024, 4096, 16, 128)


@pytest.mark.parametrize("size", GSHARD)
def test_gshards_counts_are_the_formulas(size):
    experts, layers = GSHARD[size]
    assert GOLDEN[f"gshard:{size}"] == encoder_decoder(64_000, layers, 1024, 8192, 16, 128, experts)


def test_gshards_experts_alone_are_those_of_the_paper():
    """Table 1 rounds: 18 layers of 2048 experts, 2 * 1024 * 8192 weights each, are called 600B, and so on down."""
    weights = {size: layers * experts * 2 * 1024 * 8192 for size, (experts, layers) in GSHARD.items()}
    billions = {size: f"{count / 1e9:.1f}" for size, count in weights.items()}
    assert billions == {
        **{"2048e-36l": "618.5", "512e-36l": "154.6", "128e-36l": "38.7"},
        **{"2048e-12l": "206.2", "512e-12l": "51.5", "128e-12l": "12.9"},
    }
    assert all(1 < GOLDEN[f"gshard:{size}"] / count < 1.1 for size, count in weights.items())


@pytest.mark.parametrize("size", SWITCH)
def test_switchs_counts_are_the_formulas(size):
    layers, embed, hidden, heads, experts = SWITCH[size]
    found = encoder_decoder(32_128, layers, embed, hidden, heads, 64, experts)
    dense = GOLDEN[f"t5:{size.split('-')[0]}"]
    assert GOLDEN[f"switch:{size}"] == found
    assert found == dense + layers * ((experts - 1) * 2 * embed * hidden + experts * embed)
