"""Independent kernels side by side: streams for the kernels of a segment while a CUDA graph is captured.

One after the other, the many small kernels of a training step (casts of weights, updates of parameters and of running statistics) each
leave most of a GPU idle for two microseconds. Captured on several streams, they become branches of the graph, which run beside the large
ones. Kernels conflict where one writes memory that the other touches: decided by addresses, since planned memory is used again. At the
end of a segment the streams join, so that library calls and their memory stay in order.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

STREAMS = 4
Ranges = Sequence[tuple[int, int]]  # (first byte, behind the last byte)
Step = Callable[[int, int], None]


@dataclass(frozen=True)
class Placed:
    """Where a step runs, and the earlier steps on other streams that it waits for."""

    stream: int
    waits: tuple[int, ...]


def place(touched: Sequence[Ranges], written: Sequence[Ranges], streams: int = STREAMS) -> list[Placed]:
    """Streams for steps that are given in a valid order. A step follows those with which it conflicts, whatever the streams."""
    placed: list[Placed] = []
    tails = [-1] * streams  # the last step of each stream
    known = [[-1] * streams for _ in range(streams)]  # up to which step of another stream each is in order behind it
    merged = [_merged(r) for r in touched], [_merged(r) for r in written]
    for i in range(len(touched)):
        last = [-1] * streams  # the last step of each stream that has to be over
        for j in range(i):
            if _overlap(merged[1][j], merged[0][i]) or _overlap(merged[0][j], merged[1][i]):
                last[placed[j].stream] = j
        behind = [s for s in range(streams) if last[s] >= 0 and last[s] == tails[s]]
        stream = max(behind, key=lambda s: tails[s]) if behind else min(range(streams), key=lambda s: (tails[s], s))
        waits = [last[s] for s in range(streams) if s != stream and last[s] > known[stream][s]]
        for s in range(streams):
            known[stream][s] = max(known[stream][s], last[s])
        placed.append(Placed(stream, tuple(waits)))
        tails[stream] = i
    return placed


def _merged(ranges: Ranges) -> list[tuple[int, int]]:
    """The same bytes as disjoint ranges in order."""
    found: list[tuple[int, int]] = []
    for first, end in sorted(r for r in ranges if r[0] < r[1]):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((first, end))
    return found


def _overlap(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> bool:
    if len(a) > len(b):
        a, b = b, a
    for first, end in a:
        at = bisect.bisect_left(b, (first, first))
        if (at < len(b) and b[at][0] < end) or (at > 0 and b[at - 1][1] > first):
            return True
    return False


_SIDE: dict[torch.device, list[Any]] = {}


def run_side_by_side(steps: Sequence[Step], placed: Sequence[Placed], device: torch.device, address: int, sizes: int) -> None:
    """Run the steps as placed, within a capture on the current stream (stream 0), which is behind all of them afterwards."""
    if device not in _SIDE:
        _SIDE[device] = [torch.cuda.Stream(device) for _ in range(STREAMS - 1)]
    main = torch.cuda.current_stream(device)
    streams = [main, *_SIDE[device]]
    tails = {p.stream: i for i, p in enumerate(placed)}
    awaited = {j for p in placed for j in p.waits} | set(tails.values())
    start = main.record_event()
    events: dict[int, Any] = {}
    entered = {0}
    for i, (step, p) in enumerate(zip(steps, placed, strict=True)):
        stream = streams[p.stream]
        if p.stream not in entered:
            entered.add(p.stream)
            stream.wait_event(start)
        for j in p.waits:
            stream.wait_event(events[j])
        with torch.cuda.stream(stream):
            step(address, sizes)
        if i in awaited:
            events[i] = stream.record_event()
    for s in entered - {0}:
        main.wait_event(events[tails[s]])
