"""The rules behind substitution: which addresses visit every element once, which no element twice."""

from __future__ import annotations

import itertools

import pytest

from shorthaul.symbolic import Expr, Symbol, evaluate, index
from shorthaul.transforms.level2_fusion.compose import is_bijection, is_injection

I, J, K = index("i", 4), index("j", 6), index("k", 1)
P, Q, R = index("p", 4), index("q", 6), index("r", 24)
T = index("t", 24)
CASES: dict[str, tuple[dict[Symbol, object], tuple[Symbol, ...]]] = {
    "same": ({P: I, Q: J}, (I, J)),
    "swapped": ({Q: J, P: I}, (J, I)),
    "merged": ({R: I * 6 + J}, (I, J)),
    "merged the other way": ({R: J * 4 + I}, (I, J)),
    "split": ({P: T // 6, Q: T % 6}, (T,)),
    "split in three": ({index("a", 2): T // 12, index("b", 3): T // 4 % 3, P: T % 4}, (T,)),
    "split wrongly": ({P: T // 4, Q: T % 6}, (T,)),
    "with a size of one": ({P: I, Q: J, index("o", 1): 0}, (I, J, K)),
    "shifted": ({P: I + 1}, (I,)),
    "strided": ({R: I * 6}, (I,)),
    "flipped": ({P: 3 - I}, (I,)),
    "overlapping window": ({index("n", 9): I + J}, (I, J)),
    "one row": ({P: 2, Q: J}, (J,)),
    "diagonal": ({P: I, index("s", 4): I}, (I,)),
    "parameter left out": ({Q: J}, (I, J)),
}


def images(values: dict[Symbol, object], params: tuple[Symbol, ...]) -> list[tuple[int, ...]]:
    found = []
    for point in itertools.product(*(range(p.size) for p in params)):  # type: ignore[arg-type]
        at = dict(zip(params, point, strict=True))
        found.append(tuple(evaluate(e, at) if isinstance(e, Expr) else e for e in values.values()))  # type: ignore[misc]
    return found


@pytest.mark.parametrize("case", CASES)
def test_what_is_called_a_bijection_is_one(case: str) -> None:
    values, params = CASES[case]
    found = images(values, params)
    once = len(set(found)) == len(found)
    box = set(itertools.product(*(range(p.size) for p in values)))  # type: ignore[arg-type]
    assert is_bijection(values, params) <= (once and set(found) == box)  # type: ignore[arg-type]
    assert is_injection(values, params) <= once  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "case", ["same", "swapped", "merged", "merged the other way", "split", "split in three", "with a size of one"]
)
def test_common_bijections_are_recognised(case: str) -> None:
    assert is_bijection(*CASES[case])  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["same", "merged", "strided", "shifted", "flipped", "one row"])
def test_common_injections_are_recognised(case: str) -> None:
    assert is_injection(*CASES[case])  # type: ignore[arg-type]


def test_symbolic_sizes() -> None:
    n, m = Symbol("N", 1), Symbol("M", 1)
    i, j, t = index("i", n), index("j", m), index("t", n * m)
    assert is_bijection({index("r", n * m): i * m + j}, (i, j))
    assert is_bijection({index("p", n): t // m, index("q", m): t % m}, (t,))
    assert not is_bijection({index("p", n): t % m, index("q", m): t // m}, (t,))
