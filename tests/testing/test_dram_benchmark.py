"""`benchmarks/dram.py` without a GPU: reading the profiler's table, and what is said of it."""

from __future__ import annotations

from benchmarks.dram import compare, ranges, summary
from shorthaul.ir.builder import MapBuilder, at
from shorthaul.ir.containers import Container
from shorthaul.ir.dtypes import float64
from shorthaul.ir.program import Program, Signature

TABLE = '''==PROF== Connected to process 1
"ID","thread Domain:Push/Pop_Range:PL_Type","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum"
"","","","byte","byte","ns"
"0","","fill","64","32","1,000"
"1","1 ""<default domain>:nodes {0}:none:none""","first","8,000","500","2,000"
"2","1 ""<default domain>:nodes {0}:none:none""","merge","24","0","1,000"
"3","1 ""<default domain>:nodes {1} {2}:none:none""","batch","16,000","24,000","3,000"
'''


def test_launches_are_summed_by_range_and_compared() -> None:
    p = Program("three")
    with p.edit("Build") as edit:
        b = MapBuilder(edit)
        x = edit.add_container(Container("x", float64, (1000,), role="input"))
        for k in range(3):
            y = edit.add_container(Container(f"y{k}", float64, (1000,), role="output"))
            (i,) = b.params((1000,))
            b.map((i,), {"x": at(x, i)}, {"y": at(y, i)}, lambda x: {"y": x * 2.0})
        edit.add(*b.nodes)
        edit.set_signature(Signature(("x",), ("y0", "y1", "y2")))
    first, second, third = (n.id for n in p.nodes)
    rows = ranges(TABLE.format(first, second, third))
    assert [(r["nodes"], r["read"], r["written"], r["launches"]) for r in rows] == [
        ((first,), 8024, 500, 2), ((second, third), 16000, 24000, 1), ((), 64, 32, 1)]  # fmt: skip
    found = compare(p, rows, "h100")
    assert [(r["predicted_read"], r["predicted_written"]) for r in found] == [(16000, 16000), (8000, 8000)]
    text = summary("three", found)
    assert "quotient 0.989 (within 15%)" in text and "2 kernels above 1% of the bytes, 1 of them off by more than 30%" in text
    assert " 1.88 !" in text and " 0.80  " in text and "and 1 more" in text
