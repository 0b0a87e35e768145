"""The safetensors format: bytes written by hand are read, ours are what the format says, malformed ones are refused."""

import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import DataError
from train.hub import safetensors
from train.hub.safetensors import Writer

FLOATS = np.array([[1.5, -2.0, 3.25], [0.0, 5.0, -6.5]], np.float32)


def file_of(header: dict | bytes, data: bytes, padding: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * padding
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SOUND = file_of({"__metadata__": {"format": "pt"}, "a": entry("F32", [2, 3], 0, 24)}, FLOATS.tobytes())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_every_dtype_is_read(path):
    """Tensors one after another, at any byte: three bytes stand before the floats."""
    values = {
        "U8": np.array([1, 2, 255], np.uint8),
        "F32": FLOATS,
        "F16": FLOATS.astype(np.float16),
        "BF16": FLOATS.astype(jnp.bfloat16),
        "F64": FLOATS.astype(np.float64),
        "I64": np.array(-(2**40)),
        "BOOL": np.array([True, False]),
    }
    header, data = {}, b""
    for dtype, value in values.items():
        header[dtype] = entry(dtype, list(value.shape), len(data), len(data) + value.nbytes)
        data += value.tobytes()
    path.write_bytes(file_of(header, data, padding=5))
    found = safetensors.read(path)
    for dtype, value in values.items():
        assert found[dtype].shape == value.shape
        np.testing.assert_array_equal(found[dtype].take(*[slice(None)] * value.ndim), value)
        assert found[dtype].floating == (dtype[0] in "FB" and dtype != "BOOL")


def test_bfloat16_is_the_upper_half_of_float32(path):
    path.write_bytes(file_of({"a": entry("BF16", [2], 0, 4)}, bytes([0x80, 0x3F, 0x49, 0xC0])))
    np.testing.assert_array_equal(safetensors.read(path)["a"].take(slice(None)).astype(np.float32), [1.0, -3.140625])


def test_any_places_of_each_axis_are_read(path):
    path.write_bytes(SOUND)
    tensor = safetensors.read(path)["a"]
    for rows in (slice(0, 1), slice(None), np.array([1, 0]), np.array([1])):
        for columns in (slice(1, 3), np.array([2, 0, 2]), slice(0, 0)):
            np.testing.assert_array_equal(tensor.take(rows, columns), FLOATS[rows][:, columns])


def test_a_file_without_tensors(path):
    path.write_bytes(file_of({}, b""))
    assert safetensors.read(path) == {}


MALFORMED = {
    "empty": b"",
    "five bytes": b"\x01\0\0\0\0",
    "pickle": pickle.dumps({"a": 1}, protocol=2),
    "zip": b"PK\x03\x04" + bytes(60),
    "absurd header": (2**63).to_bytes(8, "little") + b"{}",
    "header behind the end": (50).to_bytes(8, "little") + b"{}",
    "no JSON": file_of(b"{'a': 1}", b""),
    "not UTF-8": file_of(b'{"\xff": 1}', b""),
    "deep JSON": file_of(b"[" * 100_000, b""),
    "a list": file_of(b"[]", b""),
    "a name twice": file_of(b'{"a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}, "a": {}}', b"1"),
    "unknown dtype": file_of({"a": entry("F1", [2], 0, 2)}, bytes(2)),
    "no offsets": file_of({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "three offsets": file_of({"a": {**entry("U8", [1], 0, 1), "data_offsets": [0, 1, 1]}}, bytes(1)),
    "an entry of text": file_of({"a": "F32"}, bytes(4)),
    "negative shape": file_of({"a": entry("F32", [-1], 0, 4)}, bytes(4)),
    "fractional offset": file_of({"a": entry("U8", [1], 0, 1.0)}, bytes(1)),
    "true as a size": file_of({"a": entry("U8", [True], 0, 1)}, bytes(1)),
    "too few bytes for its shape": file_of({"a": entry("F32", [2], 0, 7)}, bytes(7)),
    "ends before it begins": file_of({"a": entry("U8", [1], 1, 0)}, bytes(1)),
    "overlap": file_of({"a": entry("U8", [3], 0, 3), "b": entry("U8", [3], 2, 5)}, bytes(5)),
    "the same bytes": file_of({"a": entry("U8", [3], 0, 3), "b": entry("U8", [3], 0, 3)}, bytes(3)),
    "a gap": file_of({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, bytes(3)),
    "bytes behind": SOUND + b"x",
    "cut short": SOUND[:-1],
    "out of range": file_of({"a": entry("U8", [1], 2**70, 2**70 + 1)}, bytes(1)),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused(case, path):
    path.write_bytes(MALFORMED[case])
    with pytest.raises(DataError, match="not a sound safetensors file: ") as error:
        safetensors.read(path)
    assert str(path) in str(error.value)


def test_every_cut_of_a_sound_file_is_refused(path):
    for length in range(len(SOUND)):
        path.write_bytes(SOUND[:length])
        with pytest.raises(DataError):
            safetensors.read(path)


def test_a_missing_file_is_told(path):
    with pytest.raises(DataError, match="No such file"):
        safetensors.read(path)


def written(directory, most: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {f"t{i}": generator.standard_normal((i + 1, 3)).astype(np.float32) for i in range(5)}
    writer = Writer(directory, {name: array.shape for name, array in arrays.items()}, dtype, most)
    writer.write(iter(arrays.items()))
    return arrays


@pytest.mark.parametrize(("most", "files"), [(10**9, 1), (80, 3), (1, 5)])
def test_what_is_written_in_shards_is_read_back(most, files, tmp_path):
    arrays = written(tmp_path, most)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / safetensors.INDEX).exists() == (files > 1)
    found = safetensors.read_directory(tmp_path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].take(slice(None), slice(None)), array)


def test_a_written_file_is_what_the_format_says(path):
    writer = Writer(path.parent, {"a": (2, 3)}, "float32", 10**9)
    writer.write(iter([("a", FLOATS)]))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert header == {"__metadata__": {"format": "pt"}, "a": entry("F32", [2, 3], 0, 24)}
    assert content[8 + length :] == FLOATS.tobytes()


def test_numbers_are_rounded_to_the_dtype_asked_for(tmp_path):
    arrays = written(tmp_path, 10**9, "bfloat16")
    found = safetensors.read_directory(tmp_path)["t3"].take(slice(None), slice(None))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, arrays["t3"].astype(jnp.bfloat16))


def test_a_number_too_large_for_the_dtype_is_refused(tmp_path):
    writer = Writer(tmp_path, {"big": (1,)}, "float16", 10**9)
    with pytest.raises(DataError, match="big.*1e\\+05.*float16"):
        writer.write(iter([("big", np.array([1e5], np.float32))]))


OUTSIDE = ["../other.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "x.bin", 3]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_files_beside_it(name, tmp_path):
    (tmp_path / safetensors.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(DataError, match="same directory"):
        safetensors.read_directory(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a"'])
def test_an_index_that_is_none_is_refused(text, tmp_path):
    (tmp_path / safetensors.INDEX).write_text(text)
    with pytest.raises(DataError, match="weight_map"):
        safetensors.read_directory(tmp_path)


def test_an_index_and_its_files_must_agree(tmp_path):
    written(tmp_path, 80)
    index = json.loads((tmp_path / safetensors.INDEX).read_text())
    moved = {**index["weight_map"], "t0": index["weight_map"]["t4"]}
    (tmp_path / safetensors.INDEX).write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(DataError, match="t0"):
        safetensors.read_directory(tmp_path)
    del index["weight_map"]["t1"]
    (tmp_path / safetensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match="does not say where t1"):
        safetensors.read_directory(tmp_path)
