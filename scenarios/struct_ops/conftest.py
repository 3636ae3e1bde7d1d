# SPDX-License-Identifier: MIT
"""Congestion controls and struct_ops maps, cleaned up behind each scenario."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from harness.guest import modules
from harness.guest.bpf import uapi
from harness.guest.bpf.map import Map
from harness.guest.bpf.struct_ops import StructOps
from harness.guest.bpf.syscall import BpfError
from scenarios.struct_ops.algorithms import TYPE, Algorithm, load_idle, load_reno

NewOps = Callable[..., StructOps]
NewAlgorithm = Callable[[], Algorithm]


@pytest.fixture
def reno() -> Iterator[Algorithm]:
    """A compiled Reno with private state in the socket."""
    algorithm = load_reno()
    yield algorithm
    algorithm.close()


@pytest.fixture
def new_idle() -> Iterator[NewAlgorithm]:
    """A factory of small algorithms whose calls are ordered by one clock."""
    with ExitStack() as stack:
        clock = stack.enter_context(Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 8, 1))

        def load() -> Algorithm:
            algorithm = load_idle(clock)
            stack.callback(algorithm.close)
            return algorithm

        yield load


@pytest.fixture
def idle(new_idle: NewAlgorithm) -> Algorithm:
    """One small algorithm."""
    return new_idle()


@pytest.fixture
def new_ops() -> Iterator[NewOps]:
    """A factory of tcp_congestion_ops maps; what is still registered when the scenario ends is unregistered."""
    with ExitStack() as stack:

        def create(flags: int = 0) -> StructOps:
            ops = StructOps.create(TYPE, flags=flags)
            stack.callback(_unregister, ops.map.id)
            return stack.enter_context(ops)

        yield create


@pytest.fixture
def ops(new_ops: NewOps) -> StructOps:
    """A plain map: writing its value registers it."""
    return new_ops()


@pytest.fixture
def link_ops(new_ops: NewOps) -> StructOps:
    """A link map: a link registers it once its value is written."""
    return new_ops(flags=uapi.BPF_F_LINK)


@pytest.fixture
def unloading() -> Iterator[None]:
    """What the scenario leaves loaded of the algorithms that may be modules is unloaded."""
    yield
    for module in ("tcp_dctcp", "tcp_bbr"):
        if modules.state(module) is not None:
            modules.unload_when_unused(module)


def _unregister(map_id: int) -> None:
    try:
        ops = StructOps.of(Map.from_id(map_id), TYPE)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return
    with ops:
        if ops.state() == uapi.BPF_STRUCT_OPS_STATE_INUSE:
            ops.delete()
