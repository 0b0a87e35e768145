"""Curates text by a recipe: `python -m data.curate --config FILE.py[:arg]`.

Reads a source, drops and mends documents stage by stage, and writes what is left as JSON lines that
`data.source.name=jsonl` reads, with a report of what fell and why. The same command again continues where it was
stopped or does nothing. Needs requirements-curate.txt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from data import source_config
from data.cli import Parser, run_command
from data.curation import packages
from data.curation.config import Curation, check, local_way
from data.errors import ConfigError
from data.settings import load


def main(arguments: Sequence[str]) -> None:
    """Curates, or with --dry_run only says in which steps; prints a summary as JSON."""
    parser = Parser("data.curate", __doc__)
    parser.add_argument("--config", required=True, metavar="FILE.py[:arg]", help="a recipe, or a JSON file")
    parser.add_argument("--dry_run", action="store_true", help="print the steps, for Slurm their scripts")
    known, overrides = parser.parse_known_args(arguments)
    try:
        config = load(known.config, overrides, Curation)
    except ConfigError as error:
        raise ConfigError(f"{error}{local_way(str(error))}") from error
    told = [(f"source.{key}", clash.replace("data.", "")) for key, clash in source_config.missing(config.source)]
    problems = check(config) + told
    if problems:
        raise ConfigError(" ".join(f"{key} {clash}." for key, clash in problems))
    packages.require(config)
    from data.curation import run  # takes a second to import

    if known.dry_run:
        for line in run.show(config):
            print(line)
    else:
        print(json.dumps(run.curate(config), ensure_ascii=False, indent=1))


if __name__ == "__main__":
    run_command(main)
