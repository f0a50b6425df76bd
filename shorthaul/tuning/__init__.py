"""Tuning: searching over the choices of the pipeline, measuring candidates on the device at hand, and remembering what was found.

    session   one run: predicts, measures in turns with the best so far, keeps to the budget, remembers
    space     the moves: parameters, expansions, values that are not fused or not recomputed, schedules of kernels
    search    strategies: which choices are measured, in which order; greedy by predicted time is the default
    measure   medians in turns, outliers set aside
    database  SQLite: region fingerprint, machine and versions → what choices made of it
    result    the table, the plot, the recipe

Nothing here knows PyTorch: a `Subject` lowers choices to a program and makes programs and kernels callable (`shorthaul.tuner`).
"""

from __future__ import annotations
