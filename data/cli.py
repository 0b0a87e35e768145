"""How a command ends: expected failures as one paragraph and an exit code, bugs with their traceback."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NoReturn

from data.errors import ConfigError, StorageError, UserError

STORAGE_ERRNOS = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOTDIR}
INTERRUPTED = 128 + 2  # as shells report SIGINT
BROKEN_PIPE = 128 + 13  # as shells report SIGPIPE


class Parser(argparse.ArgumentParser):
    """The arguments of a command, in full only; what is wrong with them is a ConfigError."""

    def __init__(self, command: str, description: str | None):
        super().__init__(prog=f"python -m {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; `{self.prog} --help` says what this command takes")


def storage_error(error: OSError) -> StorageError | None:
    """The paragraph for a disk that is full, read-only, forbidden or gone; None for any other error."""
    if error.errno not in STORAGE_ERRNOS:
        return None
    where = " to ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return StorageError(
        f"{where or 'a file'} cannot be written or read: {error.strerror}; free space or give permission "
        "there, or choose other directories with --workdir and --config.data.cache_dir, then run it again"
    )


def print_error(error: UserError) -> None:
    """Write `error` to standard error as one paragraph, wrapped where standard error is a terminal."""
    text = " ".join(f"error: {error}".split())
    if sys.stderr.isatty():
        width = os.get_terminal_size(sys.stderr.fileno()).columns
        text = textwrap.fill(text, max(width, 40), break_long_words=False, break_on_hyphens=False)
    print(text, file=sys.stderr, flush=True)


def exit_code(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> int:
    """Run `main` on its arguments; the exit code of the command. Only bugs are raised."""
    try:
        code = main(arguments) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left; say nothing, now or when Python flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        found = storage_error(error)
        if found is None:
            raise
        print_error(found)
        return found.exit_code


def run_command(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """End the process with what `main(arguments of the command line)` comes to."""
    sys.exit(exit_code(main, sys.argv[1:]))
