"""Whole training steps as one program: see `step.TrainStep`."""

from __future__ import annotations

from .step import TrainStep

__all__ = ["TrainStep"]
