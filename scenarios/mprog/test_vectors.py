# SPDX-License-Identifier: MIT
"""The table of vectors of BEHAVIOURS.md against the kernel: each row on a fresh entry `A B* C`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness.guest.bpf import tcx
from harness.guest.bpf.link import Link
from harness.guest.bpf.mprog import QueryResult
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError
from harness.guest.bpf.uapi import BPF_F_REPLACE
from harness.guest.net import Device, VethPair
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.vectors import VECTORS, Vector


@dataclass(frozen=True)
class Stage:
    """A device, the programs A, B, C, D, X, and link x, which owns A on another device."""

    dev: Device
    progs: dict[str, Prog]
    elsewhere: Link

    def answer(self, vector: Vector) -> str:
        """What came of a row: the new list or the errno, and what else changed that should not have."""
        tcx.attach(self.dev, self.progs["A"])
        with tcx.link(self.dev, self.progs["B"]) as link:
            tcx.attach(self.dev, self.progs["C"])
            before = tcx.query(self.dev)
            refusal = self._send(vector, link)
            after = tcx.query(self.dev)
            for name, prog in self.progs.items():
                if prog.id in after.prog_ids and name != "B":
                    tcx.detach(self.dev, prog)
        if refusal:
            return refusal if after == before else f"{refusal}, but {self._shown(after)} at {after.revision}"
        grown = after.revision - before.revision
        return self._shown(after) + ("" if grown == 1 else f", revision {grown:+}")

    def _send(self, vector: Vector, link: Link) -> str:
        """The errno's name if the request is refused, else nothing."""
        prog, old = (self.progs[name] if name else None for name in (vector.prog, vector.old))
        anchors: dict[str, Prog | Link] = {**self.progs, "link b": link, "link x": self.elsewhere}
        relative = anchors[vector.anchor] if vector.anchor else None
        try:
            if vector.request == "attach" and prog:
                tcx.attach(self.dev, prog, flags=vector.flags, relative=relative, replace=old)
            else:
                tcx.detach(self.dev, prog, flags=vector.flags, relative=relative)
        except BpfError as error:
            return error.errno_name
        return ""

    def _shown(self, found: QueryResult) -> str:
        """The list as the table has it."""
        names = {prog.id: name for name, prog in self.progs.items()}
        elements = zip(found.prog_ids, found.link_ids, strict=True)
        return " ".join(names[prog] + ("*" if link else "") for prog, link in elements)


@pytest.fixture
def stage(veth: VethPair, sched_cls: LoadSchedCls) -> Iterator[Stage]:
    progs = {name: sched_cls(name=name) for name in "ABCDX"}
    with veth.ns_a.entered():
        elsewhere = tcx.link(veth.a, progs["A"])
    with elsewhere:
        yield Stage(veth.b, progs, elsewhere)


def test_a_program_lands_where_flags_and_anchor_say(stage: Stage) -> None:
    """MPROG-VEC-001 to -022, -037, -038, MPROG-ATTACH-019 to -027."""
    rows = [row for row in VECTORS if row.request == "attach" and not row.flags & BPF_F_REPLACE]
    assert {row.id: stage.answer(row) for row in rows} == {row.id: row.result for row in rows}


def test_a_program_takes_the_place_of_another(stage: Stage) -> None:
    """MPROG-VEC-023 to -036, -039, -040, MPROG-ATTACH-030, -032 to -036."""
    rows = [row for row in VECTORS if row.request == "attach" and row.flags & BPF_F_REPLACE]
    assert {row.id: stage.answer(row) for row in rows} == {row.id: row.result for row in rows}


def test_a_detach_takes_what_program_flags_and_anchor_say(stage: Stage) -> None:
    """MPROG-VEC-041 to -070, MPROG-DETACH-020 to -025, -027 to -031."""
    rows = [row for row in VECTORS if row.request == "detach"]
    assert {row.id: stage.answer(row) for row in rows} == {row.id: row.result for row in rows}
