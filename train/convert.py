"""Published models in and out, in the Hugging Face layout (safetensors), and in from GGUF files of the llama kind.

python -m train.convert import --hf DIR_OR_FILE.gguf --workdir RUN [--config.a.b=value ...]
python -m train.convert export --run RUN --hf DIR
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from data.cli import Parser, run_command
from data.errors import ConfigError
from train.hub import runs
from train.hub.safetensors import DTYPES

SHARD_BYTES = 5_000_000_000


def import_command(arguments: Sequence[str]) -> None:
    parser = Parser("train.convert import", "A published model as a run directory.")
    parser.add_argument("--hf", type=Path, required=True, help="a directory with config.json and safetensors; a .gguf")
    parser.add_argument("--workdir", type=Path, required=True, help="the run's directory, which is made")
    parser.add_argument(
        "--initialise_missing_heads", action="store_true", help="make heads that the source lacks new, from train.seed"
    )
    known, overrides = parser.parse_known_args(arguments)
    say(runs.import_run(known.hf, known.workdir, overrides, known.initialise_missing_heads), known.workdir)


def export_command(arguments: Sequence[str]) -> None:
    parser = Parser("train.convert export", "A run's newest checkpoint in the Hugging Face layout.")
    parser.add_argument("--run", type=Path, required=True, help="the run's directory")
    parser.add_argument("--hf", type=Path, required=True, help="the directory to make")
    parser.add_argument("--family", help="a model_type (default: the first that expresses the model)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the tensors")
    parser.add_argument("--max_shard_bytes", type=int, default=SHARD_BYTES, help="of tensors a file")
    parser.add_argument("--length", type=int, help="longest context to claim, tokens (default: the run's data.length)")
    known = parser.parse_args(arguments)
    for name in ("max_shard_bytes", "length"):
        value = getattr(known, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}, must be at least 1.")
    jax.config.update("jax_platforms", "cpu")  # nothing is computed
    say(runs.export_run(known.run, known.hf, known.family, known.dtype, known.max_shard_bytes, known.length), known.hf)


COMMANDS = {"import": import_command, "export": export_command}


def main(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] not in COMMANDS:
        if arguments and arguments[0] in ("-h", "--help"):
            print(__doc__)
            return
        raise ConfigError(f"the first argument is {' '.join(arguments[:1]) or 'missing'}, must be import or export.")
    COMMANDS[arguments[0]](arguments[1:])


def say(lines: list[str], made: Path) -> None:
    for line in (*lines, f"made {made}"):
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
