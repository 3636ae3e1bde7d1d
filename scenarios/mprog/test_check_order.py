# SPDX-License-Identifier: MIT
"""Of two mistakes in one request the kernel reports the one that it looks for first."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from errno import EBADF, EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ENOLINK, EPERM, ERANGE, ESTALE

import pytest

from harness.guest import qdisc
from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import Attr, LinkCreateMprog, LinkUpdate, ProgAttach
from harness.guest.bpf.link import Link
from harness.guest.bpf.syscall import BpfError, bpf, errno_name
from harness.guest.bpf.uapi import (
    BPF_F_AFTER,
    BPF_F_ALLOW_MULTI,
    BPF_F_BEFORE,
    BPF_F_REPLACE,
    BPF_TCX_EGRESS,
    BPF_TCX_INGRESS,
)
from scenarios.mprog.requests import Bench

# A byte within the kernel's union, behind the last field that any of these commands knows.
TAIL = 120
NOWHERE = 9999

Value = int | str


@dataclass(frozen=True)
class Mistake:
    """The errno that it earns, and what it changes in the attributes."""

    spec: str
    errno: int
    fields: dict[str, Value]

    def goes_with(self, other: Mistake) -> bool:
        """Whether both can be made at once: flags add up, any other field has one value."""
        return all("flags" in name for name in self.fields.keys() & other.fields.keys())


def mistake(spec: str, errno: int, **fields: Value) -> Mistake:
    """A string is the name of a thing of the bench."""
    return Mistake(spec, errno, fields)


@dataclass(frozen=True)
class Request:
    """A command that would be accepted if no mistake were made."""

    bench: Bench
    command: int
    layout: type[Attr]
    right: dict[str, Value]

    def errno_with(self, *mistakes: Mistake) -> int:
        fields: dict[str, int] = {}
        for name, value in itertools.chain(self.right.items(), *(m.fields.items() for m in mistakes)):
            number = self.bench.number(value) if isinstance(value, str) else value
            fields[name] = fields.get(name, 0) | number if "flags" in name else number
        tail = fields.pop("tail", 0)
        attr = bytearray(bytes(self.layout(**fields)).ljust(TAIL, b"\0") + bytes([tail]))
        try:
            made = bpf(self.command, attr)
        except BpfError as error:
            return error.errno or 0
        if self.command == uapi.BPF_LINK_CREATE:
            Link(made).close()
        return 0

    def check(self, *mistakes: Mistake) -> None:
        """Make each mistake alone, and each two that go together. Raises AssertionError for a wrong errno, or if the
        list is another one afterwards."""
        before = self.bench.state()
        pairs = [pair for pair in itertools.combinations(mistakes, 2) if pair[0].goes_with(pair[1])]
        wrong = []
        for made in [*((alone,) for alone in mistakes), *pairs]:
            outcome = self.errno_with(*made)
            if outcome != made[0].errno:
                names = " and ".join(f"{each.spec} ({errno_name(each.errno)})" for each in made)
                wrong.append(f"{names}: {errno_name(outcome) if outcome else 'accepted'}")
        assert not wrong, "\n".join(wrong)
        assert self.bench.state() == before


in_one_direction = pytest.mark.parametrize("bench", [BPF_TCX_INGRESS], indirect=True, ids=["ingress"])


@in_one_direction
def test_attach(bench: Bench) -> None:
    """MPROG-ATTACH-001 to -011, -013, -016."""
    right: dict[str, Value] = {
        "target_fd": bench.dev.ifindex,
        "attach_bpf_fd": "D",
        "attach_type": BPF_TCX_INGRESS,
    }
    Request(bench, uapi.BPF_PROG_ATTACH, ProgAttach, right).check(
        mistake("MPROG-ATTACH-001", EINVAL, tail=1),
        mistake("MPROG-ATTACH-002", EINVAL, attach_type=NOWHERE),
        mistake("MPROG-ATTACH-003", EINVAL, attach_flags=BPF_F_ALLOW_MULTI),
        mistake("MPROG-ATTACH-004", EBADF, attach_bpf_fd="shut"),
        mistake("MPROG-ATTACH-004", EINVAL, attach_bpf_fd="F"),
        mistake("MPROG-ATTACH-005", ENODEV, target_fd=NOWHERE),
        mistake("MPROG-ATTACH-006", EBADF, attach_flags=BPF_F_REPLACE, replace_bpf_fd="shut"),
        mistake("MPROG-ATTACH-006", EINVAL, attach_flags=BPF_F_REPLACE, replace_bpf_fd="map"),
        mistake("MPROG-ATTACH-007", ESTALE, expected_revision=NOWHERE),
        mistake("MPROG-ATTACH-008", EEXIST, attach_bpf_fd="A"),
        mistake("MPROG-ATTACH-009", EBADF, attach_flags=BPF_F_BEFORE, relative_fd="shut"),
        mistake("MPROG-ATTACH-009", EINVAL, attach_flags=BPF_F_BEFORE, relative_fd="map"),
        mistake("MPROG-ATTACH-010", ENOENT, attach_flags=BPF_F_REPLACE, replace_bpf_fd="X"),
        mistake("MPROG-ATTACH-011", EBUSY, attach_flags=BPF_F_REPLACE, replace_bpf_fd="B"),
        mistake("MPROG-ATTACH-013", ENOENT, attach_flags=BPF_F_BEFORE, relative_fd="X"),
        mistake("MPROG-ATTACH-016", ERANGE, attach_flags=BPF_F_BEFORE | BPF_F_AFTER),
    )


@in_one_direction
@pytest.mark.parametrize("prog", ["C", "-"], ids=["named", "anonymous"])
def test_detach(bench: Bench, prog: str) -> None:
    """MPROG-DETACH-001 to -003, -005 to -014, -017, MPROG-LEGACY-002, MPROG-FIX-002: where there is no list, that is
    said before the revision is looked at, where clsact holds an empty one, after."""
    things = bench.things
    assert isinstance(things["o"], Link)
    things["o"].close()
    right: dict[str, Value] = {
        "target_fd": bench.dev.ifindex,
        "attach_bpf_fd": prog,
        "attach_type": BPF_TCX_INGRESS,
    }
    wrong_prog, wrong_element, owned = [], [], []
    if prog == "-":
        owned = [mistake("MPROG-DETACH-017", EBUSY, attach_flags=BPF_F_BEFORE, relative_fd="C")]
    else:
        wrong_prog = [
            mistake("MPROG-DETACH-003", EBADF, attach_bpf_fd="shut"),
            mistake("MPROG-DETACH-003", EINVAL, attach_bpf_fd="F"),
        ]
        wrong_element = [
            mistake("MPROG-DETACH-011", ENOENT, attach_bpf_fd="X"),
            mistake("MPROG-DETACH-012", EBUSY, attach_bpf_fd="B"),
        ]
    early = [
        mistake("MPROG-DETACH-001", EINVAL, tail=1),
        mistake("MPROG-DETACH-002", EINVAL, attach_flags=BPF_F_ALLOW_MULTI),
        *wrong_prog,
        mistake("MPROG-DETACH-005", ENODEV, target_fd=NOWHERE),
    ]
    stale = [
        mistake("MPROG-DETACH-007", EINVAL, attach_flags=BPF_F_REPLACE),
        mistake("MPROG-DETACH-008", ESTALE, expected_revision=NOWHERE),
    ]
    late = [
        mistake("MPROG-DETACH-010", EBADF, attach_flags=BPF_F_BEFORE, relative_fd="shut"),
        mistake("MPROG-DETACH-010", EINVAL, attach_flags=BPF_F_BEFORE, relative_fd="map"),
        *wrong_element,
        mistake("MPROG-DETACH-013", ENOENT, attach_flags=BPF_F_BEFORE, relative_fd="X"),
        mistake("MPROG-DETACH-014", ERANGE, attach_flags=BPF_F_BEFORE | BPF_F_AFTER),
        *owned,
    ]
    detach = Request(bench, uapi.BPF_PROG_DETACH, ProgAttach, right)
    no_list = mistake("MPROG-DETACH-006", ENOENT, attach_type=BPF_TCX_EGRESS)
    detach.check(*early, no_list, *stale, *late)
    qdisc.add_clsact(bench.dev)
    no_element = mistake("MPROG-DETACH-009", ENOENT, attach_type=BPF_TCX_EGRESS)
    detach.check(*early, *stale, no_element, *late)


@in_one_direction
def test_link_create(bench: Bench) -> None:
    """MPROG-LINK-001 to -005, -007, -008, MPROG-REV-009."""
    right: dict[str, Value] = {
        "target_fd": bench.dev.ifindex,
        "prog_fd": "D",
        "attach_type": BPF_TCX_INGRESS,
    }
    Request(bench, uapi.BPF_LINK_CREATE, LinkCreateMprog, right).check(
        mistake("MPROG-LINK-001", EINVAL, tail=1),
        mistake("MPROG-LINK-002", EBADF, prog_fd="shut"),
        mistake("MPROG-LINK-002", EINVAL, prog_fd="map"),
        mistake("MPROG-LINK-003", EINVAL, prog_fd="F"),
        mistake("MPROG-LINK-003", EINVAL, attach_type=NOWHERE),
        mistake("MPROG-LINK-004", ENODEV, target_fd=NOWHERE),
        mistake("MPROG-REV-009", ESTALE, expected_revision=NOWHERE),
        mistake("MPROG-LINK-008", EEXIST, prog_fd="A"),
        mistake("MPROG-LINK-005", EBADF, flags=BPF_F_BEFORE, relative_fd="shut"),
        mistake("MPROG-LINK-005", EINVAL, flags=BPF_F_AFTER, relative_fd="F"),
        mistake("MPROG-LINK-007", ENOENT, flags=BPF_F_REPLACE),
        mistake("MPROG-LINK-005", ENOENT, flags=BPF_F_BEFORE, relative_fd="X"),
        mistake("MPROG-LINK-005", ERANGE, flags=BPF_F_BEFORE | BPF_F_AFTER),
    )


@in_one_direction
def test_link_update(bench: Bench) -> None:
    """MPROG-LINK-020 to -025, -027, -028: z is a link that has been detached."""
    right: dict[str, Value] = {"link_fd": "b", "new_prog_fd": "D"}
    Request(bench, uapi.BPF_LINK_UPDATE, LinkUpdate, right).check(
        mistake("MPROG-LINK-020", EINVAL, tail=1),
        mistake("MPROG-LINK-020", EINVAL, flags=BPF_F_BEFORE),
        mistake("MPROG-LINK-021", EBADF, link_fd="shut"),
        mistake("MPROG-LINK-021", EINVAL, link_fd="B"),
        mistake("MPROG-LINK-022", EBADF, new_prog_fd="shut"),
        mistake("MPROG-LINK-022", EINVAL, new_prog_fd="map"),
        mistake("MPROG-LINK-023", EBADF, flags=BPF_F_REPLACE, old_prog_fd="shut"),
        mistake("MPROG-LINK-023", EINVAL, flags=BPF_F_REPLACE, old_prog_fd="map"),
        mistake("MPROG-LINK-023", EINVAL, old_prog_fd="B"),
        mistake("MPROG-LINK-024", ENOLINK, link_fd="z"),
        mistake("MPROG-LINK-025", EPERM, flags=BPF_F_REPLACE, old_prog_fd="A"),
        mistake("MPROG-LINK-027", EEXIST, new_prog_fd="A"),
        mistake("MPROG-LINK-028", EINVAL, new_prog_fd="F"),
    )


@in_one_direction
def test_an_update_to_the_same_program_is_accepted_and_does_nothing(bench: Bench) -> None:
    """MPROG-LINK-026, MPROG-REV-004: also when its old program is named, but not when another one is."""
    before = bench.state()
    right: dict[str, Value] = {"link_fd": "b", "new_prog_fd": "B"}
    update = Request(bench, uapi.BPF_LINK_UPDATE, LinkUpdate, right)
    assert update.errno_with() == 0
    named = mistake("", 0, flags=BPF_F_REPLACE, old_prog_fd="B")
    assert update.errno_with(named) == 0
    update.check(mistake("MPROG-LINK-025", EPERM, flags=BPF_F_REPLACE, old_prog_fd="D"))
    assert bench.state() == before
