"""The page of ONNX operators: `python -m shorthaul.frontends.onnx_model.coverage` prints docs/onnx.md; a test looks that it is current.

Statuses: *native*, a function of the table over PyTorch tensors, which compiles like any module; *function*, the definition that ONNX
gives, of other operators; *reference*, onnx's own implementation, named by a FallbackWarning; *unsupported*, refused when loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnx import defs

import shorthaul.frontends.onnx_model.operators
from shorthaul.frontends.onnx_model.emit_flow import SPECIAL
from shorthaul.frontends.onnx_model.table import TABLE

assert shorthaul.frontends.onnx_model.operators  # fills the table

REASONS = {
    "strings": ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
    "decoding of images": ("ImageDecoder",),
}
RANDOM = "draws without a seed that the standard fixes; the case itself calls its values informational"
HALF = "one unit in the last place of float16: NumPy, which made the expected values, sums in float16, PyTorch in float32"
FOURIER = "the expected zeros are the rounding noise (2e-7) of another Fourier transform; ours are 3e-15"
RANK_0 = "the runner cannot compare a sequence that holds a tensor of rank 0 (it takes its length); the values are equal"
# cases of onnx.backend.test that do not pass, and why; a test looks that all others do
KNOWN: dict[str, str] = {
    **{f"test_bernoulli{n}": RANDOM for n in ("", "_double", "_seed", "_expanded", "_double_expanded", "_seed_expanded")},
    "test_attention_4d_causal_fp16": HALF,
    "test_attention_4d_causal_fp16_expanded": HALF,
    "test_dft_inverse": FOURIER,
    "test_dft_inverse_opset19": FOURIER,
    "test_loop16_seq_none": RANK_0,
}
HEAD = """\
# ONNX operators

Made by `python -m shorthaul.frontends.onnx_model.coverage`; a test looks that it is current. How models are loaded and trained:
[usage.md](usage.md#train-an-onnx-model).

*native*: a function over PyTorch tensors, from the named versions of the operator set on, which compiles and differentiates like any
module.
*function*: by the definition that ONNX gives, written out in native operators. *reference*: runs in onnx's own implementation, outside
compiled code and without a gradient; a `FallbackWarning` names the node when the model is loaded. *unsupported*: `OnnxError` when loaded.

Element types: unsigned integers of 16, 32 and 64 bits, float8 and complex numbers compute in eager mode (a `FallbackWarning` says so, and
the report); integers of 2 and 4 bits are held as 8-bit ones, float4 as float32.
"""


def rows() -> Iterator[tuple[str, str, str, str]]:
    """(operator, versions that changed it, status, reason or versions of its entries) of every operator, by domain and name."""
    versions: dict[tuple[str, str], list[int]] = {}
    schemas: dict[tuple[str, str], Any] = {}
    for s in defs.get_all_schemas_with_history():
        versions.setdefault((s.domain, s.name), []).append(s.since_version)
        if (s.domain, s.name) not in schemas or schemas[s.domain, s.name].since_version < s.since_version:
            schemas[s.domain, s.name] = s
    for key in sorted(versions):
        domain, name = key
        status, reason = _status(key, schemas[key])
        yield f"{domain}.{name}" if domain else name, ", ".join(map(str, sorted(versions[key]))), status, reason


def _status(key: tuple[str, str], schema: Any) -> tuple[str, str]:
    domain, name = key
    if key in TABLE:
        return "native", ", ".join(f"{e.since}+" for e in TABLE[key])
    if key in SPECIAL:
        return "native", "1+"
    if schema.has_function or schema.has_context_dependent_function:
        return "function", ""
    if _in_reference(domain, name):
        what = next((r for r, names in REASONS.items() if name in names), "classical models, not trained by gradients")
        return "reference", what
    return "unsupported", "onnx has no reference implementation"


def _in_reference(domain: str, name: str) -> bool:
    """Whether onnx's reference implementation has the operator."""
    from onnx.reference import ops
    from onnx.reference.ops.aionnxml import _op_list

    try:
        if domain == "ai.onnx.ml":
            _op_list.load_op(domain, name, None)
        else:
            ops.load_op(domain, name, defs.onnx_opset_version())
    except Exception:
        return False
    return True


def suite() -> list[str]:
    """The cases of the backend suite that do not pass."""
    head = f"Of the 2033 CPU cases of `onnx.backend.test` (onnx 1.23) all but these {len(KNOWN)} pass in eager mode:"
    lines = ["", "## The backend suite", "", head, "", "| case | why not |", "|---|---|"]
    return [*lines, *(f"| `{n}` | {why} |" for n, why in KNOWN.items())]


def page() -> str:
    """The text of docs/onnx.md."""
    lines = [HEAD, "| operator | versions | status | entries, or why |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows()), *suite()]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
