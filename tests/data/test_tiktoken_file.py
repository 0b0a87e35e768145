"""tiktoken's ranks give the ids of tiktoken itself under each pattern, and what is no such file is refused by line."""

import base64
import random

import pytest
import tiktoken
import tiktoken_ext.openai_public as published

from data import tokenizer
from data.bpe import byte_characters
from data.errors import ConfigError, DataError
from data.tiktoken_file import PUBLISHED
from data.tokenizer import load
from data.tokenizer_config import PATTERNS

TEXT = (
    "It's we'LL  ABCdef camelCase 1234567 學而時習之，不亦說乎？ 天地玄黃 宇宙洪荒\n\n\t// naïve\r\n   x<|endoftext|>"
    * 20
)
UNITS = (
    *(
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "\r\n",
        "\r\n   ",
        "\t",
        "\v",
        "\x1c",
        "\x85",
        "\xa0",
        "\u3000",
        "\u2028",
        "\x00",
    ),
    *("\x00", "a", "the", "self", "camelCase", "ABCdef", "'s", "'S", "'ſ", "'ll", "'LL", "don't", " a", " zqj", "'"),
    *("1", "23", "4567", "٣", "²", "Ⅷ", ".", "(", "/", "//\n", "—", "_", "\u200b", "\u180e"),
    *("學而", "，", "é", "e\u0301", "Ａb", "ﬁ", "ß", "İ", "ǅ", "ʰ", "ª", "🙂", "👩‍👩‍👧", "<|endoftext|>"),
)
ENCODINGS = {"gpt2": "gpt2", "cl100k": "cl100k_base", "o200k": "o200k_base"}


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """Those of a BPE trained here, and one that no merges lead to."""
    made = tokenizer.train_bpe([TEXT], 700)
    values = {character: byte for byte, character in enumerate(byte_characters())}
    names = [made.name_of(index) for index in range(1, made.vocab_size)]
    return {**{bytes(values[character] for character in name): rank for rank, name in enumerate(names)}, b" zqj": 355}


def lines(ranks: dict[bytes, int]) -> bytes:
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())


@pytest.fixture
def path(ranks, tmp_path):
    path = tmp_path / "some.tiktoken"
    path.write_bytes(lines(ranks))
    return path


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    points = [*range(1, 0xD800), *range(0xE000, 0x20000)]
    drawn = ("".join(draw.choices(UNITS, k=draw.randint(1, 30))) for _ in range(count))
    return ["", TEXT, *drawn, *("".join(map(chr, draw.choices(points, k=20))) for _ in range(count // 2))]


@pytest.mark.parametrize("pattern", ENCODINGS)
def test_ids_are_those_of_tiktoken(path, ranks, pattern, monkeypatch):
    for reader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):  # they would download
        monkeypatch.setattr(published, reader, lambda *_, **__: ranks)
    made = load(path, pattern=pattern, special=["<|endoftext|>"])
    rules = getattr(published, ENCODINGS[pattern])()["pat_str"]
    special = {"<|endoftext|>": len(ranks)}
    theirs = tiktoken.Encoding("x", pat_str=rules, mergeable_ranks=ranks, special_tokens=special)
    assert (made.special_tokens, made.vocab_size) == (special, theirs.n_vocab)
    wanted = texts(2000)
    for text, ids in zip(wanted, made.encode_batch(wanted), strict=True):
        assert ids.tolist() == theirs.encode(text, disallowed_special=()), ascii(text)
        assert made.decode(ids) == text
        assert made.encode_trusted(text)[0].tolist() == theirs.encode(text, allowed_special="all"), ascii(text)


def test_llama_3_differs_from_cl100k_in_the_space_that_ends_a_text_alone(path):
    one, other = (load(path, pattern=name, special=["<|endoftext|>"]) for name in ("llama3", "cl100k"))
    for text in texts(500):
        assert one.encode(text + "x") == other.encode(text + "x"), ascii(text)
    assert set(ENCODINGS) | {"llama3"} == set(PATTERNS)


def test_special_tokens_are_those_that_are_published(ranks, monkeypatch):
    for reader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(published, reader, lambda *_, **__: ranks)
    for (pattern, _), special in PUBLISHED.items():
        assert special == getattr(published, ENCODINGS[pattern])()["special_tokens"]


def test_a_file_of_the_published_size_has_its_special_tokens(ranks, tmp_path):
    """As many ranks as cl100k has; behind them ids have gaps."""
    padded = dict(ranks)
    for number in range(100256 - len(ranks)):
        padded[b"\xff" + number.to_bytes(3, "big")] = len(padded)
    (tmp_path / "cl100k_base.tiktoken").write_bytes(lines(padded))
    made = load(tmp_path / "cl100k_base.tiktoken", pattern="cl100k", special=["<|mine|>"])
    assert made.special_tokens["<|endoftext|>"] == made.end_of_text == 100257
    assert (made.special_tokens["<|endofprompt|>"], made.id_of("<|mine|>"), made.vocab_size) == (100276, 100277, 100278)
    assert not {*made.special_tokens.values()} & {*made.encode("<|endoftext|> <|mine|>")}
    assert made.encode_trusted("<|endofprompt|><|mine|>")[0].tolist() == [100276, 100277]
    made.save(tmp_path / "tokenizer.json")
    assert load(tmp_path / "tokenizer.json").fingerprint == made.fingerprint


def test_the_pattern_is_asked_for(path, tmp_path):
    with pytest.raises(ConfigError, match=r"set data\.tokenizer\.pattern to one of gpt2, cl100k, llama3, o200k"):
        load(path)
    renamed = tmp_path / "tokenizer.model"  # as Llama 3 names it
    path.rename(renamed)
    with pytest.raises(ConfigError, match=r"tokenizer\.model holds tiktoken's ranks"):
        load(renamed)
    with pytest.raises(DataError, match=r"no token <\|endoftext\|> or .*data\.tokenizer\.special_tokens"):
        load(renamed, pattern="cl100k")
    assert load(renamed, pattern="llama3", special=["<|end_of_text|>"]).end_of_text == 356


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data + b"YWJj\n", r"some\.tiktoken, line 357 is b'YWJj', not a token in base 64"),
        (lambda data: data + b"YWJ 9999\n", r"line 357 is .*base 64"),
        (lambda data: data + b"YWJjZGVmZw== -5\n", r"line 357 is"),
        (lambda data: data + b"YWJjZGVmZ2g= 5\n", r"line 357 has the rank 5 of line 6 once more"),
        (lambda data: data + data.split(b" ")[0] + b" 9999\n", r"line 357 has the token b'.*' once more"),
        (lambda data: data.replace(b"\n", b"\n\xff\n", 1), r"line 2 is b'\\xff'"),
        (lambda data: b"".join(data.splitlines(keepends=True)[:100]), r"has no rank for the byte 0x.. \(156 of 256"),
        (lambda data: data[: len(data) // 2], r"line \d+ (is|has)|has no rank for the byte"),
    ],
)
def test_what_is_damaged_is_refused_by_line(path, change, message):
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        load(path, pattern="gpt2", special=["<|endoftext|>"])
