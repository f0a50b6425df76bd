"""The fusion stage as a whole: kernels that come out, refusals that are reported, and that it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from transform_nets import apply_checked, assert_same, kernels, matches, network, only, results, values

from shorthaul.analysis.movement import movement
from shorthaul.ir.verify import verify
from shorthaul.transforms.base import apply_everywhere
from shorthaul.transforms.fuse import fuse
from shorthaul.transforms.level2_fusion.image_fusion import ImageFusion
from shorthaul.transforms.level2_fusion.map_fusion import MapFusion
from shorthaul.transforms.level4_global.dead_code import eliminate_dead_code
from shorthaul.transforms.level4_global.recompute import Recompute


def test_a_chain_of_elementwise_operators_is_one_kernel_each_way() -> None:
    def build(b: Any, x: Any) -> Any:
        for op in ("tanh", "sigmoid", "square", "gelu", "neg"):
            x = b.op(op, x=x)
        return x

    p = network(build, x=(4, 6))
    fuse(p)
    assert len(kernels(p, "forward")) == 1 and len(kernels(p, "backward")) == 1


def test_refusals_are_reported_once_a_pair_with_the_bytes_at_stake_largest_first() -> None:
    def build(b: Any, x: Any, w: Any) -> Any:
        t = b.op("contract", {"equation": "ik,kj->ij"}, a=b.op("gelu", x=x), b=w)
        return b.op("sum", {"dims": (0, 1)}, x=b.op("flip", {"dims": (0,)}, x=b.op("cumsum", {"dim": 0}, x=t)))

    p = network(build, train=False, x=(4, 60), w=(60, 5))
    found = fuse(p, [MapFusion()]).refused
    assert [r.bytes for r in found] == sorted((r.bytes for r in found), reverse=True)
    assert len({(r.where, r.transformation) for r in found}) == len(found)
    assert found[0].where == "gelu → contract" and "reads each element several times" in found[0].reason


def test_attention_between_library_calls_moves_what_it_must() -> None:
    """Scaling, masking and softmax read the scores once and write the probabilities once."""

    def build(b: Any, s: Any, m: Any) -> Any:
        return b.op("softmax", {"dim": -1}, x=b.op("add", a=b.pointwise(lambda t: t * 0.125, s), b=m))

    p = network(build, train=False, s=(2, 3, 8, 8), m=(8, 8))
    fuse(p)
    eliminate_dead_code(p)
    size = 2 * 3 * 8 * 8 * 8
    assert movement(p).bytes == 2 * size + 8 * 8 * 8


def test_rows_of_large_batches_are_not_taken_for_interleaved() -> None:
    """The statistics of many rows lie side by side in memory; one element a row is not interleaving."""
    p = network(lambda b, x: b.op("softmax", {"dim": -1}, x=x), train=False, x=(16, 32, 32, 4))
    fuse(p)
    assert len(kernels(p)) == 1


def test_images_pass_from_a_map_to_a_window_in_the_cache() -> None:
    attributes = {"stride": 1, "padding": 1, "dilation": 1, "groups": 4, "transposed": False, "output_padding": 0}
    p = network(
        lambda b, x, w: b.op("convolution", attributes, x=b.op("silu", x=x), weight=w),
        train=False,
        x=(2, 4, 5, 5),
        w=(4, 1, 3, 3),
    )
    t = ImageFusion()
    apply_checked(t, only(matches(t, p, mid="silu")))
    (k,) = kernels(p)
    assert k.locals and not [c for c in p.containers.values() if c.role == "transient"]


def test_a_multi_layer_network_ends_right() -> None:
    def build(b: Any, x: Any, w: Any, v: Any) -> Any:
        for _ in range(2):
            h = b.op("layer_norm", {"normalized_shape": (6,)}, x=x, weight=w)[0]
            h = b.op("gelu", x=b.op("contract", {"equation": "ik,kj->ij"}, a=h, b=v))
            x = b.op("add", a=x, b=h)
        return b.op("log_softmax", {"dim": -1}, x=x)

    p = network(build, parameters={"w": (6,), "v": (6, 6)}, x=(4, 6))
    inputs = values(p)
    expected = results(p, inputs)
    before = movement(p).bytes
    apply_everywhere(p, [Recompute()])
    eliminate_dead_code(p)
    found = fuse(p)
    eliminate_dead_code(p)
    verify(p)
    assert_same(p, inputs, expected)
    assert found.applied > 20 and movement(p).bytes < 0.6 * before


def test_fusion_is_the_same_in_every_process(tmp_path: Path) -> None:
    """Kernels are cached by content: their text must not depend on the order of sets of strings."""
    script = tmp_path / "fused.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]\n"
        "from random_networks import random_network\n"
        "from shorthaul.ir.fingerprint import fingerprint\n"
        "from shorthaul.transforms.fuse import fuse\n"
        "for seed in range(6):\n"
        "    p, _ = random_network(seed)\n"
        "    fuse(p)\n"
        "    print(fingerprint(p))\n"
    )
    seen = {
        subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
