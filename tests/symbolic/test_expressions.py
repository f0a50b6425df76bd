"""What expressions look like and simplify to, by example."""

from __future__ import annotations

import copy
import doctest
import gc
import importlib
import pkgutil
import shutil
import subprocess
import threading
import time

import numpy as np
import pytest

import shorthaul.symbolic
from shorthaul.symbolic import (
    C_HELPERS,
    Expr,
    Symbol,
    affine,
    bounds,
    ceildiv,
    evaluate,
    floordiv,
    free_symbols,
    from_json,
    index,
    maximum,
    minimum,
    mod,
    product,
    prove_divisible,
    prove_eq,
    prove_le,
    prove_lt,
    substitute,
    summation,
    to_c,
    to_json,
    to_python,
    to_text,
)

N, C, H, W = (Symbol(name, 1) for name in "NCHW")
n, c, h, w = index("n", N), index("c", C), index("h", H), index("w", W)
x = index("x", 24)
i, j = Symbol("i"), Symbol("j")


def test_equal_expressions_are_the_same_object():
    assert (i + j) * (i - j) is i * i - j * j
    assert 2 * (i + 3) - 6 is i + i
    assert Symbol("N", 1) is N
    assert Symbol("N", 2) is not N
    assert index("n", N) is n
    assert (i + j) // 4 is floordiv(j + i, 4)


def test_constant_results_are_plain_integers():
    for value in (i - i, 0 * i, i - (i - 3), (8 * i + 3) % 4, 4 * i // 4 - i, minimum(3, 5), x // 24):
        assert type(value) is int
    assert i + 0 is i
    assert 1 * i is i
    assert i + np.int64(2) is i + 2
    assert type(product([])) is int
    assert product([N, 2, H]) is 2 * N * H
    assert summation([i, j, 3, -1 * i]) is j + 3


@pytest.mark.parametrize("other", [1.5, "2", None])
def test_arithmetic_with_anything_else_is_refused(other):
    with pytest.raises(TypeError):
        i + other
    with pytest.raises(TypeError):
        other // i
    with pytest.raises(TypeError):
        floordiv(i, other)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="upper bound of Symbol 'k'"):
        Symbol("k", 0, 2.5)
    with pytest.raises(ValueError, match="multiple_of of Symbol 'k'"):
        Symbol("k", multiple_of=0)
    with pytest.raises(TypeError, match="non-empty string"):
        Symbol(3)
    with pytest.raises(ZeroDivisionError):
        i % 0
    with pytest.raises(KeyError, match="no value for symbol 'j'"):
        evaluate(i + j, {"i": 1})
    with pytest.raises(TypeError, match=r"got 2\.5"):
        evaluate(i, {"i": 2.5})
    with pytest.raises(TypeError, match="Symbol"):
        substitute(i + j, {i: 2, "j": 1})
    with pytest.raises(ValueError, match="no size"):
        _ = i.size
    with pytest.raises(TypeError, match="prove_eq"):
        bool(i)
    with pytest.raises(ValueError, match="unknown kind"):
        from_json(["power", 1, 2])
    with pytest.raises(ValueError, match="not the JSON"):
        from_json(["sum", 0, [[0, ["symbol", "i", None, None, 1]]]])


def test_unflattening_recovers_each_index():
    flat = ((n * C + c) * H + h) * W + w
    assert flat % W is w
    assert flat // W % H is h
    assert flat // (H * W) % C is c
    assert flat // (C * H * W) is n
    assert flat // (H * W) is n * C + c
    assert flat % (H * W) is h * W + w
    assert flat % (C * H * W) // W % H is h
    assert prove_lt(flat, N * C * H * W)
    assert prove_le(0, flat)


