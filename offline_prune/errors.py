"""Errors a user can mend; the command line prints them without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """What was found, what was expected, and the remedy, in the message."""


class InputError(UserError, ValueError):
    """A value or path the user gave cannot be used."""


class MissingDependencyError(UserError, RuntimeError):
    """The environment lacks a package; the message says how to install it."""
