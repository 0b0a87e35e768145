"""BERT's tokenizer cuts text as BERT does, is trained to the same bytes everywhere, and knows its special tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models

from data import tokenizer
from data.config import Data, check
from data.errors import ConfigError, DataError
from data.objective_config import MaskedObjective
from data.tokenizer import Tokenizer, load
from data.tokenizer_config import WordPieceTokenizer

ROOT = Path(__file__).parents[2]
SPECIAL = "[PAD] [UNK] [CLS] [SEP] [MASK]"
VOCABULARY = f"""{SPECIAL} want ##want ##ed wa un runn ##ing ##able ##aff , . ! ? - [ ] ( ) ' " 我 是 一 个 员 程 序
    ##序 你 好 ， 。 hello Hello HELLO h ##e ##llo cafe café ##fé caf ##e a ##a b ##b c ##c ab ##ab naive naïve na ##ive
    it s the ##s mask MASK カ タ ##タ 한 ##국 straße $ 5 ##5 ^ ` ~ ™ x ##x y z é e i ##i""".split()

# Text: pieces lower-cased; pieces as it is. Of transformers 5.24's BertTokenizerLegacy, the one in Python.
CASES = {
    "UNwant\u00e9d,running": ("un ##want ##ed , runn ##ing", "[UNK] , runn ##ing"),
    "unaffable": ("un ##aff ##able", "un ##aff ##able"),
    "unaffablez": ("[UNK]", "[UNK]"),
    "我是一个程序员。你好，Hello": ("我 是 一 个 程 序 员 。 你 好 ， hello", "我 是 一 个 程 序 员 。 你 好 ， Hello"),
    "ab我b": ("ab 我 b", "ab 我 b"),
    "Café naïve": ("cafe naive", "[UNK] naïve"),
    "cafe\u0301": ("cafe", "[UNK]"),  # the Python one composes what stays cased, Google's code and the library do not
    "HELLO Hello hello": ("hello hello hello", "HELLO Hello hello"),
    "a\x00b\ufffdc a\u200bb a\tb\nc\rd": ("ab ##c ab a b c [UNK]", "ab ##c ab a b c [UNK]"),
    "it's the-[mask] (ab)!?": ("it ' s the - [ mask ] ( ab ) ! ?", "it ' s the - [ mask ] ( ab ) ! ?"),
    "$5^`~\u2122": ("$ 5 ^ ` ~ ™", "$ 5 ^ ` ~ ™"),
    "カタカ 한국": ("[UNK] [UNK]", "[UNK] 한 ##국"),
    "a" * 100: (" ".join(["a", *["##a"] * 99]), " ".join(["a", *["##a"] * 99])),
    "a" * 101: ("[UNK]", "[UNK]"),
    "": ("", ""),
    "  \xa0a\u3000b\u2028c ": ("a b c", "a b c"),
    "\u202aab\u202c x\x85y": ("ab [UNK]", "ab [UNK]"),
}
MASKED = {
    "我是一个[MASK]员": "我 是 一 个 [MASK] 员",
    "[MASK][MASK]the": "[MASK] [MASK] the",
    "hello [MASK] , [mask]": "hello [MASK] , [ mask ]",
    "the [CLS]": "the [ [UNK] ]",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


def pieces(made: Tokenizer, ids) -> list[str]:
    return [made.name_of(int(i)) for i in ids]


@pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
@pytest.mark.parametrize("text", CASES, ids=ascii)
def test_text_is_cut_as_bert_cuts_it(path, text, lowercase):
    made = load(path, lowercase=lowercase)
    expected = CASES[text][0 if lowercase else 1].split()
    assert pieces(made, made.encode(text)) == pieces(made, made.encode_batch([text])[0]) == expected


@pytest.mark.parametrize("text", MASKED, ids=ascii)
def test_a_mask_is_one_where_it_is_asked_for_and_text_elsewhere(path, text):
    made = load(path, lowercase=True)
    assert pieces(made, made.encode_with_masks(text)) == MASKED[text].split()
    assert made.mask not in made.encode(text) and made.cls not in made.encode(text)


def test_a_mask_takes_the_space_that_its_entry_says():
    """RoBERTa's swallows the space before it, of which the word behind keeps its own."""
    made = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<mask>": 2, "a": 3, " ": 4, "?": 5}, "?"))
    content = json.loads(made.to_str())
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] = [{"id": 2, "content": "<mask>", "lstrip": True, **flags}]
    assert Tokenizer(content, "<s>").encode_with_masks("a <mask> a") == [3, 2, 4, 3]


def test_special_tokens_have_their_ids_or_none(path):
    made = load(path, lowercase=True)
    assert (made.pad, made.cls, made.sep, made.mask) == (0, 2, 3, 4)
    assert (made.end_of_text, made.end_of_text_token) == (2, "[CLS]")  # begins a document
    roberta = tokenizers.Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3, "<mask>": 4}, "a"))
    found = Tokenizer(json.loads(roberta.to_str()), "<s>")
    assert (found.cls, found.pad, found.sep, found.mask) == (0, 1, 2, 4)
    plain = tokenizer.byte_tokenizer()
    assert (plain.cls, plain.pad, plain.sep, plain.mask) == (None,) * 4
    with pytest.raises(ValueError, match="no mask token"):
        plain.encode_with_masks("a")


