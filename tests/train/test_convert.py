"""`python -m train.convert`: runs that the other commands read, exports that are imported again, and refusals."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data import special_tokens
from data.cli import exit_code
from data.objective_config import CausalObjective, MaskedObjective, Seq2SeqObjective
from data.schema import from_plain
from model.hub.families import canonical, from_config
from tests.helpers import replaced, tiny
from tests.model.hub.small import CONFIGS
from tests.model.small import same
from tests.train.hub.published import (
    DECODER,
    PLAIN,
    arrays_of,
    publish,
    publish_decoder,
    publish_encoder,
    publish_gguf,
)
from train import convert, generate, inspect, loop, main
from train.assembly import assemble
from train.config import Config
from train.hub import safetensors


def imported(source: Path, run: Path, *arguments: str) -> int:
    return exit_code(convert.main, ["import", "--hf", str(source), "--workdir", str(run), *arguments])


def exported(run: Path, directory: Path, *arguments: str) -> int:
    return exit_code(convert.main, ["export", "--run", str(run), "--hf", str(directory), *arguments])


def digest(run: Path) -> str:
    return inspect.report(run, None)["params_sha256"]


def config_of(run: Path) -> Config:
    return from_plain(Config, json.loads((run / "config.json").read_text()))


def contents(directory: Path) -> dict[str, np.ndarray]:
    tensors = safetensors.read_directory(directory)
    return {name: tensor.take(*[slice(None)] * len(tensor.shape)) for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> tuple[Path, Path]:
    """(a published decoder, the run it was imported as)."""
    directory = tmp_path_factory.mktemp("decoder")
    assert imported(publish_decoder(directory / "hf"), directory / "run") == 0
    return directory / "hf", directory / "run"


def test_an_imported_run_is_what_was_published(decoder):
    config = config_of(decoder[1])
    assert config.model == from_config(DECODER)
    assert config.data.length == DECODER["max_position_embeddings"] and config.data.objective == CausalObjective()
    assert Path(config.data.tokenizer.path) == decoder[1] / "tokenizer.json"
    found = inspect.report(decoder[1], None)
    assert found["steps"] == [0] and found["tokens"] == 0 and found["skipped"] == 0


def test_an_imported_run_continues_text(decoder, capsys):
    arguments = ["--run", str(decoder[1]), "--prompt", "abc", "--max_new_tokens", "4", "--temperature", "0", "--json"]
    assert exit_code(generate.main, arguments) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["tokens"]) <= 4


def test_an_imported_run_starts_another(decoder, tmp_path):
    config = replaced(tiny(tmp_path), {"model": config_of(decoder[1]).model, "train.init_from": str(decoder[1])})
    state = loop.initial(assemble(config))
    assert inspect.digest(state.params) == digest(decoder[1])


def test_an_imported_run_is_not_trained_in_place(decoder, tmp_path, capsys):
    """Refused before its text is prepared; what to do instead is said."""
    hf, run = decoder
    before = sorted(path.name for path in run.iterdir())
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    assert exit_code(main.main, ["--config", str(run / "config.json"), "--workdir", str(run), cache]) == 2
    assert f"--config.train.init_from={run}" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists() and sorted(path.name for path in run.iterdir()) == before


STOPS = {  # (tokenizer_config.json, eos_token_id of config.json): the token that ends a text
    "by its name": ({"eos_token": "Z"}, 5, "Z"),
    "by its entry": ({"eos_token": {"content": "Z"}}, None, "Z"),
    "by its id": ({}, ord("Z"), "Z"),
    "by the first of its ids": ({}, [ord("Z"), 7], "Z"),
    "unknown": ({"eos_token": "<|im_end|>"}, None, None),
}


@pytest.mark.parametrize("case", STOPS)
def test_a_text_ends_where_the_published_model_ends_it(case, tmp_path):
    """Bytes are letters' own ids, and "Z" ends what an end of text begins."""
    settings, number, expected = STOPS[case]
    byte = {"Z": ord("Z"), None: 256}[expected]
    hf = publish_decoder(tmp_path / "hf", {**DECODER, "eos_token_id": number})
    (hf / "tokenizer_config.json").write_text(json.dumps(settings))
    assert imported(hf, tmp_path / "run") == 0
    assert config_of(tmp_path / "run").data.tokenizer.stop == expected
    model, params, tokenizer = generate.load_run(tmp_path / "run")
    assert (tokenizer.end_of_text, tokenizer.stop) == (256, byte)
    params["head"] = params["head"].at[:, byte].set(1e3 * params["head"].sum(axis=1))  # likeliest, or never
    likely = params["head"].at[:, byte].multiply(-1)
    found = [
        generate.continue_texts((model, {**params, "head": head}, tokenizer), ["ab"], 4, generate.Sampling(0.0), 0)[0]
        for head in (params["head"], likely)
    ]
    assert any(result["ended"] and len(result["tokens"]) < 4 for result in found)
    assert exported(tmp_path / "run", tmp_path / "out", "--length", "77") == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["eos_token_id"], written["bos_token_id"]) == (byte, 256)
    assert written["max_position_embeddings"] == 77


