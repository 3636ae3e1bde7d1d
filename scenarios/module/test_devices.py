# SPDX-License-Identifier: MIT
"""The driver of a network device is removed while programs are attached to the device."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from harness.guest import modules
from harness.guest.bpf import tcx
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import refused
from harness.guest.net import Device
from harness.guest.netns import NetNamespace
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls

pytestmark = pytest.mark.requires("tcx")

NAME = "kr0"


@pytest.fixture(params=["dummy", "ifb"])
def driver(request: pytest.FixtureRequest) -> Iterator[str]:
    """A driver that is a module, with no devices but those that the scenario makes."""
    name: str = request.param
    modules.modprobe(name, *(["numifbs=0"] if name == "ifb" else []))
    if modules.state(name) is None:
        pytest.skip(f"{name} is no module of this kernel")
    yield name
    modules.modprobe(name)


def new_device(ns: NetNamespace, driver: str) -> Device:
    ns.ipr.link("add", ifname=NAME, kind=driver)
    return Device.find(ns, NAME)


def test_driver_goes_with_its_devices_whatever_is_attached(
    netns: NetNamespace, sched_cls: LoadSchedCls, driver: str
) -> None:
    """MODLIFE-REF-017, MODLIFE-RACE-019, MODLIFE-LAW-002: programs on devices hold no driver; they are put, links stay
    behind empty.
    """
    linked, direct = sched_cls(), sched_cls()
    dev = new_device(netns, driver)
    assert modules.refcount(driver) == 0
    with tcx.link(dev, linked) as link:
        tcx.attach(dev, direct)
        direct_id = direct.id
        direct.close()

        modules.unload(driver)

        with refused(errno.ENODEV):
            tcx.query(dev)
        info = link.info()
        assert (info.ifindex, info.prog_id) == (0, linked.id)
        with refused(errno.ENOLINK):
            link.update(linked)
        wait_until(lambda: direct_id not in Prog.ids(), timeout=2, what="the attached program to go")
