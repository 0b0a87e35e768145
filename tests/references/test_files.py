"""What transformers writes beyond one file of weights is read, and reads what is exported: shards, tokenizers."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from data.tokenizer import END_OF_TEXT, load, train_bpe
from data.wordpiece import SPECIAL
from tests.references import ours
from tests.references.families import CASES, build, rows
from train import convert

WHY = "PyTorch or transformers is not installed: `make test-references` installs them beside, and runs this"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

from tests.references import theirs  # noqa: E402  it imports PyTorch

pytestmark = pytest.mark.references

BYTES = 8_000  # of a shard: a fraction of the smallest model
TEXTS = ("unaffable, Unaffable", "我是一个员 [", "", "a\n\n b\té <|endoftext|>", "x" * 120)
WORDS = ("un", "##aff", "##able", ",", "[", *"我是一个员abcdefghijklmnop")


def converted(directory, tmp_path, *options):
    """The directory of an export of what is imported from `directory`."""
    run, export = tmp_path / "run", tmp_path / "export"
    convert.main(["import", "--hf", str(directory), "--workdir", str(run)])
    convert.main(["export", "--run", str(run), "--hf", str(export), *options])
    return export


def test_shards_are_read_and_written(tmp_path):
    reference, whole, shards = build(CASES["llama"]), tmp_path / "whole", tmp_path / "shards"
    reference.save_pretrained(whole)
    reference.save_pretrained(shards, max_shard_size=BYTES)
    assert len(list(shards.glob("*.safetensors"))) > 2
    same(ours.imported(shards)[1], ours.imported(whole)[1])
    export = converted(shards, tmp_path, "--max_shard_bytes", str(BYTES), "--dtype", "bfloat16")
    assert len(list(export.glob("*.safetensors"))) > 1
    again, report = type(reference).from_pretrained(export, output_loading_info=True, local_files_only=True)
    assert not any(report.values()), report
    assert again.dtype == torch.bfloat16
    for name, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.bfloat16()), name


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_models_without_their_heads_are_read(tmp_path):
    """Their names have no prefix. GPT-2's head is its embedding; BERT's base model has a pooler."""
    reference = build(CASES["gpt2"])
    reference.save_pretrained(tmp_path / "gpt2")
    reference.transformer.save_pretrained(tmp_path / "gpt2-base")
    same(ours.imported(tmp_path / "gpt2-base")[1], ours.imported(tmp_path / "gpt2")[1])
    case, reference = CASES["bert"], build(CASES["bert"])
    reference.bert.save_pretrained(tmp_path / "bert-base")
    batch = rows(case)
    with torch.no_grad():
        expected = reference.bert(**theirs.inputs(case, batch)).pooler_output.numpy()
    found = ours.outputs(*ours.imported(tmp_path / "bert-base"), batch)
    np.testing.assert_allclose(found["pooled"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocabulary_is_published_as_a_tokenizer(tmp_path, lowercase):
    directory = tmp_path / "bert"
    build(CASES["bert"]).save_pretrained(directory)
    pieces = [*SPECIAL, *WORDS, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    (directory / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    expected = transformers.BertTokenizer.from_pretrained(directory, do_lower_case=lowercase)
    found = transformers.AutoTokenizer.from_pretrained(converted(directory, tmp_path), local_files_only=True)
    for text in TEXTS:
        assert found(text)["input_ids"] == expected(text)["input_ids"]
        for key in ("input_ids", "token_type_ids"):
            assert found(text, TEXTS[0])[key] == expected(text, TEXTS[0])[key]
    assert found.mask_token_id == expected.mask_token_id


def test_a_tokenizer_of_ours_is_published(tmp_path):
    """Its ids, its text and its end of text are the same there."""
    trained, directory = train_bpe(["unaffable, Unaffable 我是一个员 été"] * 3, 290), tmp_path / "llama"
    case = CASES["llama"]
    build(replace(case, settings={**case.settings, "vocab_size": 300})).save_pretrained(directory)
    trained.save(directory / "tokenizer.json")
    export = converted(directory, tmp_path)
    found = transformers.AutoTokenizer.from_pretrained(export, local_files_only=True)
    for text in TEXTS[:3]:
        ids = trained.encode(text)
        assert found.encode(text, add_special_tokens=False) == ids
        assert found.decode(ids) == text
    assert found.eos_token == END_OF_TEXT
    config = json.loads((export / "config.json").read_text())
    assert config["eos_token_id"] == trained.end_of_text == load(export / "tokenizer.json").end_of_text
