"""The packages that a curation needs beside a run's, asked for before anything is written."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util

from data.curation.config import Curation, Extract, Language
from data.errors import ConfigError

ENGINE = ("datatrove", "xxhash", "regex")  # in import names, which are also those of the packages
STAGES = {Extract: ("trafilatura",), Language: ("py3langid",)}


def needed(config: Curation) -> tuple[str, ...]:
    return (*ENGINE, *(name for stage in config.stages for name in STAGES.get(type(stage), ())))


def require(config: Curation):
    """Raises ConfigError naming the packages that are missing and how to install them."""
    missing = [name for name in needed(config) if importlib.util.find_spec(name) is None]
    if not missing and "trafilatura" in needed(config):
        missing = _missing_parts()
    if missing:
        raise ConfigError(
            f"Curation needs {', '.join(missing)}, which this environment lacks: pip install -r "
            "requirements-curate.txt."
        )


def _missing_parts() -> list[str]:
    """What trafilatura imports and does not find; it would be missed in the processes that extract, page by page."""
    try:
        importlib.import_module("trafilatura")
    except ImportError as error:
        return [f"trafilatura with all it needs ({' '.join(str(error).split())})"]
    return []


def versions(config: Curation) -> dict[str, str]:
    """The versions of the packages on which the output of `config` depends."""
    return {name: importlib.metadata.version(name) for name in sorted(set(needed(config)))}
