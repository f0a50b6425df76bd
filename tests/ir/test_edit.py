"""Edits: undo restores the program exactly, exceptions roll back, fusing reorders and refuses cycles; propagation of memlets."""

import pytest
from ir_nets import Net
from random_programs import random_program

from shorthaul.ir.builder import at, inside
from shorthaul.ir.containers import Alias, Container
from shorthaul.ir.dtypes import float32, int64
from shorthaul.ir.edit import EditError
from shorthaul.ir.fingerprint import fingerprint
from shorthaul.ir.memlet import Indirect, Span
from shorthaul.ir.nodes import Map, Tasklet
from shorthaul.ir.propagate import bind_sizes, dimension_size, extent, propagate
from shorthaul.ir.verify import verify
from shorthaul.symbolic import Symbol, index, minimum


def chain(*edges):
    """A program of one copy map per (source containers, target)."""
    net = Net()
    i = index("i", 4)
    for sources, target in edges:
        for s in sources:
            if s not in net.program.containers:
                net.input(s, 4)
        net.container(target, 4)

        def code(**v):
            total = None
            for x in v.values():
                total = x if total is None else total + x
            return {"out": total}

        net.map((i,), {s: at(s, i) for s in sources}, {"out": at(target, i)}, code, name=target)
    return net


def names(program):
    return [n.name for n in program.nodes]


def uses(program):
    """What the program's use lists say, to compare before and after."""
    return {c: ([n.id for n in program.readers(c)], [n.id for n in program.writers(c)]) for c in program.containers}


def snapshot(program):
    readers = {c: (set(r), set(w)) for c, (r, w) in uses(program).items()}
    return (
        fingerprint(program),
        [id(n) for n in program.nodes],
        readers,
        dict(program.containers),
        program.signature,
        program.form,
    )


class TestUndo:
    def test_every_primitive(self):
        net = chain((("x",), "a"), (("a",), "b"), (("b",), "c"))
        p = net.program
        before = snapshot(p)
        log = len(p.log)
        with p.edit("many") as edit:
            edit.add_container(Container("new", float32, (4,)))
            edit.set_container(p.containers["a"].with_(dtype=int64))
            edit.remove(p.nodes[2])
            edit.remove_container("c")
            edit.replace(p.nodes[0], p.nodes[0].copy(), p.nodes[1].copy())
            edit.add(p.nodes[0].copy(), before=p.nodes[0])
            edit.set_constant("new", 3)
            edit.set_signature(p.signature.with_(outputs=("b",)))
            edit.set_form(p.form.__class__.SCHEDULED)
        assert snapshot(p) != before
        assert len(p.log) == log + 1
        p.undo()
        assert snapshot(p) == before
        assert "new" not in p.constants

    @pytest.mark.parametrize("seed", range(10))
    def test_of_all_edits_of_a_random_program(self, seed):
        p, _ = random_program(seed)
        states = []
        for k, node in enumerate(list(p.nodes)):
            states.append(snapshot(p))
            with p.edit(f"copy {k}") as edit:
                edit.replace(node, node.copy())
        for state in reversed(states):
            p.undo()
            assert snapshot(p) == state

    def test_more_than_there_is(self):
        p = chain((("x",), "a")).program
        with pytest.raises(IndexError, match="cannot undo 99 rewrites"):
            p.undo(99)

    def test_versions_only_go_up(self):
        p = chain((("x",), "a")).program
        v = p.version
        with p.edit("nothing"):
            pass
        assert p.version == v
        p.undo()
        assert p.version > v


class TestRollback:
    def test_an_exception_leaves_nothing(self):
        p = chain((("x",), "a"), (("a",), "b")).program
        before, log, version = snapshot(p), list(p.log), p.version
        with pytest.raises(ZeroDivisionError), p.edit("broken") as edit:  # noqa: PT012
            edit.remove(p.nodes[1])
            edit.add_container(Container("t", float32, ()))
            edit.replace(p.nodes[0], p.nodes[0].copy())
            1 / 0  # noqa: B018
        assert snapshot(p) == before
        assert p.log == log
        assert p.version == version

    def test_refusals(self):
        p = chain((("x",), "a")).program
        other = chain((("x",), "a")).program.nodes[0]
        for change, reason in (
            (lambda e: e.add_container(Container("a", float32, ())), "exists already"),
            (lambda e: e.set_container(Container("q", float32, ())), "does not exist"),
            (lambda e: e.remove_container("a"), "still used"),
            (lambda e: e.remove(other), "is not in program"),
        ):
            before = snapshot(p)
            with pytest.raises(EditError, match=reason), p.edit("refused") as edit:
                change(edit)
            assert snapshot(p) == before


