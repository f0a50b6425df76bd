"""Errors and warnings that several parts of the package raise."""

from __future__ import annotations


class DifferentiationError(ValueError):
    """A node on the way to a gradient has none; the message names operator and source line."""


class FallbackWarning(UserWarning):
    """A part of the model runs in eager mode; the message says which and why."""


class DeviceError(RuntimeError):
    """A device, or what kernels for it need, is missing or too old; the message says what and the remedy."""


class OnnxError(ValueError):
    """An ONNX model, or a call of one, that is refused; the message names the file, node or tensor, and says what to do."""

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what}\n  {remedy}" if remedy else what)
