"""SentencePiece models of both kinds give the ids of sentencepiece itself, and what is none is refused."""

import io
import random
import unicodedata

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from data import sentencepiece_file, tokenizer
from data.errors import DataError
from data.tokenizer import Tokenizer, load

ENGLISH = "The quick brown fox jumps over the lazy dogs; it's one of 1234 (or more), isn't it? naïve café\n"
CHINESE = "子曰：「學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？」天地玄黃 宇宙洪荒 日月盈昃 辰宿列張\n"
DOCUMENTS = [f"{ENGLISH}    def f{n}(a, b):\n{CHINESE}" for n in range(60)]
UNITS = (
    *(" ", "  ", "\n", "\n\n", "\t", "\r\n", "\x00", "\u3000", "\u2028", "\ufeff", "\xa0", "▁", "▅", "\xad"),
    *("the", "fox ", "def ", "isn't", "(", ".", "1", "23", "é", "e\u0301", "Ａ", "～", "ﬁ", "①", "가"),
    *("學", "而時", "子曰", "中文", "🙂", "👩‍👩‍👧", "<unk>", "<s>", "</s>", "<0x41>", "<user>", "<", "x"),
)
LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
USER = {"user_defined_symbols": ["<user>", "學而", "\n\n", "  "]}
MODELS = {
    "t5": {"model_type": "unigram"},
    "unigram, bytes": {"model_type": "unigram", **LLAMA},
    # No runs of one character among them: where two ways to cut are equally likely, rounding decides.
    "unigram, user-defined": {
        **{"model_type": "unigram", "vocab_size": 600, "user_defined_symbols": ["<user>", "學而", "fox j"]},
        **LLAMA,
    },
    "unigram, case folded": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf"},
    "bpe": {"model_type": "bpe"},
    "llama": {"model_type": "bpe", **LLAMA, "allow_whitespace_only_pieces": True},
    "gemma": {"model_type": "bpe", **LLAMA, "add_dummy_prefix": False, "split_by_whitespace": False, **USER},
    "bpe, user-defined": {"model_type": "bpe", **LLAMA, **USER},
    "nmt_nfkc, spaces": {"model_type": "bpe", "remove_extra_whitespaces": False},
}


def trained(**settings) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in DOCUMENTS for line in text.splitlines()),
        model_writer=model,
        **{"vocab_size": 420, "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 2, **settings},
    )
    return model.getvalue()


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    drawn = ("".join(draw.choices(UNITS, k=draw.randint(1, 30))) for _ in range(count))
    return ["", " ", "  a", ENGLISH, CHINESE, *drawn]


@pytest.fixture(scope="module", params=MODELS)
def both(request, tmp_path_factory) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    data = trained(**MODELS[request.param])
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(data)
    return load(path), sentencepiece.SentencePieceProcessor(model_proto=data)


def test_ids_are_those_of_sentencepiece(both):
    made, theirs = both
    wanted = texts(1500)
    for text, ids in zip(wanted, made.encode_batch(wanted), strict=True):
        assert ids.tolist() == theirs.encode(text), ascii(text)


def test_long_texts_have_the_same_ids(both, monkeypatch):
    """Whether they are encoded in parts or not."""
    made, theirs = both
    monkeypatch.setattr(tokenizer, "PIECE", 7)
    wanted = texts(300)
    for text, ids in zip(wanted, made.encode_batch(wanted), strict=True):
        assert ids.tolist() == theirs.encode(text), ascii(text)


def test_text_is_that_of_sentencepiece_but_for_what_is_unknown(both):
    made, theirs = both
    for text in texts(300):
        ids = made.encode(text)
        if theirs.unk_id() not in ids:
            assert made.decode(ids) == theirs.decode(ids), ascii(text)


def test_special_tokens_are_the_files_and_no_text(both):
    made, theirs = both
    assert made.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert (made.end_of_text_token, made.unknown, made.vocab_size) == ("</s>", 0, theirs.vocab_size())
    for name in ("<s>", "</s>"):
        assert made.id_of(name) not in made.encode(f"{name} a{name}\n{name}")
        ids, offsets = made.encode_trusted(f"a{name}b")
        place = ids.tolist().index(made.id_of(name))
        assert offsets[place].tolist() == [1, 1 + len(name)]


def test_a_saved_one_is_the_same(both, tmp_path):
    made, _ = both
    made.save(tmp_path / "tokenizer.json")
    loaded = load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == made.fingerprint
    assert all(loaded.encode(text) == made.encode(text) for text in texts(50))


def test_decomposed_text_is_composed_as_the_table_has_it():
    """The library's table alone would drop the second accent of Vietnamese, and all but the first letter of Korean."""
    data = trained(model_type="unigram")
    made, theirs = Tokenizer(sentencepiece_file.content(data, "x"), "</s>"), sentencepiece.SentencePieceProcessor
    for text in ("Tiếng Việt, rượu", "대한민국 한글", "naïve"):
        decomposed = unicodedata.normalize("NFD", text)
        assert made._tokenizer.normalizer.normalize_str(decomposed) == theirs(model_proto=data).normalize(decomposed)