class TestFuse:
    def fuse(self, net, *which):
        p = net.program
        nodes = [n for n in p.nodes if n.name in which]
        body = tuple(t for n in nodes for t in n.body)
        with p.edit("fuse") as edit:
            edit.fuse(nodes, Map(nodes[0].params, body, name="+".join(which)))
        verify_order(p)
        return names(p)

    def test_neighbours(self):
        assert self.fuse(chain((("x",), "a"), (("x",), "b"), (("x",), "c")), "a", "b") == ["a+b", "c"]

    def test_what_depends_on_them_moves_behind(self):
        net = chain((("x",), "a"), (("a",), "m"), (("m",), "n"), (("x",), "u"), (("x",), "b"))
        assert self.fuse(net, "a", "b") == ["u", "a+b", "m", "n"]

    def test_what_they_need_stays_before(self):
        net = chain((("x",), "a"), (("x",), "u"), (("u",), "b"), (("b",), "c"))
        assert self.fuse(net, "a", "b") == ["u", "a+b", "c"]

    def test_a_cycle_is_refused(self):
        net = chain((("x",), "a"), (("a",), "m"), (("m",), "b"))
        before = snapshot(net.program)
        with pytest.raises(EditError, match="through a node between"):
            self.fuse(net, "a", "b")
        assert snapshot(net.program) == before

    def test_a_cycle_through_two_nodes_is_refused(self):
        net = chain((("x",), "a"), (("a",), "m"), (("m",), "n"), (("n", "x"), "b"))
        with pytest.raises(EditError, match="through a node between"):
            self.fuse(net, "a", "b")

    def test_a_direct_dependence_is_not_a_cycle(self):
        net = chain((("x",), "a"), (("a",), "m"), (("a",), "b"))
        assert self.fuse(net, "a", "b") == ["a+b", "m"]

    def test_undo(self):
        net = chain((("x",), "a"), (("a",), "m"), (("x",), "u"), (("x",), "b"))
        before = snapshot(net.program)
        self.fuse(net, "a", "b")
        net.program.undo()
        assert snapshot(net.program) == before


def verify_order(program):
    written = {n for n, c in program.containers.items() if c.is_external}
    for n in program.nodes:
        inner = {a.memlet.container for a in n.accesses() if a.is_write}
        assert program.reads_of(n) <= written | inner
        written |= program.writes_of(n)


def test_handles_follow_rewrites():
    p = chain((("x",), "a"), (("a",), "b")).program
    first = p.nodes[0]
    with p.edit("one") as edit:
        edit.replace(first, new := first.copy())
    with p.edit("two") as edit:
        edit.replace(new, *(last := [new.copy(), new.copy()]))
    assert p.resolve(first.id) == last
    with pytest.raises(KeyError, match="was rewritten"):
        p.node(first.id)


def test_a_changed_copy_keeps_its_id_and_its_place():
    p = chain((("x",), "a"), (("a",), "b")).program
    node = p.nodes[0]
    with p.edit("rename") as edit:
        edit.replace(node, node.with_(name="renamed"))
    assert names(p) == ["renamed", "b"]
    assert p.node(node.id).name == "renamed"
    assert p.writers("a") == [p.nodes[0]]
    p.undo()
    assert p.nodes[0] is node
    assert p.writers("a") == [node]


