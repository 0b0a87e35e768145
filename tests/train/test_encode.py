"""`train.generate --fill` and `--embed`: what an encoder answers, and what is refused."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from data.cli import exit_code
from data.errors import ConfigError
from tests.train.hub.published import PIECES, publish_decoder, publish_encoder
from train import convert, encode, generate

TEXTS = ("hello", "hello 中 hello", "world", "中")
CLS, SEP, MASK, HELLO = (PIECES.index(piece) for piece in ("[CLS]", "[SEP]", "[MASK]", "hello"))


def imported(source, run):
    assert exit_code(convert.main, ["import", "--hf", str(source), "--workdir", str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict:
    """Directories of an encoder with all of BERT's pre-training heads, a bare one, and a decoder."""
    directory = tmp_path_factory.mktemp("runs")
    sources = {
        "encoder": publish_encoder(directory / "encoder-hf", "bert_pretraining", lowercase=True),
        "bare": publish_encoder(directory / "bare-hf", "bert_masked", lowercase=True),
        "deberta": publish_encoder(directory / "deberta-hf", "deberta_decoder", lowercase=True),
        "decoder": publish_decoder(directory / "decoder-hf"),
    }
    return {name: imported(source, directory / name) for name, source in sources.items()}


@pytest.fixture(scope="module")
def encoder(runs):
    return generate.load_run(runs["encoder"])


def forward(run, ids: list[int], read):
    """`read(model, hidden states of one row)` without padding, computed apart from train.encode."""
    model, params, _ = run
    batch = {
        "tokens": np.array([ids], np.int32),
        "positions": np.arange(len(ids), dtype=np.int32)[None],
        "segment_ids": np.ones((1, len(ids)), np.int32),
        "token_types": np.zeros((1, len(ids)), np.int32),
    }
    return np.asarray(nn.apply(lambda model: read(model, model(batch)[0]), model)({"params": params})[0])


POOLED = {
    "mean": lambda model, hidden: hidden.mean(axis=1),
    "max": lambda model, hidden: hidden.max(axis=1),
    "cls": lambda model, hidden: hidden[:, 0],
    "pooler": lambda model, hidden: model.heads.pooled(hidden),
}


@pytest.mark.parametrize("pooling", encode.POOLINGS)
def test_a_vector_is_the_pooled_hidden_states_at_length_one(encoder, pooling):
    for text, result in zip(TEXTS, encode.embed(encoder, TEXTS, pooling), strict=True):
        ids = [CLS, *encoder[2].encode(text), SEP]
        assert (result["text"], result["tokens"]) == (text, ids)
        expected = forward(encoder, ids, POOLED[pooling])
        np.testing.assert_allclose(result["embedding"], expected / np.linalg.norm(expected), rtol=0, atol=1e-6)


def test_texts_asked_together_are_each_asked_alone(encoder, monkeypatch):
    together = encode.embed(encoder, TEXTS)
    monkeypatch.setattr(encode, "ROWS", 3)  # batches of 3 and 1
    for results in (encode.embed(encoder, TEXTS), [encode.embed(encoder, [text])[0] for text in TEXTS]):
        for one, other in zip(results, together, strict=True):
            np.testing.assert_allclose(one["embedding"], other["embedding"], rtol=0, atol=1e-6)


def test_the_mask_decoder_of_deberta_fills_and_is_no_part_of_a_vector(runs):
    """Whose table of absolute positions no vector then reads."""
    model, params, tokenizer = generate.load_run(runs["deberta"])
    assert model.config.mask_decoder_passes == 2
    moved = {**params, "mask_decoder": {"table": -params["mask_decoder"]["table"]}}
    (vector,), (same,) = (encode.embed((model, tree, tokenizer), ["hello"]) for tree in (params, moved))
    assert vector == same
    (filled,), (other,) = (encode.fill((model, tree, tokenizer), ["hello [MASK]"]) for tree in (params, moved))
    assert filled["masks"] != other["masks"]
    read = forward((model, params, None), vector["tokens"], lambda model, hidden: hidden.mean(axis=1))
    assert not np.allclose(read / np.linalg.norm(read), vector["embedding"], atol=1e-2)


