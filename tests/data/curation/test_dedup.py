"""Planted duplicates: all exact ones fall, near ones as the formula of MinHash says, nothing else does."""

import numpy as np
import pytest

pytest.importorskip("datatrove", reason="needs requirements-curate.txt")

from data.curation import dedup
from data.curation.config import ExactDedup, MinHash
from data.curation.run import curate

PLANTED = 250


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = text.lower().replace(".", "").split()
    return {tuple(words[start : start + n]) for start in range(len(words) - n + 1)}


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def edited(text, document: str, edits: int) -> str:
    """A document with words replaced at random places."""
    words = document.split(" ")
    for place in text.draw.sample(range(len(words)), edits):
        words[place] = text.draw.choice(text.invented)
    return " ".join(words)


def test_exact_copies_fall_and_the_first_stays(recipe, write, left, report, text):
    first = [text.document() for _ in range(PLANTED)]
    copies = [document.replace(" ", "  ").upper() if index % 2 else document for index, document in enumerate(first)]
    text.draw.shuffle(copies)
    write("in0.jsonl", first[: PLANTED // 2])
    write("in1.jsonl", first[PLANTED // 2 :] + copies[:30])
    write("in2.jsonl", copies[30:])
    curate(recipe(ExactDedup()))
    assert [record["text"] for record in left()] == first  # recall and precision 1
    assert report()["exact_dedup"]["dropped"] == {"copy": PLANTED}


def test_without_normalizing_only_the_same_bytes_are_copies(recipe, write, left):
    write("in0.jsonl", ["Some text.", "some text.", "Some text.", "Some  text.", "\uff33ome text."])
    curate(recipe(ExactDedup(normalize=False)))
    assert [record["text"] for record in left()] == ["Some text.", "some text.", "Some  text.", "\uff33ome text."]


def test_normalizing_knows_case_space_and_width(recipe, write, left):
    write("in0.jsonl", ["Some text.", "some\n text. ", "\uff33ome text.", "Some text"])
    curate(recipe(ExactDedup()))
    assert [record["text"] for record in left()] == ["Some text.", "Some text"]


def test_near_copies_fall_as_the_formula_says(recipe, write, left, report, text):
    """Recall above the similarity of 0.8 at least 0.95, and near its prediction; precision 1 among unrelated ones."""
    stage, originals, near = MinHash(), [], []
    for index in range(PLANTED):
        original = text.document(sentences=30)
        originals.append(original)
        near.append(edited(text, original, edits=1 + index % 8))
    unrelated = [text.document(sentences=30) for _ in range(PLANTED)]
    write("in0.jsonl", originals + unrelated)
    write("in1.jsonl", near)
    curate(recipe(stage))
    kept = {record["text"] for record in left()}
    assert kept.issuperset(originals) and kept.issuperset(unrelated)  # precision: none but a near copy falls
    similar = [(jaccard(one, other), other not in kept) for one, other in zip(originals, near, strict=True)]
    above = [(similarity, found) for similarity, found in similar if similarity >= 0.8]
    predicted = np.mean([1 - (1 - similarity**stage.hashes) ** stage.buckets for similarity, _ in above])
    recall = np.mean([found for _, found in above])
    print(f"{len(above)} pairs above 0.8: recall {recall:.4f}, predicted {predicted:.4f}")
    assert len(above) > PLANTED / 2 and recall >= 0.95
    assert abs(recall - predicted) < 3 * np.sqrt(predicted * (1 - predicted) / len(above)) + 0.005
    assert report()["minhash"]["dropped"]["near_copy"] == sum(found for _, found in similar)


def test_of_a_chain_of_near_copies_the_first_stays(recipe, write, left, text):
    """Joined by pairs: the first and last of a chain may share little."""
    chain = [text.document(sentences=30)]
    for _ in range(6):
        chain.append(edited(text, chain[-1], edits=3))
    write("in0.jsonl", ["Something else entirely, " + text.document(), *chain[:3]])
    write("in1.jsonl", [*chain[3:], text.document()])
    curate(recipe(MinHash(hashes=2, buckets=10)))
    kept = [record["text"] for record in left()]
    assert chain[0] in kept and not set(chain[1:]) & set(kept) and len(kept) == 3


def test_chinese_near_copies_are_found(recipe, write, left):
    sentence = "数据引擎从任意文本生成可复现的训练样本，每一步都有测试证明。"
    document = "".join(f"{sentence}第{index}段讨论不同的主题。" for index in range(20))
    write("in0.jsonl", [document, document.replace("第7段", "第七段"), "完全不同的一篇文章，讲的是天气和旅行。" * 3])
    curate(recipe(MinHash()))
    assert [record["text"][:2] for record in left()] == ["数据", "完全"]


def test_a_task_without_documents_is_no_trouble(recipe, write, left, text):
    """All of its documents fell before."""
    document = text.document()
    write("in0.jsonl", [document, text.document()])
    write("in1.jsonl", [document])
    curate(recipe(ExactDedup(), MinHash()))
    assert len(left()) == 2


def test_signatures_are_those_of_datatrove(text, tmp_path):
    """Of a document of many n-grams too, whose hashes are not held at once."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

    ours = dedup.Signatures(str(tmp_path), MinHash())
    for count in (1, dedup.ROWS, 2 * dedup.ROWS + 17):
        shingles = np.random.default_rng(count).integers(0, 2**64, (count, 1), dtype=np.uint64)
        assert ours.get_signature(shingles) == MinhashDedupSignature.get_signature(ours, shingles)


@pytest.mark.parametrize("seed", range(5))
def test_first_of_equal_rows(seed):
    rows = np.random.default_rng(seed).integers(0, 4, (50, 2), dtype=np.uint64)
    first = {tuple(row): index for index, row in reversed(list(enumerate(rows.tolist())))}
    assert dedup.first_of_equal(rows).tolist() == [first[tuple(row)] for row in rows.tolist()]
    assert dedup.first_of_equal(rows[:0]).tolist() == []
