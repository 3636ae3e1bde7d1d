# SPDX-License-Identifier: MIT
"""netkit: what an end does with packets that no program sees, and which settings may change."""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.guest.bpf import netkit
from harness.guest.bpf.probe import has
from harness.guest.bpf.syscall import refused
from harness.guest.bpf.uapi import BPF_NETKIT_PEER, BPF_NETKIT_PRIMARY, NETKIT_DROP, NETKIT_NEXT, NETKIT_PASS
from harness.guest.errnos import fails_with
from harness.guest.net import Device, VethPair
from harness.guest.netns import NetNamespace
from harness.guest.rtnl import (
    IFLA_NETKIT_MODE,
    IFLA_NETKIT_PAIRING,
    IFLA_NETKIT_PEER_INFO,
    IFLA_NETKIT_PEER_POLICY,
    IFLA_NETKIT_PEER_SCRUB,
    IFLA_NETKIT_POLICY,
    IFLA_NETKIT_PRIMARY,
    IFLA_NETKIT_SCRUB,
    NETKIT_DEVICE_PAIR,
    NETKIT_L2,
    NETKIT_L3,
    NETKIT_SCRUB_DEFAULT,
    NETKIT_SCRUB_NONE,
    NetkitSettings,
    change_netkit,
    new_single_netkit,
)
from scenarios.conftest import LoadSchedCls
from scenarios.mprog.conftest import NETKIT_LISTS, NetkitPair, crosses

FORWARD, BLACKHOLE = NETKIT_PASS, NETKIT_DROP
NO_INFO = bytes(16)  # struct ifinfomsg
SETTING_OF = {BPF_NETKIT_PRIMARY: IFLA_NETKIT_POLICY, BPF_NETKIT_PEER: IFLA_NETKIT_PEER_POLICY}


def both_ways(pair: VethPair) -> tuple[bool, bool]:
    """Whether a frame crosses from the primary, and from the peer."""
    return crosses(pair), crosses(pair.flipped)


def shown(device: Device) -> dict[str, str]:
    """The settings of a netkit device as ip(8) shows them."""
    command = ["ip", "-details", "-json", "link", "show", "dev", device.name]
    answer = device.ns.run(subprocess.run, command, check=True, capture_output=True)
    data = json.loads(answer.stdout)[0]["linkinfo"]["info_data"]
    assert isinstance(data, dict)
    return data


@pytest.mark.parametrize("primary", [FORWARD, BLACKHOLE], ids=["forward", "blackhole"])
@pytest.mark.parametrize("peer", [FORWARD, BLACKHOLE], ids=["forward", "blackhole"])
def test_each_end_has_a_policy_of_its_own(netkit_pair: NetkitPair, primary: int, peer: int) -> None:
    """MPROG-NETKIT-007, -009: given at creation, shown from both ends."""
    pair = netkit_pair(policy=primary, settings={IFLA_NETKIT_PEER_POLICY: peer})
    assert both_ways(pair) == (primary == FORWARD, peer == FORWARD)
    name = {FORWARD: "forward", BLACKHOLE: "blackhole"}
    for end, own, other in ((pair.a, primary, peer), (pair.b, peer, primary)):
        settings = shown(end)
        assert (settings["policy"], settings["peer_policy"]) == (name[own], name[other])


def test_both_policies_are_changed_through_the_primary(netkit_pair: NetkitPair) -> None:
    """MPROG-NETKIT-009: one without the other, or both at once."""
    pair = netkit_pair()
    seen = []
    for settings in (
        {IFLA_NETKIT_POLICY: BLACKHOLE},
        {IFLA_NETKIT_PEER_POLICY: BLACKHOLE},
        {IFLA_NETKIT_POLICY: FORWARD},
        {IFLA_NETKIT_POLICY: BLACKHOLE, IFLA_NETKIT_PEER_POLICY: FORWARD},
    ):
        pair.ns_a.rtnl.request(change_netkit(pair.a.ifindex, settings))
        seen.append(both_ways(pair))
    assert seen == [(False, True), (False, False), (True, False), (False, True)]


