"""Unigram pieces are sentencepiece's own: the same bytes on every training, the same ids, and text that comes back."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from data import tokenizer, unigram
from data.errors import ConfigError, DataError
from data.tokenizer import Tokenizer
from data.tokenizer_config import UnigramTokenizer

ROOT = Path(__file__).parents[2]
ANALECTS = (
    "子曰：「學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？人不知而不慍，不亦君子乎？」\n"
    "有子曰：「其為人也孝弟，而好犯上者，鮮矣；不好犯上，而好作亂者，未之有也。君子務本，本立而道生。」\n"
    "天地玄黃 宇宙洪荒 日月盈昃 辰宿列張 寒來暑往 秋收冬藏\n"
)
UNITS = (
    *(" ", "  ", "    ", "\n", "\n\n", "\t", "\r\n", "\x00", "\x1f", "\u3000", "\u2028", "\ufeff", "\u200b"),
    *("the", "def ", "self", "isn't", "A", "(", ".", "1", "23", "é", "e\u0301", "Ａ", "ﬁ", "①", "²"),
    *("學", "而時", "君子", "中文", "カナ", "한글", "Привет", "שלום", "🙂", "👩‍👩‍👧", "\U0010ffff"),
    *("<unk>", "<0x41>", "<0x", "<|endoftext|>", "<|user|>", "<", "|>", "▅"),
)
SETTINGS = UnigramTokenizer(vocab_size=900, character_coverage=0.999, special_tokens=("<|user|>", "[SEP]"))


def corpus() -> list[str]:
    return [*(path.read_text(encoding="utf-8") for path in sorted((ROOT / "data").glob("t*.py"))), ANALECTS * 3]


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    return ["", " ", ANALECTS, *("".join(draw.choices(UNITS, k=draw.randint(1, 40))) for _ in range(count))]


def reference(settings: UnigramTokenizer) -> sentencepiece.SentencePieceProcessor:
    """sentencepiece's own encoder, with its scores on the grid that makes sums exact."""
    model = sentencepiece_model_pb2.ModelProto.FromString(unigram.train_model(corpus(), settings))
    for piece in model.pieces:
        piece.score = round(piece.score * unigram.GRID) / unigram.GRID
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


@pytest.fixture(scope="module")
def made() -> Tokenizer:
    return tokenizer.train_unigram(corpus(), SETTINGS)


def test_ids_are_those_of_sentencepiece(made):
    theirs = reference(SETTINGS)
    wanted = [*texts(1500), *(line for text in corpus() for line in text.splitlines(keepends=True))]
    for text, ids in zip(wanted, made.encode_batch(wanted), strict=True):
        assert ids.tolist() == theirs.encode(text), ascii(text)
        assert made.decode(ids) == theirs.decode(ids.tolist()) == text


def test_what_is_equally_likely_is_cut_alike_in_any_length_of_text(made):
    """Runs of spaces have many ways to be cut whose sums are equal; exact ones do not depend on what stands before."""
    theirs = reference(SETTINGS)
    for count in range(1, 80):
        for text in (" " * count, f"x{' ' * count}y", f"君子{'    ' * count}self{' ' * count}"):
            assert made.encode(text) == theirs.encode(text)
    scores = [score for _, score in made._content["model"]["vocab"]]
    assert all((score * unigram.GRID).is_integer() for score in scores)


def test_text_comes_back_but_for_the_sign_that_stands_for_a_space(made):
    for text in ["a▁b ▁", *texts(300)]:
        assert made.decode(made.encode(text)) == text.replace("▁", " ")
    unlike = tokenizer.train_unigram(corpus(), UnigramTokenizer(vocab_size=900, byte_fallback=False))
    ids = unlike.encode("the 龍")
    assert (unlike.decode(ids), ids.count(unlike.unknown)) == ("the ", 1)


def test_nfkc_is_done_to_text_before_it_is_trained_on_and_encoded():
    settings = UnigramTokenizer(vocab_size=900, normalization="nfkc")
    made = tokenizer.train_unigram(corpus(), settings)
    theirs = reference(settings)
    normal = tokenizers.normalizers.NFKC().normalize_str
    for text in texts(500):
        assert made.encode(text) == theirs.encode(normal(text)), ascii(text)
    assert made.decode(made.encode("Ａﬁ①e\u0301")) == "Afi1é"
    assert made.id_of("，") is None and made.id_of(",") is not None


