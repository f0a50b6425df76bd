"""Block sizes from sizes: the heuristic defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shorthaul.symbolic import evaluate

from .plan import Axis, NotSchedulable, Plan, next_power_of_two

MAX_BLOCK = 65536
PROGRAMS = 792  # that a split aims at: six for each multiprocessor of a large GPU


def choose_tiles(plan: Plan, sizes: Mapping[str, int], changes: Mapping[str, Any]) -> dict[str, Any]:
    """BLOCK_* and *_BLOCKS by name, CHUNKS and CHUNK_BLOCKS, num_warps, num_stages. `programs` is how many programs a split aims at."""
    at = {a.name: evaluate(a.size, sizes) for a in plan.axes}
    tiles: dict[str, Any] = {"num_warps": 4, "num_stages": 3}
    modes = {a.name: a for a in plan.axes}
    if "k" in modes:
        _product_tiles(plan, modes, at, tiles)
    else:
        _block_tiles(plan, modes, at, tiles)
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
        # partial results of a weight gradient are as large as the gradient: fewer of them
        wanted = max(1, changes.get("programs", PROGRAMS // 3 if chunk.split else PROGRAMS) // others)
        if "CHUNKS" not in changes:
            tiles["CHUNK_BLOCKS"] = max(1, -(-blocks // wanted))
            tiles["CHUNKS"] = -(-blocks // tiles["CHUNK_BLOCKS"])
        else:
            tiles["CHUNK_BLOCKS"] = -(-blocks // tiles["CHUNKS"])
    for a in plan.axes:
        if a.mode in ("loop", "contract") and not a.split:
            tiles[f"{a.name.upper()}_BLOCKS"] = -(-at[a.name] // tiles[a.block])
    return tiles


def _product_tiles(plan: Plan, modes: dict[str, Axis], at: dict[str, int], tiles: dict[str, Any]) -> None:
    """Tiles of a matrix product: registers hold the accumulator and, where operands have a prologue, their blocks in float32."""
    k = modes["k"]
    narrow = plan_bits(plan) <= 16
    tiles["BLOCK_COL"] = _lanes(at["col"])
    # a weight gradient sums over long rows: a large tile reads its operands less often
    tiles["BLOCK_ROW"] = max(16, min(128 if k.split else 64, next_power_of_two(at["row"])))
    tiles["BLOCK_K"] = max(16, min(32, next_power_of_two(at["k"])))
    if k.resident:
        tiles["BLOCK_K"] = max(16, next_power_of_two(at["k"]))
    if tiles["BLOCK_COL"] > 64 and (modes["row"].mode in ("chunk", "loop") or not (narrow or k.split)):
        tiles["BLOCK_COL"] = 64  # the state of an epilogue's reduction is as wide as the tile in every warp
    if not k.split and -(-at["row"] // tiles["BLOCK_ROW"]) * -(-at["col"] // tiles["BLOCK_COL"]) < 64:
        # a small result: more programs, fewer steps
        tiles["BLOCK_ROW"], tiles["BLOCK_K"] = 16, max(16, min(128, next_power_of_two(at["k"])))
    tiles["num_warps"] = 8 if tiles["BLOCK_COL"] * tiles["BLOCK_ROW"] >= 64 * 64 else 4


def _block_tiles(plan: Plan, modes: dict[str, Axis], at: dict[str, int], tiles: dict[str, Any]) -> None:
    """Tiles of elementwise maps and reductions: 16 elements a thread; of windows, where several taps are in flight: 8."""
    lane, row = modes.get("col"), modes.get("row")
    budget, taps = 2048, 1
    for a in plan.axes:
        if a.mode == "unroll":
            taps *= at[a.name]
    if any(a.mode == "serial" for a in plan.axes):
        budget = 1024
    if taps > 1:
        budget = max(128, 8192 // next_power_of_two(taps))
    merge = row is not None and row.mode == "loop" and lane is not None and lane.mode == "tile"
    if lane is not None:
        n = next_power_of_two(at["col"])
        tiles["BLOCK_COL"] = n if lane.mode == "whole" else min(n, 1024 if lane.dim == 0 or lane.mode != "tile" else 64)
        if merge:  # few columns and many rows: parallel along the rows
            tiles["BLOCK_COL"], budget, tiles["num_warps"] = min(n, 16), 4096, 8
        if tiles["BLOCK_COL"] > MAX_BLOCK:
            raise NotSchedulable(
                f"map {plan.map.label}: rows of {at['col']} elements do not fit a block; use the option row='looped'"
            )
        if tiles["BLOCK_COL"] > 4096:
            tiles["num_warps"] = 8 if tiles["BLOCK_COL"] <= 16384 else 16
    if row is not None:
        tiles["BLOCK_ROW"] = max(1, min(budget // tiles.get("BLOCK_COL", 1), next_power_of_two(at["row"])))


def candidate_tiles(plan: Plan, chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tuning space around the heuristic's choice: what else is worth measuring, as changes for `choose_tiles`."""
    found: list[dict[str, Any]] = []
    if any(a.mode == "contract" for a in plan.axes):
        k = next(a for a in plan.axes if a.mode == "contract")
        rows, cols = chosen["BLOCK_ROW"], chosen["BLOCK_COL"]
        found.append({"num_warps": 4 if chosen["num_warps"] == 8 else 8})
        found.append({"BLOCK_ROW": 128 if rows < 128 else 64, "num_warps": 8})
        if cols > 32:
            found.append({"BLOCK_COL": cols // 2, "num_warps": 4})
        if not k.resident and chosen["BLOCK_K"] >= 32:
            found.append({"BLOCK_K": 64})
            found.append({"BLOCK_K": 64, "BLOCK_ROW": 128 if rows < 128 else 64, "num_warps": 8})
    elif "BLOCK_ROW" in chosen and "BLOCK_COL" in chosen:
        rows = chosen["BLOCK_ROW"]
        found += [{"BLOCK_ROW": rows * 2}, {"BLOCK_ROW": max(1, rows // 2)}, {"num_warps": 8, "BLOCK_ROW": rows * 2}]
        if plan.axes and any(a.name == "col" and a.mode == "tile" for a in plan.axes) and chosen["BLOCK_COL"] == 64:
            found += [{"BLOCK_COL": 128, "BLOCK_ROW": max(1, rows // 2)}, {"BLOCK_COL": 32, "BLOCK_ROW": rows}]
    else:
        found += [{"BLOCK_COL": 2048, "num_warps": 8}, {"BLOCK_COL": 512}]
    if plan.chunk is not None:
        found += [{"programs": PROGRAMS // 2}, {"programs": PROGRAMS * 2}]
    return found


def _lanes(n: int) -> int:
    """Columns of a product's tile: little padding, few tiles (rows are read again for each)."""
    return min((128, 64, 32, 16), key=lambda b: -(-n // b) * b * (1 + 16 / b))


def plan_bits(plan: Plan) -> int:
    """Bits of the operands of the plan's contraction."""
    from .contraction import strip_widening

    bits = [strip_widening(side).dtype.bits for c in plan.contractions.values() for side in (c.a, c.b)]
    return max(bits, default=32)
