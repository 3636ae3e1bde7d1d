# SPDX-License-Identifier: MIT
"""The random test of struct_ops can tell: a model with one wrong rule is found out within the default effort."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.modelcheck.search import Stage
from harness.modelcheck.struct_ops import StructOps
from harness.oracle.struct_ops import World
from tests.vm.wrong_rules import Wrong, assert_found, staged

WRONG = [
    Wrong(
        "READY may be written anew", World._update, "table.state != INIT", "table.state not in (INIT, READY)"
    ),
    Wrong("undo_cwnd may be missing", World._update, '{"ssthresh", "undo_cwnd"} <=', '{"ssthresh"} <='),
    Wrong("cong_control does not do", World._update, '"cong_control"}', '"cong_avoid"}'),
    Wrong(
        "EBUSY before the padding",
        World._update,
        'call.stray == "padding"',
        'table.state == INIT and call.stray == "padding"',
    ),
    Wrong("any program does", World._check_member, "prog not in (f", "False and prog not in (f"),
    Wrong("a refused owner is told", World._check_member, "RETURNED_ONE", "errno.EINVAL"),
    Wrong("delete minds the key", World._delete, "state == INIT:", "state == INIT or call.key:"),
    Wrong("a link map can be deleted", World._delete, "if table.link", "if False"),
    Wrong(
        "a second link is fine",
        World._link,
        "self._register(",
        "call.map in self.registered.values() or self._register(",
    ),
    Wrong(
        "EPERM before ENOLINK", World._relink, "link.map is None:", "link.map is None and call.old is None:"
    ),
    Wrong("old is no matter", World._relink, "call.old is not None and call.old !=", "False and call.old !="),
    Wrong("an updated name keeps its place", World._relink, "self._unregister(link.map)", "pass"),
    Wrong("a link dies with its descriptor", World._hold, " and not link.pinned", ""),
    Wrong("pins keep no maps", World._free, "not table.pinned and ", ""),
    Wrong("a default keeps no map", World.refcnt, "(self.default.map == map)", "0"),
    Wrong(
        "sockets follow their name",
        World.refcnt,
        "sock.uses.map == map",
        "self.registered.get(sock.uses.name) == map",
    ),
    Wrong(
        "the same name is the same algorithm",
        World._choose,
        'self._find(name, "STOPS-TCP-011")',
        'sock.uses if self._find(name, "").name == sock.uses.name else self._find(name, "")',
    ),
    Wrong("children take after any listener", World._connect, "if listener.chosen else self.default", ""),
    Wrong("children never take after it", World._connect, "listener.uses if listener.chosen else ", ""),
    Wrong("any algorithm may be the default", World._set_default, "found.map is not None and", "False and"),
]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(StructOps, tmp_path_factory.mktemp("rig")) as stage:
        yield stage


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
def test_a_wrong_rule_is_found(stage: Stage, wrong: Wrong) -> None:
    assert_found(stage, wrong)
