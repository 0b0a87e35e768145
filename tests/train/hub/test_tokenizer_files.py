"""Tokenizers beside published weights: which token begins a document, and what an export tells of special tokens."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import models, processors

from data.errors import DataError
from train.hub import tokenizer_files
from train.hub.tokenizer_files import end_of_text, first_special


def content(tokens: list[str], before: str | None = None, sequence: bool = False) -> dict:
    """A tokenizer.json of whole words, which puts `before` before a text."""
    made = tokenizers.Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    if before is not None:
        template = processors.TemplateProcessing(
            single=f"{before} $A", pair=f"{before} $A $B", special_tokens=[(before, tokens.index(before))]
        )
        made.post_processor = processors.Sequence([processors.ByteLevel(), template]) if sequence else template
    return json.loads(made.to_str())


LLAMA = ["<unk>", "<s>", "</s>", "a"]


@pytest.mark.parametrize(
    ("tokenizer", "settings", "config", "expected"),
    [
        (content(LLAMA, "<s>"), {}, {}, "<s>"),
        (content(LLAMA, "<s>", sequence=True), {}, {}, "<s>"),
        (content(LLAMA, "<s>"), {"add_bos_token": False}, {}, None),
        (content(LLAMA), {"add_bos_token": True}, {}, None),  # </s>, by its usual name
        (content(["a", "END"]), {"eos_token": "END"}, {}, "END"),
        (content(["a", "END"]), {"eos_token": {"content": "END"}}, {}, "END"),
        (content(["a", "END"]), {}, {"eos_token_id": 1}, "END"),
        (content(["a", "END"]), {}, {"eos_token_id": [1, 0]}, "END"),
        (content(["a", "[CLS]", "[SEP]", "[MASK]"], "[CLS]"), {"eos_token": "a"}, {}, None),
        (None, {"eos_token": "END"}, {}, None),
    ],
)
def test_the_token_that_begins_a_document(tokenizer, settings, config, expected, tmp_path):
    assert end_of_text(tokenizer, settings, config, tmp_path) == expected


def test_what_a_file_puts_first_is_its_own_beginning():
    made = tokenizer_files.beginning("<s>", 1)
    assert first_special(made) == "<s>"
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**content(LLAMA), "post_processor": made}))
    assert tokenizer.encode("a").ids == [1, 3] and tokenizer.encode("a", "a").ids == [1, 3, 3]


def test_an_export_tells_where_texts_begin_and_end(tmp_path):
    run, directory = tmp_path / "run", tmp_path / "hf"
    run.mkdir()
    directory.mkdir()
    (run / "tokenizer.json").write_text(json.dumps(content(LLAMA, "<s>")))
    assert tokenizer_files.write(run, directory, "<s>", None, 64) == {"bos_token_id": 1, "eos_token_id": 2}
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"], settings["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert json.loads((directory / "tokenizer.json").read_text()) == content(LLAMA, "<s>")
    assert tokenizer_files.write(tmp_path, directory, None, None, 64) == {}
    assert (
        tokenizer_files.write(run, directory, "<s>", "<unk>", 64)["eos_token_id"]
        == content(LLAMA)["model"]["vocab"]["<unk>"]
    )


def test_padding_and_truncation_are_turned_off(tmp_path):
    made = tokenizers.Tokenizer.from_str(json.dumps(content(LLAMA)))
    made.enable_padding(length=9)
    made.enable_truncation(2)
    made.save(str(tmp_path / "tokenizer.json"))
    found, _ = tokenizer_files.read(tmp_path)
    assert found == content(LLAMA)


def test_settings_that_a_tokenizer_cannot_have_are_refused(tmp_path):
    rules = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
    made = {**content(LLAMA), "normalizer": {**rules, "strip_accents": None}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": "never"}))
    with pytest.raises(DataError, match="tokenizer_config.json"):
        tokenizer_files.read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"model": {"type": "Unheard"}}', '{"model": 3}', '{"normalizer": 0.5}']
)
def test_a_file_that_is_no_tokenizer_is_refused(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match="tokenizer.json"):
        tokenizer_files.read(tmp_path)


@pytest.fixture(scope="module")
def llama() -> bytes:
    """A SentencePiece model as Llama has it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        **{"sentence_iterator": iter(["the quick brown fox"] * 9), "model_writer": model, "vocab_size": 290},
        **{"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "minloglevel": 2},
        **{"remove_extra_whitespaces": False, "hard_vocab_limit": False},
    )
    return model.getvalue()


