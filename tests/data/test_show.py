"""`python -m data.show`: what stands in it is what the batches hold, for every objective."""

import json
import os
import pty
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from data import overview, show
from data.errors import ConfigError
from data.loader import Loader
from data.objectives import objective_rows
from data.packing import make_rows
from data.prepare import prepare
from data.row_view import predictions, view
from data.show_html import html
from data.spelling import Speller
from data.tokenizer import byte_tokenizer
from tests.helpers import ROOT

PARAGRAPHS = [f"Paragraph {number}: {'word ' * (number % 7)}ends." for number in range(40)]
PARAGRAPHS[3] = "中文 and עברית, \x07 a bell, <script>alert('&')</script> 🙂"


@pytest.fixture
def recipe(tmp_path):
    """`recipe(section, train)`: the path of a recipe on PARAGRAPHS, `section` being that of the data."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(PARAGRAPHS))

    def make(changes=None, train=None, name="recipe.json") -> str:
        source = {"name": "text", "paths": [str(text)], "document": "paragraph", "validation_fraction": 0.0}
        section = {"source": source, "tokenizer": {"name": "bytes"}, "length": 32, "cache_dir": str(tmp_path / "cache")}
        path = tmp_path / name
        path.write_text(json.dumps({"data": {**section, **(changes or {})}, "train": train or {"batch_size": 4}}))
        return str(path)

    return make


def shown(path, *overrides, step=0, count=4, limit=1024) -> show.Shown:
    return show.gather(path, *show.read(path, overrides), step, count, limit)


def test_the_rows_are_those_that_the_steps_read(recipe):
    path = recipe({"objective": {"name": "prefix_lm"}}, {"batch_size": 4, "seed": 3, "steps": 9})
    config, train = show.read(path, ())
    assert (train.batch_size, train.seed) == (4, 3)
    store = prepare(config).train
    loader = Loader({"text": objective_rows(config, store, 3)}, 4, 3, config.shuffle)
    speller = Speller(store.tokenizer)
    for step in (0, 5, 15):  # the last in the second epoch, which draws other prefixes
        batch = loader.batch(step)
        found = shown(path, step=step).rows
        for place, row in enumerate(found):
            alone = {key: value[place] for key, value in batch.items()}
            assert row == view(alone, speller, *loader.place(4 * step + place), 1024)


def test_overrides_reach_both_sections(recipe):
    config, train = show.read(recipe(), ["--config.train.batch_size=2", "--config.data.length=16"])
    assert (config.length, train.batch_size) == (16, 2)
    with pytest.raises(ConfigError, match="train.batch_size=x"):
        show.read(recipe(), ["--config.train.batch_size=x"])


def plain_text(row) -> str:
    return "".join(piece.text for stretch in row.stretches for piece in stretch.pieces)


@pytest.mark.parametrize("packing", ["concat", "best_fit", "unpacked"])
def test_all_text_of_an_epoch_is_shown_once_and_all_of_it_carries_loss(recipe, packing):
    path = recipe({"packing": packing, "shuffle": False})
    count = shown(path).sources[0].rows
    rows = shown(path, count=count).rows
    pieces = [piece for row in rows for stretch in row.stretches for piece in stretch.pieces]
    text = "".join(piece.text for piece in pieces if piece.loss)
    for paragraph in PARAGRAPHS:
        if len(paragraph) < 20 or packing == "concat":
            assert paragraph.replace("\x07", "␇") in text.replace("␊\n", "\n")
    assert text.count("<|endoftext|>") == len(PARAGRAPHS)
    assert sum(row.predicted for row in rows) == sum(len(paragraph.encode()) + 1 for paragraph in PARAGRAPHS)


SPECIAL = ["<extra_id_{0..20}>", "[NLU]", "[S2S]", "[NLG]", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
WORDPIECE = {"name": "wordpiece", "vocab_size": 300, "max_characters": 100}
OBJECTIVES = {
    "prefix_lm": {},
    "span_corruption": {},
    "ul2": {"arrangement": "prefix_decoder"},
    "fim": {"segments": 2},
    "masked": {"max_predictions": 5, "next_sentence": True},
    "replaced_token": {"max_predictions": 5},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_shown(recipe, name):
    encoder = name in ("masked", "replaced_token")
    tokenizer = WORDPIECE if encoder else {"name": "bytes", "special_tokens": SPECIAL}
    path = recipe({"objective": {"name": name, **OBJECTIVES[name]}, "tokenizer": tokenizer})
    found = shown(path)
    text = show.text(found, colour=False)
    assert f"objective {name}" in text and len(found.rows) == 4
    for row in found.rows:
        pieces = [piece for stretch in row.stretches for piece in stretch.pieces]
        assert row.predicted and any(piece.loss for piece in pieces)
        if encoder:
            assert sum(piece.read is not None for piece in pieces) == row.predicted
    assert json.loads(json.dumps(show.plain(found)))["rows"][0]["predicted"] == found.rows[0].predicted
    assert html(found).count('class="row"') == 4


def test_pairs_and_chats_and_questions_are_shown(recipe, tmp_path):
    (tmp_path / "records.jsonl").write_text(
        json.dumps(
            {
                **{"source": "two", "target": "2", "prompt": "one and one?", "answer": " two"},
                "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
                **{"id": "1", "question": "who ?", "context": "so ann said", "answers": {}},
            }
        ).replace('"answers": {}', '"answers": {"text": ["ann"], "answer_start": [3]}')
    )
    source = {"name": "jsonl", "paths": [str(tmp_path / "records.jsonl")], "validation_fraction": 0.0}

    def lines(objective, tokenizer) -> list[str]:
        settings = {"source": source, "packing": "unpacked", "length": 80}
        path = recipe({**settings, "objective": objective, "tokenizer": tokenizer})
        return [line[4:] for line in show.text(shown(path, count=1), False).splitlines() if line.startswith("  |")]

    raw = {"name": "bytes", "special_tokens": ["<|im_start|>", "<|im_end|>"]}
    assert lines({"name": "supervised"}, raw) == ["<|endoftext|>one and one?⟦ two<|endoftext|>⟧"]
    assert lines({"name": "supervised", "format": "chat"}, raw) == [
        *("<|endoftext|><|im_start|>user␊", "Hi<|im_end|>␊", "<|im_start|>assistant␊", "⟦Hello<|im_end|>⟧␊"),
        "⟦<|endoftext|>⟧",
    ]
    assert lines({"name": "seq2seq"}, raw) == ["two<|endoftext|>", "<|endoftext|>⟦2<|endoftext|>⟧"]
    assert lines({"name": "qa"}, WORDPIECE) == ["[CLS]who ?[SEP]so⟦ ann⟧ said[SEP]"]


def test_what_is_hidden_stands_behind_what_is_read():
    row = {
        "tokens": np.array([97, 257, 99, 0]),
        "segment_ids": np.array([1, 1, 1, 0]),
        "masked_positions": np.array([1, 0]),
        "targets": np.array([98, 0]),
        "weights": np.array([1.0, 0.0]),
    }
    found = view(row, Speller(byte_tokenizer(("[MASK]",))), "s", 0, 0, 99)
    assert show._pieces(found.stretches[0].pieces, False) == "a⟦[MASK] → b⟧c"
    assert (found.tokens, found.padding, found.predicted) == (3, 1, 1)


def test_a_long_row_ends_where_it_is_asked_to(recipe):
    (row,) = shown(recipe({"length": 400, "packing": "concat"}), count=1, limit=50).rows
    assert len(plain_text(row)) < 400 and row.stretches[-1].title.endswith("more")


@pytest.fixture
def mixed(recipe, tmp_path):
    """The path of a recipe of two components, with a stage."""
    (tmp_path / "other.txt").write_text("Another text.")
    part = {"document": "paragraph", "validation_fraction": 0.0, "name": "text"}

    def make(start) -> str:
        components = [
            {"name": "most", "weight": 3.0, "source": {**part, "paths": [str(tmp_path / "text.txt")]}},
            {"name": "rare", "max_epochs": 7.0, "source": {**part, "paths": [str(tmp_path / "other.txt")]}},
        ]
        stages = [{"start": start, "weights": [0.0, 1.0]}]
        return recipe({"source": {"name": "mixture", "components": components, "stages": stages}})

    return make


def test_a_mixture_is_shown_with_its_shares_and_stages(mixed):
    path = mixed(2)
    found = shown(path, count=8)
    assert [(source.name, source.share, source.max_epochs) for source in found.sources] == [
        *(("most", 0.75, None), ("rare", 0.25, 7.0)),
    ]
    assert {row.source for row in found.rows} == {"most", "rare"} and not found.notes
    later = shown(path, step=2, count=1).sources
    assert sum(source.epochs * source.rows for source in later) == pytest.approx(2 * 4)
    assert {row.source for row in shown(path, step=2, count=2).rows} == {"rare"}
    assert "Shares of the rows" in html(found)
    with pytest.raises(ConfigError, match="--step is 99, but the mixture ends after"):
        shown(path, step=99)
    assert "a stage begins at 50%" in shown(mixed("50%"), count=1).notes[0]


def test_padding_is_what_each_packing_has(recipe):
    path = recipe()
    config, _ = show.read(path, ())
    store = prepare(config).train
    for packing, share in overview.padding_shares(store, 32).items():
        rows = make_rows(store, 32, packing)
        assert share == pytest.approx(1 - store.num_tokens / (len(rows) * 32))


def test_the_histogram_counts_every_document(recipe):
    config, _ = show.read(recipe(), ())
    store = prepare(config).train
    sizes = np.diff(store.document_starts.astype(int), append=store.num_tokens)
    expected = [(1 << p, int(((sizes >= 1 << p) & (sizes < 2 << p)).sum())) for p in range(12)]
    found = overview.histogram(store)
    assert found == [pair for pair in expected if found[0][0] <= pair[0] <= found[-1][0]]
    assert sum(count for _, count in found) == store.num_documents


class Page(HTMLParser):
    """What a page shows, and what it asks for elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags, self.fetched = [], "", [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.fetched += [value for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_by_itself_and_says_the_same(recipe):
    path = recipe({"shuffle": False, "length": 512})
    found = shown(path, count=shown(path).sources[0].rows)
    page = Page()
    page.feed(html(found))
    assert not page.open and not page.fetched and "script" not in page.tags and page.tags.count("svg") == 2
    for stretch in (stretch for row in found.rows for stretch in row.stretches):
        assert stretch.title + "".join(piece.text for piece in stretch.pieces) in page.text
    assert "<script>alert('&')</script>" in page.text


def run(*arguments, **settings):
    command = [sys.executable, "-m", "data.show", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", **settings)


def test_the_command_prints_text_json_and_a_page(recipe, tmp_path):
    path = recipe()
    printed = run("--config", path, "--rows", "2", "--html", str(tmp_path / "page.html"))
    assert printed.returncode == 0 and printed.stdout == show.text(shown(path, count=2), False) + "\n"
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == html(shown(path, count=2))
    assert json.loads(run("--config", path, "--json").stdout)["objective"] == "causal"


def test_a_terminal_has_styles_and_no_brackets(recipe):
    path = recipe()
    run("--config", path)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "data.show", "--config", path, "--rows", "1"]
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    with subprocess.Popen(command, cwd=ROOT, stdout=theirs, env=environment):
        os.close(theirs)
        printed = b""
        try:
            while part := os.read(ours, 4096):
                printed += part
        except OSError:  # how the end of a terminal is told
            pass
    os.close(ours)
    text = printed.decode().replace("\r\n", "\n")
    assert show.LOSS in text and "⟦" not in text
    plain = show.text(shown(path, count=1), False)
    assert re.sub(r"\x1b\[[0-9;]*m", "", text) == plain.replace("⟦", "").replace("⟧", "") + "\n"


@pytest.mark.parametrize(
    "arguments, fault",
    [
        (["--rows", "0"], "--rows is 0, must be at least 1"),
        (["--step", "-1"], "--step is -1, must be at least 0"),
        (["--tokens", "x"], "invalid int value"),
        (["--html", "/missing/page.html"], "there is no directory /missing"),
        (["--config.data.lenght=3"], "data.length"),
        (["stray"], "'stray' is not an argument"),
    ],
)
def test_arguments_that_cannot_be_are_refused(recipe, arguments, fault, monkeypatch):
    with pytest.raises(ConfigError) as caught:
        show.main(["--config", recipe(), *arguments])
    assert fault in str(caught.value)


def test_predictions_of_questions_are_the_tokens_of_the_answers():
    row = {"start_positions": np.array([3, 0]), "end_positions": np.array([5, 0])}
    assert predictions(row) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--step", "9" * 30), "--step is 9+, must be at least 0 and at most"),
        (("--rows", "100000"), "--rows is 100000, must be at least 1 and at most 10,000"),
        (("--config.train.batch_size=0",), "train.batch_size is 0, must be at least 1"),
        (("--step", "3", "--config.train.batch_ramp.name=linear"), "--step is 3, but the batch of this recipe grows"),
    ],
)
def test_steps_and_rows_that_cannot_be_shown_are_refused(recipe, arguments, told):
    with pytest.raises(ConfigError, match=told):
        show.main(["--config", recipe(), *arguments])
