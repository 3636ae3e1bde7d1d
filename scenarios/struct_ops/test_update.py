# SPDX-License-Identifier: MIT
"""Writing a value registers all of its members or none of them, once."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import MapElem
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import Filling, StructOps
from harness.guest.bpf.syscall import bpf, refused
from scenarios.struct_ops.algorithms import NAME, Algorithm, inuse, ready, seen
from scenarios.struct_ops.conftest import NewOps
from scenarios.struct_ops.mistakes import Mistake, check, mistake
from scenarios.struct_ops.observed import available, trampolines

pytestmark = [pytest.mark.requires("struct_ops")]

CLOSED = 999
plain_and_link = pytest.mark.parametrize(
    "map_flags",
    [
        pytest.param(0, id="plain"),
        pytest.param(uapi.BPF_F_LINK, id="link", marks=pytest.mark.requires("struct_ops_link")),
    ],
)


@dataclass(frozen=True)
class Desk:
    """Takes requests to update `ops`, or another of `descriptors`, with `members`."""

    ops: StructOps
    members: Mapping[str, Filling]
    descriptors: Mapping[str, int]

    def send(self, *, map: str = "map", flags: int = 0, key: int = 0, hole: int = -1, **fields: Any) -> None:
        """`hole` is a byte of padding to set, `head_NAME` a number for the value's head, `member_NAME` another
        filling, or None for no filling, `place_NAME` a member's place."""
        parts: dict[str, dict[str, Any]] = {"head": {}, "member": {}, "place": {}}
        for field, content in fields.items():
            part, _, name = field.partition("_")
            parts[part][name] = content
        filling = {
            name: each for name, each in {**self.members, **parts["member"]}.items() if each is not None
        }
        raw = bytearray(self.ops.value(filling, head=parts["head"], places=parts["place"]))
        if hole >= 0:
            raw[hole] = 1
        attr = MapElem(map_fd=self.descriptors[map], flags=flags)
        attr.point("key", (ctypes.c_uint32 * 1)(key))
        attr.point("value", (ctypes.c_ubyte * len(raw)).from_buffer(raw))
        bpf(uapi.BPF_MAP_UPDATE_ELEM, attr)

    def state(self) -> object:
        """All that a refused update might have left behind."""
        return any(self.ops.lookup()), available()

    def member(self, made: Mistake) -> int:
        """The number of the member that a mistake is about."""
        return self.ops.members[next(iter(made.fields)).partition("_")[2]].index


@pytest.fixture
def desk(map_flags: int, new_ops: NewOps, idle: Algorithm) -> Iterator[Desk]:
    """A map in INIT, one that is registered or ready already, and other descriptors."""
    ops, busy = new_ops(map_flags), new_ops(map_flags)
    busy.update(idle.members("kr_busy"))
    with Map.from_id(ops.map.id, open_flags=uapi.BPF_F_RDONLY) as readable:
        descriptors = {
            "map": ops.map.fd,
            "busy": busy.map.fd,
            "read-only": readable.fd,
            "program": idle.progs["init"].fd,
            "closed": CLOSED,
        }
        yield Desk(ops, idle.members(), descriptors)


