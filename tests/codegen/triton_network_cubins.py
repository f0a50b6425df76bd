"""Compiles the distinct kernels of networks for sm_90 without a GPU. Run by test_triton.py with the networks' names."""

import sys

import torch

import shorthaul as sh
from benchmarks.networks import network
from shorthaul import pipeline
from shorthaul.codegen.triton.emit_map import emit_map
from shorthaul.codegen.triton.launch import compile_for, configure, load
from shorthaul.config import Options
from shorthaul.ir.nodes import Map

done = set()
for name in sys.argv[1:]:
    net = network(name, small=True)

    class WithLoss(torch.nn.Module):
        def __init__(self, net=net) -> None:
            super().__init__()
            self.net, self.inner = net, net.module

        def forward(self, *given):
            with torch.autocast("cpu", torch.bfloat16):
                return self.net.loss_fn(self.inner(*given[:-1]), given[-1])

    program = sh.capture(WithLoss(), (*net.inputs, net.targets))
    pipeline.optimize(program, Options(target="triton"))
    for m in program.nodes:
        if isinstance(m, Map):
            for kernel in emit_map(m, program).kernels:
                first = configure(kernel, {})
                for c in (first, *first.finish):
                    types = c.types({a: x.dtype.name for a, x in c.kernel.containers.items()})
                    key = (c.kernel.structure, tuple(types), tuple(map(str, c.constants.values())), tuple(c.meta.values()))
                    if key not in done:
                        done.add(key)
                        assert compile_for(load(c.kernel), c, types, 90).asm["cubin"][:4] == b"\x7fELF"
    print(f"{name}: {len(done)} distinct cubins so far")
