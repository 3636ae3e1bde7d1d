# SPDX-License-Identifier: MIT
"""Iterators over maps, which copy in bulk: what they show, of which maps, in what pieces, and what they hold."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from harness.guest.bpf import symbols, uapi
from harness.guest.bpf.asm import Item, asm, exit_, jeq, label, ldxdw, mov, r0, r1, r2, stxdw
from harness.guest.bpf.attrs import IterCreate
from harness.guest.bpf.btf_builder import BtfBuilder
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map, possible_cpus
from harness.guest.bpf.object import Object
from harness.guest.bpf.probe import require
from harness.guest.bpf.syscall import BpfError, bpf
from harness.guest.bpf.tracing import load_iterator
from harness.guest.errnos import errno_of
from harness.guest.waiting import wait_until

NewMap = Callable[..., Map]
BPFFS = Path("/sys/fs/bpf")
BUFFER = 8 * 4096  # kernel/bpf/bpf_iter.c:bpf_seq_read
ENOUGH = 1 << 20
KEY, VALUE = 16, 24  # in struct bpf_iter__bpf_map_elem


@dataclass(frozen=True)
class Shown:
    """A run of a program of walk.bpf.c: struct shown there."""

    number: int
    key: int
    first: int
    second: int
    end: int


RECORD = struct.Struct("=5Q")


class Programs:
    """Programs of walk.bpf.c, each loaded in an object of its own."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._objects: dict[str, Object] = {}

    def object(self, name: str, **maps: Map) -> Object:
        """The object of which just this program is loaded."""
        if name not in self._objects:
            made = self._stack.enter_context(Object.open(Path(__file__).with_name("walk.bpf.o")))
            for other in made.program_names():
                made.tune_prog(other, autoload=other == name)
            for map_name, map in maps.items():
                made.tune_map(map_name, reuse=map)
            self._objects[name] = made.load()
        return self._objects[name]

    def link(self, name: str, map: Map | None = None, **maps: Map) -> Link:
        """A link of the program, over a map if there is one. Raises BpfError."""
        with self.object(name, **maps).prog(name) as prog:
            return self._stack.enter_context(Link.iterator(prog, map=map))

    def shown(self, name: str, map: Map | None = None) -> list[Shown]:
        """Walk once: what the program was shown, without the end, which is the last."""
        with self.link(name, map) as link:
            records = parsed(link.read_iterator())
        assert [record.end for record in records] == [0] * (len(records) - 1) + [1]
        return records[:-1]


@pytest.fixture
def programs() -> Iterator[Programs]:
    """The programs of walk.bpf.c."""
    with ExitStack() as stack:
        yield Programs(stack)


@contextmanager
def opened(link: Link) -> Iterator[int]:
    """A descriptor to read the iterator from."""
    descriptor = bpf(uapi.BPF_ITER_CREATE, IterCreate(link_fd=link.fd))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def parsed(output: bytes) -> list[Shown]:
    """Records of walk.bpf.c."""
    return [Shown(*fields) for fields in RECORD.iter_unpack(output)]


PLAIN = (uapi.BPF_MAP_TYPE_HASH, uapi.BPF_MAP_TYPE_LRU_HASH, uapi.BPF_MAP_TYPE_ARRAY)
PERCPU = (
    uapi.BPF_MAP_TYPE_PERCPU_HASH,
    uapi.BPF_MAP_TYPE_LRU_PERCPU_HASH,
    uapi.BPF_MAP_TYPE_PERCPU_ARRAY,
)


@pytest.mark.parametrize("map_type", PLAIN, ids=["HASH", "LRU_HASH", "ARRAY"])
def test_each_element_is_shown_once_and_can_be_written(
    programs: Programs, new_map: NewMap, map_type: int
) -> None:
    """MTRACE-ITER-001 to -003, upstream prog_tests/bpf_iter.c: bpf_hash_map, bpf_array_map; the end has no element."""
    map = new_map(map_type)
    for key in range(16):
        map[key] = 100 + key
    shown = programs.shown("element", map)
    assert [each.number for each in shown] == list(range(16))
    assert sorted((each.key, each.first) for each in shown) == [(key, 100 + key) for key in range(16)]
    programs.object("element").set_number("add", 1000)
    programs.shown("element", map)
    assert dict(map.items()) == {key: 1100 + key for key in range(16)}


