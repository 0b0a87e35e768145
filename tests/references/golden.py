"""Golden files: a tiny model as transformers saves it, rows, and what transformers computes of them.

`make goldens-references` writes them; reading needs no PyTorch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

DIRECTORY = Path(__file__).parent / "golden"
ROWS, OUTPUT = "rows/", "outputs/"  # what the names in the file of arrays begin with


def directory(name: str) -> Path:
    """The model of a case, in Hugging Face layout."""
    return DIRECTORY / name


def write(name: str, reference, saving: dict, batch: dict, outputs: dict) -> None:
    path = directory(name)
    path.mkdir(parents=True, exist_ok=True)
    reference.save_pretrained(path, **saving)
    (path / "generation_config.json").unlink(missing_ok=True)
    named = {f"{ROWS}{key}": value for key, value in batch.items()}
    named |= {f"{OUTPUT}{key}": padded_with_zeros(value, batch) for key, value in outputs.items()}
    np.savez_compressed(path / "expected.npz", **named)


def read(name: str) -> tuple[dict, dict]:
    """(rows, expected outputs), arrays by name."""
    with np.load(directory(name) / "expected.npz") as held:
        return tuple(
            {key.removeprefix(kind): held[key] for key in held.files if key.startswith(kind)} for kind in (ROWS, OUTPUT)
        )


def padded_with_zeros(value: np.ndarray, batch: dict) -> np.ndarray:
    return value * (batch["segment_ids"] > 0)[..., None] if value.ndim == 3 else value


def real(outputs: dict, batch: dict) -> dict:
    """Outputs of rows, and those of tokens that are no padding."""
    return {
        name: np.asarray(value)[batch["segment_ids"] > 0] if value.ndim == 3 else np.asarray(value)
        for name, value in outputs.items()
    }
