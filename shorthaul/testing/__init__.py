"""Helpers for testing compilers of training: numerical agreement judged against float64, and sampling of suites."""

from shorthaul.testing.masks import masks
from shorthaul.testing.numerics import Agreement, Row, compare, pool
from shorthaul.testing.sampling import full, sample
from shorthaul.testing.training import Run, assert_trains_like_eager, judge_training, train_steps

__all__ = ["Agreement", "Row", "Run", "assert_trains_like_eager", "compare", "full", "judge_training", "masks", "pool", "sample",
           "train_steps"]  # fmt: skip
