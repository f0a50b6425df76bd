"""Block sizes from sizes: the heuristic defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shorthaul.symbolic import evaluate

from .plan import NotSchedulable, Plan, next_power_of_two

MAX_BLOCK = 65536
PROGRAMS = 792  # that a split aims at: six for each multiprocessor of a large GPU


def choose_tiles(plan: Plan, sizes: Mapping[str, int], changes: Mapping[str, Any]) -> dict[str, Any]:
    """BLOCK_* and *_BLOCKS by name, CHUNKS and CHUNK_BLOCKS, num_warps, num_stages. `programs` is how many programs a split aims at."""
    at = {a.name: evaluate(a.size, sizes) for a in plan.axes}
    tiles: dict[str, Any] = {"num_warps": 4, "num_stages": 3}
    modes = {a.name: a for a in plan.axes}
    taps = 1
    for a in plan.axes:
        if a.mode == "unroll":
            taps *= at[a.name]
    lane, row = modes.get("col"), modes.get("row")
    if "k" in modes:
        tiles["BLOCK_COL"] = _lanes(at["col"])
        tiles["BLOCK_ROW"] = max(16, min(128, next_power_of_two(at["row"])))
        tiles["BLOCK_K"] = max(16, min(64 if plan_bits(plan) <= 16 else 32, next_power_of_two(at["k"])))
        if modes["k"].resident:
            tiles["BLOCK_K"] = max(16, next_power_of_two(at["k"]))
        if tiles["BLOCK_COL"] * tiles["BLOCK_ROW"] >= 128 * 128:
            tiles["num_warps"] = 8
    else:
        budget = 2048
        if taps > 1:
            budget = max(128, 8192 // next_power_of_two(taps))
        if lane is not None:
            n = at["col"]
            if lane.mode == "whole":
                tiles["BLOCK_COL"] = next_power_of_two(n)
            elif lane.dim == 0:
                tiles["BLOCK_COL"] = min(1024, next_power_of_two(n))
            else:
                tiles["BLOCK_COL"] = min(64 if lane.mode == "tile" else 1024, next_power_of_two(n))
            if tiles["BLOCK_COL"] > MAX_BLOCK:
                raise NotSchedulable(f"map {plan.map.label}: rows of {n} elements do not fit a block; use the option row='looped'")
            tiles["num_warps"] = 4 if tiles["BLOCK_COL"] <= 4096 else 8 if tiles["BLOCK_COL"] <= 16384 else 16
        if row is not None:
            tiles["BLOCK_ROW"] = max(1, min(budget // tiles.get("BLOCK_COL", 1), next_power_of_two(at["row"])))
    for a in plan.axes:
        if a.dim is not None and a.block not in tiles:
            tiles[a.block] = next_power_of_two(at[a.name])
    tiles.update({k: v for k, v in changes.items() if k != "programs"})
    chunk = plan.chunk
    if chunk is not None:
        blocks = -(-at[chunk.name] // tiles[chunk.block])
        others = 1
        for a in plan.axes:
            if a.mode == "tile":
                others *= -(-at[a.name] // tiles[a.block])
            elif a.mode == "program":
                others *= at[a.name]
        wanted = max(1, changes.get("programs", PROGRAMS) // others)
        if "CHUNKS" not in changes:
            tiles["CHUNK_BLOCKS"] = max(1, -(-blocks // wanted))
            tiles["CHUNKS"] = -(-blocks // tiles["CHUNK_BLOCKS"])
        else:
            tiles["CHUNK_BLOCKS"] = -(-blocks // tiles["CHUNKS"])
    for a in plan.axes:
        if a.mode in ("loop", "contract") and not a.split:
            tiles[f"{a.name.upper()}_BLOCKS"] = -(-at[a.name] // tiles[a.block])
    return tiles


def _lanes(n: int) -> int:
    """Columns of a product's tile: little padding, few tiles (rows are read again for each)."""
    return min((128, 64, 32, 16), key=lambda b: -(-n // b) * b * (1 + 16 / b))


def plan_bits(plan: Plan) -> int:
    """Bits of the operands of the plan's contraction."""
    from .emit import strip_widening

    bits = [strip_widening(side).dtype.bits for c in plan.contractions.values() for side in (c.a, c.b)]
    return max(bits, default=32)