@pytest.mark.vm(cpus=2)
@pytest.mark.parametrize("map_type", PERCPU, ids=["PERCPU_HASH", "LRU_PERCPU_HASH", "PERCPU_ARRAY"])
def test_a_percpu_element_is_shown_as_a_snapshot_of_all_cpus(
    programs: Programs, new_map: NewMap, map_type: int
) -> None:
    """MTRACE-ITER-001 to -003, upstream prog_tests/bpf_iter.c: bpf_percpu_hash_map, bpf_percpu_array_map: what is
    written into it changes nothing.
    """
    map = new_map(map_type)
    for key in range(16):
        map[key] = [100 + key + cpu for cpu in range(possible_cpus())]
    before = dict(map.items())
    programs.object("element_of_two").set_number("add", 1000)
    shown = programs.shown("element_of_two", map)
    assert sorted((each.key, each.first, each.second) for each in shown) == [
        (key, 100 + key, 101 + key) for key in range(16)
    ]
    assert dict(map.items()) == before


def test_other_types_of_maps_cannot_be_walked(programs: Programs, new_map: NewMap) -> None:
    """MTRACE-ITER-001, upstream prog_tests/bpf_iter.c: bpf_hash_map: EINVAL; EBADF for none."""
    others = [
        new_map(uapi.BPF_MAP_TYPE_LPM_TRIE, key_size=8, flags=uapi.BPF_F_NO_PREALLOC),
        new_map(uapi.BPF_MAP_TYPE_QUEUE, key_size=0),
        new_map(uapi.BPF_MAP_TYPE_PROG_ARRAY, value_size=4),
        new_map(uapi.BPF_MAP_TYPE_RINGBUF, 4096, key_size=0, value_size=0),
    ]
    with new_map() as inner:
        others.append(new_map(uapi.BPF_MAP_TYPE_HASH_OF_MAPS, value_size=4, inner_map=inner))
    for each in others:
        assert errno_of(partial(programs.link, "element", each)) == errno.EINVAL
    with programs.object("element").prog("element") as prog:
        assert errno_of(lambda: Link.iterator(prog, map=0)) == errno.EBADF


@pytest.mark.parametrize(
    ("program", "sizes", "errno_"),
    [
        pytest.param("element", {"value_size": 8}, None, id="all of a value"),
        pytest.param("element", {"value_size": 4}, errno.EACCES, id="past a value"),
        pytest.param("element_of_long_key", {"key_size": 8}, None, id="all of a key"),
        pytest.param("element_of_long_key", {"key_size": 4}, errno.EACCES, id="past a key"),
    ],
)
def test_a_program_that_reads_more_than_there_is_cannot_be_attached(
    programs: Programs, new_map: NewMap, program: str, sizes: dict[str, int], errno_: int | None
) -> None:
    """MTRACE-ITER-001, upstream prog_tests/bpf_iter.c: rdonly-buf-out-of-bound."""
    map = new_map(**sizes)
    if errno_ is None:
        programs.link(program, map)
    else:
        assert errno_of(lambda: programs.link(program, map)) == errno_


@pytest.mark.parametrize(
    ("argument", "access", "gist"),
    [
        pytest.param(KEY, ldxdw(r0, r1, -8), "invalid (negative )?rdonly buffer", id="before the key"),
        pytest.param(VALUE, ldxdw(r0, r1, -8), "invalid (negative )?rdwr buffer", id="before the value"),
        pytest.param(KEY, stxdw(r1, 0, r2), "R1 cannot write into rdonly", id="into the key"),
    ],
)
def test_a_program_that_must_not_do_so_is_not_loaded(argument: int, access: Item, gist: str) -> None:
    """MTRACE-ITER-003, upstream prog_tests/bpf_iter.c: buf-neg-offset."""
    code = asm(
        ldxdw(r1, r1, argument), jeq(r1, 0, "out"), mov(r2, 0), access, label("out"), mov(r0, 0), exit_()
    )
    with pytest.raises(BpfError) as refused:
        load_iterator("bpf_map_elem", code)
    assert refused.value.errno == errno.EACCES
    assert re.search(gist, refused.value.log)


