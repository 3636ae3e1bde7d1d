# SPDX-License-Identifier: MIT
"""A link that some threads update while another detaches it."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest

from harness.guest.bpf import uapi
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import refused
from harness.guest.errnos import errno_of
from scenarios.struct_ops.algorithms import NAME, Algorithm, ready, seen
from scenarios.struct_ops.conftest import NewOps
from scenarios.struct_ops.observed import available

pytestmark = [
    pytest.mark.requires("struct_ops", "struct_ops_link", "struct_ops_link_detach"),
    pytest.mark.vm(cpus=2),
]

ROUNDS, PATIENCE = 30, 300


@pytest.fixture
def maps(new_ops: NewOps, idle: Algorithm) -> list[StructOps]:
    """Three READY maps of one name."""
    made = [new_ops(uapi.BPF_F_LINK) for _ in range(3)]
    for each in made:
        each.update(idle.members())
    return made


def at_once(*calls: Callable[[], object]) -> list[int]:
    """The errno of each call, 0 for success; each is made by a thread of its own."""
    start = Barrier(len(calls))

    def run(call: Callable[[], object]) -> int:
        start.wait()
        return errno_of(call)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_detach_that_races_with_updates_is_final(maps: list[StructOps]) -> None:
    """STOPS-LINK-026, -014, -020: an update comes before it or finds nothing; no map is held afterwards."""
    outcomes: Counter[str] = Counter()
    while outcomes.total() < 2 * (ROUNDS if len(outcomes) == 2 else PATIENCE):
        with maps[0].link() as link:
            detached, *updates = at_once(link.detach, *(partial(link.update, each.map) for each in maps[1:]))
            assert detached == 0 and set(updates) <= {0, errno.ENOLINK}
            outcomes.update("too late" if update else "in time" for update in updates)
            assert NAME not in available()
            assert [seen(each) for each in maps] == [ready(0)] * len(maps)
            with refused(errno.ENOLINK):
                link.update(maps[1].map)
    print("updates against a detach:", dict(outcomes))
    assert len(outcomes) == 2, "one side always won: nothing was tested"