def test_candidates_are_the_likeliest_of_the_softmax_at_each_mask(encoder):
    text = "hello [MASK] 中[MASK]"
    (result,) = encode.fill(encoder, [text], count=4)
    ids = [CLS, HELLO, MASK, PIECES.index("中"), MASK, SEP]
    probs = forward(encoder, ids, lambda model, hidden: jax.nn.softmax(model.logits(hidden)))
    assert result["text"] == text and len(result["masks"]) == 2
    for place, candidates in zip((2, 4), result["masks"], strict=True):
        likeliest = np.argsort(-probs[place, : len(PIECES)])[:4]
        assert [candidate["id"] for candidate in candidates] == likeliest.tolist()
        assert [candidate["token"] for candidate in candidates] == [PIECES[i] for i in likeliest]
        found = [candidate["probability"] for candidate in candidates]
        np.testing.assert_allclose(found, probs[place, likeliest], rtol=1e-4)


def test_there_are_as_many_candidates_as_the_tokenizer_has_ids(encoder):
    (result,) = encode.fill(encoder, ["[MASK]"], count=10**6)
    assert sorted(candidate["id"] for candidate in result["masks"][0]) == list(range(len(PIECES)))


def test_a_decoder_reads_behind_its_end_of_text(runs):
    run = generate.load_run(runs["decoder"])
    run[2].cls, run[2].sep = 1, 2  # as tokenizers with <s> and </s> have them
    (result,) = encode.embed(run, ["ab"])
    assert result["tokens"] == [256, 97, 98]
    expected = forward(run, result["tokens"], POOLED["mean"])
    np.testing.assert_allclose(result["embedding"], expected / np.linalg.norm(expected), rtol=0, atol=1e-6)


def asked(run, *arguments: str) -> int:
    return exit_code(generate.main, ["--run", str(run), *arguments])


def test_the_command_prints_an_object_for_each_vector(runs, encoder, capsys):
    assert asked(runs["encoder"], "--embed", "--prompt", "hello", "--prompt", "中", "--json") == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == encode.embed(encoder, ["hello", "中"])


def test_the_command_prints_candidates(runs, encoder, capsys):
    assert asked(runs["encoder"], "--fill", "[MASK] 中", "--candidates", "2", "--json") == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == encode.fill(encoder, ["[MASK] 中"], 2)
    assert asked(runs["encoder"], "--fill", "[MASK] 中", "--candidates", "2") == 0
    text, candidates, _ = capsys.readouterr().out.split("\n", 2)
    first = json.loads(printed)[0]["masks"][0][0]
    assert text == "[MASK] 中" and candidates.startswith(f"{first['token']} {first['probability']:.3f}  ")


REFUSED = {
    "a decoder fills": ("decoder", ("--fill", "a [MASK]"), "no mask token"),
    "nothing to fill": ("encoder", ("--fill", "hello"), "has no [MASK]"),
    "an encoder continues": ("encoder", ("--prompt", "hello"), "does not continue text"),
    "no pooler": ("bare", ("--embed", "--prompt", "hello", "--pooling", "pooler"), "which this model lacks"),
    "no such pooling": ("encoder", ("--embed", "--prompt", "hello", "--pooling", "sum"), "must be one of mean"),
    "too long to embed": ("encoder", ("--embed", "--prompt", "hello " * 99), "101 tokens, more than the"),
    "too long to fill": ("encoder", ("--fill", "[MASK] " * 99), "101 tokens, more than the"),
    "text and masks": ("encoder", ("--prompt", "hello", "--fill", "[MASK]"), "once or several times"),
    "masks to embed": ("encoder", ("--embed", "--fill", "[MASK]"), "once or several times"),
    "nothing": ("encoder", ("--embed",), "once or several times"),
    "no candidates": ("encoder", ("--fill", "[MASK]", "--candidates", "0"), "at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_refused(runs, capsys, case):
    name, arguments, said = REFUSED[case]
    assert asked(runs[name], *arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.out == ""


def test_filling_wants_a_language_head(encoder):
    model, params, tokenizer = encoder
    headless = model.clone(config=model.config.__class__(**{**vars(model.config), "language_head": False}))
    with pytest.raises(ConfigError, match="model is none"):
        encode.fill((headless, params, tokenizer), ["[MASK]"])
