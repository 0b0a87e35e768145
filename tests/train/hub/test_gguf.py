"""GGUF files: numbers in blocks by their formulas, the llama architecture, and files that lie about themselves."""

import json
import struct

import numpy as np
import pytest
import tokenizers

from data.errors import DataError
from data.tokenizer import Tokenizer
from tests.train.hub.gguf_files import F16, F32, Q4_0, Q4_1, Q8_0, f32, gguf, q8_0, text, typed
from train.hub import gguf as reader
from train.hub.gguf_llama import PermutedRows, config_of, interleaved, tensors_of, tokenizer_of
from train.hub.tokenizer_files import first_special

generator = np.random.default_rng(0)


def read(tmp_path, content: bytes):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return reader.read(path)


def by_hand(code: int, block: bytes) -> list[float]:
    """One block of 32 numbers, byte by byte."""
    scale = np.frombuffer(block[:2], "<f2")[0].astype(float)
    if code == Q8_0:
        return [scale * (byte - 256 if byte > 127 else byte) for byte in block[2:]]
    low = [byte % 16 for byte in block[-16:]]
    high = [byte // 16 for byte in block[-16:]]
    if code == Q4_0:
        return [scale * (number - 8) for number in low + high]
    least = np.frombuffer(block[2:4], "<f2")[0].astype(float)
    return [scale * number + least for number in low + high]


@pytest.mark.parametrize(("code", "size"), [(Q4_0, 18), (Q4_1, 20), (Q8_0, 34)])
def test_blocks_are_numbers_by_their_formula(code, size, tmp_path):
    rows, blocks = 5, 3
    scales = np.linspace(-1, 1, 2 * rows * blocks).astype("<f2").reshape(rows * blocks, 2)
    data = b""
    for pair in scales:
        head = pair[: 2 if code == Q4_1 else 1].tobytes()
        data += head + generator.integers(0, 256, size - len(head), np.uint8).tobytes()
    expected = np.array([by_hand(code, data[i : i + size]) for i in range(0, len(data), size)]).reshape(rows, -1)
    tensor = read(tmp_path, gguf({}, {"t": ((rows, 32 * blocks), code, data)})).tensors["t"]
    assert tensor.shape == (rows, 96)
    np.testing.assert_allclose(tensor.take(slice(None), slice(None)), expected, rtol=1e-6, atol=1e-7)
    chosen, columns = np.array([4, 0, 2]), np.array([95, 3, 40])
    np.testing.assert_allclose(tensor.take(chosen, columns), expected[chosen][:, columns], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(tensor.take(slice(1, 3), slice(33, 60)), expected[1:3, 33:60], rtol=1e-6, atol=1e-7)


def test_only_the_rows_and_blocks_asked_for_are_decoded(tmp_path, monkeypatch):
    array = generator.standard_normal((64, 128)).astype(np.float32)
    tensor = read(tmp_path, gguf({}, {"t": q8_0(array)})).tensors["t"]
    decoded = []
    kind = tensor.kind
    tensor.kind = kind._replace(decode=lambda blocks: decoded.append(blocks.shape) or kind.decode(blocks))
    monkeypatch.setattr("train.hub.quants.ELEMENTS", 256)
    tensor.take(slice(10, 30), slice(32, 96))
    assert {shape[1] for shape in decoded} == {2} and sum(shape[0] for shape in decoded) == 20
    assert max(rows * blocks * 32 for rows, blocks in decoded) <= 256


def test_plain_numbers_and_vectors(tmp_path):
    halves = np.arange(6, dtype="<f2").reshape(2, 3)
    found = read(tmp_path, gguf({}, {"a": f32(halves), "b": ((2, 3), F16, halves.tobytes()), "c": q8_0(np.ones(32))}))
    np.testing.assert_array_equal(found.tensors["a"].take(slice(None), slice(None)), halves)
    np.testing.assert_array_equal(found.tensors["b"].take(slice(None), slice(1, 3)), halves[:, 1:])
    np.testing.assert_allclose(found.tensors["c"].take(slice(None)), np.ones(32), rtol=1e-3)


def test_metadata_of_every_kind(tmp_path):
    metadata = {"text": "ä", "count": 7, "rate": 0.5, "flag": True, "words": ["a", "b b"], "kinds": [3, -1]}
    found = read(tmp_path, gguf(metadata, {}, version=2)).metadata
    np.testing.assert_array_equal(found.pop("kinds"), [3, -1])
    assert found == {key: value for key, value in metadata.items() if key != "kinds"}


SOUND = gguf({"general.architecture": "llama", "words": ["a", "b"], "n": [1, 2]}, {"t": f32(np.ones((2, 32)))})
HEAD = b"GGUF" + struct.pack("<I", 3)
ONE = struct.pack("<QQ", 0, 1)


def tensor_at(offset: int, shape=(2, 32), code: int = F32, data: int = 256) -> bytes:
    head = HEAD + struct.pack("<QQ", 1, 0) + text("t")
    head += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], code, offset)
    return head + bytes(-len(head) % 32) + bytes(data)


