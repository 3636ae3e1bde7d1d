# SPDX-License-Identifier: MIT
"""Programs that would lose, forge or use up a reference do not load; what the verifier says stands beside each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EACCES, EINVAL

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.asm import (
    Item,
    Reg,
    add,
    and_,
    call,
    exit_,
    jeq,
    jne,
    ld_map_fd,
    ldxdw,
    ldxw,
    mov,
    r0,
    r1,
    r2,
    r3,
    r4,
    r6,
    r7,
    r10,
    stdw,
    stxdw,
)
from harness.guest.bpf.map import Map
from harness.guest.bpf.syscall import refused
from harness.guest.kr_modules import KrKptr
from scenarios.kptr.kfuncs import Kfuncs, exchange, value_of
from scenarios.kptr.owning_map import OWNED, SEEN, owning_map


@dataclass(frozen=True)
class Bench:
    """What the programs of the table are made of."""

    map: Map
    k: Kfuncs

    @property
    def value(self) -> Item:
        """r6 = a value of the map."""
        return value_of(self.map)

    @property
    def take(self) -> Item:
        """r7 = the object that was in the value, owned by the program from here on."""
        return [exchange(mov(r2, 0)), jeq(r0, 0, "out"), mov(r7, r0)]

    def release(self, object: Reg) -> Item:
        """Release the object in a register, whatever is in it."""
        return [mov(r1, object), self.k.call("kr_obj_release")]


@pytest.fixture
def bench(kr_kptr: KrKptr) -> Iterator[Bench]:
    with owning_map("kr_obj") as map:
        yield Bench(map, Kfuncs())


Program = Callable[[Bench], Item]

# Each is whole: with one instruction less or one more it is one of REFUSED.
ACCEPTED: dict[str, Program] = {
    "put_in_and_release_what_came_out": lambda b: [
        b.value,
        b.k.new(),
        exchange(mov(r2, r7)),
        jeq(r0, 0, "out"),
        b.release(r0),
    ],
    "take_out_and_release": lambda b: [b.value, b.take, b.release(r7)],
    "make_and_release": lambda b: [b.k.new(), b.release(r7)],
    "read_behind_owned_pointer": lambda b: [
        b.value,
        ldxdw(r1, r6, OWNED),
        jeq(r1, 0, "out"),
        ldxw(r0, r1),
    ],
    "store_0_to_unowned": lambda b: [b.value, stdw(r6, SEEN, 0)],
    "store_object_to_unowned": lambda b: [b.value, b.k.new(), stxdw(r6, SEEN, r7), b.release(r7)],
}

# No errno stands where releases differ.
REFUSED: dict[str, tuple[int | None, str, Program]] = {
    # KPTR-ACC-010
    "store_0_to_owned": (
        EACCES,
        "store to referenced kptr disallowed",
        lambda b: [b.value, stdw(r6, OWNED, 0)],
    ),
    "store_object_to_owned": (
        EACCES,
        "store to referenced kptr disallowed",
        lambda b: [b.value, b.k.new(), stxdw(r6, OWNED, r7), b.release(r7)],
    ),
    # KPTR-ACC-012
    "store_number_to_unowned": (EACCES, "imm must be 0", lambda b: [b.value, stdw(r6, SEEN, 1)]),
    # KPTR-ACC-005 to -008
    "load_half_of_pointer": (EACCES, "access size must be BPF_DW", lambda b: [b.value, ldxw(r0, r6, OWNED)]),
    "load_across_pointer": (EACCES, "misaligned", lambda b: [b.value, ldxdw(r0, r6, OWNED - 4)]),
    "load_at_variable_offset": (
        EACCES,
        "cannot have variable offset",
        lambda b: [b.value, ldxdw(r1, r6, 0), and_(r1, 8), add(r6, r1), ldxdw(r0, r6, 0)],
    ),
    "hand_value_to_helper": (
        EACCES,
        "accessed indirectly by helper",
        lambda b: [
            b.value,
            ld_map_fd(r1, b.map),
            mov(r2, r10),
            add(r2, -4),
            mov(r3, r6),
            mov(r4, 0),
            call(uapi.BPF_FUNC_map_update_elem),
        ],
    ),
    # KPTR-ACC-021, KPTR-XCHG-016
    "read_without_null_check": (
        EACCES,
        "invalid mem access '.*or_null_'",
        lambda b: [b.value, ldxdw(r1, r6, OWNED), ldxw(r0, r1)],
    ),
    "read_taken_object_without_null_check": (
        EACCES,
        "invalid mem access '.*or_null_'",
        lambda b: [b.value, exchange(mov(r2, 0)), ldxw(r0, r0)],
    ),
    "release_without_null_check": (
        None,
        "Possibly NULL pointer|must point to",
        lambda b: [b.value, exchange(mov(r2, 0)), b.release(r0)],
    ),
    # KPTR-XCHG-015
    "leak_made_object": (EINVAL, "Unreleased reference", lambda b: b.k.new()),
    "leak_taken_object": (EINVAL, "Unreleased reference", lambda b: [b.value, b.take]),
    "leak_object_put_out_by_another": (
        EINVAL,
        "Unreleased reference",
        lambda b: [b.value, b.k.new(), exchange(mov(r2, r7))],
    ),
    "leak_on_one_of_two_paths": (
        EINVAL,
        "Unreleased reference",
        lambda b: [b.value, ldxdw(r6, r6, 0), b.k.new(), jne(r6, 0, "out"), b.release(r7)],
    ),
    # KPTR-XCHG-017: a reference that was given away is no pointer any more
    "release_twice": (
        EINVAL,
        "must point to|expects ref",
        lambda b: [b.k.new(), b.release(r7), b.release(r7)],
    ),
    "release_after_giving_to_map": (
        EINVAL,
        "must point to|expects ref",
        lambda b: [b.value, b.k.new(), exchange(mov(r2, r7)), jne(r0, 0, 2), b.release(r7), exit_()],
    ),
    "read_after_release": (
        EACCES,
        "invalid mem access 'scalar'",
        lambda b: [b.k.new(), b.release(r7), ldxw(r0, r7)],
    ),
    # KPTR-XCHG-002, -006, -007
    "exchange_on_stack": (
        EACCES,
        "expected=map_value",
        lambda b: [mov(r2, 0), mov(r1, r10), add(r1, -8), call(uapi.BPF_FUNC_kptr_xchg)],
    ),
    "exchange_data": (EACCES, "doesn't point to kptr", lambda b: [b.value, exchange(mov(r2, 0), 0)]),
    "exchange_unowned": (EACCES, "isn't referenced kptr", lambda b: [b.value, exchange(mov(r2, 0), SEEN)]),
    # KPTR-XCHG-011, -012
    "put_in_unowned_object": (
        EACCES,
        "R2 type=untrusted_ptr_ expected",
        lambda b: [b.value, ldxdw(r7, r6, SEEN), jeq(r7, 0, "out"), exchange(mov(r2, r7))],
    ),
    "put_in_middle_of_object": (
        EACCES,
        "invalid kptr access, R2",
        lambda b: [b.value, b.k.new(), add(r7, 8), exchange(mov(r2, r7))],
    ),
}


@pytest.mark.parametrize("program", ACCEPTED.values(), ids=ACCEPTED)
def test_balanced_program_loads(bench: Bench, program: Program) -> None:
    """KPTR-ACC-001, -002, -011, -014, KPTR-XCHG-008, -009, -015: what REFUSED's programs would be if whole."""
    bench.k.load(program(bench)).close()


@pytest.mark.parametrize(("errno", "says", "program"), REFUSED.values(), ids=REFUSED)
def test_program_is_refused(bench: Bench, errno: int | None, says: str, program: Program) -> None:
    """Sections 3 and 4 of the kptr catalogue; the ids stand in the table."""
    with refused(*[] if errno is None else [errno], log=says):
        bench.k.load(program(bench)).close()