@pytest.mark.parametrize("name", (pytest.param("marian", marks=pytest.mark.slow), "t5"))
def test_an_encoder_decoder_begins_and_ends_as_published(name, tmp_path):
    """With its padding and with its end of text; and is exported so."""
    ids = {"decoder_start_token_id": 257, "eos_token_id": ord("E"), "is_encoder_decoder": True}
    hf = publish_decoder(tmp_path / "hf", {**CONFIGS[name], "vocab_size": 260, **ids})
    content = json.loads((hf / "tokenizer.json").read_text())
    (hf / "tokenizer.json").write_text(json.dumps(special_tokens.extended(content, ["<pad>"])))
    assert imported(hf, tmp_path / "run") == 0
    config = config_of(tmp_path / "run")
    assert (config.data.tokenizer.end_of_text, config.data.tokenizer.stop) == ("<pad>", "E")
    assert config.data.objective == Seq2SeqObjective()
    model, params, tokenizer = generate.load_run(tmp_path / "run")
    assert (tokenizer.end_of_text, tokenizer.stop) == (257, ord("E"))
    found = [
        generate.continue_texts((model, params, tokenizer), ["ab", "c"], 4, how)
        for how in (generate.Sampling(0.0), generate.BeamSearch(1))
    ]
    assert [result["tokens"] for result in found[0]] == [result["tokens"] for result in found[1]]
    assert exported(tmp_path / "run", tmp_path / "out", "--length", "64") == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: written[key] for key in ids} == ids and written["model_type"] == name
    same(contents(tmp_path / "out"), contents(hf))


def test_an_encoder_may_be_cased_otherwise_than_its_file_says(tmp_path, capsys):
    hf = publish_encoder(tmp_path / "hf", "bert_pretraining", lowercase=True)
    for lowercase, pieces in (("true", ["hello"]), ("false", ["Hello"])):
        run = tmp_path / lowercase
        assert imported(hf, run, f"--config.data.tokenizer.lowercase={lowercase}") == 0
        tokenizer = generate.load_run(run)[2]
        assert [tokenizer.name_of(i) for i in tokenizer.encode("Hello")] == pieces
    assert imported(hf, tmp_path / "other", "--config.data.tokenizer.path=other.json") == 2
    assert "data.tokenizer is the source's" in capsys.readouterr().err


