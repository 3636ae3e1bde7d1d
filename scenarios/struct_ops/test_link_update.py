# SPDX-License-Identifier: MIT
"""Links in detail: what their creation and update refuse, in which order, who is woken, who wins a race."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.guest import tcp
from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import LinkCreate, LinkUpdate
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import BpfError, bpf, refused
from harness.guest.errnos import errno_of
from harness.guest.netns import NetNamespace
from harness.guest.waiting import slow_factor, wait_until
from scenarios.struct_ops.algorithms import NAME, Algorithm, ready, seen
from scenarios.struct_ops.conftest import NewAlgorithm, NewOps

pytestmark = [pytest.mark.requires("struct_ops", "struct_ops_link")]

REPLACE = uapi.BPF_F_REPLACE
CLOSED = 9999  # a descriptor that nobody has open


@dataclass
class Stage:
    """A link and things that it may be mistaken for, or updated to; their descriptors by name."""

    link: Link
    linked: StructOps
    fds: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def stage(netns: NetNamespace, idle: Algorithm, new_ops: NewOps) -> Iterator[Stage]:
    """`linked` is registered; `equal` could take its place, `renamed`, `unready`, `plain` and `array` could not."""
    linked, equal, renamed, unready = (new_ops(flags=uapi.BPF_F_LINK) for _ in range(4))
    plain = new_ops()
    linked.update(idle.members())
    equal.update(idle.members())
    renamed.update(idle.members("kr_renamed"))
    plain.update(idle.members("kr_plain"))
    with Map.create(uapi.BPF_MAP_TYPE_ARRAY) as array, linked.link() as link:
        maps = {"linked": linked, "equal": equal, "renamed": renamed, "unready": unready, "plain": plain}
        fds = {name: ops.map.fd for name, ops in maps.items()}
        more = {"array": array.fd, "prog": idle.progs["init"].fd, "link": link.fd, "closed": CLOSED, "": 0}
        yield Stage(link, linked, {**fds, **more})


# what is named, and the errno; two faults at once tell which one is looked at first
CREATIONS = (
    ("closed", errno.EBADF),
    ("prog", errno.EINVAL),
    ("link", errno.EINVAL),
    ("array", errno.EINVAL),
    ("plain", errno.EINVAL),
    ("unready", errno.EINVAL),
    ("equal", errno.EEXIST),
    ("linked", errno.EEXIST),
)
UPDATES = (
    # link, new map, old map, flags
    ("closed", "closed", "", 1 << 7, errno.EINVAL),
    ("link", "equal", "", uapi.BPF_F_LINK, errno.EINVAL),
    ("closed", "prog", "", 0, errno.EBADF),
    ("prog", "closed", "", 0, errno.EINVAL),
    ("linked", "closed", "", 0, errno.EINVAL),
    ("link", "closed", "prog", REPLACE, errno.EBADF),
    ("link", "prog", "closed", REPLACE, errno.EINVAL),
    ("link", "link", "closed", REPLACE, errno.EINVAL),
    ("link", "array", "closed", REPLACE, errno.EBADF),
    ("link", "unready", "prog", REPLACE, errno.EINVAL),
    ("link", "equal", "linked", 0, errno.EINVAL),
    ("link", "equal", "closed", REPLACE, errno.EBADF),
    ("link", "array", "", 0, errno.EINVAL),
    ("link", "plain", "", 0, errno.EINVAL),
    ("link", "unready", "", 0, errno.EINVAL),
    ("link", "unready", "equal", REPLACE, errno.EINVAL),
    ("link", "plain", "equal", REPLACE, errno.EINVAL),
    ("link", "renamed", "equal", REPLACE, errno.EPERM),
    ("link", "equal", "equal", REPLACE, errno.EPERM),
    ("link", "equal", "array", REPLACE, errno.EPERM),
    ("link", "renamed", "linked", REPLACE, errno.EINVAL),
    ("link", "renamed", "", 0, errno.EINVAL),
)


def told(call: Callable[[], int]) -> str:
    """The errno of a call that must not succeed, by name; "0" if it does."""
    try:
        os.close(call())
    except BpfError as error:
        return error.errno_name
    return "0"


def test_creation_refuses_what_is_no_ready_map_with_a_free_name(stage: Stage) -> None:
    """STOPS-LINK-001 to -003, STOPS-QUIRK-007: in this order, and without a trace."""
    links = set(Link.ids())
    expected = {name: errno.errorcode[code] for name, code in CREATIONS}
    found = {
        name: told(
            lambda fd=stage.fds[name]: bpf(  # type: ignore[misc]
                uapi.BPF_LINK_CREATE, LinkCreate(map_fd=fd, attach_type=uapi.BPF_STRUCT_OPS)
            )
        )
        for name, _ in CREATIONS
    }
    assert found == expected
    assert set(Link.ids()) == links
    assert seen(stage.linked) == ready(1)


def test_creation_looks_neither_at_flags_nor_at_a_target(
    netns: NetNamespace, idle: Algorithm, link_ops: StructOps
) -> None:
    """STOPS-LINK-004."""
    link_ops.update(idle.members())
    attr = LinkCreate(map_fd=link_ops.map.fd, target_fd=CLOSED, attach_type=uapi.BPF_STRUCT_OPS, flags=0xFFFF)
    with Link(bpf(uapi.BPF_LINK_CREATE, attr)):
        assert NAME in tcp.available(netns)
    assert NAME not in tcp.available(netns)


def test_update_refuses_in_the_order_of_its_arguments_and_changes_nothing(stage: Stage) -> None:
    """STOPS-LINK-010 to -012, -015, -017: flags, link, new map, old map, then the maps against each other."""
    found, expected = [], []
    for link, new, old, flags, code in UPDATES:
        attr = LinkUpdate(
            link_fd=stage.fds[link], new_prog_fd=stage.fds[new], old_prog_fd=stage.fds[old], flags=flags
        )
        case = (link, new, old, flags)
        found.append((*case, told(lambda attr=attr: bpf(uapi.BPF_LINK_UPDATE, attr))))  # type: ignore[misc]
        expected.append((*case, errno.errorcode[code]))
    assert found == expected
    assert stage.link.info().map_id == stage.linked.map.id
    assert seen(stage.linked) == ready(1)
    with socket.socket() as sock:
        tcp.set_congestion(sock, NAME)
        assert seen(stage.linked) == ready(2)


@pytest.mark.requires("struct_ops_link_detach")
def test_detached_link_refuses_updates_before_it_compares_maps(stage: Stage) -> None:
    """STOPS-LINK-012, -014, -015, -020: ENOLINK comes after the new map's state and before the old map."""
    stage.link.detach()
    for new, old, flags, code in (
        ("unready", "linked", REPLACE, errno.EINVAL),
        ("equal", "equal", REPLACE, errno.ENOLINK),
        ("renamed", "", 0, errno.ENOLINK),
        ("equal", "linked", 0, errno.EINVAL),
    ):
        with refused(code):
            bpf(
                uapi.BPF_LINK_UPDATE,
                LinkUpdate(
                    link_fd=stage.link.fd,
                    new_prog_fd=stage.fds[new],
                    old_prog_fd=stage.fds[old],
                    flags=flags,
                ),
            )
    stage.link.detach()
    assert seen(stage.linked) == ready(0)


