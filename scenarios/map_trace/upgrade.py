# SPDX-License-Identifier: MIT
"""Rounds of an upgrade under load, in the guest: each tells what the new program did not find as it should be."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ctypes import Array, c_char
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

from harness.guest.bpf import uapi
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.object import Object
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.waiting import wait_until
from scenarios.map_trace.accounts import Elements, Seen, Writer, differences
from scenarios.map_trace.actors import SMALLEST_PACKET
from scenarios.map_trace.ways import WAYS, LinkedWay, Way

OBJECT = Path(__file__).with_name("upgrade.bpf.o")
NEEDED = ("fentry:htab_map_update_elem", "fentry:htab_map_delete_elem")
PROGRAMS = ("fill", "copy", "sweep", "mirror_update", "mirror_delete", "witness_update", "witness_delete")
MOST_KEYS = 8192  # of upgrade.bpf.c
A_FEW = 200
MOST_PASSES = 20


class Upgrade:
    """The two programs, their maps, the traffic and the tracers of upgrade.bpf.c; `way` is the programs' traffic."""

    def __init__(self, stack: ExitStack, way: type[Way], *, keys: int, busy: int, shared: bool) -> None:
        self._variables: dict[str, Array[c_char]] = {}
        self._object = stack.enter_context(Object.open(OBJECT)).load()
        self.old, self.new = (
            stack.enter_context(self._object.map(name)) for name in ("old_state", "new_state")
        )
        self._progs = {name: stack.enter_context(self._object.prog(name)) for name in PROGRAMS}
        self.way = way(stack, self._object)
        self.cpus = sorted(os.sched_getaffinity(0))
        self["old_id"], self["new_id"] = self.old.id, self.new.id
        self["keys"], self["busy"], self["shared"], self["cpus"] = keys, busy, shared, len(self.cpus)
        self.keys = keys

    def _memory(self, variable: str) -> Array[c_char]:
        # libbpf finds it by going through all types, which takes a while under TCG.
        if variable not in self._variables:
            self._variables[variable] = self._object.variable(variable)
        return self._variables[variable]

    def __getitem__(self, variable: str) -> int:
        return int.from_bytes(self._memory(variable).raw, "little")

    def __setitem__(self, variable: str, value: int) -> None:
        memory = self._memory(variable)
        memory.raw = value.to_bytes(len(memory), "little")

    def _records(self, variable: str, make: Callable[..., Any]) -> list[Any]:
        """A variable that is an array with a structure of 64-bit numbers for each CPU."""
        raw = self._memory(variable).raw
        width = len(make.__annotations__)
        records = list(struct.iter_unpack(f"={width}Q", raw))
        return [make(*records[cpu]) for cpu in self.cpus]

    @property
    def writers(self) -> list[Writer]:
        """What the traffic did, by CPU."""
        return self._records("writers", Writer)

    def seen(self, who: str) -> list[Seen]:
        """What "mirror" or "witness" saw, by CPU."""
        return self._records(f"by_{who}", Seen)

    def prog(self, name: str) -> Prog:
        """A program by its name."""
        return self._progs[name]

    def attach(self, name: str) -> Link:
        """Attach a tracer until the link is closed."""
        return Link.tracing(self.prog(name), uapi.BPF_TRACE_FEXIT)

    def begin(self, seed: int) -> None:
        """Fill the old map, empty the new one, forget all counts."""
        for name in ("writers", "by_mirror", "by_witness"):
            memory = self._memory(name)
            memory.raw = bytes(len(memory))
        numbers = struct.Struct("=Q")
        writers = bytearray(self._memory("writers").raw)
        for cpu in self.cpus:
            random = (seed * 1000003 + cpu + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
            numbers.pack_into(writers, cpu * 8 * len(Writer.__annotations__), random or 1)
        self._memory("writers").raw = bytes(writers)
        for name in (
            "lost",
            "stale",
            "resurrected",
            "failures",
            "repeats",
            "give_ups",
            "regressions",
            "noting",
            "beside",
        ):
            self[name] = 0
        assert self.prog("fill").test_run(SMALLEST_PACKET).retval == 0
        self.new.lookup_batch(MOST_KEYS, delete=True)
        self.way.give_to_old()

    @contextmanager
    def traffic(self) -> Iterator[None]:
        """Traffic on each CPU within the block, from a thread that is bound to it."""
        stop = Event()

        def drive(cpu: int) -> None:
            os.sched_setaffinity(0, {cpu})
            while not stop.is_set():
                self.way.send()

        threads = [Thread(target=drive, args=(cpu,)) for cpu in self.cpus]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def let_pass(self, kind: str) -> None:
        """Wait until each CPU has made a few more "changes", or "new_changes"."""
        before = [getattr(writer, kind) for writer in self.writers]
        wait_until(
            lambda: all(
                getattr(writer, kind) >= start + A_FEW
                for writer, start in zip(self.writers, before, strict=True)
            ),
            timeout=5,
            what=f"{A_FEW} {kind} on each CPU",
        )

    def walk(self, program: str, map: Map) -> None:
        """Run an iterator program over a map."""
        with Link.iterator(self.prog(program), map=map) as walk:
            assert walk.read_iterator() == b""

    def copy(self) -> int:
        """Copy until a pass adds nothing; how many passes that were."""
        for passes in count(1):
            before = self["copied"]
            self.walk("copy", self.old)
            if self["copied"] == before:
                return passes
            assert passes < MOST_PASSES, "each pass of the copy adds something"
        raise AssertionError("not reached")

    def missed(self, who: str) -> int:
        """How many of the old program's changes "mirror" or "witness" did not see."""
        pairs = zip(self.seen(who), self.writers, strict=True)
        return sum(seen.missed(writer.changes) for seen, writer in pairs)

    def skipped(self) -> int:
        """How many runs of the tracers the kernel skipped but for their own writes. There must be no traffic."""
        return (
            self.prog("mirror_update").info().recursion_misses
            - self["own_updates"]
            + self.prog("mirror_delete").info().recursion_misses
            - self["own_deletes"]
        )

    def unwitnessed(self) -> int:
        """How many runs of the witness the kernel skipped."""
        names = ("witness_update", "witness_delete")
        return sum(self.prog(name).info().recursion_misses for name in names)

    def repair(self) -> None:
        """Compare both maps key by key, from both sides. It is no use if tracers are skipped meanwhile."""
        self["repairing"] = 1
        self.walk("copy", self.old)
        self.walk("sweep", self.new)
        self["repairing"] = 0

    def state(self, map: Map) -> Elements:
        """A map's content by the number of the key.

        A key that is not made of one number has one of its own: an element of a preallocated map is used anew at once,
        so that who walks may read half of one key and half of the next.
        """
        elements, rest = map.lookup_batch(MOST_KEYS)
        assert rest is None
        found = {}
        for key, value in elements:
            number, inverse = struct.unpack("=II", key)[:: 1 if map is self.old else -1]
            if number ^ inverse != 0xFFFFFFFF:
                number |= inverse + 1 << 32
            found[number] = int.from_bytes(value, "little")
        assert len(found) == len(elements), "a key is there twice"
        return found

    def truth(self) -> Elements:
        """What the traffic knows: the version of each key that should be there."""
        versions = struct.unpack(f"={MOST_KEYS}Q", self._memory("truth").raw)
        return {number: version for number, version in enumerate(versions[: self.keys]) if version}


def naive_round(upgrade: Upgrade) -> dict[str, int]:
    """Copy, then switch."""
    upgrade["naive"] = 1
    with upgrade.traffic():
        upgrade.let_pass("changes")
        upgrade.walk("copy", upgrade.old)
        upgrade.let_pass("changes")
        upgrade.way.give_to_new()
        upgrade.let_pass("new_changes")
    return _result(upgrade, upgrade.truth())


def early_round(upgrade: Upgrade) -> dict[str, int]:
    """The RFC's order: all as in a careful round, but the tracers go before the switch.

    The traffic rests while they go: else the one that stays a little longer empties the new map, or fills it.
    """
    upgrade["naive"] = 0
    with upgrade.attach("mirror_delete"), upgrade.attach("mirror_update"), upgrade.traffic():
        upgrade.copy()
    with upgrade.traffic():
        upgrade.let_pass("changes")
        upgrade.way.give_to_new()
        upgrade.let_pass("new_changes")
    return _result(upgrade, upgrade.truth())


def careful_round(upgrade: Upgrade) -> dict[str, int]:
    """Mirror deletes and updates, copy until a pass adds nothing, switch, and only then let the tracers go."""
    return _mirrored_round(upgrade, _switch)


def beside_round(upgrade: Upgrade) -> dict[str, int]:
    """The same, but both programs have the traffic for a while before the old one goes."""
    return _mirrored_round(upgrade, _take_over)


def contended_round(upgrade: Upgrade) -> dict[str, int]:
    """The same, but all CPUs change the same keys, and the traffic ends instead of going to the new program."""
    return _mirrored_round(upgrade, None)


def _switch(upgrade: Upgrade) -> None:
    upgrade.way.give_to_new()
    upgrade.let_pass("new_changes")


def _take_over(upgrade: Upgrade) -> None:
    assert isinstance(upgrade.way, LinkedWay)
    upgrade["beside"] = 1
    upgrade.way.join()
    upgrade.let_pass("new_changes")
    upgrade.way.part()
    upgrade.let_pass("new_changes")


def _mirrored_round(upgrade: Upgrade, end: Callable[[Upgrade], None] | None) -> dict[str, int]:
    upgrade["naive"] = 0
    before = upgrade.skipped(), upgrade.unwitnessed(), upgrade["untraced"]
    with ExitStack() as tracers, upgrade.traffic():
        upgrade.let_pass("changes")
        for name in ("mirror_delete", "mirror_update"):
            tracers.enter_context(upgrade.attach(name))
        upgrade["noting"] = 1
        # What is missed before the first change that was seen on a CPU leaves no gap.
        upgrade.let_pass("changes")
        passes = upgrade.copy()
        upgrade.let_pass("changes")
        missed = 0
        for _ in range(MOST_PASSES):
            if (now := sum(seen.missed() for seen in upgrade.seen("mirror"))) == missed:
                break
            missed = now
            upgrade.repair()
            # A change that was missed shows when a later one was seen.
            upgrade.let_pass("changes")
        if end is not None:
            end(upgrade)
    expected = upgrade.state(upgrade.old) if end is None else upgrade.truth()
    result = _result(upgrade, expected)
    return {
        **result,
        "mirrored": sum(seen.count for seen in upgrade.seen("mirror")),
        "passes": passes,
        "missed": upgrade.missed("mirror"),
        "skipped": upgrade.skipped() - before[0],
        "untraced": upgrade["untraced"] - before[2],
        "unseen": upgrade.missed("witness"),
        "witness skipped": upgrade.unwitnessed() - before[1],
    }


def _result(upgrade: Upgrade, expected: Elements) -> dict[str, int]:
    """What the new program met and did not put right itself, and what it left; figures of the traffic."""
    found = differences(expected, upgrade.state(upgrade.new))
    for name in found:
        found[name] += upgrade[name]
    for name in ("inserts", "updates", "deletes"):
        found[name] = sum(getattr(writer, name) for writer in upgrade.writers)
    packets = zip(*(writer.packets for writer in upgrade.writers), strict=True)
    found["nobody"], _, _, found["both"] = map(sum, packets)
    for name in ("troubles", "failures", "repeats", "give_ups"):
        found[name] = upgrade[name]
    # Versions grow by CPU, so that a key that several CPUs change has no newest one.
    found["regressions"] = 0 if upgrade["shared"] else upgrade["regressions"]
    return found


ROUNDS = {
    "naive": naive_round,
    "early": early_round,
    "careful": careful_round,
    "beside": beside_round,
    "contended": contended_round,
}


def rounds(kind: str, way: str, *, number: int, seed: int, keys: int) -> list[dict[str, int]] | str:
    """Play rounds of a kind, all with one load of the programs. Three keys of four change.

    Returns of each how many keys were "lost", "stale" and "resurrected", what the traffic did, and what its tracers
    and the witness counted; or what this kernel lacks.
    """
    for feature in (*NEEDED, *WAYS[way].NEEDED):
        if not has(feature):
            return feature
    results = []
    with ExitStack() as stack:
        upgrade = Upgrade(stack, WAYS[way], keys=keys, busy=keys * 3 // 4, shared=kind == "contended")
        for name in ("witness_delete", "witness_update"):
            stack.enter_context(upgrade.attach(name))
        for each in range(number):
            upgrade.begin(seed * 1000 + each)
            start = time.monotonic()
            result = ROUNDS[kind](upgrade)
            results.append({**result, "milliseconds": int(1000 * (time.monotonic() - start))})
    return results