class TestPropagate:
    def boxes(self, params, *subset, guard=(), shape=None, containers=True):
        c = Container("x", float32, shape)
        tasklet = Tasklet({}, reads={"x": at(c, *subset, guard=guard, fill=0), "k": at("k", params[0])})
        return propagate(
            Map(tuple(params), (tasklet,)), {"x": c, "k": Container("k", int64, (9,))} if containers else None
        )[0]["x"].subset

    def test_affine_subscripts(self):
        n, h, k = Symbol("N", 1), index("h", 5), index("k", 3)
        i = index("i", n)
        assert self.boxes((i, h, k), i, 2 * h + k, shape=(n, 11)) == (Span(0, n), Span(0, 11))
        assert self.boxes((h,), 4 - h, shape=(5,)) == (Span(0, 5),)
        assert self.boxes((h,), 3 * h + 1, shape=(14,)) == (Span(1, 5, 3),)
        assert self.boxes((i, h), n - 1 - i, 7, shape=(n, 8)) == (Span(0, n), Span(7, 1))

    def test_quotients_remainders_and_minima(self):
        i = index("i", 12)
        assert self.boxes((i,), i // 4, i % 4, shape=(3, 4)) == (Span(0, 3), Span(0, 4))
        assert self.boxes((i,), minimum(i, 5), shape=(6,)) == (Span(0, 6),)

    def test_guards_clip(self):
        h, k = index("h", 8), index("k", 3)
        place = h + k - 1
        assert self.boxes((h, k), place, guard=inside(place, 8), shape=(8,)) == (Span(0, 8),)
        assert self.boxes((h, k), place, guard=inside(place, 8), shape=(8,), containers=False) == (Span(0, 8),)
        assert self.boxes((h,), h, guard=inside(h - 2, 3), shape=(8,)) == (Span(2, 3),)

    def test_indirection_needs_the_whole_dimension(self):
        i = index("i", 5)
        assert self.boxes((i,), Indirect("k"), i, shape=(7, 5)) == (Span(0, 7), Span(0, 5))
        unknown = self.boxes((i,), Indirect("k"), i, shape=(7, 5), containers=False)
        assert unknown[0] == Span(0, dimension_size("x", 0))
        m = at("x", *unknown)
        assert bind_sizes(m, Container("x", float32, (7, 5))).subset == (Span(0, 7), Span(0, 5))

    def test_triangular_ranges(self):
        i = index("i", 6)
        j = Symbol("j", 0, i)
        assert self.boxes((i, j), j, shape=(6,)) == (Span(0, 6),)
        assert extent(i - j, frozenset((i, j))) == (-5, 5)

    def test_several_accesses_and_locals(self):
        net = Net()
        x, y, i, j = net.input("x", 9), net.output("y", 4), index("i", 4), index("j", 2)
        s = Container("s", float32, (), storage="register")
        node = net.add(Map((i,), (
            net.flat((j,), {"a": at(x, i + j), "b": at(x, i + 5)}, {"s": at(s, combine="sum")}, lambda a, b: {"s": a * b}),
            net.flat((), {"s": at(s)}, {"y": at(y, i)}, lambda s: {"y": s}, locals=(s,)),
        ), locals={"s": s}))  # fmt: skip
        verify(net.program)
        assert node.reads == {"x": at("x", Span(0, 9))}
        assert node.writes == {"y": at("y", Span(0, 4))}
        assert node.body[0].reads["x"].subset == (Span(i, 6),)
        assert node.body[0].writes == {"s": at("s", combine="sum")}


def test_aliases_follow_edits_undo_and_rollback():
    p = chain((["x"], "a"), (["a"], "b"), (["b"], "c"), (["c"], "d")).program

    def lie(name, base):
        with p.edit("t") as e:
            e.set_container(p.containers[name].with_(alias=Alias(base, 0)))

    assert p.aliases("a") == frozenset()
    lie("b", "a")
    assert p.aliases("a") == {"b"}
    lie("c", "b")
    assert p.aliases("a") == {"b", "c"} and p.aliases("b") == {"c"} and p.aliases("c") == frozenset()
    assert p.clone().aliases("a") == {"b", "c"}

    def fail():
        with p.edit("t") as e:
            e.set_container(p.containers["d"].with_(alias=Alias("a", 0)))
            assert p.aliases("a") == {"b", "c", "d"}
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert p.aliases("a") == {"b", "c"}
    with p.edit("t") as e:
        e.set_container(p.containers["c"].with_(alias=None))
    assert p.aliases("a") == {"b"}
    p.undo(2)
    assert p.aliases("a") == {"b"} and p.aliases("b") == frozenset()
    p.undo()
    assert p.aliases("a") == frozenset()
