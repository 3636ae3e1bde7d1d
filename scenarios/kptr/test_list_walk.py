# SPDX-License-Identifier: MIT
"""Elements that are looked at, taken out and put in anywhere in a list, while they stay there."""

from __future__ import annotations

from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf.asm import (
    Item,
    add,
    and_,
    ja,
    jeq,
    jne,
    label,
    ldxdw,
    lsh,
    mov,
    or_,
    r0,
    r2,
    r3,
    r7,
    r8,
)
from harness.guest.bpf.map import Map
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.workshop import NOT_OWNED, Refusal, Workshop, assert_refused

pytestmark = [pytest.mark.requires("graph_peek")]

NODE = 8
"""Where an elem's node stands, behind its key."""


@pytest.fixture
def filled(workshop: Workshop, store: Map) -> Map:
    """The list of value 0 is 1, 2, 3."""
    w = workshop
    for key in (1, 2, 3):
        w.run(
            w.value(store),
            w.counted(w.t.elem, key),
            w.lock(),
            w.push(r7, "elems", NODE, back=True),
            w.unlock(),
        )
    return store


def pop_all(w: Workshop, store: Map) -> list[int]:
    """Pop and drop until the list is empty; the keys."""
    with w.load(
        w.value(store),
        w.lock(),
        w.pop("elems"),
        mov(r7, r0),
        w.unlock(),
        jeq(r7, 0, "out"),
        add(r7, -NODE),
        ldxdw(r8, r7),
        w.drop(r7),
        mov(r0, r8),
        ja("exit"),
    ) as pop:
        return list(iter(lambda: pop.test_run(bytes(64)).retval, 0))


def peek(w: Workshop, store: Map, *, back: bool) -> int:
    """The key of the element at an end."""
    return w.run(
        w.value(store),
        w.lock(),
        w.peek("elems", back=back),
        mov(r8, 0),
        jeq(r0, 0, "empty"),
        ldxdw(r8, r0, -NODE),
        label("empty"),
        w.unlock(),
        mov(r0, r8),
        ja("exit"),
    )


def test_ends_of_a_list_are_looked_at(workshop: Workshop, filled: Map, kr_kptr: KrKptr) -> None:
    """KPTR-GRAPH-010: what is seen stays; of an empty list there is nothing."""
    w = workshop
    assert [peek(w, filled, back=back) for back in (False, True)] == [1, 3]

    assert pop_all(w, filled) == [1, 2, 3]
    assert [peek(w, filled, back=back) for back in (False, True)] == [0, 0]
    assert kr_kptr.count("live") == 0


def at_front(w: Workshop, then: Item) -> Item:
    """r7 = the node of the first element, under the lock, and what happens to it; the list may be empty."""
    return [
        w.lock(),
        w.peek("elems"),
        jne(r0, 0, "there"),
        w.unlock(),
        ja("out"),
        label("there"),
        mov(r7, r0),
        then,
    ]


# KPTR-GRAPH-001, -004, -010
REFUSED = {
    "read_without_null_check": Refusal(
        EACCES,
        "invalid mem access '.*or_null_",
        lambda w, m: [w.value(m), w.lock(), w.peek("elems"), ldxdw(r0, r0, -NODE)],
    ),
    "read_after_unlock": Refusal(
        EACCES,
        "invalid mem access 'scalar'",
        lambda w, m: [w.value(m), at_front(w, [w.unlock(), ldxdw(r0, r7, -NODE)])],
    ),
    "drop": Refusal(
        EINVAL, NOT_OWNED, lambda w, m: [w.value(m), at_front(w, [w.unlock(), add(r7, -NODE), w.drop(r7)])]
    ),
    "push_again": Refusal(
        EINVAL,
        "expected pointer to allocated object",
        lambda w, m: [w.value(m), at_front(w, [add(r7, -NODE), w.push(r7, "elems", NODE), w.unlock()])],
    ),
}


def test_element_that_is_looked_at_is_not_owned(workshop: Workshop, store: Map) -> None:
    """KPTR-GRAPH-004, -010: readable until the lock is given back."""
    w = workshop
    w.load(w.value(store), at_front(w, [ldxdw(r0, r7, -NODE), w.unlock()])).close()
    assert_refused(w, store, REFUSED)


