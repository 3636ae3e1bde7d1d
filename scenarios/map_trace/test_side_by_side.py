# SPDX-License-Identifier: MIT
"""The old and the new program have the same traffic for a while: the new one finds what the mirror has written."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.guest.bpf import cgroup, uapi
from harness.guest.bpf.cgroup import Cgroup
from harness.guest.bpf.link import Link
from harness.guest.bpf.object import Object
from harness.guest.netns import NetNamespace

BOTH, ALONE = 5, 2
OLD, NEW = (42, 3), (3, 42)


@pytest.fixture
def programs() -> Iterator[Object]:
    """The programs of beside.bpf.c."""
    with Object.open(Path(__file__).with_name("beside.bpf.o")) as made:
        yield made.load()


@pytest.fixture
def group() -> Iterator[Cgroup]:
    """A cgroup without programs."""
    with Cgroup.create("beside") as made:
        yield made


@pytest.fixture
def send(programs: Object, group: Cgroup) -> Iterator[Callable[[int], None]]:
    """Sends so many more packets from a socket in the cgroup; they are numbered from 1 on."""
    with NetNamespace.create(loopback=True) as namespace, namespace.entered(), group.entered():
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with own:
        own.bind(("127.0.0.1", 0))
        own.connect(own.getsockname())

        def send(count: int) -> None:
            for _ in range(count):
                programs.set_number("number", programs.number("number") + 1)
                own.send(b"x")

        yield send


@pytest.mark.requires("fentry:htab_map_update_elem")
@pytest.mark.parametrize(
    ("order", "tolerant", "state"),
    [
        pytest.param(("old", "new"), True, BOTH, id="behind, writing what the packet says"),
        pytest.param(("new", "old"), True, BOTH, id="in front, writing what the packet says"),
        pytest.param(("old", "new"), False, BOTH + 1, id="behind, counting on what it finds"),
        pytest.param(("new", "old"), False, BOTH, id="in front, counting on what it finds"),
    ],
)
def test_a_new_program_beside_the_old_one_must_bear_mirrored_writes(
    programs: Object,
    group: Cgroup,
    send: Callable[[int], None],
    order: tuple[str, str],
    tolerant: bool,
    state: int,
) -> None:
    """MTRACE-MIG-004, -005, MTRACE-LAW-001, -004: the mirror brings what the old program makes of a packet at once.

    A program behind it that adds its own to that has each packet twice; one in front is overruled.
    """
    with ExitStack() as stack:
        old_state, new_state = (stack.enter_context(programs.map(f"{name}_state")) for name in ("old", "new"))
        old_state.key_format = new_state.key_format = "=II"
        programs.set_number("old_id", old_state.id)
        programs.set_number("tolerant", tolerant)
        mirror = stack.enter_context(programs.prog("mirror_update"))
        with Link.tracing(mirror, uapi.BPF_TRACE_FEXIT):
            links = {}
            for name in order:
                with programs.prog(f"{name}_program") as prog:
                    links[name] = stack.enter_context(cgroup.link(group, prog))
            send(BOTH)
            assert (old_state[OLD], new_state[NEW]) == (BOTH, state)
            links["old"].close()
        send(ALONE)
        assert (old_state[OLD], new_state[NEW]) == (BOTH, state + ALONE)
        assert programs.number("failures") == programs.number("give_ups") == 0
        # The new program's writes are none of the mirror's: only its own are skipped.
        assert mirror.info().recursion_misses == programs.number("own_updates") == BOTH