def fdinfo(link: Link) -> dict[str, str]:
    lines = Path(f"/proc/self/fdinfo/{link.fd}").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_link_tells_its_map_while_it_has_one(
    netns: NetNamespace, idle: Algorithm, new_ops: NewOps, link_ops: StructOps
) -> None:
    """STOPS-LINK-023, -024, STOPS-ABI-004: by info and by fdinfo, also after an update."""
    link_ops.update(idle.members())
    other = new_ops(flags=uapi.BPF_F_LINK)
    other.update(idle.members())
    with link_ops.link() as link:
        for ops in (link_ops, other, link_ops):
            if link.info().map_id != ops.map.id:
                link.update(ops.map)
            info = link.info()
            assert (info.type, info.id, info.map_id) == (uapi.BPF_LINK_TYPE_STRUCT_OPS, link.id, ops.map.id)
            told = fdinfo(link)
            assert (told["link_type"], told["link_id"]) == ("struct_ops", str(link.id))
            assert told["map_id"] == str(ops.map.id)
            assert "prog_id" not in told


@pytest.mark.requires("struct_ops_link_detach")
@pytest.mark.parametrize("how", ["poll", "epoll"])
def test_detach_wakes_who_waits_for_the_link(
    how: str, netns: NetNamespace, idle: Algorithm, link_ops: StructOps
) -> None:
    """STOPS-LINK-021, STOPS-FIX-004: a thread that sleeps in poll; closing another descriptor does not wake it."""
    link_ops.update(idle.members())
    waiter: list[int] = []

    def wait(fd: int) -> list[tuple[int, int]]:
        waiter.append(threading.get_native_id())
        deadline = 60 * slow_factor()
        if how == "poll":
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return poll.poll(deadline * 1000)
        with select.epoll() as epoll:
            epoll.register(fd, select.EPOLLIN)
            return epoll.poll(deadline)

    def asleep() -> bool:
        return bool(waiter) and "poll" in Path(f"/proc/self/task/{waiter[0]}/wchan").read_text()

    with link_ops.link() as link, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait, link.fd)
        wait_until(asleep, timeout=5, what="the thread to sleep in poll")
        link.dup().close()
        assert not waiting.done()

        link.detach()

        assert waiting.result() == [(link.fd, select.POLLHUP)]
        assert NAME not in tcp.available(netns)


