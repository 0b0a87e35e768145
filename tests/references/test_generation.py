"""An encoder-decoder's greedy output is what transformers generates, of sources of several lengths at once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.generate import Sampling, generate
from model.transformer import Transformer
from tests.references import ours
from tests.references.families import CASES, build, rows

WHY = "PyTorch or transformers is not installed: `make test-references` installs them beside, and runs this"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

from tests.references import theirs  # noqa: E402  it imports PyTorch

pytestmark = pytest.mark.references
NEW, START = 12, 0
DRAWN = {"marian": (3, 1.0)}  # the parameters' seed, and a factor of the embeddings: texts that differ


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.encoder_decoder])
def test_greedy_output_is_the_references(name, tmp_path):
    case, seed, factor = CASES[name], *DRAWN.get(name, (1, 0.4))
    reference = build(case, seed=seed)
    reference.get_input_embeddings().weight.data.mul_(factor)  # or a head that is tied to it repeats what it reads
    reference.save_pretrained(tmp_path)
    model, params = ours.imported(tmp_path)
    batch = rows(case)
    sources, counts = batch["source_tokens"], batch["source_segment_ids"].sum(axis=1)
    given = {"input_ids": sources, "attention_mask": batch["source_segment_ids"]}
    given = {key: torch.from_numpy(value).long() for key, value in given.items()}
    expected = reference.generate(
        **given,
        use_cache=False,
        do_sample=False,
        num_beams=1,
        max_new_tokens=NEW,
        decoder_start_token_id=START,
        eos_token_id=None,
    ).numpy()[:, 1:]
    assert len({tuple(row) for row in expected}) == 3 and all(len(set(row)) > 1 for row in expected)
    prompts = jnp.full((3, 1), START, jnp.int32)
    source = (jnp.asarray(sources), jnp.asarray(counts, jnp.int32))
    keys, never = jax.random.split(jax.random.key(0), 3), -1
    greedy = Sampling(temperature=0.0)
    arguments = (prompts, jnp.ones((3,), jnp.int32), keys, NEW, never, greedy, source)
    found, _ = generate(Transformer(model), params, *arguments)
    np.testing.assert_array_equal(found, expected)


def test_mt5_is_the_second_form_of_t5(tmp_path):
    case = replace(CASES["t5_1.1"], architecture="MT5ForConditionalGeneration")
    reference, batch = build(case), rows(case)
    reference.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs.outputs(case, reference, batch)["logits"].numpy()
    found = ours.outputs(*ours.imported(tmp_path), batch)["logits"]
    real = batch["segment_ids"] > 0
    np.testing.assert_allclose(found[real], expected[real], rtol=1e-4, atol=1e-5)
