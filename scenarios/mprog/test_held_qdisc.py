# SPDX-License-Identifier: MIT
"""A device goes while somebody holds its clsact: by a request for a filter that waits for modprobe."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest

from harness.guest.bpf import tcx, uapi
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.errnos import errno_of
from harness.guest.net import Device
from harness.guest.rtnl import Request, RtnlSocket, delete_link, new_ingress_filter, new_ingress_side
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls

MODPROBE = Path("/proc/sys/kernel/modprobe")


@dataclass(frozen=True)
class SlowModprobe:
    """What the kernel runs to load a module: it waits until `let_go`, and finds nothing."""

    folder: Path

    def asked(self) -> bool:
        return (self.folder / "asked").exists()

    def let_go(self) -> None:
        """Who waits goes on, and nobody waits from now on."""
        (self.folder / "open").touch()
        with (self.folder / "door").open("w"):
            pass


@pytest.fixture
def modprobe(tmp_path: Path) -> Iterator[SlowModprobe]:
    script = tmp_path / "modprobe"
    script.write_text(
        f"#!/bin/sh\n: > {tmp_path}/asked\n[ -e {tmp_path}/open ] || read line < {tmp_path}/door\nexit 1\n"
    )
    script.chmod(0o755)
    os.mkfifo(tmp_path / "door")
    before = MODPROBE.read_text()
    MODPROBE.write_text(str(script))
    yield SlowModprobe(tmp_path)
    MODPROBE.write_text(before)


def test_a_device_may_go_while_a_request_holds_its_clsact(
    ends: tuple[Device, Device], sched_cls: LoadSchedCls, modprobe: SlowModprobe
) -> None:
    """MPROG-LIFE-010: programs and links go at once, though the entry has to wait for the qdisc."""
    dev = ends[0]
    dev.ns.rtnl.request(new_ingress_side(dev.ifindex, "clsact"))
    linked, other = sched_cls(), sched_cls()
    links, held = [], []
    for direction, directs in ((uapi.BPF_TCX_INGRESS, 1), (uapi.BPF_TCX_EGRESS, 2)):
        links.append(tcx.link(dev, linked, attach_type=direction))
        for _ in range(directs):
            direct = sched_cls()
            tcx.attach(dev, direct, attach_type=direction)
            held.append(direct.id)
            direct.close()
    answers: dict[Request, int] = {}

    def ask(request: Request) -> None:
        with RtnlSocket() as own:
            answers[request] = errno_of(lambda: own.request(request))

    hold, remove = new_ingress_filter(dev.ifindex, "kr_no_such"), delete_link(dev.ifindex)
    holder, remover = (Thread(target=ask, args=(request,)) for request in (hold, remove))
    holder.start()
    wait_until(modprobe.asked, timeout=5, what="the kernel to ask for the classifier")
    remover.start()
    try:
        wait_until(lambda: not links[0].info().ifindex, timeout=5, what="the device to be taken apart")
        with refused(errno.ENODEV):
            tcx.query(dev)
        for link in links:
            assert link.info().ifindex == 0
            with refused(errno.ENOLINK):
                link.update(other)
            link.detach()
        wait_until(
            lambda: not set(held) & set(Prog.ids()), timeout=2, what="programs that only the device held"
        )
        assert answers == {}
    finally:
        modprobe.let_go()
    holder.join(60)
    remover.join(60)
    assert answers == {hold: errno.ENOENT, remove: 0}
    for link in links:
        link.close()
