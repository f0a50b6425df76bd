"""Warm start without tracing: what a captured call depended on, kept beside its compiled program.

A module whose call became one compiled graph leaves a *capture record*. Another process that finds the same live state (the module tree,
the code that a trace would read, the arguments, PyTorch's settings) runs the compiled program at once, without Dynamo. See
docs/architecture.md for why that is sound.
"""
