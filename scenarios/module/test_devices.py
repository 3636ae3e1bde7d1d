# SPDX-License-Identifier: MIT
"""The driver of a network device is removed while programs are attached to the device."""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.guest import modules
from harness.guest.bpf import tcx
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, refused
from harness.guest.net import Device
from harness.guest.netns import NetNamespace
from harness.guest.waiting import wait_until
from scenarios.conftest import LoadSchedCls

pytestmark = pytest.mark.requires("tcx")

ROUNDS = 4
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


@pytest.mark.vm(cpus=2)
def test_driver_goes_while_links_are_made(netns: NetNamespace, sched_cls: LoadSchedCls, driver: str) -> None:
    """MODLIFE-RACE-019: ENODEV once the device is gone, and each link that was made is defunct then."""
    program = sched_cls()
    counters: Counter[str] = Counter()
    over, unloading = threading.Event(), threading.Event()
    dev = new_device(netns, driver)

    def make_links() -> None:
        with netns.entered():
            while not over.is_set():
                here = dev
                counters["calls during an unload"] += unloading.is_set()
                try:
                    link = tcx.link(here, program)
                except BpfError as error:
                    counters[error.errno_name] += 1
                    assert error.errno == errno.ENODEV
                    continue
                with link:
                    counters["links"] += 1
                    assert link.info().ifindex in (here.ifindex, 0)

    def more(what: str) -> None:
        before = counters[what]
        wait_until(lambda: counters[what] > before or making.done(), timeout=5, what=f"more {what}")

    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(make_links)
        try:
            for _ in range(ROUNDS):
                more("links")
                unloading.set()
                modules.unload(driver)
                unloading.clear()
                more("ENODEV")
                modules.modprobe(driver, *(["numifbs=0"] if driver == "ifb" else []))
                dev = new_device(netns, driver)
        finally:
            over.set()
        making.result()
    print(f"storm of {driver}:", dict(counters))
    assert min(counters["links"], counters["ENODEV"], counters["calls during an unload"]) >= ROUNDS
    modules.unload(driver)
