"""Reverse-mode differentiation of programs."""

from .reverse import DifferentiationError, differentiate

__all__ = ["DifferentiationError", "differentiate"]
