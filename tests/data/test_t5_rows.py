"""Files such as T5's: sentinels count down from the end of the ids, rows end with </s>, decoders begin with <pad>."""

import io

import numpy as np
import pytest
import sentencepiece

from data import store
from data.config import Data
from data.objective_config import SpanCorruptionObjective
from data.objectives import objective_rows
from data.store import Store
from data.tokenizer import build
from data.tokenizer_config import FileTokenizer
from tests.data.test_sentencepiece_file import DOCUMENTS

PIECES, SENTINELS = 420, 100


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> FileTokenizer:
    """As configs/t5.py has it, of a spiece.model with T5's ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in DOCUMENTS for line in text.splitlines()),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    path = tmp_path_factory.mktemp("t5") / "spiece.model"
    path.write_bytes(model.getvalue())
    return FileTokenizer(path=str(path), end_of_text="<pad>", stop="</s>", special_tokens=("<extra_id_{99..0}>",))


def test_sentinels_count_down_from_the_end_of_the_vocabulary(setting):
    made = build(setting, ())
    theirs = sentencepiece.SentencePieceProcessor(model_file=setting.path)
    assert made.vocab_size == theirs.vocab_size() + SENTINELS
    assert [made.id_of(f"<extra_id_{i}>") for i in range(SENTINELS)] == [
        made.vocab_size - 1 - i for i in range(SENTINELS)
    ]
    assert (made.end_of_text, made.stop, made.unknown) == (0, 1, 2)
    for text in DOCUMENTS[:3]:
        assert made.encode(text) == theirs.encode(text)
        assert made.decode(made.encode(text)) == theirs.decode(theirs.encode(text))


@pytest.mark.parametrize("length", (64, 128))
def test_rows_are_t5s(setting, length, tmp_path):
    """Inputs and targets as its helper counts them (64 -> 14, 128 -> 29), and the text again."""
    made = build(setting, ())
    store.write(tmp_path / "store", DOCUMENTS, made, about={})
    config = Data(tokenizer=setting, objective=SpanCorruptionObjective(), length=length)
    rows = objective_rows(config, Store(tmp_path / "store"), seed=0)
    batch = rows.rows(range(len(rows) - 1))
    assert batch["source_tokens"].shape[1] == length and batch["targets"].shape[1] == {64: 14, 128: 29}[length]
    clean = rows.inputs.rows(range(len(rows) - 1))["tokens"]
    first = made.vocab_size - SENTINELS
    for source, targets, read, text in zip(
        batch["source_tokens"].tolist(),
        batch["targets"].tolist(),
        batch["tokens"].tolist(),
        clean.tolist(),
        strict=True,
    ):
        assert source[-1] == targets[-1] == 1 and read == [0, *targets[:-1]]
        marks = [token for token in source if token >= first]
        assert marks == [token for token in targets if token >= first]
        assert marks == list(range(made.vocab_size - 1, made.vocab_size - 1 - len(marks), -1))
        spans = np.split(np.array(targets[:-1]), [place for place, token in enumerate(targets) if token >= first][1:])
        held = {span[0]: span[1:].tolist() for span in spans}
        assert sum((held[token] if token >= first else [token] for token in source[:-1]), []) == text
