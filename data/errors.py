"""The errors a user can mend, each with the exit code that its command ends with.

The text is one paragraph: what, where, which value, what to do. Anything else that is raised is a bug
and keeps its traceback.
"""


class UserError(Exception):
    """Base of the errors that end a command with a paragraph instead of a traceback."""

    exit_code = 1


class ConfigError(UserError):
    """A configuration, or a use of a command, that cannot be."""

    exit_code = 2


class DataError(UserError):
    """Text, a tokenizer or a token store that cannot be used; a loader that died."""

    exit_code = 3


class StorageError(UserError):
    """A disk that is full, read-only or gone."""

    exit_code = 6


class HungError(UserError):
    """Something that did not answer within its time limit."""

    exit_code = 124
