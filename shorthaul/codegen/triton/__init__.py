"""Triton kernels from scheduled maps.

`plan` chooses axes and blocks from the memlets, `emit` writes the kernel's source, `launch` compiles and runs it.

    kernel = emit_kernel(m, containers)
    print(kernel.source)
    launch(kernel, {"x": x, "y": y}, {"N": 8})
"""

from .kernel import TritonKernel, emit_kernel
from .launch import launch
from .plan import NotSchedulable

__all__ = ["NotSchedulable", "TritonKernel", "emit_kernel", "launch"]
