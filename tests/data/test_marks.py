"""Words and sentences are found in the text, for any tokenizer; a store keeps and checks what was asked for."""

import random
from pathlib import Path

import numpy as np
import pytest

from data import encoding, marks, store, store_writer, tokenizer
from data.errors import DataError
from data.marks import SENTENCES, WORDS
from data.store import Store
from data.tokenizer_config import WordPieceTokenizer

ROOT = Path(__file__).parents[2]


def sources() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((ROOT / "data").glob("*.py"))]


@pytest.fixture(scope="module")
def wordpiece():
    texts = [*sources(), "我是一个员工 naïve"]
    return tokenizer.train_wordpiece(texts, WordPieceTokenizer(vocab_size=600, max_characters=150))


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train_bpe(sources(), 500)


def marked(made, name, text):
    """[(the text that a token is from, its mark)]; parts of a character show as the whole."""
    ids, offsets = made.encode_batch_with_offsets([text])[0]
    assert ids.tolist() == made.encode(text)
    found = marks.MARKS[name](text, offsets)
    assert found.dtype == bool and found.shape == ids.shape
    return [(text[start:stop], bool(mark)) for (start, stop), mark in zip(offsets, found, strict=True)]


def split(made, name, text):
    """`text` cut before each token with the mark."""
    parts = []
    for part, mark in marked(made, name, text):
        if mark:
            parts.append("")
        parts[-1] += part
    return parts


UNITS = [
    *"aeinst",
    "re",
    "de",
    " ",
    "\n",
    "é",
    "e\u0301",
    "ß",
    "İ",
    "1",
    "23",
    "中",
    "文",
    "。",
    "-",
    "'",
    "_",
    "(",
    "$",
    "™",
]
UNITS += ["カ", "한", "\u200b", "\x00", "\ufffd", "\t", "\xa0", "\u0301", "🙂", "\ue000", "\x0c", "\u2028"]


def test_words_are_those_of_berts_pieces(wordpiece):
    """A piece without ## begins a word, whatever the text; [UNK] is a word by itself."""
    scramble = random.Random(0)
    texts = ["".join(scramble.choices(UNITS, k=60)) for _ in range(500)]
    for text in [*texts, *sources()]:
        ids, offsets = wordpiece.encode_batch_with_offsets([text])[0]
        expected = [not wordpiece.name_of(int(i)).startswith("##") for i in ids]
        assert marks.words(text, offsets).tolist() == expected, ascii(text)


def test_words_of_byte_level_bpe(bpe):
    """A token that begins with the space before a word begins the word; a character in parts is one."""
    assert split(bpe, WORDS, "tokenizers don't tokenize") == ["tokenizers", " don", "'", "t", " tokenize"]
    assert [mark for _, mark in marked(bpe, WORDS, "中文")] == [True, False, False] * 2
    assert [mark for _, mark in marked(bpe, WORDS, "🙂🙂")] == [True] + [False] * 7
    spaces = marked(bpe, WORDS, "a   b")
    assert spaces[0] == ("a", True) and spaces[-1] == (" b", True)


def test_words_of_bytes_are_words():
    made = tokenizer.byte_tokenizer()
    assert split(made, WORDS, "ab, cd") == ["ab", ",", " ", "cd"]
    assert [mark for _, mark in marked(made, WORDS, "é1")] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one line\nand two\n\n\nthree", ["one line", "and two", "three"]),
        ("  indented\n\t\n  lines. Two in one.", ["indented", "lines. Two in one."]),
        ("a\r\nb\rc", ["a", "b", "c"]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "no." Then (yes.) he left', ['He said "no."', "Then (yes.)", "he left"]),
        ("pi is 3.14, not v1.2.3", ["pi is 3.14, not v1.2.3"]),
        ("你好。再见！是吗？“好。”他说", ["你好。", "再见！", "是吗？", "“好。”", "他说"]),
        ("wait... what?! yes", ["wait...", "what?!", "yes"]),
        ("one", ["one"]),
        ("end.\n", ["end."]),
        ("\n\n  One. Two.\n\n", ["One.", "Two."]),
        (". . .", [".", ".", "."]),
    ],
)
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "bytes"])
def test_sentences(kind, text, expected, request):
    made = tokenizer.byte_tokenizer() if kind == "bytes" else request.getfixturevalue(kind)
    ids, offsets = made.encode_batch_with_offsets([text])[0]
    starts = offsets[np.flatnonzero(marks.sentences(text, offsets))]
    places = [0, *(int(start) for start, _ in starts[1:]), len(text)]
    found = [text[first:last].strip() for first, last in zip(places[:-1], places[1:], strict=True)]
    assert found == expected