@NETKIT_LISTS
@pytest.mark.parametrize("verdict", [NETKIT_NEXT, NETKIT_PASS], ids=["NEXT", "PASS"])
def test_the_policy_counts_while_there_is_no_program(
    netkit_pair: NetkitPair, sched_cls: LoadSchedCls, which: int, verdict: int
) -> None:
    """MPROG-NETKIT-007: programs that all say NEXT forward even into a blackhole; the other end's policy stays."""
    pair = netkit_pair(policy=BLACKHOLE, settings={IFLA_NETKIT_PEER_POLICY: BLACKHOLE})
    one, other = sched_cls(verdict=verdict), sched_cls(verdict=verdict)
    opened = (which == BPF_NETKIT_PRIMARY, which == BPF_NETKIT_PEER)
    netkit.attach(pair.a, one, attach_type=which)
    with netkit.link(pair.a, other, attach_type=which):
        netkit.detach(pair.a, one, attach_type=which)
        assert both_ways(pair) == opened
    assert both_ways(pair) == (False, False)


@NETKIT_LISTS
def test_a_program_that_drops_does_so_whatever_the_policy(
    netkit_pair: NetkitPair, sched_cls: LoadSchedCls, which: int
) -> None:
    """MPROG-NETKIT-007: also when the policy changes meanwhile."""
    pair = netkit_pair()
    netkit.attach(pair.a, sched_cls(verdict=NETKIT_DROP), attach_type=which)
    closed = (which != BPF_NETKIT_PRIMARY, which != BPF_NETKIT_PEER)
    assert both_ways(pair) == closed
    pair.ns_a.rtnl.request(change_netkit(pair.a.ifindex, {SETTING_OF[which]: BLACKHOLE}))
    netkit.attach(pair.a, sched_cls(verdict=NETKIT_PASS), attach_type=which)
    assert both_ways(pair) == closed


NEXT = NETKIT_NEXT & 0xFFFFFFFF
BAD_POLICIES = [(which, value) for which in SETTING_OF.values() for value in (1, 3, 7, 99, NEXT)]


def test_a_policy_is_forward_or_blackhole(netkit_pair: NetkitPair) -> None:
    """MPROG-NETKIT-009: anything else is EINVAL at creation, where no device is left, and as a change."""
    for setting, value in BAD_POLICIES:
        with fails_with(errno.EINVAL):
            netkit_pair(settings={setting: value})
    pair = netkit_pair(policy=BLACKHOLE)
    before = shown(pair.a)
    for setting, value in BAD_POLICIES:
        with fails_with(errno.EINVAL):
            pair.ns_a.rtnl.request(change_netkit(pair.a.ifindex, {setting: value}))
    assert shown(pair.a) == before
    assert both_ways(pair) == (False, True)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({IFLA_NETKIT_MODE: NETKIT_L3 + 1}, id="mode"),
        pytest.param({IFLA_NETKIT_PRIMARY: b"\1"}, id="primary"),
    ],
)
def test_a_pair_with_a_meaningless_setting_is_not_made(
    netkit_pair: NetkitPair, settings: NetkitSettings
) -> None:
    """MPROG-NETKIT-009: which end is the primary can't be said at all."""
    # Newer kernels let the netlink policy check the mode, which says ERANGE.
    with fails_with(errno.EINVAL, errno.ERANGE):
        netkit_pair(settings=settings)
    assert both_ways(netkit_pair()) == (True, True)


@pytest.mark.requires("netkit_scrub")
@pytest.mark.parametrize("setting", [IFLA_NETKIT_SCRUB, IFLA_NETKIT_PEER_SCRUB], ids=["primary", "peer"])
def test_an_unknown_way_of_scrubbing_is_refused(netkit_pair: NetkitPair, setting: int) -> None:
    """MPROG-NETKIT-013."""
    with fails_with(errno.ERANGE):
        netkit_pair(settings={setting: NETKIT_SCRUB_DEFAULT + 1})
    pair = netkit_pair(settings={setting: NETKIT_SCRUB_NONE})
    wanted = {IFLA_NETKIT_SCRUB: ("none", "default"), IFLA_NETKIT_PEER_SCRUB: ("default", "none")}[setting]
    settings = shown(pair.a)
    assert (settings["scrub"], settings["peer_scrub"]) == wanted


def test_the_peer_changes_nothing(netkit_pair: NetkitPair) -> None:
    """MPROG-NETKIT-009: EACCES comes before a look at the values."""
    pair = netkit_pair()
    for settings in (
        {IFLA_NETKIT_POLICY: BLACKHOLE},
        {IFLA_NETKIT_PEER_POLICY: BLACKHOLE},
        {IFLA_NETKIT_POLICY: 99},
        {IFLA_NETKIT_PEER_INFO: NO_INFO},
    ):
        with fails_with(errno.EACCES):
            pair.ns_b.rtnl.request(change_netkit(pair.b.ifindex, settings))
    assert both_ways(pair) == (True, True)