def test_an_open_iterator_holds_the_map(programs: Programs, new_map: NewMap) -> None:
    """MTRACE-ITER-006, upstream prog_tests/bpf_iter.c: bpf_array_map_iter_fd: and the link tells which."""
    map = new_map(uapi.BPF_MAP_TYPE_ARRAY)
    map[3] = 7
    link = programs.link("element", map)
    assert struct.unpack_from("=I", link.info().raw, 28) == (map.id,)
    id = map.id
    with opened(link) as descriptor:
        map.close()
        link.close()
        assert id in Map.ids()
        records = parsed(os.read(descriptor, ENOUGH))
        assert (records[3].key, records[3].first, len(records)) == (3, 7, 17)
    wait_until(lambda: id not in Map.ids(), timeout=2, what="the map to be freed")


def test_a_walk_may_add_to_the_map_that_it_walks(programs: Programs, new_map: NewMap) -> None:
    """MTRACE-ITER-007: it holds no lock of a bucket; what is added may be shown, too."""
    map = new_map(max_entries=64)
    for key in range(16):
        map[key] = key
    link = programs.link("grow", map, grown=map)
    assert link.read_iterator() == b""
    assert dict(map.items()) == {base + key: key for key in range(16) for base in (0, 1000)}
    link.read_iterator()
    assert programs.object("grow").number("refused") == 16


def test_an_element_that_moves_between_two_reads_is_shown_twice_and_another_never(
    programs: Programs, new_map: NewMap
) -> None:
    """MTRACE-ITER-004: an update puts its element to the head of its bucket, where the walk has been."""
    map = new_map(max_entries=64)
    for key in range(64):
        map[key] = key
    seen: list[int] = []
    with opened(programs.link("element", map)) as descriptor:
        while record := os.read(descriptor, RECORD.size):
            (shown,) = parsed(record)
            if shown.end:
                break
            seen.append(shown.key)
            for key in range(64):
                if key not in seen:
                    map[key] = key
    assert len(seen) == 64
    assert max(Counter(seen).values()) > 1
    assert set(seen) < set(range(64))


def test_output_that_does_not_fit_runs_the_program_again(programs: Programs, new_map: NewMap) -> None:
    """MTRACE-ITER-005, upstream prog_tests/bpf_iter.c: overflow: what it writes otherwise is done twice."""
    map = new_map()
    for key in range(16):
        map[key] = key
    link, flood = programs.link("flood", map), programs.object("flood")
    flood.set_number("pieces", 3)
    with opened(link) as descriptor:
        output = b"".join(iter(lambda: os.read(descriptor, ENOUGH), b""))
    keys = [output[at] for at in range(0, len(output), 3 * 4000)]
    assert sorted(keys) == list(range(16))
    again = flood.number("runs") - 16
    assert again == flood.number("overflows") > 0


