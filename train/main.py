"""Train or resume: `python -m train.main --config FILE.py[:arg] [--workdir DIR] [--config.a.b=value ...]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.cli import Parser, run_command
from data.schema import config_hash
from train.checks import load
from train.config import Config
from train.runtime import prepare_runtime


def main(arguments: Sequence[str]) -> None:
    parser = Parser("train.main", __doc__)
    parser.add_argument("--config", required=True, metavar="FILE.py[:arg]", help="a recipe, or a run's config.json")
    parser.add_argument("--workdir", type=Path, help="the run's directory; default runs/<recipe>-<config hash>")
    parser.add_argument("--dry_run", action="store_true", help="print sizes, FLOPs, memory, batch and mesh; exit")
    known, overrides = parser.parse_known_args(arguments)
    config = load(known.config, overrides)
    prepare_runtime(config)

    from train import dry_run, loop  # JAX reads its flags when it is first imported

    if known.dry_run:
        print(dry_run.describe(config))
        return
    loop.train(config, known.workdir or default_workdir(known.config, config))


def default_workdir(spec: str, config: Config) -> Path:
    """`runs/<recipe>-<config hash>`."""
    file, _, argument = spec.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(file).stem, argument, config_hash(config))))


if __name__ == "__main__":
    run_command(main)
