# SPDX-License-Identifier: MIT
"""Calls about struct_ops maps and links, each with every one of its allocations failing in turn."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.attrs import LinkCreate, LinkDetach, LinkUpdate, MapElem
from harness.guest.bpf.probe import has, require
from harness.guest.bpf.struct_ops import StructOps, map_attributes, user_btf
from harness.guest.failslab import Trial, closing, prepared, starve
from scenarios.struct_ops.algorithms import NAME, TYPE, Algorithm, inuse, ready, seen
from scenarios.struct_ops.conftest import NewOps
from scenarios.struct_ops.observed import available

pytestmark = pytest.mark.requires("failslab", "struct_ops")


def element(ops: StructOps, value: bytes = b"") -> MapElem:
    """Attributes of a call about the only element."""
    attributes = MapElem(map_fd=ops.map.fd)
    attributes.point("key", (ctypes.c_uint32 * 1)(0))
    if value:
        attributes.point("value", ctypes.create_string_buffer(value, len(value)))
    return attributes


@pytest.mark.parametrize("flags", [0, uapi.BPF_F_LINK], ids=["plain", "link"])
def test_making_a_map_without_memory_leaves_nothing(flags: int) -> None:
    """STOPS-NOMEM-001."""

    @contextmanager
    def scene() -> Iterator[Trial]:
        with user_btf() as types:
            attributes = map_attributes(TYPE, types, btf.vmlinux(), flags=flags)
            yield Trial(prepared(uapi.BPF_MAP_CREATE, attributes), lambda: None, os.close)

    assert starve(scene).refused


@pytest.mark.parametrize("flags", [0, uapi.BPF_F_LINK], ids=["plain", "link"])
def test_writing_a_value_without_memory_leaves_the_map_fresh(
    new_ops: NewOps, idle: Algorithm, flags: int
) -> None:
    """STOPS-NOMEM-002: after each failure it is the same map that the next attempt is made with."""
    if flags:
        require("struct_ops_link")
    ops = new_ops(flags)

    @contextmanager
    def scene() -> Iterator[Trial]:
        nonlocal ops
        if ops.map.closed:
            ops = new_ops(flags)

        def look() -> tuple[bytes, list[str]]:
            return ops.lookup(), available()

        def written(_: int) -> None:
            assert seen(ops) == (ready(0) if flags else inuse(1))
            assert (NAME in available()) is (flags == 0)
            if not flags:
                ops.delete()
            ops.close()

        attributes = element(ops, ops.value(idle.members()))
        yield Trial(prepared(uapi.BPF_MAP_UPDATE_ELEM, attributes), look, written)

    assert starve(scene).refused


@pytest.mark.requires("struct_ops_link")
def test_linking_without_memory_registers_nothing(link_ops: StructOps, idle: Algorithm) -> None:
    """STOPS-NOMEM-003: after each failure it is the same map that the next attempt is made with."""
    link_ops.update(idle.members())
    attributes = LinkCreate(map_fd=link_ops.map.fd, attach_type=uapi.BPF_STRUCT_OPS)

    def look() -> tuple[bytes, list[str]]:
        return link_ops.lookup(), available()

    def linked(fd: int) -> None:
        assert NAME in available()
        os.close(fd)

    @contextmanager
    def scene() -> Iterator[Trial]:
        yield Trial(prepared(uapi.BPF_LINK_CREATE, attributes), look, linked)

    assert NAME not in available()
    assert starve(scene).refused
    assert NAME not in available()


def test_a_plain_map_stays_registered_without_memory_for_the_key(idle: Algorithm) -> None:
    """STOPS-NOMEM-004: the only memory that unregistering takes is the system call's own, for a copy of the key."""

    @contextmanager
    def scene() -> Iterator[Trial]:
        with StructOps.create(TYPE) as ops:
            ops.update(idle.members())

            def deleted(_: int) -> None:
                assert NAME not in available()

            attributes = element(ops)
            yield Trial(
                prepared(uapi.BPF_MAP_DELETE_ELEM, attributes), lambda: (seen(ops), available()), deleted
            )
            if NAME in available():
                ops.delete()

    assert starve(scene).refused <= 1


@pytest.mark.requires("struct_ops_link")
def test_a_link_changes_its_map_and_goes_without_memory(idle: Algorithm) -> None:
    """STOPS-NOMEM-005: another map for it, its detach, and the close of its last descriptor."""

    @contextmanager
    def scene(way: str) -> Iterator[Trial]:
        with (
            StructOps.create(TYPE, flags=uapi.BPF_F_LINK) as old,
            StructOps.create(TYPE, flags=uapi.BPF_F_LINK) as new,
        ):
            for ops in (old, new):
                ops.update(idle.members())
            with old.link() as link:
                attributes = {
                    "update": (uapi.BPF_LINK_UPDATE, LinkUpdate(link_fd=link.fd, new_map_fd=new.map.fd)),
                    "detach": (uapi.BPF_LINK_DETACH, LinkDetach(link_fd=link.fd)),
                }
                call = closing(link.release()) if way == "close" else prepared(*attributes[way])

                def done(_: int) -> None:
                    assert (NAME in available()) is (way == "update")
                    if way == "update":
                        assert link.info().map_id == new.map.id

                yield Trial(call, available, done)

    for way in ("update", "detach", "close") if has("struct_ops_link_detach") else ("update", "close"):
        assert starve(partial(scene, way), refusals=()).refused == 0
