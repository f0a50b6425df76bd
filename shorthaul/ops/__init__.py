"""Operators: the registry and one module per operator family. Importing this package registers them all."""

from . import elementwise  # noqa: F401
