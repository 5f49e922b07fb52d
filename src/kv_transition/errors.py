"""Errors that are the user's to mend: one line that names the file, key or row and says what to do."""


class UserError(Exception):
    """A mistake in the input. Shown as one line, without a traceback."""


class ConfigError(UserError):
    """A mistake in the configuration. The message names the key."""
