"""The one exception that belongs to the command line."""

from __future__ import annotations


class UsageError(Exception):
    """Bad input of a user of the command line: shown as one line, without a traceback, and exit code 2."""
