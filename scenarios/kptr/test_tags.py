# SPDX-License-Identifier: MIT
"""Which pointers of a value are special, by their tags; and how a scenario learns what this kernel has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pytest

from harness.guest.bpf import btf
from harness.guest.bpf.probe import has
from scenarios.kptr.pointers import owning_tag, types_are_parsed_early, viewing_tag
from scenarios.kptr.special import Types, made_of

TASK = "task_struct"


def tagged(*tags: str, to: Callable[[Types], int] = lambda b: b.declare(TASK)) -> Callable[[Types], int]:
    """A value that is one pointer with these tags, the outermost first, and what is behind them."""

    def build(b: Types) -> int:
        b.sizes["value"] = 8
        return b.struct("value", 8, [("pointer", b.pointer(*tags, to=to(b)), 0)])

    return build


def tags_are_looked_through() -> bool:
    """Whether a tag that the kernel does not know hides no other (7.0); before, it spoils the whole value."""
    return made_of(tagged("kernrig", owning_tag(), to=pointee_of_this_kernel)) == "owning"


def pointee_of_this_kernel(b: Types) -> int:
    """A structure that this kernel lets maps own."""
    return b.declare(TASK if has("kfunc:bpf_task_acquire") else "prog_test_ref_kfunc")


def test_tag_says_whether_a_pointer_owns() -> None:
    """KPTR-TAG-001, -002, -005, KPTR-PROBE-001: 6.4 turned the names round, so that what looks on one kernel owns on
    another.
    """
    told = {
        tag: made_of(tagged(tag, to=pointee_of_this_kernel)) for tag in ("kptr_untrusted", "kptr", "kptr_ref")
    }
    if has("kptr_untrusted_tag"):
        assert told == {"kptr_untrusted": "viewing", "kptr": "owning", "kptr_ref": "data"}
    else:
        assert told == {"kptr_untrusted": "data", "kptr": "viewing", "kptr_ref": "owning"}
    assert {owning_tag(): "owning", viewing_tag(): "viewing"}.items() <= told.items()
    assert made_of(tagged()) == "data"


@pytest.mark.requires("percpu_kptr")
def test_tag_of_objects_per_cpu_owns() -> None:
    """KPTR-TAG-003: of the program's own structures."""
    assert made_of(tagged("percpu_kptr", to=lambda b: b.declare("kr_unknown"))) == "owning"


def with_neighbour(b: Types, first: int) -> int:
    """A value of this pointer and, behind it, one that looks at a task."""
    b.sizes["value"] = 16
    second = b.pointer(viewing_tag(), to=b.declare(TASK))
    return b.struct("value", 16, [("first", first, 0), ("second", second, 8)])


def alone(b: Types, pointer: int) -> int:
    """A value of this pointer."""
    b.sizes["value"] = 8
    return b.struct("value", 8, [("pointer", pointer, 0)])


def to(b: Types, target: int) -> int:
    """A pointer that looks at this."""
    return b.pointer(viewing_tag(), to=target)


def by(b: Types, *tags: str) -> int:
    """A pointer to a task with these tags."""
    return b.pointer(*tags, to=b.declare(TASK))


Pointer = Callable[[Types], int]

GOOD: dict[str, Pointer] = {
    "tag": lambda b: by(b, viewing_tag()),
    "qualifiers behind the tag": lambda b: to(b, b.const(b.volatile(b.declare(TASK)))),
    "typedef of the structure": lambda b: to(b, b.typedef("task_t", b.declare(TASK))),
}
# KPTR-MAP-002, -003; what they are since tags are looked through
UNKNOWN: dict[str, tuple[str, Pointer]] = {
    "unknown tag": ("data", lambda b: by(b, "kernrig")),
    "beginning of a tag": ("data", lambda b: by(b, viewing_tag()[:-1])),
    "unknown tag before a known one": ("viewing", lambda b: by(b, "kernrig", viewing_tag())),
    "unknown tag behind a known one": ("viewing", lambda b: by(b, viewing_tag(), "kernrig")),
    "one tag twice": ("viewing", lambda b: by(b, viewing_tag(), viewing_tag())),
}
# KPTR-MAP-003, -004
BAD: dict[str, Pointer] = {
    "two tags that do not agree": lambda b: by(b, viewing_tag(), owning_tag()),
    "pointer to a number": lambda b: to(b, b.u64),
    "pointer to a pointer": lambda b: to(b, b.ptr(b.declare(TASK))),
    "pointer to nothing": lambda b: to(b, 0),
    "pointer to a union": lambda b: to(b, b.union("sigval", 8)),
    "pointer to a function": lambda b: to(b, b.func_proto()),
    "pointer to a declaration": lambda b: to(b, b.fwd(TASK)),
}


def test_pointer_with_an_odd_tag_or_target_is_data() -> None:
    """KPTR-MAP-002 to -004: and no reason not to make the map; its neighbours with good tags are data, too, where types
    are not refused for it.
    """
    lenient = tags_are_looked_through()
    spoiled = "types: EINVAL" if types_are_parsed_early() else "data"
    assert outcomes(GOOD, alone) == dict.fromkeys(GOOD, "viewing")
    assert outcomes(BAD, alone) == dict.fromkeys(BAD, "data")
    assert outcomes(BAD, with_neighbour, 8) == dict.fromkeys(BAD, spoiled)

    unknown = {name: pointer for name, (_, pointer) in UNKNOWN.items()}
    assert outcomes(unknown, alone) == {
        name: kind if lenient else "data" for name, (kind, _) in UNKNOWN.items()
    }
    assert outcomes(unknown, with_neighbour, 8) == dict.fromkeys(UNKNOWN, "viewing" if lenient else spoiled)


def outcomes(
    pointers: Mapping[str, Pointer], value_of: Callable[[Types, int], int], offset: int = 0
) -> dict[str, str]:
    """What is made of values of each of these pointers."""
    return {name: made_of(partial(_built, value_of, make), offset) for name, make in pointers.items()}


def _built(value_of: Callable[[Types, int], int], make: Pointer, b: Types) -> int:
    return value_of(b, make(b))


def test_probes_agree_with_what_the_kernel_names() -> None:
    """KPTR-PROBE-002 to -004: 7.1 took the hidden arguments, and with them the suffix, from the kfuncs' names."""
    kernel = btf.vmlinux()
    for feature, name in (
        ("local_kptr", "bpf_obj_new"),
        ("refcounted_kptr", "bpf_refcount_acquire"),
        ("percpu_kptr", "bpf_percpu_obj_new"),
    ):
        assert has(feature) == (kernel.has_func(name) or kernel.has_func(f"{name}_impl"))
    peeks = [
        kernel.has_func(f"bpf_{name}")
        for name in ("list_front", "rbtree_root", "rbtree_left", "rbtree_right")
    ]
    assert peeks == [has("graph_peek")] * 4
