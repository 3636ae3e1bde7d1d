# SPDX-License-Identifier: MIT
"""Maps whose value is any row of tagged pointers, and what the kernel made of each."""

from __future__ import annotations

import re
from contextlib import closing

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import add, asm, call, exit_, jeq, label, ld_map_fd, mov, r0, r1, r2, r10, stw
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError

SIZE = 8


def owning_tag() -> str:
    """The tag of pointers that own: 6.4 turned the tags round (kernel/bpf/btf.c:btf_find_kptr)."""
    return "kptr" if has("kptr_untrusted_tag") else "kptr_ref"


def viewing_tag() -> str:
    """The tag of pointers that own nothing."""
    return "kptr_untrusted" if has("kptr_untrusted_tag") else "kptr"


def map_with(
    b: BtfBuilder, value: int, size: int, map_type: int = uapi.BPF_MAP_TYPE_ARRAY, *, flags: int = 0
) -> Map:
    """A map of one value, whose type is a structure of this size in `b`. Raises BpfError."""
    key = b.integer("unsigned int", 4)
    with b.load() as types:
        return Map.create(
            map_type, 4, size, 1, flags=flags, btf=types, btf_key_type_id=key, btf_value_type_id=value
        )


def pointer_map(tag: str, *pointees: str, map_type: int = uapi.BPF_MAP_TYPE_ARRAY) -> Map:
    """A map of one value that is a row of pointers to these structures, all with this tag. Raises BpfError."""
    b = BtfBuilder()
    members = [
        (f"p{n}", b.ptr(b.type_tag(tag, b.struct(each, 0))), n * SIZE) for n, each in enumerate(pointees)
    ]
    size = SIZE * len(members)
    return map_with(b, b.struct("value", size, members), size, map_type)


def types_are_parsed_early() -> bool:
    """Whether structures with pointers are looked at when their BTF is loaded, which fails if one cannot be (6.12).

    Before, a map of such a structure is made all the same, and what was meant as a pointer in it is data. An inode
    cannot be owned.
    """
    try:
        pointer_map(owning_tag(), "inode").close()
    except BpfError:
        return True
    return False


def kind(map: Map, offset: int = 0) -> str:
    """ "owning", "viewing", or "data": what the kernel takes the bytes at an offset of an array's value for.

    A program takes the pointer out and drops it: only of an owned one does the verifier complain for that. Raises
    BpfError for any other complaint.
    """
    code = asm(
        stw(r10, -4, 0),
        ld_map_fd(r1, map),
        mov(r2, r10),
        add(r2, -4),
        call(uapi.BPF_FUNC_map_lookup_elem),
        jeq(r0, 0, "out"),
        mov(r1, r0),
        add(r1, offset),
        mov(r2, 0),
        call(uapi.BPF_FUNC_kptr_xchg),
        label("out"),
        mov(r0, 0),
        exit_(),
    )
    try:
        with closing(Prog.load(code, uapi.BPF_PROG_TYPE_SCHED_CLS)):
            raise AssertionError("what was taken out may be dropped")
    except BpfError as error:
        for says, verdict in _VERDICTS:
            if re.search(says, error.log):
                return verdict
        raise


_VERDICTS = (
    ("Unreleased reference", "owning"),
    ("isn't referenced kptr", "viewing"),
    ("doesn't point to kptr|has no valid kptr|more than|repeating kptr", "data"),
)