def test_only_an_encoders_documents_begin_with_the_first_of_its_names(tmp_path):
    """Llama's <s> is no sign of an encoder: without a mask the usual names of an end of text come first."""
    for words, expected in (
        (("<s>", "</s>", "a", "<mask>"), "<s>"),
        (("<s>", "</s>", "a"), "</s>"),
        (("[CLS]", "[SEP]", "[MASK]", "a", "[EOS]"), "[CLS]"),
    ):
        made = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "a"))
        made.save(str(tmp_path / "tokenizer.json"))
        assert load(tmp_path / "tokenizer.json").end_of_text_token == expected


def test_a_tokenizer_json_cuts_as_the_vocabulary_and_its_case_can_be_changed(path, tmp_path):
    saved = tmp_path / "tokenizer.json"
    cased = load(path, lowercase=False)
    cased.save(saved)
    assert load(saved).fingerprint == cased.fingerprint
    assert load(saved, lowercase=True).encode("HELLO é") == load(path, lowercase=True).encode("HELLO é")
    assert load(saved, lowercase=True).fingerprint != cased.fingerprint
    tokenizer.byte_tokenizer().save(saved)
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.lowercase is true, but .*tokenizer\.json"):
        load(saved, lowercase=True)


def test_decoding_joins_what_was_cut(path):
    made = load(path, lowercase=True)
    ids = [made.cls, *made.encode("Unaffable, wa-ed running!"), made.sep, made.pad]
    assert made.decode(ids) == "unaffable, wa - [UNK] running!".replace("[UNK] ", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", r"has no \[MASK\]"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", r"has no \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_vocabulary_is_a_data_error(content, message, tmp_path):
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "vocab.txt", lowercase=True)


def test_a_vocabulary_keeps_its_line_numbers(tmp_path):
    """Also where lines end as on Windows, and where one is empty; BERT's special tokens stand at 100 and on."""
    lines = ["[PAD]", *(f"[unused{i}]" for i in range(99)), *SPECIAL.split()[1:], "", "a"]
    (tmp_path / "vocab.txt").write_text("\r\n".join(lines) + "\r\n", newline="")
    made = load(tmp_path / "vocab.txt", lowercase=True)
    assert (made.pad, made.cls, made.mask, made.encode("a"), made.vocab_size) == (0, 101, 103, [105], 106)


def sources() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((ROOT / "data").glob("*.py"))]


def test_training_is_byte_identical_over_processes(tmp_path):
    script = (
        "import sys; from pathlib import Path; from data.tokenizer_config import WordPieceTokenizer;"
        "from data.tokenizer import train_wordpiece;"
        "texts = [p.read_text(encoding='utf-8') for p in sorted(Path('data').glob('*.py'))];"
        "train_wordpiece(texts, WordPieceTokenizer(vocab_size=900, max_characters=100)).save(sys.argv[1])"
    )
    for number, threads in enumerate(("1", "2", "7")):
        variables = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, str(tmp_path / f"{number}.json")]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **variables})
    saved = [(tmp_path / f"{number}.json").read_bytes() for number in range(3)]
    assert saved[0] == saved[1] == saved[2]
    assert load(tmp_path / "0.json").end_of_text_token == "[CLS]"


def test_a_trained_vocabulary_has_its_parts_in_their_places():
    """Special pieces, characters, characters inside words, and pieces by how often their parts met."""
    settings = WordPieceTokenizer(vocab_size=40, max_characters=10)
    made = tokenizer.train_wordpiece(["banana Banana bandana", "band band 我我"], settings)
    found = pieces(made, range(made.vocab_size))
    assert found[:5] == SPECIAL.split()
    assert found[5:10] == ["a", "b", "d", "n", "我"]
    assert found[10:13] == ["##a", "##d", "##n"]  # b and 我 stand inside no word
    assert found[13:16] == ["##an", "ban", "##ana"]
    assert pieces(made, made.encode("band BANANAS 我")) == ["band", "[UNK]", "我"]


def test_rare_characters_are_left_out_of_pieces():
    texts = ["aab abz " * 9 + "é ß"]
    made = tokenizer.train_wordpiece(texts, WordPieceTokenizer(vocab_size=300, max_characters=2, lowercase=False))
    found = pieces(made, range(5, made.vocab_size))
    assert found[:4] == ["a", "b", "##a", "##b"] and not {"z", "##z", "é", "ß"} & set("".join(found))
    assert pieces(made, made.encode("abz aab é")) == ["[UNK]", "aab", "[UNK]"]


def test_training_lower_cases_as_it_is_asked():
    text = ["Éa Éa ÉA"] * 3
    for lowercase, expected in ((True, {"a", "e"}), (False, {"a", "A", "É"})):
        settings = WordPieceTokenizer(vocab_size=300, lowercase=lowercase, max_characters=99)
        made = tokenizer.train_wordpiece(text, settings)
        assert {c for piece in pieces(made, range(5, made.vocab_size)) for c in piece.removeprefix("##")} == expected


def test_sizes_that_cannot_be_are_refused():
    def clashes(**settings):
        return [key for key, _ in check(Data(tokenizer=WordPieceTokenizer(**settings), objective=MaskedObjective()))]

    assert clashes(vocab_size=300, max_characters=100) == []
    assert clashes(vocab_size=300, max_characters=148) == ["tokenizer.vocab_size"]
    assert clashes(max_characters=0) == ["tokenizer.max_characters"]


def test_longest_match_comes_first(path):
    made = load(path, lowercase=True)
    assert pieces(made, made.encode("abab")) == ["ab", "##ab"]
