"""Beam search is what transformers finds with as many beams, without a penalty: their penalties are not one."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.beam import BeamSearch, beam_search
from model.transformer import Transformer
from tests.references import ours
from tests.references.families import CASES, build, rows
from tests.references.test_generation import DRAWN, NEW, START

WHY = "PyTorch or transformers is not installed: `make test-references` installs them beside, and runs this"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

pytestmark = pytest.mark.references
BEAMS = 4


@pytest.mark.parametrize(
    ("name", "end"), [("marian", 2), ("marian", 48), ("t5", 46)], ids=("early", "some and never", "late and never")
)
def test_the_likeliest_texts_are_the_references(name, end, tmp_path):
    """Texts and log-probabilities; `end` is a token with which some of them end."""
    case, seed, factor = CASES[name], *DRAWN.get(name, (1, 0.4))
    reference = build(case, seed=seed)
    reference.get_input_embeddings().weight.data.mul_(factor)
    reference.save_pretrained(tmp_path)
    model, params = ours.imported(tmp_path)
    sources, real = (rows(case)[f"source_{key}"] for key in ("tokens", "segment_ids"))
    expected = reference.generate(
        input_ids=torch.from_numpy(sources).long(),
        attention_mask=torch.from_numpy(real).long(),
        use_cache=False,
        do_sample=False,
        num_beams=BEAMS,
        length_penalty=0.0,
        early_stopping=True,
        max_new_tokens=NEW,
        decoder_start_token_id=START,
        eos_token_id=end,
        pad_token_id=end,
        return_dict_in_generate=True,
        output_scores=True,
    )
    texts = expected.sequences.numpy()[:, 1:]
    assert np.any(texts == end)
    prompts, ones = jnp.full((3, 1), START, jnp.int32), jnp.ones((3,), jnp.int32)
    source = (jnp.asarray(sources), jnp.asarray(real.sum(axis=1), jnp.int32))
    found, counts, scores = beam_search(
        Transformer(model), params, prompts, ones, NEW * ones, NEW, end, BeamSearch(BEAMS, 0.0), source
    )
    np.testing.assert_array_equal(found[:, : texts.shape[1]], texts)
    assert np.max(counts) == texts.shape[1]
    np.testing.assert_allclose(scores, expected.sequences_scores.numpy(), rtol=1e-5, atol=1e-5)
