"""A warm start in a process of its own: no Dynamo, the same numbers; and never with the code of yesterday."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NETWORK = """
import torch
from torch import nn

GAIN = 2.0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.line, self.norm, self.drop = nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.25)

    def forward(self, x):
        return self.drop(self.norm(self.line(x)).tanh()) * GAIN
"""

STEPS = """
import json, sys
import torch
import network
import shorthaul as sh

torch.manual_seed(0)
net = sh.optimize(network.Net().to(sys.argv[1]))
x = torch.linspace(-1, 1, 48, device=sys.argv[1]).reshape(6, 8)
losses = []
for _ in range(5):
    for p in net.parameters():
        p.grad = None
    loss = net(x).square().sum()
    loss.backward()
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.1 * p.grad
    losses.append(loss.item())
print(json.dumps({"losses": losses, "mean": net.norm.running_mean.tolist(), "start": net.report().regions[0].start,
                  "tracer": sorted({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)), "report": str(net.report())}))
"""


def steps(folder: Path, device: str) -> dict[str, Any]:
    environment = {**os.environ, "SHORTHAUL_CACHE_DIR": str(folder / "cache"), "SHORTHAUL_WARM_START": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), root])
    done = subprocess.run([sys.executable, "-c", STEPS, device], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_second_process_neither_traces_nor_imports_dynamo_until_the_source_changes(tmp_path: Path, device: str) -> None:
    source = tmp_path / "network.py"
    source.write_text(NETWORK)
    cold = steps(tmp_path, device)
    assert cold["start"].endswith("a later start finds its capture record") and "torch._dynamo" in cold["tracer"]
    warm = steps(tmp_path, device)
    assert warm["start"].startswith("from its capture record") and "kernels" in warm["report"]
    assert warm["tracer"] == []
    assert (warm["losses"], warm["mean"]) == (cold["losses"], cold["mean"])
    source.write_text(NETWORK.replace("GAIN = 2.0", "GAIN = 4.0"))
    edited = steps(tmp_path, device)
    assert edited["start"].startswith("traced")
    assert abs(edited["losses"][0] / cold["losses"][0] - 4) < 1e-4