@pytest.mark.vm(cpus=2)
def test_of_racing_updates_that_name_the_old_map_one_wins(
    netns: NetNamespace, idle: Algorithm, new_ops: NewOps, link_ops: StructOps
) -> None:
    """STOPS-LINK-015, -026: the others are told that the map is another one by now."""
    link_ops.update(idle.members())
    rivals = [new_ops(flags=uapi.BPF_F_LINK) for _ in range(4)]
    for ops in rivals:
        ops.update(idle.members())
    start = threading.Barrier(len(rivals))

    def update(link: Link, ops: StructOps, old: StructOps) -> int:
        start.wait()
        return errno_of(lambda: link.update(ops.map, old=old.map))

    with link_ops.link() as link, ThreadPoolExecutor(len(rivals)) as pool:
        for _ in range(4):
            results = list(pool.map(lambda ops: update(link, ops, link_ops), rivals))
            assert sorted(results) == [0, *[errno.EPERM] * (len(rivals) - 1)]
            winner = rivals[results.index(0)]
            assert link.info().map_id == winner.map.id
            assert [seen(ops).refcnt for ops in rivals] == [int(ops is winner) for ops in rivals]
            link.update(link_ops.map, old=winner.map)


@pytest.mark.vm(cpus=2)
def test_name_is_known_at_each_moment_of_an_update(
    netns: NetNamespace, new_idle: NewAlgorithm, new_ops: NewOps
) -> None:
    """STOPS-LINK-018, -019, MODLIFE-RULE-007: sockets that choose it find either the old or the new map."""
    maps = [new_ops(flags=uapi.BPF_F_LINK) for _ in range(2)]
    for ops in maps:
        ops.update(new_idle().members())
    over = threading.Event()
    chosen: list[int] = []
    linked = 0

    def choose() -> None:
        with netns.entered():
            while not over.is_set():
                with socket.socket() as sock:
                    tcp.set_congestion(sock, NAME)
                chosen.append(linked)

    def updated_while_chosen() -> bool:
        nonlocal linked
        link.update(maps[1 - linked].map, old=maps[linked].map)
        linked = 1 - linked
        # both maps were chosen, so updates and choices did alternate
        return len(chosen) > 20 and {0, 1} <= set(chosen)

    with maps[0].link() as link, ThreadPoolExecutor(1) as pool:
        chooser = pool.submit(choose)
        try:
            wait_until(updated_while_chosen, timeout=5, what="sockets to choose the name during updates")
        finally:
            over.set()
        chooser.result()
        assert [seen(ops) for ops in maps] == [ready(1 - linked), ready(linked)]
