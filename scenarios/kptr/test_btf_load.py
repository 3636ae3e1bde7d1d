# SPDX-License-Identifier: MIT
"""Types that no object could have are refused when their BTF is loaded, before any map or program uses them."""

from __future__ import annotations

from collections.abc import Callable
from errno import E2BIG, EEXIST, EINVAL, ELOOP, ENOENT
from functools import partial

import pytest

from harness.guest.bpf.syscall import BpfError, errno_name
from scenarios.kptr.special import Field, Types

OWNING = ("kptr", "percpu_kptr")

pytestmark = [pytest.mark.requires("local_kptr")]

Build = Callable[[Types], object]


def value(b: Types, *fields: Field) -> int:
    """A structure with one more, `item`, that lists can contain."""
    b.object("item", ("data", "u64"), ("node", "list_node"), ("leaf", "rb_node"), ("count", "refcount"))
    return b.object("value", *fields)


def chain(b: Types, length: int, node: str = "list_node", root: str = "list_head") -> None:
    """`length` structures, each of which but the last contains the next."""
    for number in range(length):
        owns_next = (("root", f"{root} of link{number + 1}:node"), ("lock", "lock"))
        b.object(f"link{number}", ("node", node), *(owns_next if number + 1 < length else ()))


def pointer_chain(b: Types, length: int, tag: str = "kptr") -> None:
    """`length` structures, each of which owns the next by a pointer, the last one a structure of data."""
    b.object(f"link{length}", ("data", "u64"))
    for number in reversed(range(length)):
        b.object(f"link{number}", ("next", f"{tag} *link{number + 1}"))


def pointer_ring(b: Types, tag: str = "kptr") -> None:
    """A structure that points to its like."""
    pointer = b.pointer(tag, to=b.next_id + 2)
    b.struct("ring", 8, [("next", pointer, 0)])


# What a structure may have; one difference makes each of REFUSED.
TAKEN: dict[str, Build] = {
    "lock": lambda b: value(b, ("lock", "lock")),
    "list": lambda b: value(b, ("lock", "lock"), ("list", "list_head of item:node")),
    "tree": lambda b: value(b, ("lock", "lock"), ("tree", "rb_root of item:leaf")),
    "list and tree under one lock": lambda b: value(
        b, ("lock", "lock"), ("list", "list_head of item:node"), ("tree", "rb_root of item:leaf")
    ),
    "node behind a root, field behind field": lambda b: value(
        b, ("lock", "lock", 0), ("list", "list_head of item:node", 8), ("node", "list_node", 24)
    ),
    "eleven fields": lambda b: value(
        b, ("lock", "lock"), *[(f"list{n}", "list_head of item:node") for n in range(10)]
    ),
    # KPTR-MAP-015: since there are reference counts
    "nodes of both kinds, and a count": lambda b: value(
        b, ("node", "list_node"), ("leaf", "rb_node"), ("count", "refcount")
    ),
}