def test_an_element_whose_output_never_fits_ends_the_walk(programs: Programs, new_map: NewMap) -> None:
    """MTRACE-ITER-005, upstream prog_tests/bpf_iter.c: overflow-e2big: at the first element, so that nothing comes."""
    map = new_map()
    map[1] = 1
    link, flood = programs.link("flood", map), programs.object("flood")
    flood.set_number("pieces", BUFFER // 4000 + 1)
    with pytest.raises(OSError, match="Argument list too long") as refused:
        link.read_iterator()
    assert refused.value.errno == errno.E2BIG


def test_a_program_that_returns_1_is_run_again_by_the_next_read(programs: Programs, new_map: NewMap) -> None:
    """MTRACE-ITER-005, upstream prog_tests/bpf_iter.c: prog-ret-1."""
    map = new_map()
    map[1] = 1
    link, flood = programs.link("flood", map), programs.object("flood")
    flood.set_number("pieces", 1)
    flood.set_number("stubborn", 2)
    with opened(link) as descriptor:
        for _ in range(2):
            with pytest.raises(BlockingIOError):
                os.read(descriptor, ENOUGH)
        assert len(os.read(descriptor, ENOUGH)) == 4000
        assert os.read(descriptor, ENOUGH) == b""
    assert flood.number("runs") == 3


def test_a_pinned_iterator_is_a_file(programs: Programs, new_map: NewMap) -> None:
    """MTRACE-ITER-002, upstream prog_tests/bpf_iter.c: anon, anon-read-one-char, file: each open walks anew, and
    reads may be of any size.
    """
    map = new_map(uapi.BPF_MAP_TYPE_ARRAY, 4)
    link = programs.link("element", map)
    whole = link.read_iterator()
    assert len(whole) == 5 * RECORD.size
    with opened(link) as descriptor:
        assert b"".join(iter(lambda: os.read(descriptor, 1), b"")) == whole
    path = BPFFS / "walk"
    link.pin(path)
    try:
        assert path.read_bytes() == path.read_bytes() == whole
    finally:
        path.unlink()


def test_all_maps_and_links_can_be_walked(programs: Programs, new_map: NewMap) -> None:
    """MTRACE-ITER-002, upstream prog_tests/bpf_iter.c: bpf_map, link-iter."""
    map = new_map()
    assert {each.key for each in programs.shown("each_map")} >= {map.id}
    with programs.link("element", map) as link:
        assert {each.key for each in programs.shown("each_link")} >= {link.id}
        id = link.id
    wait_until(
        lambda: id not in {each.key for each in programs.shown("each_link")}, timeout=2, what="the link's end"
    )


def test_kernel_symbols_can_be_walked(programs: Programs) -> None:
    """MTRACE-ITER-002, upstream prog_tests/bpf_iter.c: ksym: as /proc/kallsyms has them."""
    require("kfunc:bpf_iter_ksym")
    with opened(programs.link("each_symbol")) as descriptor:
        shown = parsed(os.read(descriptor, 50 * RECORD.size))
    assert [each.key for each in shown] == [each.address for each in islice(symbols.every(), 50)]


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two UDP sockets that are bound."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        yield one, two


Sockets = tuple[socket.socket, socket.socket]


def test_sockets_storage_can_be_walked_and_written(programs: Programs, sockets: Sockets) -> None:
    """MTRACE-ITER-003, -006, upstream prog_tests/bpf_iter.c: bpf_sk_storage_map, bpf_sk_storage_map_iter_fd."""
    b = BtfBuilder()
    key, value = b.integer("int", 4), b.integer("long", 8)
    with (
        b.load() as types,
        Map.create(
            uapi.BPF_MAP_TYPE_SK_STORAGE,
            4,
            8,
            0,
            flags=uapi.BPF_F_NO_PREALLOC,
            btf=types,
            btf_key_type_id=key,
            btf_value_type_id=value,
        ) as storage,
    ):
        for number, each in enumerate(sockets):
            storage[each.fileno()] = 10 + number
        programs.object("each_stored").set_number("add", 100)
        assert sorted(each.first for each in programs.shown("each_stored", storage)) == [10, 11]
        assert [storage[each.fileno()] for each in sockets] == [110, 111]
        id = storage.id
        with opened(programs.link("each_stored", storage)) as descriptor:
            programs.object("each_stored").set_number("add", 0)
            sockets[0].close()
            # A closed socket is freed after a grace period, and its storage with it.
            wait_until(
                lambda: [each.first for each in programs.shown("each_stored", storage)] == [111],
                timeout=5,
                what="the closed socket's element to go",
            )
            storage.close()
            assert id in Map.ids()
            assert [each.first for each in parsed(os.read(descriptor, ENOUGH))] == [111, 0]


@pytest.mark.parametrize("map_type", [uapi.BPF_MAP_TYPE_SOCKMAP, uapi.BPF_MAP_TYPE_SOCKHASH])
def test_sockets_in_a_map_can_be_walked_when_only_the_iterator_holds_it(
    programs: Programs, new_map: NewMap, sockets: Sockets, map_type: int
) -> None:
    """MTRACE-ITER-006, upstream prog_tests/bpf_iter.c: bpf_sockmap_map_iter_fd."""
    map = new_map(map_type, 2)
    map[1] = sockets[0].fileno()
    link = programs.link("each_socket", map)
    with opened(link) as descriptor:
        id = map.id
        map.close()
        link.close()
        assert id in Map.ids()
        held = [each.key for each in parsed(os.read(descriptor, ENOUGH)) if each.first]
    assert held == [1]
