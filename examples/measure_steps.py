"""The studio without its page: measure a training step and each of its kernels, apply what saves most, and measure again.

    python -m examples.measure_steps                                   # this CPU, or the GPU if there is one
    python -m examples.measure_steps --device cuda:0 --steps 6 package.module:function

Needs PyTorch and NumPy, and Triton for a GPU: nothing of the studio's server. The last state is what the whole pipeline makes (level 4).
"""

from __future__ import annotations

import argparse
from typing import Any

from shorthaul.gui import Session


def measure_steps(what: str, *, device: str = "", steps: int = 3, runs: int = 15, levels: tuple[int, ...] = (4,),
                  machine: str = "") -> Session:  # fmt: skip
    """A session with a measurement of the lowered program, of it after `steps` transformations, and of levels. device: as in
    `Session.measure`. machine: that levels choose for, by default like the device."""
    session = Session.open(what, level=None, checks=False)
    devices = session.describe()["devices"]
    device = device or next((d for d in devices if d != "cpu"), "cpu")
    if device != "cpu":
        known = [m for m in session.describe()["machines"] if m in devices.get(device, "").lower()]
        session.set_machine(machine or (known or ["h100"])[0])
    session.run_level(0)
    lowered = session.current.id
    session.measure(runs, device=device)
    for _ in range(steps):
        best = session.opportunities(limit=1)
        if not best or best[0]["saves"] <= 0:
            break
        session.apply_alike(best[0]["transformation"], best[0]["where"])
    if session.current.id != lowered:
        session.measure(runs, device=device)
    for level in levels:
        session.goto(lowered)
        session.run_level(level)
        session.measure(runs, device=device)
    return session


def table(session: Session, kernels: int = 8) -> str:
    """The measured states, and the kernels of each that take longest."""
    measured = [s for s in session.describe()["states"] if s["totals"]["measured"]]
    first = measured[0]["totals"]["measured"]
    lines = [f"{session.name} on {first['device']}, {first['runs']} runs",
             f"{'state':<44} {'MiB':>9} {'nodes':>6} {'predicted ms':>13} {'step ms':>9} {'quartiles':>17} {'kernels ms':>11}"]  # fmt: skip
    for s in measured:
        t, m = s["totals"], s["totals"]["measured"]
        rows = session.costliest(limit=t["kernels"], state=s["id"])
        own = sum(r["measured"] or 0.0 for r in rows)
        times = f"{1e3 * t['predicted']:13.3f} {1e3 * m['median']:9.3f} {1e3 * m['low']:8.3f}-{1e3 * m['high']:<8.3f} {1e3 * own:11.3f}"
        lines.append(f"{s['step'][:44]:<44} {t['bytes'] / 2**20:9.1f} {t['kernels']:6} {times}")
    for s in measured:
        rows = session.costliest(limit=s["totals"]["kernels"], state=s["id"])
        timed = sorted((r for r in rows if r["measured"]), key=lambda r: -r["measured"])
        lines.append(f"\n{s['step']}: {len(timed)} of {len(rows)} nodes timed; the longest, in µs (predicted, bytes)")
        for r in timed[:kernels]:
            where = f"{r['label'][:40]:<40}  {r['module']} [{r['phase']}]"
            lines.append(f"  {1e6 * r['measured']:9.1f}  {_micro(r['predicted']):>9}  {r['bytes']:>12}  {where}")
    return "\n".join(lines)


def _micro(seconds: Any) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", default="shorthaul.demo.lesson:efficientnet", help="as `shorthaul studio` opens it")
    parser.add_argument("--device", default="", help="cpu, cuda:0, ... (default: a GPU if there is one)")
    parser.add_argument("--steps", type=int, default=3, help="transformations to apply, each in all places alike (default: 3)")
    parser.add_argument("--runs", type=int, default=15, help="of the step and of each kernel (default: 15)")
    parser.add_argument("--recipe", default="", help="write the recipe of the last state here (.py), or its trace (.trace.json)")
    arguments = parser.parse_args()
    session = measure_steps(arguments.what, device=arguments.device, steps=arguments.steps, runs=arguments.runs)
    print(table(session))
    if arguments.recipe:
        print(f"wrote {session.save(arguments.recipe)}")
    session.close()


if __name__ == "__main__":
    main()