def test_a_sentencepiece_model_is_read_with_what_was_added_to_it(llama, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(llama)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=llama)
    size = theirs.vocab_size()
    added = {str(index): {"content": name} for name, index in (("<s>", 1), ("<|user|>", size), ("<|end|>", size + 1))}
    settings = {"added_tokens_decoder": added, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found, told = tokenizer_files.read(tmp_path)
    whole = tokenizers.Tokenizer.from_str(json.dumps(found))
    assert whole.encode("the fox  中").ids == [1, *theirs.encode("the fox  中")]
    assert (whole.token_to_id("<|user|>"), whole.token_to_id("<|end|>")) == (size, size + 1)
    assert end_of_text(found, told, {}, tmp_path) == "<s>" and tokenizer_files.stop(found, told, {}, tmp_path) == "</s>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": False}))
    found, told = tokenizer_files.read(tmp_path)
    assert tokenizers.Tokenizer.from_str(json.dumps(found)).encode("fox").ids == theirs.encode("fox")


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"900": {"content": "<|user|>"}}, r"tokenizer\.model has <\|user\|> as \d+, but its .* as 900"),
        ({"x": {"content": "<|user|>"}}, "added_tokens_decoder in tokenizer_config.json beside .* is none"),
        ({"900": "<|user|>"}, "added_tokens_decoder .* is none"),
    ],
)
def test_a_sentencepiece_model_and_settings_of_another_are_refused(llama, added, message, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(llama)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(DataError, match=message):
        tokenizer_files.read(tmp_path)


@pytest.fixture(scope="module")
def t5() -> bytes:
    """A SentencePiece model as T5 has it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        **{"sentence_iterator": iter(["the quick brown fox"] * 9), "model_writer": model, "vocab_size": 60},
        **{"model_type": "unigram", "minloglevel": 2, "hard_vocab_limit": False},
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    )
    return model.getvalue()


@pytest.mark.parametrize(("said", "count"), [({}, 100), ({"extra_ids": 3}, 3), ({"extra_ids": 0}, 0)], ids=str)
def test_the_sentinels_of_t5_stand_behind_its_pieces(t5, said, count, tmp_path):
    (tmp_path / "spiece.model").write_bytes(t5)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**said, "eos_token": "</s>", "pad_token": "<pad>"}))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=t5)
    found, told = tokenizer_files.read(tmp_path)
    whole = tokenizers.Tokenizer.from_str(json.dumps(found))
    assert whole.get_vocab_size() == theirs.vocab_size() + count
    last = whole.get_vocab_size() - 1
    assert [whole.token_to_id(f"<extra_id_{index}>") for index in range(count)] == [last - i for i in range(count)]
    assert whole.encode("the fox").ids == theirs.encode("the fox")
    assert tokenizer_files.stop(found, told, {"eos_token_id": 1}, tmp_path) == "</s>"


@pytest.mark.parametrize("count", [-1, 2.5, "100", None, 10**9])
def test_sentinels_that_cannot_be_are_refused(t5, count, tmp_path):
    (tmp_path / "spiece.model").write_bytes(t5)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": count}))
    with pytest.raises(DataError, match="extra_ids in tokenizer_config.json beside .* must be a whole number"):
        tokenizer_files.read(tmp_path)


@pytest.fixture(scope="module")
def deberta() -> bytes:
    """A SentencePiece model as DeBERTa's second and third versions have it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        **{"sentence_iterator": iter(["the quick brown fox", "The Fox"] * 9), "model_writer": model, "vocab_size": 60},
        **{"model_type": "unigram", "minloglevel": 2, "hard_vocab_limit": False},
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3},
        **{"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
    )
    return model.getvalue()


@pytest.mark.parametrize("said", [{}, {"do_lower_case": True}, {"bos_token": "[CLS]", "do_lower_case": False}], ids=str)
def test_the_mask_of_deberta_stands_behind_its_pieces(deberta, said, tmp_path):
    (tmp_path / "spm.model").write_bytes(deberta)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=deberta)
    found, told = tokenizer_files.read(tmp_path)
    whole = tokenizers.Tokenizer.from_str(json.dumps(found))
    assert whole.token_to_id("[MASK]") == theirs.vocab_size() == whole.get_vocab_size() - 1
    for text in ("the fox", "  The  Ｆｏｘ\n quick中 ", ""):
        ids = theirs.encode(text.lower() if said.get("do_lower_case") else text)
        assert whole.encode(text).ids == [1, *ids, 2]
        pair = whole.encode(text, "the")
        assert pair.ids == [1, *ids, 2, *theirs.encode("the"), 2]
        assert pair.type_ids == [0] * (len(ids) + 2) + [1] * (len(pair.ids) - len(ids) - 2)
    assert whole.encode("the [MASK]").ids == [1, *theirs.encode("the"), theirs.vocab_size(), 2]
    assert end_of_text(found, told, {}, tmp_path) is None and tokenizer_files.stop(found, told, {}, tmp_path) is None


def test_the_mask_of_deberta_is_where_its_settings_say(deberta, tmp_path):
    (tmp_path / "spm.model").write_bytes(deberta)
    size = sentencepiece.SentencePieceProcessor(model_proto=deberta).vocab_size()
    for index in (size, size + 5):
        settings = {"added_tokens_decoder": {"0": {"content": "[PAD]"}, str(index): {"content": "[MASK]"}}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        if index > size:
            with pytest.raises(DataError, match=r"has \[MASK\] as \d+, but its tokenizer_config.json as"):
                tokenizer_files.read(tmp_path)
        else:
            whole = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_files.read(tmp_path)[0]))
            assert whole.token_to_id("[MASK]") == size


@pytest.mark.parametrize("said", [{"split_by_punct": True}, {"do_lower_case": "never"}, {"split_by_punct": 3}], ids=str)
def test_what_a_tokenizer_of_deberta_does_otherwise_is_refused(deberta, said, tmp_path):
    (tmp_path / "spm.model").write_bytes(deberta)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match=f"The {next(iter(said))} in tokenizer_config.json beside .* only false"):
        tokenizer_files.read(tmp_path)


def test_an_spm_model_of_another_family_is_refused(t5, tmp_path):
    (tmp_path / "spm.model").write_bytes(t5)
    with pytest.raises(DataError, match=r"spm.model has no piece \[PAD\], as DeBERTa's have"):
        tokenizer_files.read(tmp_path)


def test_what_to_do_without_a_tokenizer_is_said(tmp_path):
    assert "no SentencePiece model called tokenizer.model, spiece.model, spm.model" in tokenizer_files.absence(tmp_path)
    for name in ("source.spm", "target.spm", "vocab.json"):
        (tmp_path / name).write_bytes(b"")
    assert tokenizer_files.read(tmp_path) == (None, {})
    said = tokenizer_files.absence(tmp_path)
    assert "source.spm and target.spm are not read" in said and "whose ids are those of vocab.json" in said


def test_ranks_of_the_same_name_are_not_guessed_at(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    assert tokenizer_files.read(tmp_path) == (None, {})
