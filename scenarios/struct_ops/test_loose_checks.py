# SPDX-License-Identifier: MIT
"""What user space gets wrong is refused and not overlooked; what the kernel tells is all the kernel's own."""

from __future__ import annotations

import ctypes
import errno

import pytest

from harness.guest.bpf.info import RawLinkInfo, get_info
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import refused
from scenarios.struct_ops.algorithms import Algorithm, inuse, seen

pytestmark = [pytest.mark.requires("struct_ops")]

BEYOND_AN_INT = 1 << 32


@pytest.mark.known_issue(
    "STOPS-QUIRK-004", reason="a descriptor is the lower half of a member; nobody looks at the upper"
)
@pytest.mark.parametrize("filled", [False, True], ids=["empty", "with a program"])
def test_a_member_that_is_no_descriptor_is_refused(filled: bool, ops: StructOps, idle: Algorithm) -> None:
    """STOPS-QUIRK-004, STOPS-UPD-010, -011: a pointer, say, that somebody took for a function."""
    low = idle.progs["init"].fd if filled else 0
    with refused(errno.EBADF, errno.EINVAL):
        ops.update({**idle.members(), "init": BEYOND_AN_INT | low})


@pytest.mark.known_issue("STOPS-QUIRK-005", reason="the key is not looked at")
def test_a_key_that_is_not_there_deletes_nothing(ops: StructOps, idle: Algorithm) -> None:
    """STOPS-QUIRK-005, STOPS-STATE-011: a look-up of that key finds nothing, an update of it is refused."""
    ops.update(idle.members())
    with refused(errno.ENOENT, errno.EINVAL, errno.E2BIG):
        ops.map.delete(7)
    assert seen(ops) == inuse(1)


@pytest.mark.known_issue("STOPS-QUIRK-006", reason="what the caller had in the buffer comes back")
@pytest.mark.requires("struct_ops_link", "struct_ops_link_detach")
def test_info_of_a_detached_link_names_no_map_and_no_program(link_ops: StructOps, idle: Algorithm) -> None:
    """STOPS-QUIRK-006, STOPS-LINK-023: a struct_ops link never has a program, and a detached one has no map."""
    link_ops.update(idle.members())
    with link_ops.link() as link:
        link.detach()
        info = RawLinkInfo.from_buffer_copy(b"\xa5" * ctypes.sizeof(RawLinkInfo))
        get_info(link.fd, info)
        map_id = int.from_bytes(bytes(info.arm)[:4], "little")
        assert (info.id, info.prog_id, map_id) == (link.id, 0, 0)