@plain_and_link
def test_refused_value_leaves_nothing_behind_and_a_corrected_one_may_follow(
    map_flags: int, desk: Desk, idle: Algorithm
) -> None:
    """STOPS-UPD-001 to -006, -009, -011, -012, -014 to -018, STOPS-TCP-001 to -004, STOPS-SEED-002, STOPS-LAW-004."""
    ops, progs = desk.ops, idle.progs
    of_members = [
        mistake("STOPS-UPD-011", errno.EBADF, member_ssthresh=CLOSED),
        mistake("STOPS-UPD-011", errno.EINVAL, member_cong_avoid=ops.map.fd),
        mistake("STOPS-UPD-012", errno.EINVAL, member_undo_cwnd=progs["ssthresh"]),
        mistake("STOPS-UPD-012", errno.EINVAL, member_release=progs["init"]),
        mistake("STOPS-UPD-009", errno.EINVAL, member_list=b"\0" * 15 + b"\1"),
        mistake("STOPS-UPD-009", errno.EINVAL, member_key=1),
        mistake("STOPS-TCP-001", errno.EINVAL, member_flags=1 << 7),
        mistake("STOPS-TCP-002", errno.EINVAL, member_name=""),
        mistake("STOPS-TCP-002", errno.EINVAL, member_name="x" * 16),
        mistake("STOPS-TCP-002", errno.EINVAL, member_name="kr/algorithm"),
        mistake("STOPS-UPD-011", errno.EBADF, member_init=CLOSED),
        mistake("STOPS-UPD-012", errno.EINVAL, place_init=ops.members["release"].offset, member_release=None),
    ]
    of_the_whole = [
        mistake("STOPS-TCP-004", errno.EINVAL, member_ssthresh=None),
        mistake("STOPS-TCP-004", errno.EINVAL, member_undo_cwnd=None),
        mistake("STOPS-TCP-004", errno.EINVAL, member_cong_avoid=None),
    ]
    taken = mistake("STOPS-TCP-003", errno.EEXIST, member_name="reno")
    if not has("struct_ops_link"):
        of_members.append(taken)
    elif not map_flags:
        of_the_whole.append(taken)
    check(
        desk.send,
        [
            mistake("STOPS-UPD-001", errno.EBADF, map="closed"),
            mistake("STOPS-UPD-001", errno.EINVAL, map="program"),
            mistake("STOPS-UPD-001", errno.EPERM, map="read-only"),
            *(mistake("STOPS-UPD-002", errno.EINVAL, flags=1 << bit) for bit in (0, 1, 2, 40)),
            mistake("STOPS-UPD-003", errno.E2BIG, key=1),
            *(mistake("STOPS-UPD-004", errno.EINVAL, hole=hole[-1]) for hole in ops.holes),
            mistake("STOPS-UPD-005", errno.EINVAL, head_state=1),
            mistake("STOPS-UPD-005", errno.EINVAL, head_refcnt=1),
            mistake("STOPS-UPD-006", errno.EBUSY, map="busy"),
            *sorted(of_members, key=desk.member),
            *of_the_whole,
        ],
        desk.state,
    )

    desk.send()

    assert seen(ops) == (ready(0) if map_flags else inuse(1))
    assert (NAME in available()) == (not map_flags)


@plain_and_link
def test_every_byte_of_padding_must_be_zero(map_flags: int, desk: Desk) -> None:
    """STOPS-UPD-004, STOPS-ABI-002: in front of the type, between its members and behind them."""
    holes = desk.ops.holes
    assert holes[0].stop == desk.ops.data_offset and len(holes) > 1
    check(
        desk.send,
        [mistake("STOPS-UPD-004", errno.EINVAL, hole=at) for hole in holes for at in hole],
        lambda: any(desk.ops.lookup()),
        pairs=0,
    )
    desk.send()


@pytest.mark.requires("struct_ops_symbols")
def test_only_accepted_members_have_trampolines(ops: StructOps, idle: Algorithm) -> None:
    """STOPS-INFO-004, STOPS-LAW-004: the members before the refused one lose theirs again."""
    with refused(errno.EINVAL):
        ops.update({**idle.members(), "release": idle.progs["init"]})
    assert trampolines() == []
    ops.update(idle.members())
    assert trampolines() == sorted(idle.progs)


@pytest.mark.known_issue("STOPS-QUIRK-001", reason="a refused owner pointer is not reported")
def test_value_with_an_owner_pointer_is_refused(ops: StructOps, idle: Algorithm) -> None:
    """STOPS-UPD-007, STOPS-QUIRK-001: whatever is not registered must not be reported as written."""
    with refused(errno.EINVAL):
        ops.update({**idle.members(), "owner": 1})


@pytest.mark.requires("struct:bpf_struct_ops_bpf_dummy_ops")
def test_type_may_refuse_every_member() -> None:
    """STOPS-UPD-008, STOPS-TCP-006: the dummy type is there for test runs only; not even an empty table is taken."""
    with StructOps.create("bpf_dummy_ops") as dummy:
        with refused(errno.EOPNOTSUPP):
            dummy.update({})
        assert not any(dummy.lookup())


@plain_and_link
def test_programs_are_held_by_every_map_that_they_fill(
    map_flags: int, new_ops: NewOps, idle: Algorithm
) -> None:
    """STOPS-UPD-019, STOPS-PROG-015, STOPS-CMD-003, STOPS-LAW-005: one set of programs in two tables, with no
    descriptor of their own; empty members show 0, data members what was written, the owner nothing.
    """
    first, second = new_ops(map_flags), new_ops(map_flags)
    first.update(idle.members("kr_first"))
    second.update({**idle.members("kr_second"), "flags": 2})
    ids = {name: prog.id for name, prog in idle.progs.items()}
    idle.close_programs()

    nothing = bytes(first.map.shape.value_size)
    for table, name, flags in ((first, b"kr_first", 0), (second, b"kr_second", 2)):
        empty = table.contents(nothing).members
        written = {**empty, **ids, "name": name.ljust(16, b"\0"), "flags": flags}
        assert table.contents().members == written
        for member, id in table.prog_ids().items():
            with Prog.from_id(id) as prog:
                assert prog.info().name == member