def unchanged(pair: VethPair, settings: NetkitSettings, *errnos: int) -> None:
    """The change is refused with one of `errnos`, together with a policy that is fine, and changes nothing."""
    before = shown(pair.a)
    with fails_with(*errnos):
        pair.ns_a.rtnl.request(change_netkit(pair.a.ifindex, {IFLA_NETKIT_POLICY: BLACKHOLE, **settings}))
    assert shown(pair.a) == before
    assert both_ways(pair) == (True, True)


@pytest.mark.parametrize("mode", [NETKIT_L2, NETKIT_L3], ids=["L2", "L3"])
def test_the_mode_is_for_life(netkit_pair: NetkitPair, mode: int) -> None:
    """MPROG-NETKIT-009: not even the mode that it has may be set."""
    pair = netkit_pair(mode=mode)
    for wanted in (NETKIT_L2, NETKIT_L3):
        unchanged(pair, {IFLA_NETKIT_MODE: wanted}, errno.EACCES)


@pytest.mark.requires("netkit_scrub")
@pytest.mark.parametrize("setting", [IFLA_NETKIT_SCRUB, IFLA_NETKIT_PEER_SCRUB], ids=["primary", "peer"])
def test_the_way_of_scrubbing_is_for_life(netkit_pair: NetkitPair, setting: int) -> None:
    """MPROG-NETKIT-009, -013."""
    unchanged(netkit_pair(), {setting: NETKIT_SCRUB_NONE}, errno.EACCES)


def test_the_peer_is_for_life(netkit_pair: NetkitPair) -> None:
    """MPROG-NETKIT-009: since needed head- and tailroom can be given, it has the errno of other fixed settings."""
    refusal = errno.EACCES if has("netkit_headroom") else errno.EINVAL
    unchanged(netkit_pair(), {IFLA_NETKIT_PEER_INFO: NO_INFO}, refusal)


def test_netkit_is_no_module(netkit_pair: NetkitPair) -> None:
    """MPROG-NETKIT-015: with a pair in use none is loaded, nor is there one to load."""
    netkit_pair()
    assert not any(line.startswith("netkit ") for line in Path("/proc/modules").read_text().splitlines())
    assert not list(Path("/lib/modules").rglob("netkit.ko*"))


# A device alone

ALONE = 401
ENDS_OF_A_LIST: dict[str, Callable[[int, LoadSchedCls], object]] = {
    "attach": lambda which, new: netkit.attach(ALONE, new(), attach_type=which),
    "attach with all else wrong": lambda which, new: netkit.attach(
        ALONE, new(), attach_type=which, flags=4, replace_fd=1000, expected_revision=77
    ),
    "detach": lambda which, _: netkit.detach(ALONE, attach_type=which),
    "query": lambda which, _: netkit.query(ALONE, attach_type=which),
    "link": lambda which, new: netkit.link(ALONE, new(), attach_type=which),
}


@pytest.mark.requires("netkit_single")
@NETKIT_LISTS
def test_a_device_without_a_peer_has_no_list(
    netns: NetNamespace, sched_cls: LoadSchedCls, which: int
) -> None:
    """MPROG-NETKIT-014, -001: before what the request wants is looked at, be it a list of the missing peer."""
    netns.rtnl.request(new_single_netkit("alone", ALONE))
    for name, request in ENDS_OF_A_LIST.items():
        with refused(errno.EOPNOTSUPP):
            request(which, sched_cls)
            pytest.fail(name)


@pytest.mark.requires("netkit_single")
def test_a_device_without_a_peer_has_no_policy(netns: NetNamespace) -> None:
    """MPROG-NETKIT-014, -009: neither its own nor the peer's can be set, at creation or later."""
    for settings in (
        {IFLA_NETKIT_POLICY: BLACKHOLE},
        {IFLA_NETKIT_PEER_POLICY: FORWARD},
        {IFLA_NETKIT_PEER_SCRUB: NETKIT_SCRUB_NONE},
        {IFLA_NETKIT_PEER_INFO: NO_INFO},
    ):
        with fails_with(errno.EOPNOTSUPP):
            netns.rtnl.request(new_single_netkit("alone", ALONE, settings))
    netns.rtnl.request(new_single_netkit("alone", ALONE))
    for settings in ({IFLA_NETKIT_POLICY: FORWARD}, {IFLA_NETKIT_PEER_POLICY: FORWARD}):
        with fails_with(errno.EOPNOTSUPP):
            netns.rtnl.request(change_netkit(ALONE, settings))
    with fails_with(errno.EACCES):
        netns.rtnl.request(change_netkit(ALONE, {IFLA_NETKIT_PAIRING: NETKIT_DEVICE_PAIR}))
