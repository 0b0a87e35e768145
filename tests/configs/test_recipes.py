"""Every recipe's resolved tree is a golden file, and fits a machine."""

from dataclasses import replace
from pathlib import Path

import pytest

from data import settings
from data.config import missing_inputs
from data.errors import ConfigError
from model.hub.families import FAMILIES, canonical, from_config, to_config
from model.replaced import discriminator
from train.checks import check_devices, load

ROOT = Path(__file__).parents[2]
SIZES = {
    "quickstart": [None],
    "bert": [
        *("debug", "tiny", "mini", "small", "medium"),
        *("base-uncased", "base-cased", "base-chinese", "large-uncased", "large-cased"),
    ],
    "gpt2": ["debug", "124m", "350m", "774m", "1.5b"],
    "gpt3": ["debug", "125m", "350m", "760m", "1.3b", "2.7b", "6.7b", "13b", "175b"],
    "llama": ["debug", "1b", "3b", "8b", "70b", "405b", "2-7b", "2-13b", "2-70b", "smollm2-135m"],
    "qwen": [
        *("debug", "debug-2", "2-0.5b", "2-1.5b", "2-7b", "2-72b"),
        *("3-0.6b", "3-1.7b", "3-4b", "3-8b", "3-14b", "3-32b"),
    ],
    "mistral": ["debug", "7b-v0.1", "7b-v0.3"],
    "gemma": [
        *("debug", "debug-2", "debug-1", "1-2b", "1-7b", "2-2b", "2-9b", "2-27b"),
        *("3-270m", "3-1b", "3-4b", "3-12b", "3-27b"),
    ],
    "deberta": [
        *("debug", "debug-2", "debug-3", "v1-base", "v1-large", "v2-xlarge", "v2-xxlarge"),
        *("v3-xsmall", "v3-small", "v3-base", "v3-large"),
    ],
    "transformer": ["debug", "base", "big"],
    "t5": [
        *("debug", "debug-1.1", "small", "base", "large", "3b", "11b"),
        *("1.1-small", "1.1-base", "1.1-large", "1.1-xl", "1.1-xxl"),
    ],
    "gshard": ["debug", "2048e-36l", "2048e-12l", "512e-36l", "512e-12l", "128e-36l", "128e-12l"],
    "mixtral": ["debug", "8x7b", "8x22b"],
    "switch": ["debug", "base-8", "base-16", "base-32", "base-64", "base-128", "base-256", "large-128"],
}
SPECS = [(name, size) for name, sizes in SIZES.items() for size in sizes]


def loaded(name, size):
    return load(f"{ROOT}/configs/{name}.py" + (f":{size}" if size else ""))


@pytest.mark.parametrize(("name", "size"), SPECS)
def test_the_resolved_tree_is_golden(name, size, golden):
    golden(f"{name}_{size}.txt" if size else f"{name}.txt", settings.dumps(loaded(name, size)))


def test_every_recipe_is_tested():
    curations = {"curate"}  # tests/data/curation
    assert {path.stem for path in (ROOT / "configs").glob("*.py")} == set(SIZES) | curations


DECODERS = ("llama", "mistral", "mixtral", "qwen", "gemma")
MODEL_TYPES = {
    **{name: name for name in ("gpt2", "llama", "mistral", "mixtral", "t5")},
    **{f"qwen:{generation}": f"qwen{generation}" for generation in "23"},
    **{"gemma:1": "gemma", "gemma:2": "gemma2", "gemma:3": "gemma3_text"},
}


@pytest.mark.parametrize(("name", "size"), [spec for spec in SPECS if spec[0] in ("gpt2", *DECODERS, "t5")])
def test_a_size_is_one_of_its_published_family(name, size):
    """Its config.json can be written, and says the same model."""
    generation = {"debug": "3", "debug-1": "1", "debug-2": "2"}.get(size, size[0])
    model_type = MODEL_TYPES.get(name) or MODEL_TYPES[f"{name}:{generation}"]
    config = loaded(name, size)
    written = to_config(config.model, FAMILIES[model_type], config.data.length)
    assert written["model_type"] == model_type and from_config(written).num_layers == config.model.num_layers


@pytest.mark.parametrize("size", SIZES["deberta"])
def test_a_size_is_one_of_its_version_of_deberta(size):
    """Of the third the discriminator; its head for replaced tokens is known from tensors alone."""
    config = discriminator(loaded("deberta", size).model)
    config = replace(config, heads=replace(config.heads, replaced=False))
    model_type = "deberta" if size == "debug" or size.startswith("v1") else "deberta-v2"
    written = to_config(config, FAMILIES[model_type], 512)
    assert canonical(from_config(written)) == canonical(config)


@pytest.mark.parametrize(("name", "size"), SPECS)
def test_recipes_run_on_one_device_and_on_eight(name, size):
    config = loaded(name, size)
    check_devices(config, 8)
    if config.mesh.tensor == 1:
        check_devices(config, 1)


@pytest.mark.parametrize(("name", "size"), SPECS)
def test_only_the_large_sizes_ask_for_text_and_tokenizer(name, size):
    missing = [key for key, _ in missing_inputs(loaded(name, size).data)]
    assert missing == ([] if size is None or size.startswith("debug") else ["source.paths", "tokenizer.path"])


@pytest.mark.parametrize("name", [name for name, sizes in SIZES.items() if None not in sizes])
@pytest.mark.parametrize("size", [None, "9b"])
def test_an_unknown_size_lists_the_known_ones(name, size):
    with pytest.raises(ConfigError) as caught:
        loaded(name, size)
    assert all(known in str(caught.value) for known in SIZES[name])


def test_a_recipe_without_sizes_takes_no_argument():
    with pytest.raises(ConfigError, match="takes no argument"):
        loaded("quickstart", "big")
