"""Stages one by one: what they keep, what they drop and why, in English and in Chinese."""

import pytest

pytest.importorskip("datatrove", reason="needs requirements-curate.txt")

from datatrove.data import Document

from data.curation.config import (
    BadWords,
    C4Quality,
    Extract,
    FastText,
    FineWebQuality,
    GopherQuality,
    GopherRepetition,
    Language,
    Pii,
)
from data.curation.stages import STAGES
from data.curation.tally import read
from data.curation.words import Words, words
from data.errors import ConfigError, DataError

CHINESE = "人工智能的研究已经有很长的历史。科学家希望机器能够理解语言，并且帮助人们完成工作。这一目标仍然很远！"
PAGE = """<!doctype html><html><head><title>Bridges</title></head><body><nav><a href="/">Home</a> <a href="/x">About</a>
</nav><article><h1>Bridges</h1>
<p>The second bridge was built after the flood, and it has carried the road since then.</p>
<p>Engineers measured the river for three years before they chose the place where the bridge now stands.</p></article>
<footer>Cookie policy</footer></body></html>"""


@pytest.fixture
def judged(tmp_path):
    """`judged(stage, *texts)`: for each text what it becomes, or the reason it fell for; and the tally."""

    def run(stage, *texts):
        block = STAGES[type(stage)](stage, str(tmp_path), 5)
        documents = [Document(text=text, id=str(index)) for index, text in enumerate(texts)]
        kept = {document.id: document.text for document in block.run(documents)}
        tally = read(tmp_path / "00000.json")
        fallen = {sample.document: label for label, samples in tally.samples.items() for sample in samples}
        return [kept[name] if (name := str(index)) in kept else fallen[name] for index in range(len(texts))], tally

    return run


def test_words_of_any_script():
    assert words("It's 3.5 cm — 人工 and カナ, naïve हिन्दी") == [
        *("It's", "3", "5", "cm", "人", "工", "and", "カ", "ナ", "naïve", "हिन्दी")
    ]
    assert Words().word_tokenize("Well, 3.5!") == ["Well", ",", "3", ".", "5", "!"]
    assert Words().sent_tokenize('He said "no." It cost 3.5 euros! 好。真的？') == [
        *('He said "no."', "It cost 3.5 euros!", "好。", "真的？")
    ]


def test_language(judged, text):
    english = "The committee decided to build a second bridge over the river after the flood."
    found, tally = judged(Language(languages=("zh",)), CHINESE, english, "Der Ausschuss beschloss den Bau der Brücke.")
    assert found == [CHINESE, "language_en", "language_de"]
    assert tally.dropped == {"language_en": 1, "language_de": 1}


def test_an_unknown_language_is_refused(judged):
    with pytest.raises(ConfigError, match="is 'klingon', must be one of .*en, .*zh"):
        judged(Language(languages=("klingon",)))


def test_gopher_quality(judged, text):
    good = text.document()
    bullets = "\n".join(f"- {line}" for line in good.split("\n"))
    found, _ = judged(GopherQuality(), good, "Too short.", bullets, good.replace("the", "x").replace("of", "y"), " \n ")
    assert found[0] == good
    assert found[1:3] == ["gopher_short_doc", "gopher_too_many_bullets"] and found[4] == "empty"


def test_gopher_quality_of_chinese_counts_characters(judged):
    stage = GopherQuality(min_words=30, min_word_length=0, min_stop_words=1, stop_words=("的", "了"))
    found, _ = judged(stage, CHINESE, CHINESE[:20], CHINESE.replace("的", ""))
    assert found == [CHINESE, "gopher_short_doc", "gopher_enough_stop_words"]


def test_gopher_repetition(judged, text):
    good = text.document()
    found, _ = judged(GopherRepetition(), good, f"{good}\n{good}\n{good}", "so it goes and " * 40)
    assert found == [good, "dup_line_frac", "top_2_gram"]
    found, _ = judged(GopherRepetition(top=(0, 0, 0), repeated=(0,) * 6), "so it goes and " * 40)
    assert found == ["so it goes and " * 40]


def test_c4_quality_takes_single_lines_out(judged, text):
    good = text.document()
    found, tally = judged(
        C4Quality(), f"{good}\nMenu\nThis page needs JavaScript to run.", "lorem ipsum dolor sit.", "{ } a b."
    )
    assert found == [good, "lorem_ipsum", "curly_bracket"]
    assert tally.totals["documents_changed"] == 1


def test_fineweb_quality(judged, text):
    good = text.document()
    lists = "\n".join(text.words(30))
    found, _ = judged(FineWebQuality(), good, lists, f"{good}\n{good}")
    assert found == [good, "line_punct_ratio", "char_dup_ratio"]


def test_html_becomes_its_text_and_other_text_stays(judged):
    found, tally = judged(Extract(timeout=20.0), PAGE, "Plain <b>text</b> stays.", "<html><body></body></html>", "")
    assert "second bridge was built" in found[0] and "Cookie" not in found[0] and "<p>" not in found[0]
    assert found[1:] == ["Plain <b>text</b> stays.", "no_text", "empty"]
    assert tally.totals["documents_changed"] == 1


def test_a_page_does_not_depend_on_those_before_it(judged):
    found, _ = judged(Extract(timeout=20.0), PAGE, *[PAGE] * 4)
    assert len(set(found)) == 1


def test_bad_words_are_whole_words(judged, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("Damn\nbad phrase\n坏词\n")
    texts = ["DAMN it.", "Amsterdamned", "a bad  phrase", "a bad phrase.", "有坏词在", "good"]
    found, _ = judged(BadWords(path=str(path)), *texts)
    assert found == ["bad_word", texts[1], texts[2], "bad_word", "bad_word", "good"]


def test_bad_words_need_a_list(judged, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no word"):
        judged(BadWords(path=str(tmp_path / "empty.txt")))
    with pytest.raises(DataError, match="cannot be read"):
        judged(BadWords(path=str(tmp_path / "gone.txt")))


def test_a_fasttext_model_must_lie_there(judged, tmp_path):
    with pytest.raises(DataError, match="is no file; nothing is downloaded"):
        judged(FastText(path=str(tmp_path / "model.bin"), label="good"))


def test_a_fasttext_model_of_ones_own(judged, tmp_path):
    fasttext = pytest.importorskip("fasttext", reason="needs fasttext-numpy2-wheel")
    lines = ["__label__good the river and the bridge", "__label__bad buy cheap pills now"] * 50
    (tmp_path / "train.txt").write_text("\n".join(lines))
    model = fasttext.train_supervised(str(tmp_path / "train.txt"), epoch=25, minCount=1, dim=8, thread=1, verbose=0)
    model.save_model(str(tmp_path / "model.bin"))
    stage = FastText(path=str(tmp_path / "model.bin"), label="good")
    assert judged(stage, "the river\nthe bridge", "cheap pills")[0] == ["the river\nthe bridge", "below_threshold"]
    with pytest.raises(ConfigError, match="label of fasttext is 'fine', but .* gives .*good"):
        judged(FastText(path=str(tmp_path / "model.bin"), label="fine"))


def test_personal_data_is_replaced_counted_and_shown(judged):
    found, tally = judged(Pii(), "Write to a.b@corp.com or c@corp.com.", "Nothing here.", "电话13812345678。")
    assert found == ["Write to <EMAIL> or <EMAIL>.", "Nothing here.", "电话<CN_PHONE>。"]
    assert tally.changes == {"email": 2, "cn_phone": 1} and tally.totals["documents_changed"] == 2
    assert [sample.text for sample in tally.samples["cn_phone"]] == ["电话⟦13812345678⟧。"]