@pytest.mark.requires("kfunc:bpf_list_del", "kfunc:bpf_list_add")
def test_element_is_put_behind_another(workshop: Workshop, filled: Map, kr_kptr: KrKptr) -> None:
    """KPTR-GRAPH-016, -003: behind the first and behind the last, by what peeking gave."""
    w = workshop
    for back, key in ((False, 15), (True, 35)):
        result = w.run(
            w.value(filled),
            w.counted(w.t.elem, key),
            w.lock(),
            w.peek("elems", back=back),
            jne(r0, 0, "there"),
            w.unlock(),
            w.drop(r7),
            ja("out"),
            label("there"),
            mov(r3, r0),
            mov(r2, r7),
            add(r2, NODE),
            w.list_call("add", "elems"),
            mov(r8, r0),
            w.unlock(),
            mov(r0, r8),
            ja("exit"),
        )
        assert result == 0

    assert pop_all(w, filled) == [1, 15, 2, 3, 35]
    assert kr_kptr.count("live") == 0


@pytest.mark.requires("kfunc:bpf_list_del")
def test_element_is_taken_out_by_its_name(workshop: Workshop, store: Map, kr_kptr: KrKptr) -> None:
    """KPTR-GRAPH-008, -017: an owned name of a refcounted element in the middle; NULL if the list has it not."""
    w = workshop
    node = w.t.shared.at["node"]

    def push(key: int) -> Item:
        return [w.counted(w.t.shared, key), w.lock(), w.push(r7, "list", node, back=True), w.unlock()]

    w.run(w.value(store), push(1))
    w.run(
        w.value(store),
        w.counted(w.t.shared, 2),
        w.acquire(r7),
        mov(r8, r0),
        w.lock(),
        w.push(r8, "list", node, back=True),
        w.unlock(),
        w.stash(r7, "shared"),
    )
    w.run(w.value(store), push(3))

    take_out: Item = [
        w.unstash("shared"),
        w.lock(),
        mov(r2, r7),
        add(r2, node),
        w.list_call("del", "list"),
        mov(r8, r0),
        w.unlock(),
        w.stash(r7, "shared"),
        mov(r0, 1),
        jeq(r8, 0, "exit"),
        add(r8, -node),
        w.drop(r8),
        mov(r0, 2),
        ja("exit"),
    ]
    assert [w.run(w.value(store), take_out) for _ in range(2)] == [2, 1]
    assert kr_kptr.count("live") == 3

    pop: Item = [w.lock(), w.pop("list"), mov(r7, r0), w.unlock(), jeq(r7, 0, "out"), add(r7, -node)]
    with w.load(
        w.value(store), pop, ldxdw(r8, r7, w.t.shared.at["key"]), w.drop(r7), mov(r0, r8), ja("exit")
    ) as pop_key:
        assert list(iter(lambda: pop_key.test_run(bytes(64)).retval, 0)) == [1, 3]


@pytest.mark.requires("kfunc:bpf_list_empty", "kfunc:bpf_list_is_first", "kfunc:bpf_list_is_last")
def test_list_answers_questions(workshop: Workshop, filled: Map) -> None:
    """KPTR-GRAPH-010: is it empty, is this its first, its last.

    A bool is one byte, and the rest of the register is what it was.
    """
    w = workshop

    def answers(key: int, *, back: bool = False) -> int:
        return w.run(
            w.value(filled, key),
            w.lock(),
            w.list_call("empty", "elems"),
            and_(r0, 0xFF),
            mov(r8, r0),
            w.peek("elems", back=back),
            jeq(r0, 0, "empty"),
            mov(r7, r0),
            mov(r2, r7),
            w.list_call("is_first", "elems"),
            and_(r0, 0xFF),
            lsh(r0, 1),
            or_(r8, r0),
            mov(r2, r7),
            w.list_call("is_last", "elems"),
            and_(r0, 0xFF),
            lsh(r0, 2),
            or_(r8, r0),
            label("empty"),
            w.unlock(),
            mov(r0, r8),
            ja("exit"),
        )

    assert (answers(0), answers(0, back=True), answers(1)) == (0b010, 0b100, 0b001)
