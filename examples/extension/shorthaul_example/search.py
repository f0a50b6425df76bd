"""A search strategy for the tuner: moves in random order, each from the best so far, until the budget ends."""

import random

from shorthaul.tuning.search import Search


class RandomOrder(Search):
    def run(self, session):
        moves = list(session.moves)
        random.Random(0).shuffle(moves)
        for move in moves:
            session.measure(move.kind, move.what, move.on(session.best.choices))
