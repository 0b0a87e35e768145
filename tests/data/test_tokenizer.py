"""Tokenizers lose nothing, are trained to the same bytes everywhere, and never read text as a special token."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from data import tokenizer
from data.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
TEXTS = [
    "",
    "a",
    "The quick brown fox.\n\n  It's 3 o'clock, isn't it?\n",
    "\x00 \x01\x7f \ufeff \u2028\u2029\x85\x1c",
    "one\r\ntwo\rthree\n\n\r\n",
    "naïve façade, Ünïcode, e\u0301",
    "中文文本，没有空格。日本語テキスト",
    "🙂👩‍👩‍👧‍👦 \U0010ffff",
    "<|endoftext|> and <|endoftext|>",
    "a" * 5000 + " " * 5000 + "\n" * 5000,
]


def sources() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((ROOT / "data").glob("*.py"))]


@pytest.fixture(scope="module", params=["bpe", "bytes"])
def made(request) -> tokenizer.Tokenizer:
    return tokenizer.train_bpe(sources(), 600) if request.param == "bpe" else tokenizer.byte_tokenizer()


def test_lossless(made):
    scramble = random.Random(0)
    alphabet = [chr(i) for i in [*range(0x300), *range(0x4E00, 0x4E40), 0xFFFD, 0x1F642]]
    texts = [*TEXTS, *("".join(scramble.choices(alphabet, k=200)) for _ in range(100))]
    for text, ids in zip(texts, made.encode_batch(texts), strict=True):
        assert made.decode(ids) == text
        assert ids.tolist() == made.encode(text)
        assert ids.dtype == np.uint32


def test_text_that_spells_the_end_of_text_stays_text(made):
    text = f"{made.end_of_text_token}x {made.end_of_text_token}"
    ids = made.encode(text)
    assert made.end_of_text not in ids
    assert made.decode([made.end_of_text, *ids, made.end_of_text]) == text


def test_bytes_are_their_own_ids():
    made = tokenizer.byte_tokenizer()
    everything = "".join(map(chr, range(0x110000 - 0x2000))).encode("utf-8", "ignore").decode()
    assert bytes(made.encode_batch([everything])[0].astype(np.uint8)) == everything.encode()
    assert (made.vocab_size, made.end_of_text) == (257, 256)


def test_long_texts_are_encoded_in_parts_to_the_same_ids(made, monkeypatch):
    monkeypatch.setattr(tokenizer, "PIECE", 11)
    monkeypatch.setattr(tokenizer, "GROUP", 50)
    scramble = random.Random(1)
    units = [
        " ",
        "\n",
        "\n",
        "\n",
        "a",
        "'",
        "ll",
        "'s",
        "é",
        "1",
        ".",
        "\t",
        "\r\n",
        "  ",
        "\u2028",
        "\x85",
        "\xa0",
        "中",
        "\x1c",
    ]
    texts = ["".join(scramble.choices(units, k=200)) for _ in range(300)]
    assert sum(len(list(made._pieces(text))) for text in texts) > 3 * len(texts)
    for text, ids in zip(texts, made.encode_batch(texts), strict=True):
        assert ids.tolist() == made.encode(text)


def test_training_is_byte_identical_over_processes(tmp_path):
    script = (
        "import sys; from pathlib import Path; from data.tokenizer import train_bpe;"
        "train_bpe((p.read_text() for p in sorted(Path('data').glob('*.py'))), 700).save(sys.argv[1])"
    )
    for number, threads in enumerate(("1", "2", "7")):
        variables = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", script, str(tmp_path / f"{number}.json")]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **variables})
    saved = [(tmp_path / f"{number}.json").read_bytes() for number in range(3)]
    assert saved[0] == saved[1] == saved[2]
    assert tokenizer.load(tmp_path / "0.json").fingerprint == tokenizer.train_bpe(sources(), 700).fingerprint


def test_saved_is_loaded_alike_here_and_by_the_library(made, tmp_path):
    made.save(tmp_path / "tokenizer.json")
    loaded = tokenizer.load(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (loaded.fingerprint, loaded.vocab_size, loaded.end_of_text) == (
        *(made.fingerprint, made.vocab_size, made.end_of_text),
    )
    for text in TEXTS:
        assert loaded.encode(text) == made.encode(text)
        if made.end_of_text_token not in text:
            assert library.encode(text).ids == made.encode(text)


def test_other_text_or_size_is_another_fingerprint():
    prints = {
        tokenizer.train_bpe(sources(), 300).fingerprint,
        tokenizer.train_bpe(sources(), 301).fingerprint,
        tokenizer.train_bpe(["other text, of which there is less"], 300).fingerprint,
        tokenizer.byte_tokenizer().fingerprint,
    }
    assert len(prints) == 4


def test_settings_inside_a_file_change_no_id(made, tmp_path):
    """Truncation, padding, a template and an end of text that is not marked special are all made harmless."""
    made.save(tmp_path / "plain.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "plain.json"))
    library.enable_truncation(3)
    library.enable_padding(length=64)
    end = (made.end_of_text_token, made.end_of_text)
    library.post_processor = processors.TemplateProcessing(single=f"{end[0]} $A {end[0]}", special_tokens=[end])
    content = json.loads(library.to_str())
    content["added_tokens"][0]["special"] = False
    (tmp_path / "changed.json").write_text(json.dumps(content))
    loaded = tokenizer.load(tmp_path / "changed.json")
    for text in TEXTS:
        assert loaded.encode(text) == made.encode(text)
    assert loaded.fingerprint == made.fingerprint


def word_level(path: Path, *words: str) -> Path:
    made = tokenizers.Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(path))
    return path


def test_end_of_text_is_found_or_named(tmp_path):
    path = word_level(tmp_path / "words.json", "[UNK]", "hello", "</s>", "[STOP]")
    assert tokenizer.load(path).end_of_text == 2
    named = tokenizer.load(path, "[STOP]")
    assert (named.end_of_text, named.vocab_size, named.decode([1, 3])) == (3, 4, "hello")
    with pytest.raises(DataError, match=r"data\.tokenizer\.end_of_text"):
        tokenizer.load(word_level(tmp_path / "none.json", "[UNK]", "hello"))
    with pytest.raises(DataError, match=r"<gone>"):
        tokenizer.load(path, "<gone>")


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b'{"model": 3}', b"\xff\xfe"])
def test_what_is_no_tokenizer_is_a_data_error_that_names_it(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="tokenizer.json"):
        tokenizer.load(path)


def test_too_small_a_vocabulary_is_refused():
    assert tokenizer.train_bpe(["aaaa"], 257).vocab_size == 257
    with pytest.raises(ConfigError, match=r"data\.tokenizer\.vocab_size is 256"):
        tokenizer.train_bpe(["aaaa"], 256)