def test_the_first_token_of_a_text_begins_a_word_and_a_sentence(bpe):
    for text in ("\n\nx", "  x", "\x00x", "\u0301x", "x"):
        for name in marks.MARKS:
            assert marked(bpe, name, text)[0][1]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_long_texts_are_marked_in_parts_as_whole(kind, request, monkeypatch):
    made = request.getfixturevalue(kind)
    scramble = random.Random(1)
    texts = ["".join(scramble.choices(UNITS, k=200)) for _ in range(100)]
    whole = made.encode_batch_with_offsets(texts)
    monkeypatch.setattr(tokenizer, "PIECE", 11)
    monkeypatch.setattr(tokenizer, "GROUP", 50)
    assert sum(len(list(made._pieces(text))) for text in texts) > 3 * len(texts)
    for (ids, offsets), (others, places) in zip(whole, made.encode_batch_with_offsets(texts), strict=True):
        assert (ids == others).all() and (offsets == places).all()
    for (ids, _), alone in zip(whole, made.encode_batch(texts), strict=True):
        assert (ids == alone).all()


@pytest.mark.parametrize("sizes", [[], [0], [1], [7], [8], [9], [3, 0, 21, 64, 1]])
def test_bits_come_back_from_any_place(sizes, tmp_path):
    generator = np.random.default_rng(0)
    documents = [generator.random(size) < 0.5 for size in sizes]
    writer = marks.Bits(store_writer.HashedFile(tmp_path / "words.bin"))
    for document in documents:
        writer.write(document)
    writer.close()
    stream = [mark for document in documents for mark in document.tolist()]
    packed = np.fromfile(tmp_path / "words.bin", np.uint8)
    assert packed.size == -(-len(stream) // 8)
    for start in range(len(stream) + 1):
        for stop in range(start, len(stream) + 1):
            assert marks.read(packed, start, stop).tolist() == stream[start:stop]


TEXTS = ["One. Two two.", "", "three\nfour", "五。六"]


def stored(path: Path, made, names=(), texts=TEXTS) -> Store:
    store.write(path, texts, made, about={}, marks=names)
    return Store(path)


def test_a_store_keeps_the_marks_of_its_tokens(tmp_path, wordpiece, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 1)  # a document at a time, the empty one too
    written = stored(tmp_path / "store", wordpiece, (SENTENCES, WORDS))
    written.verify()
    assert written.marks == (SENTENCES, WORDS) == tuple(written.header["marks"])
    names = {name: [] for name in written.marks}
    for text in filter(None, TEXTS):
        _, offsets = wordpiece.encode_batch_with_offsets([text])[0]
        names[WORDS] += [True, *marks.words(text, offsets).tolist()]
        names[SENTENCES] += [False, *marks.sentences(text, offsets).tolist()]
    for name, expected in names.items():
        assert written.marked(name, 0, written.num_tokens).tolist() == expected
        assert written.marked(name, 3, 9).tolist() == expected[3:9]
    assert sum(names[SENTENCES]) == 6


def test_a_store_without_marks_is_what_it_was(tmp_path, wordpiece):
    """Its ids are those of one with marks; its fingerprint is the one of before there were any."""
    plain, with_marks = stored(tmp_path / "plain", wordpiece), stored(tmp_path / "marked", wordpiece, (WORDS,))
    assert plain.marks == () and "marks" not in plain.header
    count = plain.num_tokens
    assert plain.tokens(0, count).tolist() == with_marks.tokens(0, count).tolist()
    assert plain.fingerprint != with_marks.fingerprint
    old = stored(tmp_path / "old", tokenizer.byte_tokenizer(), texts=["abc", "", "x"])
    assert old.fingerprint == "e2ee5e0140634a711ee2f87195ee1477ec54c26b638bf6fb102deef6c63f25bf"


@pytest.mark.parametrize("name", [WORDS, SENTENCES])
def test_a_changed_mark_is_found(name, tmp_path, wordpiece):
    written = stored(tmp_path / "store", wordpiece, (WORDS, SENTENCES))
    path = tmp_path / "store" / f"{name}.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 4]) + path.read_bytes()[1:])
    with pytest.raises(DataError, match=f"{name}.bin is damaged"):
        written.verify()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{name}.bin has"):
        Store(tmp_path / "store")
