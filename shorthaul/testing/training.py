"""Train a network for some steps with a named engine, and judge the outcome against eager PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from shorthaul.testing.masks import masks
from shorthaul.testing.numerics import Agreement, compare, pool

Batch = tuple[tuple[Any, ...], Any]  # inputs, targets
Loss = Callable[[Any, Any], Tensor]
Engine = str | Callable[[nn.Module], Any]
OptimizerFactory = Callable[[Any], torch.optim.Optimizer]

TRIES = 9  # of a step in lockstep: of the small YOLOv4 one in ten jumps, in eager mode too

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    # A bias between two batch norms has a gradient that is zero in exact arithmetic. With the usual epsilon of 1e-8, Adam divides
    # its rounding noise by little more than its own size, and the noise of float64 becomes visible: eager in another memory layout
    # then differs by more than 1e-9.
    "adamw, epsilon 1e-5": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, eps=1e-5),
}


@dataclass
class Run:
    """What a training run left behind: every dictionary maps a name to a detached copy.

    `gradients` and `input_gradients` are those of the first step, which no earlier step's rounding has touched, and, with
    `[last]` after the name, of the last one. `losses["loss"]` has one element a step.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    input_gradients: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    module: nn.Module | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything in one dictionary, as `kind/name`, ready for `compare`."""
        kinds = {
            "loss": self.losses,
            "gradient": self.gradients,
            "input": self.input_gradients,
            "parameter": self.parameters,
            "buffer": self.buffers,
        }
        return {f"{kind}/{name}": value for kind, named in kinds.items() for name, value in named.items()}


def apply_engine(module: nn.Module, engine: Engine) -> Any:
    """`module` as `engine` runs it: "eager", "shorthaul", "torch.compile", or a function of the module."""
    if callable(engine):
        return engine(module)
    if engine == "eager":
        return module
    if engine == "shorthaul":
        import shorthaul

        return shorthaul.optimize(module, strict=True)
    if engine == "torch.compile":
        return torch.compile(module)
    raise ValueError(
        f"unknown engine {engine!r}; use 'eager', 'shorthaul', 'torch.compile' or a function of the module"
    )


def train_steps(
    model_factory: Callable[[], nn.Module],
    optimizer_factory: OptimizerFactory | str,
    batches: Sequence[Batch],
    engine: Engine = "eager",
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    seed: int = 0,
    *,
    loss_fn: Loss,
    restride: bool = False,
    masked: bool = False,
) -> Run:
    """Train for `steps` steps (default: one a batch; batches are taken in turn) and return what came out.

    The model is made in float32 from `seed` and then cast to `dtype`, so that runs of different dtypes start at the same
    point. `restride` keeps parameters and inputs in another memory layout (for eager's own spread). `masked` gives
    eager the random masks that the optimized module draws.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = model_factory().train().to(dtype)
        if restride:
            restride_parameters(module)
        make = OPTIMIZERS[optimizer_factory] if isinstance(optimizer_factory, str) else optimizer_factory
        trainable = [p for p in module.parameters() if p.requires_grad]
        optimizer = make(trainable) if trainable else None
        runnable = apply_engine(module, engine)
        run, losses = Run(module=module), []
        count = len(batches) if steps is None else steps
        for step in range(count):
            inputs, targets = batches[step % len(batches)]
            placed = tuple(place(x, dtype, restride) for x in inputs)
            module.zero_grad(set_to_none=True)
            with masks(module) if masked else nullcontext():
                loss = loss_fn(runnable(*placed), place(targets, dtype, False))
            loss.backward()
            losses.append(loss.detach().clone())
            for suffix in [""] * (step == 0) + ["[last]"] * (step == count - 1 and count > 1):
                for name, p in module.named_parameters():
                    if p.grad is not None:
                        run.gradients[name + suffix] = p.grad.detach().clone()
                for i, x in enumerate(placed):
                    if isinstance(x, Tensor) and x.grad is not None:
                        run.input_gradients[f"{i}{suffix}"] = x.grad.detach().clone()
            if optimizer is not None:
                optimizer.step()
    run.losses["loss"] = torch.stack(losses)
    run.parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
    run.buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
    return run


def train_in_lockstep(
    model_factory: Callable[[], nn.Module],
    optimizer_factory: OptimizerFactory | str,
    batches: Sequence[Batch],
    runs: Sequence[tuple[Engine, torch.dtype, bool]],
    seed: int = 0,
    *,
    loss_fn: Loss,
    settled: Callable[[Sequence[dict[str, Tensor]]], bool] = lambda made: True,
) -> list[dict[str, Tensor]]:
    """Train with several engines side by side, each step from the state of the first: parameters, buffers, the optimizer's state.

    runs: (engine, dtype, whether in another memory layout). Gives, for each, what every step made, under names as `compare` wants them:
    `gradient/NAME` of the first step, `gradient/NAME[step 3]` of the fourth, likewise `loss`, `parameter`, `buffer`. Where what the runs
    made of a step is not `settled`, the last one repeats the step, at most `TRIES` times, on inputs that are half a unit in the last place
    off; of each tensor what is nearest to the second run's stands behind the others' in one more dictionary.
    """
    make = OPTIMIZERS[optimizer_factory] if isinstance(optimizer_factory, str) else optimizer_factory
    modules: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        for _, dtype, restride in runs:
            torch.manual_seed(seed)
            modules.append(model_factory().train().to(dtype))
            if restride:
                restride_parameters(modules[-1])
        optimizers = [make([p for p in m.parameters() if p.requires_grad]) for m in modules]
        runnable = [apply_engine(m, engine) for m, (engine, _, _) in zip(modules, runs, strict=True)]
        found: list[dict[str, Tensor]] = [{} for _ in (*runs, "the best of the last")]
        for step, (inputs, targets) in enumerate(batches):
            suffix = f"[step {step}]" if step else ""
            state, of_optimizer = copy.deepcopy(modules[0].state_dict()), copy.deepcopy(optimizers[0].state_dict())

            def one(i: int, off: int = 0, inputs: Any = inputs, targets: Any = targets, suffix: str = suffix, state: Any = state,
                    of_optimizer: Any = of_optimizer) -> dict[str, Tensor]:  # fmt: skip
                module, optimizer, (_, dtype, restride) = modules[i], optimizers[i], runs[i]
                if i:
                    module.load_state_dict(state)
                    optimizer.load_state_dict(copy.deepcopy(of_optimizer))  # it keeps the tensors that it is given
                placed = [place(x, dtype, restride) for x in inputs]
                module.zero_grad(set_to_none=True)
                loss = loss_fn(runnable[i](*(nearby(placed, off) if off else placed)), place(targets, dtype, False))
                loss.backward()
                made = {f"loss/loss{suffix}": loss.detach().clone()}
                named = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
                made.update((f"gradient/{n}{suffix}", g.detach().clone()) for n, g in named.items())
                optimizer.step()
                made.update((f"parameter/{n}{suffix}", p.detach().clone()) for n, p in module.named_parameters())
                made.update((f"buffer/{n}{suffix}", b.detach().clone()) for n, b in module.named_buffers())
                return made

            made = [one(i) for i in range(len(runs))]
            best = made[-1]
            for attempt in range(1, TRIES + 1):
                if settled([*made[:-1], best]):
                    break
                best = _nearest([best, one(len(runs) - 1, TRIES * step + attempt)], made[1])
            for everything, new in zip(found, [*made, best], strict=True):
                everything.update(new)
    return found


def judge_training(
    model_factory: Callable[[], nn.Module],
    loss_fn: Loss,
    make_batches: Callable[[int], Sequence[Batch]],
    *,
    engine: Engine = "shorthaul",
    baseline: Engine = "eager",
    optimizer: OptimizerFactory | str = "sgd",
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    chaotic: bool = False,
    masked: bool = False,
    lockstep: bool = False,
    title: str = "",
) -> Agreement:
    """Train with `engine`, with eager and with eager in float64, once a seed, and judge all tensors together.

    `make_batches(seed)` gives the batches of a seed; they may differ in size. `baseline` is how eager runs in `dtype`, under autocast say.
    `masked` gives eager the engine's random masks.
    `chaotic` is for long runs in low precision of networks whose derivative jumps (ReLU, max pooling): if the rule fails, and it
    fails for eager in another memory layout as well, what the later steps touched is judged by the larger of eager's two
    errors (see `numerics`); the verdict's title says so. `lockstep` is for networks of which eager and eager in another memory layout
    part within a few steps, in float64 too: every step starts from eager's state, and what each step makes is judged. Where such
    a network is `chaotic` and a tensor of a step is wrong, the engine repeats the step on inputs that are half a unit in the last place
    off, up to `TRIES` times, until its best is right by the same limits: a jump (a value that rounding takes to the other side of a kink
    of ReLU or of pooling, and with it all gradients before it) does not last, a fault does. The first step is no exception: eager's two
    layouts part there, too. The verdict's title counts what was repeated.
    """
    strict, loose = [], []
    judged: list[bool] = []  # whether each attempt of each step was right
    jumps = (lambda name: True) if lockstep else of_later_steps  # steps from one state are all alike
    for seed in seeds:
        batches = make_batches(seed)
        if lockstep:
            if masked or steps is not None:
                raise ValueError("lockstep takes one step a batch, without masks")

            def settled(made: Sequence[dict[str, Tensor]], judged: list[bool] = judged) -> bool:
                eager, exact, spread, found = made
                right = all(row.ok for row in compare(found, eager, exact, spread=spread, chaotic=jumps).rows)
                judged.append(right)
                return right or not chaotic or dtype == torch.float64

            runs: list[tuple[Engine, torch.dtype, bool]]
            runs = [(baseline, dtype, False), ("eager", torch.float64, False), (baseline, dtype, True), (engine, dtype, False)]
            steps_made = train_in_lockstep(model_factory, optimizer, batches, runs, seed, loss_fn=loss_fn, settled=settled)
            eager, exact, spread, found, best = steps_made
            strict.append(compare(found, eager, exact, spread=spread))
            loose.append(compare(best, eager, exact, spread=spread, chaotic=jumps))
            continue

        def run(engine: Engine, dtype: torch.dtype, batches: Sequence[Batch] = batches, seed: int = seed,
                restride: bool = False) -> dict[str, Tensor]:  # fmt: skip
            own = masked and engine == "eager"
            return train_steps(model_factory, optimizer, batches, engine, dtype, steps, seed, loss_fn=loss_fn,
                               restride=restride, masked=own).tensors()  # fmt: skip

        eager = run(baseline, dtype)
        exact = eager if dtype == torch.float64 else run("eager", torch.float64)
        spread = run(baseline, dtype, restride=True)
        found = run(engine, dtype)
        strict.append(compare(found, eager, exact, spread=spread))
        loose.append(compare(found, eager, exact, spread=spread, chaotic=jumps))
    verdict = pool(strict, title)
    later = replace(verdict.layouts, rows=[r for r in verdict.layouts.rows if jumps(r.name)])
    if not chaotic or verdict.ok or dtype == torch.float64 or not later.rows or later.ok:
        return verdict
    how = "later steps by the larger error of eager's two layouts"
    if lockstep:
        how = f"steps by the larger error of eager's two layouts, {judged.count(False)} attempts of {judged.count(True)} steps repeated"
        how += " on inputs that round alike"
    return pool(loose, f"{title} ({how}: eager's two layouts do not agree by the rule)")


def nearby(inputs: Sequence[Any], seed: int) -> list[Any]:
    """Inputs that are half a unit in the last place off, at random."""
    generator = torch.Generator().manual_seed(seed)

    def moved(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        noise = torch.randn(x.shape, generator=generator).to(x)
        return x * (1 + noise * (torch.finfo(x.dtype).eps / 2))

    return [moved(x) for x in inputs]


def _nearest(variants: Sequence[Mapping[str, Tensor]], exact: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of each tensor the variant that is nearest to the exact one."""

    def error(t: Tensor, name: str) -> float:
        return float((t.double() - exact[name].double()).norm())

    return {name: min((v[name] for v in variants), key=lambda t, name=name: error(t, name)) for name in variants[0]}  # type: ignore[misc]


def of_later_steps(name: str) -> bool:
    """Whether a tensor of a `Run` depends on more than the first step's gradients."""
    return not name.startswith(("gradient/", "input/")) or name.endswith("]")


def assert_trains_like_eager(
    model_factory: Callable[[], nn.Module],
    loss_fn: Loss,
    make_batches: Callable[[int], Sequence[Batch]],
    *,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
    **options: Any,
) -> list[Agreement]:
    """`judge_training` in each of `dtypes` (float64 with one seed: its limit is absolute); AssertionError with the table."""
    verdicts = []
    for dtype in dtypes:
        choice = dict(options)
        if dtype == torch.float64:
            choice["seeds"] = tuple(choice.get("seeds", (0,)))[:1]
        verdict = judge_training(model_factory, loss_fn, make_batches, dtype=dtype, **choice)
        if not verdict.ok:
            raise AssertionError(f"{dtype}: {verdict}")
        verdicts.append(verdict)
    return verdicts


def place(x: Any, dtype: torch.dtype, restride: bool) -> Any:
    """A copy of a tensor, floating ones in `dtype`; anything else as it is."""
    if not isinstance(x, Tensor):
        return copy.copy(x)
    placed = x.detach().to(dtype) if x.is_floating_point() else x.detach()
    placed = other_layout(placed) if restride and x.is_floating_point() else placed.clone()  # only these round
    return placed.requires_grad_(x.requires_grad)


def restride_parameters(module: nn.Module) -> None:
    """Keep the parameters in another memory layout."""
    with torch.no_grad():
        for p in module.parameters():
            p.data = other_layout(p.data)


def other_layout(x: Tensor) -> Tensor:
    """The same values: channels last for four dimensions, else the strides of the transpose."""
    if x.ndim == 4:
        return x.clone(memory_format=torch.channels_last)
    if x.ndim < 2:
        return x.clone()
    order = tuple(reversed(range(x.ndim)))
    return x.permute(order).contiguous().permute(order)