def two(first: int, second: int) -> bytes:
    head = HEAD + struct.pack("<QQ", 2, 0)
    for name, offset in (("a", first), ("b", second)):
        head += text(name) + struct.pack("<IQIQ", 1, 16, F32, offset)
    return head + bytes(-len(head) % 32) + bytes(128)


MALFORMED = {
    "empty": (b"", "GGUF"),
    "another format": (b"PK\x03\x04" + bytes(100), "GGUF"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
    "absurd count of tensors": (HEAD + struct.pack("<QQ", 2**60, 0), "tensors would take"),
    "absurd count of entries": (HEAD + struct.pack("<QQ", 0, 2**60), "metadata would take"),
    "absurd key": (HEAD + ONE + struct.pack("<Q", 2**62) + bytes(20), "would take"),
    "absurd text": (HEAD + ONE + text("k") + struct.pack("<IQ", 8, 2**62), "would take"),
    "absurd array of text": (HEAD + ONE + text("k") + struct.pack("<IIQ", 9, 8, 2**59), "would take"),
    "absurd array of numbers": (HEAD + ONE + text("k") + struct.pack("<IIQ", 9, 4, 2**61), "would take"),
    "an array of arrays": (HEAD + ONE + text("k") + struct.pack("<IIQ", 9, 9, 2), "array of type 9"),
    "a type that is none": (HEAD + ONE + text("k") + struct.pack("<II", 77, 0), "type 77"),
    "a key that is not text": (HEAD + ONE + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(20), "not UTF-8"),
    "a key twice": (HEAD + struct.pack("<QQ", 0, 2) + 2 * (text("k") + typed(1)), "twice"),
    "no axes": (tensor_at(0, ()), "0 axes"),
    "absurd axes": (HEAD + struct.pack("<QQ", 1, 0) + text("t") + struct.pack("<I", 2**31) + bytes(40), "axes"),
    "a size of nothing": (tensor_at(0, (2**62, 0)), "holds nothing"),
    "absurd sizes": (tensor_at(0, (2**62, 2**62)), "cut short"),
    "a type that is not read": (tensor_at(0, code=12), "type 12"),
    "a row of half blocks": (tensor_at(0, (2, 48), Q8_0), "whole blocks"),
    "not aligned": (tensor_at(8), "no multiple of 32"),
    "behind the end": (tensor_at(2**40), "cut short"),
    "cut short": (tensor_at(0, data=255), "cut short"),
    "overlap": (two(0, 32), "inside a"),
    "the same place": (two(0, 0), "inside"),
    "alignment of nothing": (gguf({"general.alignment": 0}, {}), "general.alignment"),
    "alignment of text": (gguf({"general.alignment": "32"}, {}), "general.alignment"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused(case, tmp_path):
    content, said = MALFORMED[case]
    with pytest.raises(DataError, match=said) as error:
        read(tmp_path, content)
    assert "model.gguf" in str(error.value)


def test_every_cut_of_a_sound_file_is_refused(tmp_path):
    for length in (*range(0, len(SOUND), 5), len(SOUND) - 1):
        with pytest.raises(DataError):
            read(tmp_path, SOUND[:length])


LLAMA = {
    "general.architecture": "llama",
    "llama.embedding_length": 16,
    "llama.block_count": 2,
    "llama.feed_forward_length": 24,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 50.0,
    "llama.context_length": 64,
}
EMBEDDING = {"token_embd.weight": f32(generator.standard_normal((40, 16)))}


def test_metadata_is_a_config_json(tmp_path):
    config = config_of(read(tmp_path, gguf(LLAMA, EMBEDDING)), tmp_path)
    assert config["vocab_size"] == 40 and config["tie_word_embeddings"] and config["head_dim"] == 4
    assert config["rms_norm_eps"] == 1e-5  # what a float32 of it is called, not 9.99999974e-06


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general.architecture": "mamba"}, "mamba"),
        ({"llama.embedding_length": "wide"}, "embedding_length"),
        ({"llama.attention.head_count": 0}, "head_count"),
        ({"llama.rope.dimension_count": 2}, "part of each head"),
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.rope.scaling.type": "linear"}, "linear"),
    ],
)
def test_metadata_that_is_not_implemented_is_named(changes, said, tmp_path):
    with pytest.raises(DataError, match=said):
        config_of(read(tmp_path, gguf({**LLAMA, **changes}, EMBEDDING)), tmp_path)


def test_a_size_that_is_missing_is_named(tmp_path):
    lacking = {key: value for key, value in LLAMA.items() if key != "llama.block_count"}
    with pytest.raises(DataError, match="block_count"):
        config_of(read(tmp_path, gguf(lacking, EMBEDDING)), tmp_path)


def test_rows_of_queries_and_keys_are_put_back():
    """Hugging Face's rows `[heads, 2, half]` are stored as `[heads, half, 2]`."""
    heads, width, inputs = 3, 6, 4
    theirs = generator.standard_normal((heads * width, inputs))
    stored = theirs.reshape(heads, 2, width // 2, inputs).swapaxes(1, 2).reshape(-1, inputs)

    class Stored:
        shape, floating = stored.shape, True

        def take(self, rows, columns):
            return stored[rows][:, columns]

    found = PermutedRows(Stored(), interleaved(heads, width))
    np.testing.assert_array_equal(found.take(slice(None), slice(None)), theirs)
    np.testing.assert_array_equal(found.take(slice(6, 12), slice(1, 3)), theirs[6:12, 1:3])


def test_a_tensor_without_a_name_of_ours_keeps_its_own(tmp_path):
    found = read(
        tmp_path, gguf(LLAMA, {**EMBEDDING, "rope_freqs.weight": f32(np.ones(2)), "blk.0.odd.weight": f32(np.ones(2))})
    )
    names = set(tensors_of(found, config_of(found, tmp_path)))
    assert names == {"model.embed_tokens.weight", "rope_freqs.weight", "blk.0.odd.weight"}


ALPHABET = ["<|endoftext|>", "<|im_end|>", "a", "b", "1", "2", "Ġ", "ab", "Ġab", "12"]
WORDS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ALPHABET,
    "tokenizer.ggml.merges": ["a b", "Ġ ab", "1 2"],
    "tokenizer.ggml.token_type": [3, 3, *[1] * 8],
}


def test_the_tokenizer_merges_words_and_leaves_digits_single(tmp_path):
    content, why = tokenizer_of(read(tmp_path, gguf({**LLAMA, **WORDS}, EMBEDDING)), tmp_path)
    assert why is None
    found = Tokenizer(content, "<|endoftext|>")
    assert found.encode("ab ab12") == [7, 8, 4, 5]
    assert found.decode([7, 8, 4, 5, 1]) == "ab ab12"
    other = gguf({**LLAMA, **WORDS, "tokenizer.ggml.pre": "gpt-2"}, EMBEDDING)
    joined, _ = tokenizer_of(read(tmp_path, other), tmp_path)
    assert Tokenizer(joined, "<|endoftext|>").encode("ab ab12") == [7, 8, 9]


def test_control_tokens_are_special(tmp_path):
    content, _ = tokenizer_of(read(tmp_path, gguf({**LLAMA, **WORDS}, EMBEDDING)), tmp_path)
    assert [(entry["content"], entry["special"]) for entry in content["added_tokens"]] == [
        ("<|endoftext|>", True),
        ("<|im_end|>", True),
    ]
    json.dumps(content)


def test_a_beginning_of_text_that_the_file_asks_for_is_put_before_texts(tmp_path):
    asked = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 1}
    content, _ = tokenizer_of(read(tmp_path, gguf({**LLAMA, **WORDS, **asked}, EMBEDDING)), tmp_path)
    assert tokenizers.Tokenizer.from_str(json.dumps(content)).encode("ab").ids == [1, 7]
    assert first_special(content["post_processor"]) == "<|im_end|>"


@pytest.mark.parametrize("changes", [{"tokenizer.ggml.model": "llama"}, {"tokenizer.ggml.pre": "default"}])
def test_a_tokenizer_that_is_not_read_is_told(changes, tmp_path):
    content, why = tokenizer_of(read(tmp_path, gguf({**LLAMA, **WORDS, **changes}, EMBEDDING)), tmp_path)
    assert content is None and next(iter(changes.values())) in why


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer.ggml.merges": ["a b c"]},
        {"tokenizer.ggml.merges": ["a z"]},
        {"tokenizer.ggml.tokens": [*ALPHABET[:-1], "a"]},
        {"tokenizer.ggml.token_type": [1, 2]},
        {"tokenizer.ggml.tokens": "a b"},
    ],
)
def test_a_tokenizer_whose_parts_do_not_fit_is_refused(changes, tmp_path):
    with pytest.raises(DataError, match="model.gguf|hub"):
        path = tmp_path / "model.gguf"
        tokenizer_of(read(tmp_path, gguf({**LLAMA, **WORDS, **changes}, EMBEDDING)), path)
