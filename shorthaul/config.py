"""Options of a compilation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """level: how far transformations see (0 only expands, 4 the whole step).

    strict: refuse fallbacks instead of showing them in the report. recipe: the text of a recipe that takes the place of the default
    choices.
    cuda_graphs: on a GPU, phases are captured in CUDA graphs and replayed.
    target: "cpp", "triton", or one that another package adds; "auto" takes Triton for tensors on a GPU. Triton for tensors on a CPU means
    its interpreter (tests).
    sparse: whole steps may update the touched rows of a table alone.
    saved: in what other form values are saved for the backward phase where that moves fewer bytes: "bits", eight answers to a byte where it
    asks only yes or no (`SavedBits`, exact); "bfloat16" or "float16", in that type (`CompressSaved`, changes gradients).
    trace: compile anew, past the cache of programs, and keep the captured graph and a log that can be undone (for `shorthaul.verify`).
    """

    level: int = 4
    strict: bool = False
    recipe: str | None = None
    target: str = "auto"
    cuda_graphs: bool = True
    trace: bool = False
    sparse: bool = True
    saved: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 4:
            raise ValueError(f"level is 0, 1, 2, 3 or 4, not {self.level}")
        if self.saved not in (None, "bits", "bfloat16", "float16"):
            raise ValueError(f"saved is None, bits, bfloat16 or float16, not {self.saved!r}")
        if self.saved is not None and (self.level < 4 or self.recipe is not None):
            raise ValueError("saved belongs to the default choices of level 4; a recipe has steps CompressSaved of its own")
        if not self.target.isidentifier():
            raise ValueError(f"target is auto, cpp, triton or the name of another one, not {self.target!r}")
