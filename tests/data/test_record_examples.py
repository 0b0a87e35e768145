"""Golden examples of the objectives that read records: what stands in every key of their batches."""

import json

import pytest

from data.config import Data
from data.objective_config import QaObjective, Seq2SeqObjective, SupervisedObjective
from data.objectives import batch_spec, objective_rows
from data.prepare import prepare
from data.source_config import JsonlSource
from data.tokenizer_config import ByteTokenizer, WordPieceTokenizer

BYTES = ByteTokenizer(special_tokens=("<|im_start|>", "<|im_end|>"))
WORDPIECE = WordPieceTokenizer(vocab_size=300, max_characters=100)
EXAMPLES = {
    "supervised": (SupervisedObjective(), BYTES, 20),
    "supervised_chat": (SupervisedObjective(format="chat"), BYTES, 72),
    "seq2seq": (Seq2SeqObjective(source="prompt", target="answer", target_length=8), BYTES, 10),
    "qa": (QaObjective(stride=3, max_question=4), WORDPIECE, 14),
}
RECORDS = [
    {
        **{"prompt": "1+1=", "answer": "2", "id": "a", "question": "who said it ?"},
        **{"context": "it was ann , and no one else , who said it", "answers": {"text": ["ann"], "answer_start": [7]}},
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}],
    },
    {
        **{"prompt": "one and one? ", "answer": "two", "id": "b", "question": "where ?"},
        **{"context": "nobody knows", "answers": {"text": [], "answer_start": []}},
        "messages": [
            {"role": "system", "content": "!"},
            *[{"role": role, "content": "é"} for role in ("user", "assistant")],
        ],
    },
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_the_golden_ones(tmp_path, golden, name):
    objective, tokenizer, length = EXAMPLES[name]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    source = JsonlSource(paths=(str(path),), validation_fraction=0.0)
    settings = {"source": source, "tokenizer": tokenizer, "objective": objective, "length": length}
    config = Data(**settings, packing="best_fit", cache_dir=str(tmp_path / "cache"))
    store = prepare(config).train
    rows, text = objective_rows(config, store, seed=13), ""
    for index in range(min(len(rows), 4)):
        text += f"row {index}\n"
        batch = rows.rows([index])
        for key in batch_spec(config):
            values = batch[key][0].ravel().tolist()
            if key in ("tokens", "targets", "source_tokens"):
                values = [store.tokenizer.name_of(value) for value in values]
            text += f"  {key:<20}{' '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)}\n"
    golden(f"objective_{name}.txt", text)
