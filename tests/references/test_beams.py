"""Beam search is what transformers finds with as many beams, without a penalty: their penalties are not one."""

import json

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

from safetensors.torch import load_file, save_file  # noqa: E402  it imports PyTorch

pytestmark = pytest.mark.references
BEAMS = 4
END = 2


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


FAR = 60.0  # below 0


@pytest.mark.parametrize("held", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("biased", [True, False])
def test_padding_is_not_written_where_it_is_a_bad_word(held, biased, tmp_path):
    """As OPUS-MT has it, whose padding's logit is 0: those of all others are negative here."""
    case = CASES["marian"]
    reference, pad = build(case, seed=1), case.settings["pad_token_id"]
    norm = reference.model.decoder.layers[-1].final_layer_norm
    with torch.no_grad():
        embedding = reference.get_input_embeddings().weight
        embedding[:, 0], norm.weight[0], norm.bias[0] = 0.1, 0.0, -10 * FAR
        reference.final_logits_bias.mul_(biased)
        embedding[pad], reference.final_logits_bias[:, pad] = 0.0, 0.0
    reference.save_pretrained(tmp_path)
    words = {"bad_words_ids": [[pad]]}
    (tmp_path / held).write_text(json.dumps({**json.loads((tmp_path / held).read_text()), **words}))
    if not biased:
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["final_logits_bias"]
        save_file(tensors, tmp_path / "model.safetensors")
    model, params = ours.imported(tmp_path)
    sources, real = (rows(case)[f"source_{key}"] for key in ("tokens", "segment_ids"))
    given = {"input_ids": torch.from_numpy(sources).long(), "attention_mask": torch.from_numpy(real).long()}
    given |= {"use_cache": False, "do_sample": False, "max_new_tokens": NEW, "eos_token_id": END, "pad_token_id": pad}
    given |= {"length_penalty": 0.0, "early_stopping": True, "renormalize_logits": True}
    prompts, ones = jnp.full((3, 1), pad, jnp.int32), jnp.ones((3,), jnp.int32)
    source = (jnp.asarray(sources), jnp.asarray(real.sum(axis=1), jnp.int32))
    for beams in (1, BEAMS):
        assert np.all(reference.generate(**given, num_beams=beams).numpy()[:, 1:] == pad)
        scored = {"return_dict_in_generate": True, "output_scores": True}
        expected = reference.generate(**given, num_beams=beams, **words, **scored)
        texts, search = expected.sequences.numpy()[:, 1:], BeamSearch(beams, 0.0)
        found, counts, scores = beam_search(
            Transformer(model), params, prompts, ones, NEW * ones, NEW, END, search, source
        )
        found = np.where(np.arange(NEW) < np.asarray(counts)[:, None], found, pad)
        np.testing.assert_array_equal(found[:, : texts.shape[1]], texts)
        assert len({tuple(text) for text in texts}) > 1 and np.max(counts) == texts.shape[1]
        if beams > 1:  # of one the reference tells none
            np.testing.assert_allclose(scores, expected.sequences_scores.numpy(), rtol=1e-5, atol=1e-4)
