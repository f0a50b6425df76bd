"""Search strategies. Another package adds its own by the entry point group `shorthaul.searches`:

    class Mine(Search):
        def run(self, session):
            for move in session.moves:
                session.measure(move.kind, move.what, move.on(session.best.choices))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shorthaul.extension import Registry

if TYPE_CHECKING:
    from .session import Session
    from .space import Move


class Search:
    """Base class: `run` asks the session for what it wants to know and returns when it knows no more; the session ends it in time.

    What it may use: `session.moves`, `session.best`, `session.predict(choices)`, `session.measure(kind, what, choices)`,
    `session.tune_kernels()`, `session.left`, and `session.skip` for what it decides not to measure.
    """

    def run(self, session: Session) -> None:
        raise NotImplementedError


SEARCHES: Registry[type[Search]] = Registry("search strategy", "shorthaul.searches")


@SEARCHES.register("greedy")
class Greedy(Search):
    """What earlier runs found best; then one move after the other, each from the best so far; then the kernels, most time first; then the
    moves that are left.

    Predicted time decides before measured time: what the cost model puts more than `slack` above the best is not compiled. share: of
    the budget, for moves before the kernels' turn.
    """

    slack = 1.1
    share = 0.5

    def run(self, session: Session) -> None:
        for what, choices in session.remembered():
            session.measure("remembered", what, choices)
        left = iter(session.moves)
        for move in left:
            self._try(session, move)
            if session.spent > self.share * session.budget:
                break
        session.tune_kernels()
        for move in left:
            self._try(session, move)

    def _try(self, session: Session, move: Move) -> None:
        choices = move.on(session.best.choices)
        if choices == session.best.choices:
            return
        predicted = session.predict(move.kind, move.what, choices)
        if predicted is None:
            return
        if predicted > self.slack * session.best_predicted:
            session.skip(move.kind, move.what, choices, "predicted slower")
        else:
            session.measure(move.kind, move.what, choices)
