"""What `step.report()` shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from shorthaul.runtime.report import Record, Region


@dataclass(repr=False)
class StepReport:
    """The compiled regions of a step, and what became of the optimizer.

    outside: why PyTorch's own optimizer steps, behind the program. loop: why the step is the ordinary loop. Both are empty where the whole
    step is one program.
    """

    record: Record
    optimizer: str
    outside: str = ""
    loop: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def regions(self) -> list[Region]:
        return self.record.regions

    @property
    def captured(self) -> bool:
        """Whether the optimizer's update is in the program."""
        return bool(self.regions) and not self.outside and not self.loop

    def __str__(self) -> str:
        lines = []
        if self.loop:
            lines.append(f"the ordinary loop, not one program: {self.loop}")
            lines.append(f"optimizer     {self.optimizer}, stepped by PyTorch")
        elif self.outside:
            lines.append(f"optimizer     {self.optimizer}, stepped outside of the program by PyTorch: {self.outside}")
        elif self.regions:
            lines.append(f"optimizer     {self.optimizer}, in the program")
        return "\n".join([*lines, *self.notes, str(self.record)])

    __repr__ = __str__
