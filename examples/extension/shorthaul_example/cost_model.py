"""A cost model: nothing but bytes over bandwidth counts."""

from dataclasses import replace

from shorthaul.analysis.cost import CostModel
from shorthaul.analysis.times import roofline


class BytesOnly(CostModel):
    def kernels(self, program):
        times = roofline(program, self.machine)
        return [replace(t, seconds=t.bytes / self.machine.bandwidth, bound="memory") for t in times]