def test_pieces_that_are_not_in_use_keep_their_ids():
    model = sentencepiece_model_pb2.ModelProto.FromString(trained(model_type="unigram"))
    plain = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    index = next(i for i in plain.encode(ENGLISH) if len(model.pieces[i].piece) > 2)
    model.pieces[index].type = sentencepiece_model_pb2.ModelProto.SentencePiece.UNUSED
    data = model.SerializeToString()
    made = Tokenizer(sentencepiece_file.content(data, "x"), "</s>")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert made.encode(ENGLISH) == theirs.encode(ENGLISH) and index not in made.encode(ENGLISH)


def test_user_defined_pieces_are_as_likely_as_sentencepiece_has_them():
    """Likelier than the score 0 that their file says, by their length."""
    for likelihood in (-4.5, -4.2, -3.9, -3.5, -1.0):  # 學而 is worth 0.5
        model = sentencepiece_model_pb2.ModelProto.FromString(trained(**MODELS["unigram, user-defined"]))
        for name, score in (("學而時習之", likelihood), ("時習之", -4.5)):
            for piece in [piece for piece in model.pieces if piece.piece == name]:
                model.pieces.remove(piece)
            model.pieces.add(piece=name, score=score)
        data, text = model.SerializeToString(), "學而時習之 學而 <user>"
        made, theirs = Tokenizer(sentencepiece_file.content(data, "x"), "</s>"), sentencepiece.SentencePieceProcessor
        ids = made.encode(text)
        assert ids == theirs(model_proto=data).encode(text)
        assert (made.id_of("學而時習之") in ids) == (likelihood > -4.0)


def test_special_tokens_are_cut_where_no_piece_is():
    model = sentencepiece_model_pb2.ModelProto.FromString(trained(model_type="unigram"))
    for name in ("<s", "</", "un", "<u"):
        model.pieces.add(piece=name, score=-1.0)
    data = model.SerializeToString()
    made, theirs = Tokenizer(sentencepiece_file.content(data, "x"), "</s>"), sentencepiece.SentencePieceProcessor
    for text in ("<s>", "a<s> <so </s></a> <unk><under>", "the <s>fox</s>"):
        assert made.encode(text) == theirs(model_proto=data).encode(text)
        assert not {1, 2} & {*made.encode(text)}


def test_special_tokens_are_out_of_reach_also_where_pieces_hold_parts_of_them():
    """Then a cut is not free, and text that spells them may be cut otherwise than sentencepiece does."""
    model = sentencepiece_model_pb2.ModelProto.FromString(trained(model_type="unigram", **LLAMA))
    for name in ("<s>", "</s>", "<unk>", "<0x41>"):
        for place in range(len(name) - 1):
            if all(piece.piece != name[place : place + 2] for piece in model.pieces):
                model.pieces.add(piece=name[place : place + 2], score=-1.0)
    made = Tokenizer(sentencepiece_file.content(model.SerializeToString(), "x"), "</s>")
    for text in ("<s>", "a<s>b", "</s></s>", "<unk> <s> <0x41>", "<0x41><0x42>"):
        ids = made.encode(text)
        assert not {0, 1, 2} & {*ids} and made.decode(ids) == text


@pytest.mark.parametrize("kind", ["word", "char"])
def test_models_of_words_and_of_characters_are_refused(kind):
    with pytest.raises(DataError, match=r"SentencePiece model F cannot be read: its pieces are (words|characters)"):
        sentencepiece_file.content(trained(model_type=kind), "F")


def test_what_is_damaged_is_refused(tmp_path):
    data, path = trained(model_type="unigram"), tmp_path / "some.model"
    draw = random.Random(0)
    for cut in (1, 5, 100, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match=r"some\.model is no SentencePiece model: .*Get another copy"):
            load(path)
    for _ in range(300):  # any flipped byte is refused or read, never a traceback
        place = draw.randrange(len(data))
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        try:
            made = sentencepiece_file.content(bytes(flipped), path)
            tokenizer.Tokenizer(made, "</s>")
        except (DataError, KeyError):
            pass
    for wrong in (b"", b"GGUF\x03", b"\n", b"\n\x02\n\x00", b"PK\x03\x04" + bytes(99), b"\xff" * 40):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"some\.model"):
            load(path)


def test_options_that_cannot_be_followed_are_refused():
    for field, value, reason in (
        (("trainer_spec", "treat_whitespace_as_suffix"), True, "spaces behind words"),
        (("normalizer_spec", "escape_whitespaces"), False, "leaves spaces as they are"),
    ):
        model = sentencepiece_model_pb2.ModelProto.FromString(trained(model_type="unigram"))
        setattr(getattr(model, field[0]), field[1], value)
        with pytest.raises(DataError, match=reason):
            sentencepiece_file.content(model.SerializeToString(), "x")