@pytest.mark.parametrize("mesh", (("data=0",), ("data=-5",), ("data=-1", "fsdp=-1")))
def test_a_mesh_that_cannot_be_is_refused_on_import(decoder, mesh, tmp_path, capsys):
    assert imported(decoder[0], tmp_path / "run", *(f"--config.mesh.{axis}" for axis in mesh)) == 2
    assert "mesh." in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_what_was_imported_is_exported_as_it_was(decoder, tmp_path, capsys):
    hf, run = decoder
    assert exported(run, tmp_path / "out", "--max_shard_bytes", "9000") == 0
    assert (tmp_path / "out" / safetensors.INDEX).exists()
    before, after = contents(hf), contents(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert canonical(from_config(written)) == canonical(from_config(DECODER))
    assert written["eos_token_id"] == 256 and written["torch_dtype"] == "float32"
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|endoftext|>" and settings["model_max_length"] == 64
    assert imported(tmp_path / "out", tmp_path / "again") == 0
    assert digest(tmp_path / "again") == digest(run)
    assert str(tmp_path / "again") in capsys.readouterr().err


def test_any_mesh_imports_the_same(decoder, tmp_path):
    """Six columns of a head among two devices, sixteen of the embedding among four."""
    mesh = ("--config.mesh.data=1", "--config.mesh.fsdp=4", "--config.mesh.tensor=2")
    assert imported(decoder[0], tmp_path / "run", *mesh) == 0
    assert digest(tmp_path / "run") == digest(decoder[1])
    assert config_of(tmp_path / "run").mesh.fsdp == 4


def test_a_gguf_file_and_a_directory_of_the_same_model_are_the_same_run(tmp_path):
    assert imported(publish_decoder(tmp_path / "hf", PLAIN), tmp_path / "first") == 0
    assert imported(publish_gguf(tmp_path / "model.gguf"), tmp_path / "second") == 0
    assert digest(tmp_path / "first") == digest(tmp_path / "second")
    first, second = config_of(tmp_path / "first"), config_of(tmp_path / "second")
    assert canonical(first.model) == canonical(second.model)
    ids = [generate.load_run(tmp_path / run)[2].encode("abc x 12") for run in ("first", "second")]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(("lowercase", "word"), [(True, "hello"), (False, "Hello"), (None, "hello")])
def test_a_vocabulary_of_bert_becomes_its_tokenizer(lowercase, word, tmp_path):
    assert imported(publish_encoder(tmp_path / "hf", "bert_pretraining", lowercase), tmp_path / "run") == 0
    found = json.loads((tmp_path / "run" / "tokenizer.json").read_text())
    assert found["truncation"] is None and found["padding"] is None
    assert config_of(tmp_path / "run").data.objective == MaskedObjective(next_sentence=True)
    model, _, tokenizer = generate.load_run(tmp_path / "run")
    assert model.config.heads.next_sentence and model.config.language_head
    assert tokenizer.decode(tokenizer.encode("Hello world中")) == f"{word} world 中"
    assert exported(tmp_path / "run", tmp_path / "out") == 0
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (settings["mask_token"], settings["do_lower_case"]) == ("[MASK]", lowercase is not False)
    around = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["post_processor"]
    assert [next(iter(part.values()))["id"] for part in around["single"]] == ["[CLS]", "A", "[SEP]"]


def test_tokenizer_config_stands_above_tokenizer_json(tmp_path):
    """As in transformers, where files disagree."""
    source = publish_encoder(tmp_path / "hf", "bert", True)
    assert imported(source, tmp_path / "first") == 0
    shutil.copy(tmp_path / "first" / "tokenizer.json", source / "tokenizer.json")
    (source / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert imported(source, tmp_path / "second") == 0
    tokenizer = generate.load_run(tmp_path / "second")[2]
    assert tokenizer.decode(tokenizer.encode("Hello")) == "Hello"


SPANS = "--config.model.heads.spans=true"


def test_a_head_that_the_source_lacks_is_made_when_asked_and_said(tmp_path, capsys):
    source = publish_encoder(tmp_path / "hf", "bert")
    assert imported(source, tmp_path / "run", SPANS) == 3
    said = capsys.readouterr().err
    assert "missing: qa_outputs.bias, qa_outputs.weight" in said and "--initialise_missing_heads" in said
    assert imported(source, tmp_path / "run", SPANS, "--initialise_missing_heads") == 0
    assert "initialised with seed 0: heads/spans/bias, heads/spans/kernel" in capsys.readouterr().err
    kernel = generate.load_run(tmp_path / "run")[1]["heads"]["spans"]["kernel"]
    assert 0.005 < np.std(kernel) < 0.05 and np.abs(kernel).max() <= 0.04


def test_a_head_is_put_on_an_encoder_without_its_mask_decoder(tmp_path, capsys):
    source = publish_encoder(tmp_path / "hf", "deberta_decoder")
    changes = [f"--config.model.{head}=false" for head in ("language_head", "head_transform", "head_bias")]
    changes += ["--config.model.positions.mask_decoder_passes=0", SPANS, "--initialise_missing_heads"]
    assert imported(source, tmp_path / "run", *changes) == 0
    said = capsys.readouterr().err
    assert "initialised with seed 0: heads/spans/bias, heads/spans/kernel" in said
    assert "left out" in said and "deberta.embeddings.position_embeddings.weight" in said


def test_a_mask_decoder_that_lost_its_table_is_refused(tmp_path, capsys):
    """And made new when asked: one without passes would be another model."""
    name, table = "deberta_decoder", "deberta.embeddings.position_embeddings.weight"
    arrays = arrays_of(CONFIGS[name])
    del arrays[table]
    source = publish(tmp_path / "hf", CONFIGS[name], arrays)
    assert imported(source, tmp_path / "run") == 3
    assert f"missing: {table.removeprefix('deberta.')}" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert imported(source, tmp_path / "run", "--initialise_missing_heads") == 0
    assert "initialised with seed 0: mask_decoder/table" in capsys.readouterr().err
    assert config_of(tmp_path / "run").model.mask_decoder_passes == 2
    assert imported(source, tmp_path / "none", "--config.model.positions.mask_decoder_passes=0") == 0


def test_a_head_that_is_not_wanted_is_left_out_and_said(tmp_path, capsys):
    source = publish_encoder(tmp_path / "hf", "bert_spans")
    assert imported(source, tmp_path / "run", "--config.model.heads.spans=false") == 0
    assert "left out, of heads that the model does not have: qa_outputs.bias, qa_outputs.weight" in (
        capsys.readouterr().err
    )


def test_an_export_in_bfloat16_is_rounded_once(decoder, tmp_path):
    assert exported(decoder[1], tmp_path / "out", "--dtype", "bfloat16") == 0
    rounded = contents(tmp_path / "out")
    for name, value in contents(decoder[0]).items():
        np.testing.assert_array_equal(rounded[name], value.astype(rounded[name].dtype))
    assert imported(tmp_path / "out", tmp_path / "run") == 0
    assert exported(tmp_path / "run", tmp_path / "twice", "--dtype", "bfloat16") == 0
    assert digest(tmp_path / "run") != digest(decoder[1])
    assert all(np.array_equal(rounded[name], value) for name, value in contents(tmp_path / "twice").items())


def test_an_export_is_refused_where_the_family_cannot_express_it(decoder, tmp_path, capsys):
    assert exported(decoder[1], tmp_path / "out", "--family", "gemma") == 2
    assert "model.norm.unit_offset is False" in capsys.readouterr().err
    assert exported(decoder[1], tmp_path / "out", "--family", "mamba") == 2
    assert exported(tmp_path, tmp_path / "out") == 2
    assert exported(decoder[1], decoder[0]) == 2
    assert not list(tmp_path.iterdir())


class Bomb:
    """A pickle of it makes a file as it is read."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_refused_and_not_executed(tmp_path, capsys):
    mark, source = tmp_path / "executed", tmp_path / "hf"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(DECODER))
    for name, said in (
        ("pytorch_model.bin", "pytorch_model.bin is a pickle"),
        ("model.safetensors", "not a sound safetensors file"),
        ("model.gguf", "not a sound GGUF file"),
    ):
        file = source / name
        file.write_bytes(pickle.dumps(Bomb(mark)))
        assert imported(file if name == "model.gguf" else source, tmp_path / "run") == 3
        assert said in capsys.readouterr().err
    assert imported(source / "pytorch_model.bin", tmp_path / "run") == 3
    assert not mark.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


REFUSALS = {
    "no source": (lambda hf: shutil.rmtree(hf), 2, "no such directory"),
    "no config.json": (lambda hf: (hf / "config.json").unlink(), 2, "config.json"),
    "no weights": (lambda hf: (hf / "model.safetensors").unlink(), 3, "no weights"),
    "damaged config.json": (lambda hf: (hf / "config.json").write_text("{"), 3, "not JSON"),
    "another model": (lambda hf: (hf / "config.json").write_text('{"model_type": "mamba"}'), 3, "mamba"),
    "a size of text": (lambda hf: changed(hf, hidden_act=3), 3, "hidden_act"),
    "a fractional size": (lambda hf: changed(hf, vocab_size=260.5), 3, "vocab_size"),
    "a length of text": (lambda hf: changed(hf, max_position_embeddings="long"), 3, "data.length"),
    "another shape": (lambda hf: changed(hf, vocab_size=259), 3, "lm_head.weight has shape"),
    "fewer layers": (lambda hf: changed(hf, num_hidden_layers=4), 3, "unexpected: model.layers.4"),
    "more layers": (lambda hf: changed(hf, num_hidden_layers=6), 3, "missing: layers.5"),
    "cut short": (lambda hf: cut(hf / "model.safetensors"), 3, "not a sound safetensors file"),
    "damaged tokenizer": (lambda hf: (hf / "tokenizer.json").write_text("{}"), 3, "tokenizer.json"),
    "tokenizer of another format": (lambda hf: (hf / "tokenizer.json").write_text("[]"), 3, "no JSON object"),
}


def changed(hf: Path, **fields):
    (hf / "config.json").write_text(json.dumps({**DECODER, **fields}))


def cut(path: Path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("case", REFUSALS)
def test_a_source_that_does_not_fit_is_told_and_leaves_nothing(case, decoder, tmp_path, capsys):
    change, code, said = REFUSALS[case]
    shutil.copytree(decoder[0], tmp_path / "hf")
    change(tmp_path / "hf")
    assert imported(tmp_path / "hf", tmp_path / "runs" / "run") == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"hf"}


def test_numbers_that_are_not_finite_leave_nothing(tmp_path, capsys):
    """Found while parameters are made, when the run has begun to be written."""
    arrays = contents(publish_decoder(tmp_path / "good"))
    arrays["model.norm.weight"][0] = np.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors.Writer, "encoded", lambda self, name, value: value)
        publish(tmp_path / "bad", DECODER, arrays)
    assert imported(tmp_path / "bad", tmp_path / "run") == 3
    assert "norm.weight" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"good", "bad"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--config.model.layers=3",), "model.layers"),
        (("--config.mesh.fsdp=9",), "mesh"),
        (("--config.mesh.data=1", "--config.mesh.tensor=8"), "heads"),
        (("--config.model.attention.num_kv_heads=3",), "num_kv_heads"),
        (("--odd",), "--odd"),
    ],
)
def test_arguments_that_cannot_be_are_told_and_leave_nothing(arguments, said, decoder, tmp_path, capsys):
    assert imported(decoder[0], tmp_path / "run", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [(), ("convert",), ("import",), ("export", "--run", "x"), ("import", "--hf", "x")]
)
def test_a_command_without_its_arguments_is_told(arguments, capsys):
    assert exit_code(convert.main, list(arguments)) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_occupied_directory_is_left_as_it_is(decoder, tmp_path, capsys):
    (tmp_path / "kept").write_text("mine")
    assert imported(decoder[0], tmp_path) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    (tmp_path / "empty").mkdir()
    assert imported(decoder[0], tmp_path / "empty") == 0


def test_an_encoder_without_a_language_head_is_imported(tmp_path):
    assert imported(publish_encoder(tmp_path / "hf", "bert"), tmp_path / "run") == 0
    assert not config_of(tmp_path / "run").model.language_head
    assert canonical(config_of(tmp_path / "run").model) == canonical(from_config(CONFIGS["bert"]))
