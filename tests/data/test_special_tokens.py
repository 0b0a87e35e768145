"""Special tokens of one's own have the ids that are stated, are read in trusted text, and never come out of other."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from data import tokenizer, tokenizer_config
from data.config import Data, check
from data.errors import ConfigError, DataError
from data.objective_config import MaskedObjective
from data.tokenizer import Tokenizer, load
from data.tokenizer_config import BpeTokenizer, ByteTokenizer, FileTokenizer, UnigramTokenizer, WordPieceTokenizer

TEXTS = ["<|im_start|>user said <|im_end|> and [USER] of <x_0> x 學而時習之，不亦說乎 "] * 9
SPECIAL = ("<|im_start|>", "<|im_end|>", "[USER]", "<x_{0..2}>")
NAMES = ("<|im_start|>", "<|im_end|>", "[USER]", "<x_0>", "<x_1>", "<x_2>")
CONFIGS = {
    "bpe": (BpeTokenizer(vocab_size=400, special_tokens=SPECIAL), 1),
    "wordpiece": (WordPieceTokenizer(vocab_size=300, max_characters=99, special_tokens=SPECIAL), 5),
    "unigram": (UnigramTokenizer(vocab_size=400, special_tokens=SPECIAL), 2),
    "bytes": (ByteTokenizer(special_tokens=SPECIAL), 257),
}


@pytest.fixture(scope="module", params=CONFIGS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def made(kind) -> Tokenizer:
    return tokenizer.build(CONFIGS[kind][0], TEXTS)


def test_they_have_their_place(made, kind):
    first = CONFIGS[kind][1]
    assert [made.id_of(name) for name in NAMES] == [*range(first, first + 6)]
    own = tokenizer_config.OWN[kind]
    assert {*made.special_tokens} == {*own, *NAMES} == {*tokenizer_config.special_names(CONFIGS[kind][0])}
    assert list(made.special_tokens.values()) == sorted(made.special_tokens.values())
    assert made.vocab_size <= tokenizer_config.vocabulary(CONFIGS[kind][0])
    assert made.id_of("no such token") is None


def test_plain_text_never_becomes_one(made):
    special = {*made.special_tokens.values()} - {made.unknown}
    for text in (*TEXTS, *made.special_tokens, *(f" {name}{name}\n" for name in made.special_tokens)):
        assert not special & {*made.encode(text)}
        assert not special & {*made.encode_batch([text])[0].tolist()}
    assert made.text_vocab_size <= made.vocab_size


def test_trusted_text_has_them_with_their_offsets(made, kind):
    text = "<|im_start|>user\n學 x<|im_end|> <x_2>[USER]"
    ids, offsets = made.encode_trusted(text)
    for name in ("<|im_start|>", "<|im_end|>", "<x_2>", "[USER]"):
        (place,) = (ids == made.id_of(name)).nonzero()[0]
        assert text[slice(*offsets[place])] == name
    without = [i for i in ids.tolist() if i not in made.special_tokens.values()]
    parts = ("user\n學 x", " ")
    assert without == [i for part in parts for i in made.encode(part)]
    assert (ids.dtype, offsets.dtype, offsets.shape) == ("uint32", "int64", (len(ids), 2))
    if kind != "wordpiece":
        assert made.decode(ids) == "user\n學 x "
    assert [len(part) for part in made.encode_trusted("")] == [0, 0]


def test_they_are_saved(made, tmp_path):
    made.save(tmp_path / "tokenizer.json")
    loaded = load(tmp_path / "tokenizer.json")
    assert (loaded.fingerprint, loaded.special_tokens) == (made.fingerprint, made.special_tokens)
    assert loaded.encode_trusted("a<x_1>b")[0].tolist() == made.encode_trusted("a<x_1>b")[0].tolist()


def test_without_them_a_tokenizer_is_what_it_was(kind):
    plain = type(CONFIGS[kind][0])
    assert {*tokenizer.build(plain(), TEXTS * 50).special_tokens} == {*tokenizer_config.OWN[kind]}


def test_a_file_gets_those_it_has_not_behind_its_largest_id(made, tmp_path):
    made.save(tmp_path / "tokenizer.json")
    config = FileTokenizer(path=str(tmp_path / "tokenizer.json"), special_tokens=("<new>", "[USER]", "<newer>"))
    more = tokenizer.build(config, ())
    assert (more.id_of("<new>"), more.id_of("<newer>")) == (made.vocab_size, made.vocab_size + 1)
    assert more.id_of("[USER]") == made.id_of("[USER]") and more.vocab_size == made.vocab_size + 2
    assert more.encode(TEXTS[0]) == made.encode(TEXTS[0])
    assert not {more.id_of("<new>")} & {*more.encode("<new>")}
    more.save(tmp_path / "more.json")
    assert load(tmp_path / "more.json").fingerprint == more.fingerprint


def test_ids_with_gaps_are_continued_or_refused(tmp_path):
    gaps = tokenizers.Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "[UNK]": 7}, "[UNK]"))
    gaps.save(str(tmp_path / "gaps.json"))
    made = load(tmp_path / "gaps.json", special=["<new>", "<newer>"])
    assert (made.id_of("<new>"), made.id_of("<newer>")) == (8, 9) and 8 not in made.encode("<new>")
    gaps.add_special_tokens(["<outside>"])  # with an id inside the gap, which the library would move
    gaps.save(str(tmp_path / "gaps.json"))
    with pytest.raises(DataError, match=r"special_tokens cannot be added to .*gaps\.json: the ids .* have gaps"):
        load(tmp_path / "gaps.json", special=["<new>"])


def test_a_bpe_with_a_mask_is_an_encoders():
    """Its documents begin as those of an encoder do, here and when its file is read again."""
    made = tokenizer.train_bpe(TEXTS, 300, ["[CLS]", "[SEP]", "[MASK]"])
    assert (made.end_of_text_token, made.cls, made.sep, made.mask) == ("[CLS]", 1, 2, 3)
    assert tokenizer.train_bpe(TEXTS, 300, ["<mask>"]).end_of_text_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("", "must be a name"),
        ("word", "must be a name"),
        ("< a>", "must be a name"),
        ("<a,b>", "must be a name"),
        ("<>", "must be a name"),
        ("<|>", "must be a name"),
        ("<_>", "must be a name"),
        ("<a> ", "must be a name"),
        ("<0x41>", "must be a name"),
        ("<a>|<b>", "must be a name"),
    ],
)
@pytest.mark.parametrize("schema", [BpeTokenizer, WordPieceTokenizer, UnigramTokenizer, ByteTokenizer, FileTokenizer])
def test_names_that_text_could_become_are_refused(schema, token, reason):
    ((key, clash),) = tokenizer_config.check(schema(special_tokens=("<good>", token)))
    assert key == "special_tokens" and json.dumps(token) in clash and reason in clash


def test_what_is_there_already_and_too_many_are_refused():
    def clash(config):
        return tokenizer_config.check(config)[0][1]

    assert "twice" in clash(BpeTokenizer(special_tokens=("<x_{0..3}>", "<x_2>")))
    assert "by itself" in clash(BpeTokenizer(special_tokens=("<|endoftext|>",)))
    assert "by itself" in clash(UnigramTokenizer(special_tokens=("<unk>",)))
    assert "by itself" in clash(WordPieceTokenizer(special_tokens=("[MASK]",)))
    assert "must be at most" in clash(ByteTokenizer(special_tokens=("<x_{0..999999}>",)))
    assert "are 357 already" in clash(BpeTokenizer(vocab_size=300, special_tokens=("<x_{0..99}>",)))
    assert "are 358 already" in clash(UnigramTokenizer(vocab_size=300, special_tokens=("<x_{0..99}>",)))
    sizes = WordPieceTokenizer(vocab_size=2010, special_tokens=("<x_{0..9}>",))
    assert [key for key, _ in check(Data(tokenizer=sizes, objective=MaskedObjective()))] == ["tokenizer.vocab_size"]


def test_a_range_is_spelt_out():
    assert tokenizer_config.expanded(("<a>", "<extra_id_{0..99}>"))[:3] == ("<a>", "<extra_id_0>", "<extra_id_1>")
    assert len(tokenizer_config.expanded(("<extra_id_{0..99}>",))) == 100
    assert tokenizer_config.expanded(("<extra_id_{99..0}>",)) == tuple(f"<extra_id_{i}>" for i in range(99, -1, -1))
    assert tokenizer_config.expanded(("[{8..11}]",)) == ("[8]", "[9]", "[10]", "[11]")


def test_files_whose_special_tokens_text_could_reach_are_guarded(tmp_path):
    """As the library reads it, a unigram's file makes </s> of text, and the word [STOP] is a word like any other."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0), ("<", -2.0), ("/", -2.0), ("s", -2.0), (">", -2.0)]
    made = tokenizers.Tokenizer(models.Unigram(pieces, 0))
    made.save(str(tmp_path / "unigram.json"))
    assert made.encode("a</s>").ids == [2, 1]
    loaded = load(tmp_path / "unigram.json")
    assert loaded.encode("a</s>a") == [2, 3, 4, 5, 6, 2]
    loaded.save(tmp_path / "again.json")
    assert load(tmp_path / "again.json").fingerprint == loaded.fingerprint
    words = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "[STOP]": 2}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "words.json"))
    named = load(tmp_path / "words.json", "[STOP]")
    assert named.encode("a [STOP] a") == [1, 0, 0, 1]


def test_a_character_that_is_special_is_refused(tmp_path):
    made = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("。", -1.0), ("a", -1.0)], 0))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"special token '。', a character that text may hold"):
        load(tmp_path / "tokenizer.json", "。")


def test_a_setting_without_meaning_is_refused(made, tmp_path):
    made.save(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.pattern is gpt2, but .*tokenizer\.json is no file"):
        load(tmp_path / "tokenizer.json", pattern="gpt2")