REFUSED: dict[str, tuple[int, Build]] = {
    # KPTR-MAP-010
    "twelve fields": (
        E2BIG,
        lambda b: value(b, ("lock", "lock"), *[(f"list{n}", "list_head of item:node") for n in range(11)]),
    ),
    # KPTR-MAP-011
    "two locks": (E2BIG, lambda b: value(b, ("lock", "lock"), ("more", "lock"))),
    "two counts": (E2BIG, lambda b: value(b, ("count", "refcount"), ("more", "refcount"))),
    # KPTR-MAP-012
    "lock within a root": (
        EEXIST,
        lambda b: value(b, ("list", "list_head of item:node", 0), ("lock", "lock", 8)),
    ),
    "two roots in one place": (
        EEXIST,
        lambda b: value(
            b, ("lock", "lock", 0), ("list", "list_head of item:node", 8), ("tree", "rb_root of item:leaf", 8)
        ),
    ),
    "node across another's end": (
        EEXIST,
        lambda b: value(b, ("node", "list_node", 0), ("more", "list_node", 8)),
    ),
    # KPTR-MAP-014
    "list without a lock": (EINVAL, lambda b: value(b, ("list", "list_head of item:node"))),
    "tree without a lock": (EINVAL, lambda b: value(b, ("tree", "rb_root of item:leaf"))),
    # KPTR-MAP-015
    "nodes of both kinds, and no count": (
        EINVAL,
        lambda b: value(b, ("node", "list_node"), ("leaf", "rb_node")),
    ),
    # KPTR-MAP-016
    "list of nothing": (EINVAL, lambda b: value(b, ("lock", "lock"), ("list", "list_head"))),
    "tree of nothing": (EINVAL, lambda b: value(b, ("lock", "lock"), ("tree", "rb_root"))),
    "list of a structure without a node's name": (
        EINVAL,
        lambda b: value(b, ("lock", "lock"), ("list", "list_head of item")),
    ),
    "list of a structure, the node's name empty": (
        EINVAL,
        lambda b: value(b, ("lock", "lock"), ("list", "list_head of item:")),
    ),
    "list of a structure that is not": (
        ENOENT,
        lambda b: value(b, ("lock", "lock"), ("list", "list_head of nothing:node")),
    ),
    "list of an integer": (
        ENOENT,
        lambda b: value(b, ("lock", "lock"), ("list", "list_head of unsigned int:node")),
    ),
    "list of a node that is not": (
        ENOENT,
        lambda b: value(b, ("lock", "lock"), ("list", "list_head of item:nothing")),
    ),
    "list of a node that is data": (
        EINVAL,
        lambda b: value(b, ("lock", "lock"), ("list", "list_head of item:data")),
    ),
    "list of a tree's node": (
        EINVAL,
        lambda b: value(b, ("lock", "lock"), ("list", "list_head of item:leaf")),
    ),
    "tree of a list's node": (EINVAL, lambda b: value(b, ("lock", "lock"), ("tree", "rb_root of item:node"))),
    "list of a node whose name is there twice": (
        EINVAL,
        lambda b: [
            b.object("twins", ("node", "list_node"), ("more", "u64"), ("node", "list_node")),
            value(b, ("lock", "lock"), ("list", "list_head of twins:node")),
        ],
    ),
    "list of a node that is not aligned": (
        EINVAL,
        lambda b: [
            b.object("bent", ("count", "refcount", 0), ("node", "list_node", 4)),
            value(b, ("lock", "lock"), ("list", "list_head of bent:node")),
        ],
    ),
    # KPTR-MAP-017, -018: refused by the old rule and by the new one
    "list of the structure that it is in": (
        ELOOP,
        lambda b: b.object(
            "ring", ("lock", "lock"), ("list", "list_head of ring:node"), ("node", "list_node")
        ),
    ),
    "tree of the structure that it is in": (
        ELOOP,
        lambda b: b.object("ring", ("lock", "lock"), ("tree", "rb_root of ring:node"), ("node", "rb_node")),
    ),
    "two structures that own each other": (
        ELOOP,
        lambda b: [
            b.object("one", ("lock", "lock"), ("list", "list_head of two:node"), ("node", "list_node")),
            b.object("two", ("lock", "lock"), ("list", "list_head of one:node"), ("node", "list_node")),
        ],
    ),
    "ring of three": (
        ELOOP,
        lambda b: [
            b.object(name, ("lock", "lock"), ("list", f"list_head of {owned}:node"), ("node", "list_node"))
            for name, owned in (("one", "two"), ("two", "three"), ("three", "one"))
        ],
    ),
}


def attempt(build: Build) -> int:
    """0 if the types load, else the errno."""
    b = Types()
    build(b)
    try:
        b.load().close()
    except BpfError as error:
        return error.errno or 0
    return 0


def outcomes(builds: dict[str, Build]) -> dict[str, str]:
    """The errnos' names, "" for success."""
    found = {name: attempt(build) for name, build in builds.items()}
    return {name: errno_name(errno) if errno else "" for name, errno in found.items()}


def test_structures_of_special_fields_are_checked_when_their_types_load() -> None:
    """KPTR-MAP-010 to -012, -014 to -018, -030: whatever the errno, no map was asked for."""
    assert outcomes(TAKEN) == dict.fromkeys(TAKEN, "")
    assert outcomes({name: build for name, (_, build) in REFUSED.items()}) == {
        name: errno_name(errno) for name, (errno, _) in REFUSED.items()
    }


def lengths(make: Callable[..., object]) -> list[int]:
    """The errno that chains of 1, 2, ... 10 structures are refused with, 0 for those that load."""
    return [attempt(partial(make, length=length)) for length in range(1, 11)]


def chains_have_a_limit() -> bool:
    """Whether what owns may be as long as eight structures; before, none in the middle could be as its neighbours."""
    return attempt(lambda b: chain(b, 3)) == 0


def test_chain_of_owners_has_an_end() -> None:
    """KPTR-MAP-017, -018, -031: eight structures, by whatever means one owns the next; a pointer to something else does
    not count.
    """
    lists, trees = lengths(chain), lengths(partial(chain, node="rb_node", root="rb_root"))
    limit = 8 if chains_have_a_limit() else 2
    assert lists == trees == [0] * limit + [ELOOP] * (10 - limit)


@pytest.mark.requires("percpu_kptr")
def test_pointers_that_own_make_chains_too() -> None:
    """KPTR-MAP-031: where chains of structures have a limit, and the last one, of data only, is none of them."""
    by_kind = {tag: lengths(partial(pointer_chain, tag=tag)) for tag in OWNING}
    rings = {tag: attempt(partial(pointer_ring, tag=tag)) for tag in (*OWNING, "kptr_untrusted")}
    limited = chains_have_a_limit()
    assert by_kind == dict.fromkeys(OWNING, [0] * 8 + [ELOOP] * 2 if limited else [0] * 10)
    assert rings == {"kptr": ELOOP * limited, "percpu_kptr": ELOOP * limited, "kptr_untrusted": 0}
