"""What every test stands on: eight simulated CPU devices, the same bits every time, and golden files."""

import os
import shutil
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# XLA's reductions through YNNPACK race (jax#39741): without them, equal inputs give equal bits.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_experimental_ynn_fusion_type=".strip()
os.environ["TOKENIZERS_PARALLELISM"] = "true"
# One compilation of equal programs in a session, processes started by tests included; gone when it ends.
COMPILED = tempfile.mkdtemp(prefix="plumbline-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax  # noqa: E402  JAX reads the variables above as it is imported
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption("--update-goldens", action="store_true", help="write golden files instead of comparing")


def pytest_unconfigure():
    shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture
def golden(request):
    """`golden(name, text)` asserts that `text` is what `golden/<name>` beside the test holds."""

    def check(name: str, text: str):
        path = Path(request.path).parent / "golden" / name
        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing; `make goldens` writes it"
        assert text == path.read_text(encoding="utf-8"), f"{path} differs; if it should, `make goldens` rewrites it"

    return check