def test_unflattening_with_constant_extents():
    a, b, d = index("a", 8), index("b", 4), index("d", 6)
    flat = (a * 4 + b) * 6 + d
    assert (flat // 6 % 4, flat // 24, flat % 6, flat % 24) == (b, a, d, 6 * b + d)
    assert flat // 48 is a // 2
    assert flat % 48 is 24 * (a % 2) + 6 * b + d


def test_division_by_a_sum():
    k, m = index("k", N), index("m", N + 1)
    assert (k * (N + 1) + m) // (N + 1) is k
    assert (k * (N + 1) + m) % (N + 1) is m


def test_nested_quotients_and_remainders():
    assert x // 6 % 4 is x // 6
    assert x // 2 // 3 is x // 6
    assert x % 12 % 4 is x % 4
    assert x % 12 // 4 is x // 4 % 3
    assert x // 6 * 6 + x % 6 is x
    assert x // 6 % 2 * 6 + x % 6 is x % 12
    assert (i % 8 + j) % 4 is (i + j) % 4
    assert (5 - i) // -1 is i - 5
    assert mod(7 * i + 5, 7) == 5


def test_settled_quotients():
    assert x // 24 == 0
    assert x % 24 is x
    assert (x + 24) // 24 == 1
    assert (x - 24) // 24 == -1
    assert (23 - x) // 24 == 0


def test_multiples():
    k = Symbol("k", 1, multiple_of=8)
    assert k % 4 == 0
    assert 4 * (k // 4) is k
    assert ceildiv(k, 4) is k // 4
    assert (k + index("r", 4)) // 4 is k // 4
    assert prove_divisible(k * N, 8)
    assert prove_divisible(k + 1, 2) is False
    assert prove_divisible(k, 16) is None
    assert prove_eq(2 * (k // 8), k // 4)
    assert bounds(Symbol("k", 1, 30, multiple_of=8)) == (8, 24)


def test_extrema_drop_dominated_arguments():
    assert minimum(n, N) is n
    assert maximum(0, n) is n
    assert minimum(n, N - 1, 0) == 0
    assert minimum(i, j, i) is minimum(j, i)
    assert maximum(maximum(i, j), 3) is maximum(i, maximum(3, j))
    assert bounds(minimum(i, 5)) == (None, 5)
    with pytest.raises(ValueError, match="minimum needs"):
        minimum()


def test_proofs_with_symbolic_bounds():
    assert prove_le(n, N - 1)
    assert prove_le(N - 1, n) is None
    assert prove_lt(n, 0) is False
    assert prove_le(N, 0) is False
    assert prove_lt(n * C + c, N * C)
    assert prove_eq(2 * i, 2 * j + 1) is False
    assert prove_eq(i, j) is None
    assert prove_le(N * N - N, 0) is None
    assert prove_le(0, N * N - N)
    assert prove_le(i % 8, 7)
    assert prove_eq(4 * (i // 4) + i % 4, i)
    assert prove_le(4 * (N // 4), N)
    assert prove_lt(index("t", N // 4) * 4 + 3, N)
    assert prove_lt(index("t", ceildiv(N, 4)) * 4, N)
    assert prove_le(minimum(i, N), N)
    assert prove_le(N, maximum(i, N))
    assert prove_lt(i // 4, i // 4 + 1)
    triangle = Symbol("triangle", 0, n)  # its bound is a loop parameter itself
    assert prove_lt(triangle, N)
    assert prove_lt(triangle, n) is None


def test_affine_parts():
    coefficients, rest = affine((i * N + j) * 3 + n - 2, [i, j])
    assert coefficients == {i: 3 * N, j: 3}
    assert rest is n - 2
    assert affine(n + 3, [i]) == ({}, n + 3)
    assert affine(7, [i]) == ({}, 7)
    for nonlinear in (i * j, i * i, i % 3, minimum(i, 2), N * (i // 2)):
        assert affine(nonlinear, [i, j]) is None
    assert affine(i % 3 * j, [j]) == ({j: i % 3}, 0)


def test_substitution_is_simultaneous_and_simplifies():
    assert substitute(i - 2 * j, {i: j, j: i}) is j - 2 * i
    assert substitute(i // 4, {i: 4 * j + 1}) is j
    assert substitute(minimum(i, N) % W, {W: 4, i: 2, N: 3}) == 2
    assert substitute(n * N, {}) is n * N
    assert substitute(5, {i: 1}) == 5
    assert free_symbols(substitute(n * C + i // W, {i: n})) == {n, C, W}


def test_text_does_not_depend_on_the_order_of_construction():
    assert to_text(((n * C + c) * H + h) * W + w) == "C*H*W*n + H*W*c + W*h + w"
    assert str(h + 4 * w) == "4*w + h"
    assert str(-1 * i + 4 * j - 1) == "4*j - i - 1"
    assert str((i + 1) // 4 * 3) == "3*((i + 1)//4)"
    assert str(i % 4) == "i%4"
    assert str(i // 4 % 3) == "(i//4)%3"
    assert repr(minimum(i, N, 3)) == "min(N, i, 3)"
    assert str(-i) == "-i"
    a, b = Symbol("order_a"), Symbol("order_b")
    late, early = Symbol("aa_late"), a * b
    assert str(late * b + early) == "aa_late*order_b + order_a*order_b"


def test_c_source_rounds_down():
    assert to_c(n // 4 + c % 4) == "(n / 4) + (c % 4)"
    assert to_c(i // 4) == "sh_floordiv(i, 4)"
    assert to_c((i - j) % W) == "sh_mod(i - j, W)"
    assert to_c(minimum(i, j, 3)) == "std::min<int64_t>(std::min<int64_t>(i, j), 3)"
    assert to_c(n * W, lambda s: f"{s.name}_0") == "W_0*n_0"
    assert to_c(7) == "7"
    assert to_python((n + c) // 4 * W) == "W*((c + n) // 4)"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_compiled_c_source_agrees_with_evaluate(tmp_path):
    k = Symbol("k", 1, 5)
    cases = [
        (i * 3 - j) // 4,
        (i * 3 - j) % 4,
        (i + 7) // k - 2 * (j % k),
        maximum(minimum(i, j - 1, 2), i * j - 3),
        (i // -3) % 2 * j - i * i,
        index("r", 30) // 4 % 3 + k // 2,
    ]
    grid = [(a, b, d, r) for a in range(-9, 10, 2) for b in range(-5, 6) for d in range(1, 6) for r in (0, 7, 29)]
    lines = "\n".join(f'  std::printf("%lld ", (long long)({to_c(e)}));' for e in cases)
    data = ", ".join("{" + ", ".join(map(str, row)) + "}" for row in grid)
    source = tmp_path / "check.cpp"
    source.write_text(
        f"#include <algorithm>\n#include <cstdint>\n#include <cstdio>\n{C_HELPERS}\n"
        f"static const int64_t grid[][4] = {{{data}}};\n"
        "int main() { for (auto& row : grid) {\n  int64_t i = row[0], j = row[1], k = row[2], r = row[3];\n"
        f"  (void)i; (void)j; (void)k; (void)r;\n{lines}\n}} }}\n"
    )
    program = tmp_path / "check"
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Werror", str(source), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    expected = [evaluate(e, {"i": a, "j": b, "k": d, "r": r}) for a, b, d, r in grid for e in cases]
    assert [int(v) for v in printed.split()] == expected


def test_json_is_plain_and_stable():
    e = (n * 4 + c) // 3 + minimum(i, W) % 5
    assert from_json(to_json(e)) is e
    assert to_json(5) == 5
    assert to_json(2 * i + 1) == ["sum", 1, [[2, ["symbol", "i", None, None, 1]]]]
    assert copy.deepcopy({"e": e})["e"] is e


def test_symbols_of_bounds_survive_the_round_trip():
    restored = from_json(to_json(n))
    assert restored is n
    assert restored.upper is N - 1
    assert n.size is N


def test_threads_get_the_same_nodes():
    start = threading.Barrier(4)
    results: list[list[Expr]] = [[] for _ in range(4)]

    def build(into: list[Expr]) -> None:
        start.wait()
        for k in range(300):
            a, b = index(f"thread_a{k}", 8), Symbol(f"thread_b{k}", 1)
            into.append(((a * b + 3) // 4 + a % 3) * b)

    threads = [threading.Thread(target=build, args=(r,)) for r in results]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for others in results[1:]:
        assert all(a is b for a, b in zip(results[0], others))


def test_ten_thousand_cold_expressions_in_a_second():
    """Fresh symbols, a row-major index, its quotient and remainder, and a substitution: 10,000 index expressions."""

    def build(k: int) -> int:
        n, c = index(f"cold_n{k}", 64), index(f"cold_c{k}", 32)
        h, w = index(f"cold_h{k}", 28), index(f"cold_w{k}", 28)
        flat = ((n * 32 + c) * 28 + h) * 28 + w
        built = (flat, flat // 784, flat % 784, substitute(flat, {h: 2 * h % 28, w: w + 0}))
        return len(built)

    best = float("inf")
    for attempt in range(3):  # processor time, best of three: other processes share the machine
        gc.collect()
        start, count, k = time.process_time(), 0, attempt * 10_000_000
        while count < 10_000:
            count += build(k)
            k += 1
        best = min(best, time.process_time() - start)
        if best < 1:
            break
    assert best < 1, f"{best:.2f} s"


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(shorthaul.symbolic.__path__)])
def test_docstring_examples(name):
    module = importlib.import_module(f"shorthaul.symbolic.{name}")
    assert doctest.testmod(module).failed == 0


def test_package_docstring_example():
    assert doctest.testmod(shorthaul.symbolic).failed == 0
