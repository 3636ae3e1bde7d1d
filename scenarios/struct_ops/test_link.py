# SPDX-License-Identifier: MIT
"""A link registers a READY map, moves the name to another map, and takes it away again."""

from __future__ import annotations

import errno
import select

import pytest

from harness.guest import tcp
from harness.guest.bpf import uapi
from harness.guest.bpf.attrs import LinkUpdate
from harness.guest.bpf.link import Link
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import bpf, refused
from harness.guest.net import VethPair
from scenarios.struct_ops.algorithms import NAME, Algorithm, ready, seen
from scenarios.struct_ops.conftest import NewAlgorithm, NewOps

pytestmark = [pytest.mark.requires("struct_ops", "struct_ops_link")]

BYTES = 256 * 1024


def hung_up(link: Link) -> bool:
    poll = select.poll()
    poll.register(link.fd, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def test_ready_map_has_its_name_only_while_it_is_linked(
    veth: VethPair, idle: Algorithm, link_ops: StructOps
) -> None:
    """STOPS-UPD-015, STOPS-LINK-005, -006, -022, STOPS-CMD-004, STOPS-TCP-014."""
    link_ops.update(idle.members())
    assert seen(link_ops) == ready(0)
    assert NAME not in tcp.available(veth.ns_a)
    with link_ops.link() as link:
        assert NAME in tcp.available(veth.ns_a)
        assert link.info().map_id == link_ops.map.id
        with refused(errno.EEXIST):
            link_ops.link()
        with tcp.connect(veth, congestion=NAME) as pair:
            assert seen(link_ops) == ready(2)

            link.close()

            assert NAME not in tcp.available(veth.ns_a)
            assert seen(link_ops) == ready(1)
            pair.transfer(BYTES)
            assert idle.count("cong_avoid") > 0
    assert seen(link_ops) == ready(0)
    with link_ops.link():
        assert NAME in tcp.available(veth.ns_a)
    assert NAME not in tcp.available(veth.ns_a)


@pytest.mark.requires("struct_ops_link_detach")
def test_detached_link_stays_behind_empty(
    veth: VethPair, idle: Algorithm, new_ops: NewOps, link_ops: StructOps
) -> None:
    """STOPS-LINK-014, -020, -021, STOPS-LAW-006: detach unregisters for good, and wakes who polls the link."""
    link_ops.update(idle.members())
    other = new_ops(flags=uapi.BPF_F_LINK)
    other.update(idle.members())
    with link_ops.link() as link, tcp.connect(veth, congestion=NAME) as pair:
        assert not hung_up(link)

        link.detach()

        assert hung_up(link)
        assert NAME not in tcp.available(veth.ns_a)
        assert seen(link_ops) == ready(1)
        pair.transfer(BYTES)
        assert idle.count("cong_avoid") > 0
        link.detach()
        with refused(errno.ENOLINK):
            link.update(other.map)
        with other.link():
            assert NAME in tcp.available(veth.ns_a)


def test_link_update_serves_new_connections_from_the_new_map(
    veth: VethPair, new_idle: NewAlgorithm, new_ops: NewOps
) -> None:
    """STOPS-LINK-018, -019, STOPS-LAW-006: old connections stay with the old map, also when it is linked back."""
    old, new = new_idle(), new_idle()
    old_map, new_map = new_ops(flags=uapi.BPF_F_LINK), new_ops(flags=uapi.BPF_F_LINK)
    old_map.update(old.members())
    new_map.update(new.members())
    with old_map.link() as link, tcp.connect(veth, congestion=NAME) as veteran:
        link.update(new_map.map, old=old_map.map)

        assert (seen(old_map), seen(new_map)) == (ready(1), ready(1))
        assert link.info().map_id == new_map.map.id
        with tcp.connect(veth, congestion=NAME) as recruit:
            assert (seen(old_map), seen(new_map)) == (ready(1), ready(2))
            recruit.transfer(BYTES)
            assert old.count("cong_avoid") == 0 and new.count("cong_avoid") > 0
            recruits_calls = new.count("cong_avoid")
            veteran.transfer(BYTES)
            assert old.count("cong_avoid") > 0 and new.count("cong_avoid") == recruits_calls

            link.update(old_map.map)

            assert (seen(old_map), seen(new_map)) == (ready(2), ready(1))


def test_refused_link_update_leaves_the_old_map_linked(
    veth: VethPair, idle: Algorithm, new_ops: NewOps, link_ops: StructOps
) -> None:
    """STOPS-LINK-010, -011, -012, -015, -017."""
    link_ops.update(idle.members())
    same_name, other_name, unready = (new_ops(flags=uapi.BPF_F_LINK) for _ in range(3))
    same_name.update(idle.members())
    other_name.update(idle.members("kr_other"))
    plain = new_ops()
    plain.update(idle.members("kr_plain"))
    with link_ops.link() as link:
        with refused(errno.EPERM):
            link.update(same_name.map, old=same_name.map)
        with refused(errno.EINVAL):
            link.update(other_name.map, old=link_ops.map)
        with refused(errno.EINVAL):
            link.update(unready.map)
        with refused(errno.EINVAL):
            link.update(plain.map)
        with refused(errno.EINVAL):
            link.update(same_name.map, flags=uapi.BPF_F_LINK)
        with refused(errno.EINVAL):
            without_replace = LinkUpdate(
                link_fd=link.fd, new_prog_fd=same_name.map.fd, old_prog_fd=link_ops.map.fd
            )
            bpf(uapi.BPF_LINK_UPDATE, without_replace)
        assert link.info().map_id == link_ops.map.id
        with tcp.connect(veth, congestion=NAME):
            assert (seen(link_ops), seen(same_name)) == (ready(2), ready(0))
