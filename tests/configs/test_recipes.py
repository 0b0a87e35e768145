"""Every recipe's resolved tree is a golden file, and its sizes are the published ones."""

from pathlib import Path

import pytest

from data import settings
from data.config import missing_inputs
from data.errors import ConfigError
from train.config import check_devices, load

ROOT = Path(__file__).parents[2]
SIZES = {
    "quickstart": [None],
    "bert": ["debug"],
    "gpt2": ["debug", "124m", "350m", "774m", "1.5b"],
    "llama": ["debug", "1b", "8b", "70b"],
}
SPECS = [(name, size) for name, sizes in SIZES.items() for size in sizes]
# Trained parameters without the rows that round the vocabulary up, as published.
PARAMETERS = {
    ("gpt2", "124m"): 124_439_808,
    ("gpt2", "350m"): 354_823_168,
    ("gpt2", "774m"): 774_030_080,
    ("gpt2", "1.5b"): 1_557_611_200,
    ("llama", "1b"): 1_235_814_400,
    ("llama", "8b"): 8_030_261_248,
    ("llama", "70b"): 70_553_706_496,
}


def loaded(name, size):
    return load(f"{ROOT}/configs/{name}.py" + (f":{size}" if size else ""))


@pytest.mark.parametrize(("name", "size"), SPECS)
def test_the_resolved_tree_is_golden(name, size, golden):
    golden(f"{name}_{size}.txt" if size else f"{name}.txt", settings.dumps(loaded(name, size)))


def test_every_recipe_is_tested():
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == set(SIZES)


def count(config) -> int:
    """Parameters of a decoder, from its sizes alone."""
    model, head_dim = config.model, config.model.head_dim
    embed, hidden = model.embed_dim, model.feed_forward.hidden_dim
    heads, kv_heads = model.attention.num_heads, model.num_kv_heads
    norm = embed * (2 if model.norm.bias else 1)
    attention = 2 * embed * head_dim * (heads + kv_heads)
    if model.attention.qkv_bias:
        attention += head_dim * (heads + 2 * kv_heads)
    feed_forward = embed * hidden * (3 if model.feed_forward.gated else 2)
    attention += embed if model.attention.output_bias else 0
    feed_forward += hidden + embed if model.feed_forward.bias else 0
    tables = model.vocab_size * embed * (1 if model.tied_head else 2) + (model.max_length or 0) * embed
    return tables + model.num_layers * (attention + feed_forward + 2 * norm) + norm


@pytest.mark.parametrize(("name", "size"), PARAMETERS)
def test_sizes_are_the_published_ones(name, size):
    assert count(loaded(name, size)) == PARAMETERS[name, size]


@pytest.mark.parametrize(("name", "size"), SPECS)
def test_recipes_run_on_one_device_and_on_eight(name, size):
    config = loaded(name, size)
    check_devices(config, 8)
    if config.mesh.tensor == 1:
        check_devices(config, 1)


@pytest.mark.parametrize(("name", "size"), SPECS)
def test_only_the_large_sizes_ask_for_text_and_tokenizer(name, size):
    missing = [key for key, _ in missing_inputs(loaded(name, size).data)]
    assert missing == ([] if size in (None, "debug") else ["source.paths", "tokenizer.path"])


@pytest.mark.parametrize("name", [name for name, sizes in SIZES.items() if None not in sizes])
@pytest.mark.parametrize("size", [None, "9b"])
def test_an_unknown_size_lists_the_known_ones(name, size):
    with pytest.raises(ConfigError) as caught:
        loaded(name, size)
    assert all(known in str(caught.value) for known in SIZES[name])


def test_a_recipe_without_sizes_takes_no_argument():
    with pytest.raises(ConfigError, match="takes no argument"):
        loaded("quickstart", "big")
