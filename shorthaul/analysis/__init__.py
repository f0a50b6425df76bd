"""Analyses of programs: data movement, liveness, arithmetic, roofline times."""

from .eager import eager_bytes, eager_rows
from .flops import flops, is_contraction, map_flops, node_flops
from .footprint import Footprint, footprints
from .liveness import Liveness, lifetimes, liveness
from .movement import Movement, Row, human, movement, node_movement
from .roofline import MACHINES, Machine, machine
from .times import KernelTime, roofline

__all__ = [
    "MACHINES", "Footprint", "KernelTime", "Liveness", "Machine", "Movement", "Row", "eager_bytes", "eager_rows", "flops", "footprints",
    "human", "is_contraction", "lifetimes", "liveness", "machine", "map_flops", "movement", "node_flops", "node_movement", "roofline",
]  # fmt: skip
