"""Parts of DeBERTa as transformers has them: buckets of distances, and the last layer as a decoder of masked tokens."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tokenizers

from model.ops.disentangled import log_buckets
from tests.references import ours
from tests.references.families import CASES, build, rows
from train.hub import tokenizer_files

WHY = "PyTorch or transformers is not installed: `make test-references` installs them beside, and runs this"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position  # noqa: E402

from tests.references import theirs  # noqa: E402  it imports PyTorch

pytestmark = pytest.mark.references


@pytest.mark.parametrize(("buckets", "span"), [(256, 512), (6, 10), (4, 8), (32, 128), (64, 1000)])
def test_buckets_are_the_references(buckets, span):
    """Up to the farthest distance that has one: beyond it both end in the last row."""
    distances = np.arange(1 - span, span)
    expected = make_log_bucket_position(torch.from_numpy(distances), buckets, span).numpy()
    np.testing.assert_array_equal(log_buckets(distances, buckets, span), expected)


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_mask_decoder_is_the_references_last_layer_again(passes, tmp_path):
    """transformers has no such decoder, but its layers take queries that are not their keys."""
    case = CASES["deberta_v2"]
    reference, batch = build(case), rows(case)
    reference.save_pretrained(tmp_path)
    model, params = ours.imported(tmp_path)
    table = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
    positions = replace(model.positions, mask_decoder_passes=passes, absolute_length=len(table))
    found = ours.outputs(replace(model, positions=positions), {**params, "mask_decoder": {"table": table}}, batch)
    with torch.no_grad():
        expected = decoded(reference, batch, table, passes, theirs.inputs(case, batch)).numpy()
    real = batch["segment_ids"] > 0
    error = np.abs(found["logits"] - expected)[real] / np.maximum(1e-5, 1e-4 * np.abs(expected[real]))
    assert np.max(error) <= 1
    assert np.abs(expected[real] - reference(**theirs.inputs(case, batch)).logits.detach().numpy()[real]).max() > 0.5


TEXTS = (
    "DeBERTa reads a text, and another one.",
    "  leading, and  double   spaces\tand\nlines\r\n\nof it  ",
    "",
    " ",
    "naïve café 我是一个员 ελληνικά 🙂 x" * 3,
    "e\u0301te\u0301, (unheard) of: [CLS is no token; 3.14e-5!",
    "a [MASK] of it and [SEP] a [MASK]",
)


@pytest.mark.parametrize("lowercase", [False, True])
def test_an_spm_model_gives_the_ids_of_the_reference(lowercase, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        **{"sentence_iterator": iter([*TEXTS[:2], *TEXTS[4:6]] * 5), "model_prefix": str(tmp_path / "spm")},
        **{"vocab_size": 120, "hard_vocab_limit": False, "character_coverage": 0.98, "minloglevel": 2},
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3},
        **{"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase, "vocab_type": "spm"}))
    expected = transformers.DebertaV2Tokenizer.from_pretrained(tmp_path)
    found = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_files.read(tmp_path)[0]))
    assert found.get_vocab() == expected.get_vocab() and expected.mask_token_id == len(expected) - 1
    for text in TEXTS:
        assert found.encode(text).ids == expected(text)["input_ids"], text
        pair, other = found.encode(text, TEXTS[0]), expected(text, TEXTS[0])
        assert (pair.ids, pair.type_ids) == (other["input_ids"], other["token_type_ids"])


def decoded(reference, batch: dict, table: np.ndarray, passes: int, inputs: dict):
    """Logits of He et al. 2020, section 3.2: hidden states before the last layer, and their absolute positions."""
    encoder = reference.deberta.encoder
    hidden = reference(**inputs, output_hidden_states=True).hidden_states[-2]
    mask = encoder.get_attention_mask(inputs["attention_mask"])
    states = hidden + torch.from_numpy(table[batch["positions"]])
    for _ in range(passes):
        relative = {"relative_pos": encoder.get_rel_pos(hidden), "rel_embeddings": encoder.get_rel_embedding()}
        states = encoder.layer[-1](hidden, mask, query_states=states, **relative)[0]
    return reference.cls(states)