def test_pieces_have_their_places(made):
    names = [made.name_of(index) for index in range(made.vocab_size)]
    assert names[:4] == ["<unk>", "<|endoftext|>", "<|user|>", "[SEP]"]
    assert names[4:260] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert made.special_tokens == {"<unk>": 0, "<|endoftext|>": 1, "<|user|>": 2, "[SEP]": 3}
    assert (made.end_of_text, made.unknown, made.fallback_bytes) == (1, 0, [*range(4, 260)])
    assert {"▁the", "▁▁▁▁", "君子", "\n", "\t"} <= set(names)  # words, runs of spaces, Chinese, white space
    assert made.vocab_size == 900


def test_training_is_byte_identical_over_processes(tmp_path, made):
    script = (
        "import sys; from tests.data.test_unigram import corpus, SETTINGS; from data import tokenizer;"
        "tokenizer.train_unigram(corpus(), SETTINGS).save(sys.argv[1])"
    )
    for number, threads in enumerate(("1", "2", "7")):
        variables = {"RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", script, str(tmp_path / f"{number}.json")]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **variables, "PYTHONPATH": str(ROOT)})
    saved = [(tmp_path / f"{number}.json").read_bytes() for number in range(3)]
    assert saved[0] == saved[1] == saved[2]
    assert tokenizer.load(tmp_path / "0.json").fingerprint == made.fingerprint


def test_saved_is_loaded_alike_here_and_by_the_library(made, tmp_path):
    made.save(tmp_path / "tokenizer.json")
    loaded = tokenizer.load(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (loaded.fingerprint, loaded.special_tokens) == (made.fingerprint, made.special_tokens)
    for text in texts(300):
        assert loaded.encode(text) == made.encode(text)
        if not any(name in text for name in made.special_tokens):
            assert library.encode(text).ids == made.encode(text)


def test_long_texts_are_encoded_in_parts_to_the_same_ids(made, monkeypatch):
    monkeypatch.setattr(tokenizer, "PIECE", 11)
    nfkc = tokenizer.train_unigram(corpus(), UnigramTokenizer(vocab_size=900, normalization="nfkc"))
    draw = random.Random(1)
    units = (*UNITS, "▁", "\n", " ", "\u0301", "´", "\xa0")
    several = ["".join(draw.choices(units, k=200)) for _ in range(200)]
    for each in (made, nfkc):
        assert sum(len(list(each._pieces(text))) for text in several) > 5 * len(several)
        for text, (ids, offsets) in zip(several, each.encode_batch_with_offsets(several), strict=True):
            whole = each._tokenizer.encode(text, add_special_tokens=False)
            assert (ids.tolist(), [*map(tuple, offsets)]) == (whole.ids, whole.offsets)


def test_no_text_is_lost_to_the_trainer():
    """sentencepiece would pass over a long line, and over one that holds its sign for what is unknown."""
    long = "銀河" * 9000 + " ".join(["kangaroo"] * 5000)
    found = list(unigram.sentences([f"{long}\n", "a▅b\n\nc"], "none"))
    assert "".join(found) == f"{long}abc"
    assert max(map(len, found)) <= unigram.LONGEST
    assert sum("kangaroo" in line for line in found) > 5 and not any(line.startswith("angaroo") for line in found)
    made = tokenizer.train_unigram([long, "ostrich ▅ " * 99], UnigramTokenizer(vocab_size=400))
    names = {made.name_of(index) for index in range(made.vocab_size)}
    assert {"銀", "河", *"kangaroo", *"ostrich"} <= names


def test_a_text_with_few_pieces_gives_few():
    assert tokenizer.train_unigram(["a"], UnigramTokenizer()).vocab_size == 262


@pytest.mark.parametrize(
    ("documents", "settings", "error", "message"),
    [
        ([], {}, DataError, "hold no text"),
        (["", "\n"], {}, DataError, "hold no text"),
        ([ANALECTS], {"vocab_size": 300}, ConfigError, r"vocab_size is 300, but .* are \d+ pieces already"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(documents, settings, error, message):
    with pytest.raises(error, match=message):
        tokenizer.train_unigram(documents, UnigramTokenizer(**settings))


def test_the_file_is_a_tokenizer_json_of_unigram_pieces(made, tmp_path):
    made.save(tmp_path / "tokenizer.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert (content["model"]["type"], content["model"]["byte_fallback"], content["model"]["unk_id"]) == (
        *("Unigram", True),
        0,
    )
