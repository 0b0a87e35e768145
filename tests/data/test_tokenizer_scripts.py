"""Tokenizers trained on Chinese and other scripts: what comes back, what stands alone, and the same bytes always."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data import tokenizer
from data.tokenizer import Tokenizer
from data.tokenizer_config import BpeTokenizer, UnigramTokenizer, WordPieceTokenizer

ROOT = Path(__file__).parents[2]
CHINESE = (
    "子曰：「學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？人不知而不慍，不亦君子乎？」\n"
    "有子曰：「其為人也孝弟，而好犯上者，鮮矣；不好犯上，而好作亂者，未之有也。\n"
    "君子務本，本立而道生。孝弟也者，其為仁之本與！」\n\n"
    "天地玄黃 宇宙洪荒 日月盈昃 辰宿列張\n"
)
MIXED = "用 GPU 訓練 12 層。ひらがなとカタカナ。한국어 문장, Привет мир! שלום עולם مرحبا ไทย नमस्ते 🙂\n"
TEXTS = [CHINESE, MIXED, "Plain English beside it, in two lines.\nIs it?\n"] * 3
CONFIGS = {
    "bpe": BpeTokenizer(vocab_size=420, special_tokens=("<|user|>", "<x_{0..9}>"), sample_bytes=900),
    "wordpiece": WordPieceTokenizer(vocab_size=500, max_characters=200, special_tokens=("<|user|>",), sample_bytes=900),
    "unigram": UnigramTokenizer(vocab_size=480, special_tokens=("<|user|>",), sample_bytes=900),
}


def made_of(kind: str) -> Tokenizer:
    return tokenizer.build(CONFIGS[kind], TEXTS)


@pytest.fixture(scope="module", params=CONFIGS)
def made(request) -> Tokenizer:
    return made_of(request.param)


def test_training_is_byte_identical_over_processes(tmp_path):
    script = (
        "import sys; from tests.data.test_tokenizer_scripts import CONFIGS, made_of;"
        "[made_of(kind).save(f'{sys.argv[1]}.{kind}') for kind in CONFIGS]"
    )
    for number, threads in enumerate(("1", "2", "7")):
        variables = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, str(tmp_path / str(number))]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **variables})
    for kind in CONFIGS:
        assert len({(tmp_path / f"{number}.{kind}").read_bytes() for number in range(3)}) == 1, kind


def test_every_script_comes_back(made):
    for text in (*TEXTS, "天地English混合\u3000全形，ｗｉｄｅ", "\U00020000\U0002b740", "e\u0301 नि 각"):
        if made.mask is None:
            assert made.decode(made.encode(text)) == text
        ids, offsets = made.encode_batch_with_offsets([text])[0]
        assert ids.tolist() == made.encode(text)
        assert (offsets[:, 0] <= offsets[:, 1]).all() and (offsets <= len(text)).all()


def test_chinese_is_shorter_than_its_bytes():
    """Of BPE and unigram pieces; those of WordPiece are characters."""
    size = len(CHINESE.encode())
    assert len(made_of("bpe").encode(CHINESE)) < size / 3
    assert len(made_of("unigram").encode(CHINESE)) < size / 2


def test_chinese_characters_stand_alone_in_wordpiece():
    made = made_of("wordpiece")
    names = [made.name_of(index) for index in made.encode("君子務本，ひらがな")]
    assert names[:5] == ["君", "子", "務", "本", "，"]
    assert all(len(made.name_of(index)) < 2 for index in made.encode(CHINESE.replace("\n", "")))
    assert made.unknown not in made.encode(CHINESE)


def test_rare_characters_are_bytes_or_pieces_as_the_coverage_says():
    text = ["子曰學而" * 500, "龍鳳"]
    few = tokenizer.train_unigram(text, UnigramTokenizer(vocab_size=400, character_coverage=0.99))
    all_of_them = tokenizer.train_unigram(text, UnigramTokenizer(vocab_size=400, character_coverage=1.0))
    assert few.id_of("龍") is None and few.id_of("學") is not None and all_of_them.id_of("龍") is not None
    assert few.decode(few.encode("龍鳳")) == "龍鳳" and len(few.encode("龍鳳")) == 6
