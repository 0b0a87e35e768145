"""BERT's tokenizer beside both of transformers: the one on the tokenizers library, and the older one in Python."""

import unicodedata

import pytest

from data.tokenizer import load
from data.wordpiece import SPECIAL

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: `make test-references` installs it beside, and runs this"
)

pytestmark = pytest.mark.references

TEXTS = (
    "",
    " \t\n\r ",
    "unaffable unaffably Unaffable UNAFFABLE",
    "That is a happy person; it's 5:30 p.m., isn't it?",
    "foo_bar a/b a-b $5.00 ^`|~ <tag> {x} #1 @you 50% & more",
    "“quotes” ‘single’ — dash … ¿qué? ¡no! «oui» · §4 †",
    "##ing un ##able",
    "我是一个程序员",
    "我是一个BERT模型,发布于2018年。",
    "北京「大学」、清华《大学》:ABC123!",
    "𠀀𠀁 㐀㐁 豈更 丽 ⼀ 〇 々",
    "これはペンです。カタカナ ﾊﾝｶｸ 안녕하세요",
    "école École ÉCOLE naïve Ångström Việt Nam señor",
    "İstanbul ISTANBUL ıstanbul Straße ﬁn ǅ",
    "Ελλάδα ΠΟΛΎΤΡΟΠΟΝ Москва́ ЁЖ",
    "हिन्दी भाषा ภาษาไทย العَرَبِيَّة שָׁלוֹם",
    "a\x00b a\ufffdb a\x07b a\x85b a\u200bb a\u00adb a\u202eb a\ufeffb",
    "a\u00a0b a\u3000b a\u2028b a\u2029b a\u2003b a\x0bb a\x0cb a\x1fb",
    "🙂 👨\u200d👩\u200d👧 🇨🇳 ☃️ ™ © €100 £5 ¥7 °C",
    "² ³ ½ ① Ⅷ ٣٤ ५६",
    "a" * 99,
    "a" * 100,
    "a" * 101 + " a",
    "é" * 100 + " " + "é" * 101,
    "ζ鑫 ζa aζ unζ 鑫a",
    "[ MASK ] [mask] (CLS) <s>",
    "\ue000 a\ue000b",
)
# Where the older tokenizer parts from the library, and so from us: {text: whether lower-casing, not, or both}.
PARTINGS = {
    # Python lower-cases the last sigma of a word to another letter; so does Google's code.
    "ΟΔΥΣΣΕΥΣ": (True,),
    # It composes accents that stay, which Google's code does not.
    "e\u0301cole o\u0302\u0301": (False,),
    # It drops what Unicode has not assigned together with control characters, and Google's code does not.
    "\u0378a": (True, False),
}
ABSENT = "ζ鑫"  # characters that the vocabulary lacks
WORDS = (
    "un",
    "##aff",
    "##able",
    "##ably",
    "happy",
    "person",
    "程",
    "程序",
    "##员",
    "be",
    "##rt",
    "école",
    "ecole",
    "aa",
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """The path of a vocab.txt with some words and nearly every character, also inside words."""
    whole = "".join((*TEXTS, *PARTINGS)) + "σς"
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD") for text in (whole, whole.lower())]
    characters = set("".join(forms))
    kept = sorted(c for c in characters - set(ABSENT) if unicodedata.category(c)[0] not in "ZC")
    pieces = dict.fromkeys((*SPECIAL, *WORDS, *kept, *(f"##{c}" for c in kept)))
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def lowercase(request):
    return request.param


@pytest.fixture(scope="module")
def library(vocabulary, lowercase):
    return transformers.BertTokenizer.from_pretrained(vocabulary.parent, do_lower_case=lowercase)


@pytest.fixture(scope="module")
def python(vocabulary, lowercase):
    """The older tokenizer, as a function from text to ids."""
    legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    tokenizer = legacy.BertTokenizerLegacy(str(vocabulary), do_lower_case=lowercase)
    return lambda text: tokenizer.convert_tokens_to_ids(tokenizer._tokenize(text))


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_vocabulary_gives_the_ids_of_both(vocabulary, lowercase, library, python, text):
    found = load(vocabulary, lowercase=lowercase).encode(text)
    assert found == library.encode(text, add_special_tokens=False) == python(text)


@pytest.mark.parametrize("text", PARTINGS, ids=ascii)
def test_where_the_older_one_parts(vocabulary, lowercase, library, python, text):
    found = load(vocabulary, lowercase=lowercase).encode(text)
    assert found == library.encode(text, add_special_tokens=False)
    assert (found != python(text)) == (lowercase in PARTINGS[text])


def test_a_tokenizer_json_gives_the_same(vocabulary, lowercase, library, tmp_path):
    library.save_pretrained(tmp_path)
    ours, same = load(tmp_path / "tokenizer.json"), load(vocabulary, lowercase=lowercase)
    assert [ours.encode(text) for text in TEXTS] == [same.encode(text) for text in TEXTS]
