# SPDX-License-Identifier: MIT
"""Who owns the objects of kr_kptr: maps whose values point to them, programs that move them, and who keeps those.

`World.do` carries out one call and says what the kernel must answer; `World.look` is what the module counts then. An
`Element` is the memory of one: maps use it again, and what they leave in it shows under the next key.
The rules are those of kernel/bpf/{arraymap,hashtab,bpf_lru_list,bpf_task_storage,map_in_map,memalloc}.c for one CPU.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness.guest.bpf.uapi import BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST
from harness.guest.kptr_kinds import (
    COUNT,
    FIELDS,
    KINDS_OF_MAPS,
    MOVE,
    PUT_NEW,
    PUT_STATIC,
    REMOVE,
    SHARE,
    STATIC,
    SWAP,
    TAKE,
    WRITE,
    Kind,
)
from harness.oracle.calls import Call, Close, Delete, Freeze, Pin, Reopen, Unpin
from harness.oracle.kptr_calls import (
    Bind,
    Create,
    DeleteBatch,
    Load,
    Lookup,
    LookupBatch,
    Nest,
    Run,
    Take,
    Unload,
    Update,
    UpdateBatch,
)
from harness.oracle.refusal import ENOTSUPP, UNTRIED, Refused

_ARRAYS = ("array", "locked_array", "percpu_array")
_RECYCLING = ("hash", "locked_hash", "lazy_hash", "lru_hash", "percpu_hash")


@dataclass(frozen=True)
class Features:
    """What a kernel has. `kinds`: of maps that may own objects; KPTR-MAP-021.

    `updates_release`: KPTR-PROBE-005; `percpu_hash_updates_release`: KPTR-FREE-010; `percpu_both_flags`: whether user
    space may write to per-CPU maps with both BPF_NOEXIST and BPF_EXIST, which then say nothing. How often it holds
    the module until it is freed: `users` of a map of that kind, `prog_users` of a program.
    """

    kinds: tuple[str, ...] = tuple(KINDS_OF_MAPS)
    updates_release: bool = True
    percpu_hash_updates_release: bool = True
    percpu_both_flags: bool = False
    users: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS_OF_MAPS, 2))
    prog_users: int = 1


@dataclass(frozen=True)
class Outcome:
    """What the call returns: an errno (0 for success), what else there is, and why. `deferred`: part of what it does
    may take until after grace periods."""

    errno: int = 0
    result: Any = None
    rule: str = ""
    deferred: bool = False


@dataclass(eq=False)
class Element:
    """The memory of an element: the value beside the pointers, and the objects that these own."""

    mark: int = 0
    objects: list[int | None] = field(default_factory=lambda: [None for _ in FIELDS])

    def contents(self) -> list[int | None]:
        return list(self.objects)


@dataclass
class Table:
    """A map. `spares` are elements that were in use, the next to be used at the end; a new one is as good as one that
    never was. `extra` is the one that a preallocated hash map puts in the place of one that is updated.
    `inner` is the kind of map that a map of maps may hold, `held` are those it does."""

    kind_name: str
    elements: dict[int, Element] = field(default_factory=dict)
    spares: list[Element] = field(default_factory=list)
    extra: Element = field(default_factory=Element)
    inner: str | None = None
    held: dict[int, str] = field(default_factory=dict)
    open: bool = True
    pinned: bool = False

    @property
    def kind(self) -> Kind:
        return KINDS_OF_MAPS[self.kind_name]

    def memory(self) -> list[Element]:
        """All that can hold an object."""
        return [*self.elements.values(), *self.spares, self.extra]

    def pop(self) -> Element:
        """Memory for a new element: what was freed last."""
        return self.spares.pop() if self.spares else Element()


@dataclass
class Program:
    """A program: its places, and the maps that it was given to hold."""

    maps: tuple[str, str]
    fields: tuple[int, int]
    bound: set[str] = field(default_factory=set)
    open: bool = True
    pinned: bool = False

    def holds(self) -> set[str]:
        """The maps that live as long as it does."""
        return {*self.maps, *self.bound}


@dataclass(frozen=True)
class Look:
    """What the module shows: references to the static objects that are not its own, its counters, its users."""

    refs: tuple[int, ...]
    created: int
    acquired: int
    released: int
    destroyed: int
    live: int
    users: int

    def numbers(self) -> list[int]:
        """In the order of the player."""
        return [
            *self.refs,
            self.created,
            self.acquired,
            self.released,
            self.destroyed,
            self.live,
            self.users,
        ]


Slot = tuple[Element, int]


@dataclass
class World:
    """The state."""

    features: Features = field(default_factory=Features)
    maps: dict[str, Table] = field(default_factory=dict)
    progs: dict[str, Program] = field(default_factory=dict)
    created: int = 0
    acquired: int = 0
    released: int = 0
    destroyed: int = 0
    # References that are neither in a map nor released yet: those of a running program.
    in_hand: list[int] = field(default_factory=list)
    _deferred: bool = False

    def do(self, call: Call) -> Outcome:
        """Carry out the call."""
        self._deferred = False
        try:
            result = self._do(call)
        except Refused as refusal:
            return Outcome(refusal.errno, None, refusal.rule, self._deferred)
        self._free()
        assert not self.in_hand, "KPTR-LAW-001: a program holds nothing between runs"
        if isinstance(result, Outcome):
            return replace(result, deferred=self._deferred)
        return Outcome(0, result, "", self._deferred)

    def _do(self, call: Call) -> Any:
        match call:
            case Create():
                return self._create(call)
            case Update():
                return self._update(call)
            case Nest():
                return self._nest(call)
            case Delete():
                return self._remove(self._open_map(call.map), call.key)
            case Lookup():
                return self._lookup(call)
            case Take():
                return self._take(call)
            case UpdateBatch():
                return self._update_batch(call)
            case DeleteBatch():
                return self._delete_batch(call)
            case LookupBatch():
                return self._lookup_batch(call)
            case Freeze():
                return self._freeze(call)
            case Load():
                return self._load(call)
            case Bind():
                return self._bind(call)
            case Run():
                return self._run(call)
            case Close():
                return self._close(call.name)
            case Pin():
                return self._pin(call.name)
            case Unpin():
                return self._unpin(call.name)
            case Reopen():
                return self._reopen(call)
            case Unload():
                return self._unload()
        raise TypeError(f"the model knows no call like {call}")

    # Maps

    def _create(self, call: Create) -> None:
        kind = KINDS_OF_MAPS[call.kind]
        table = Table(call.kind)
        if kind.outer:
            template = self._open_map(call.inner or "")
            if template.kind.outer or template.kind.locked or template.kind_name == "task_storage":
                raise Refused(UNTRIED, "the stage")
            table.inner = template.kind_name  # KPTR-MAP-026
        elif call.kind not in self.features.kinds:
            raise Refused(errno.EOPNOTSUPP, "KPTR-MAP-021")
        elif call.kind in _ARRAYS:
            table.elements = {key: Element() for key in range(kind.entries)}
        self.maps[call.map] = table

    def _update(self, call: Update) -> None:
        """KPTR-USER-002: whatever stands in the place of the pointers."""
        table = self._owning(call.map)
        self._check_lock(table, call.flags)
        self._write(table, call.key, call.mark, call.flags, by_program=False)

    @staticmethod
    def _check_lock(table: Table, flags: int) -> None:
        if flags & BPF_F_LOCK and not table.kind.locked:
            raise Refused(errno.EINVAL, "bpf(2)")

    def _write(self, table: Table, key: int, mark: int, flags: int, *, by_program: bool) -> None:
        """KPTR-FREE-013: the same rules for programs."""
        percpu = table.kind_name in ("percpu_array", "percpu_hash")
        if percpu and not by_program and self.features.percpu_both_flags and flags == BPF_NOEXIST | BPF_EXIST:
            flags = 0
        if table.kind_name in _ARRAYS:
            self._write_array(table, key, mark, flags)
        elif table.kind_name == "lru_hash":
            self._write_lru(table, key, mark, flags)
        elif table.kind_name == "percpu_hash":
            self._write_percpu_hash(table, key, mark, flags)
        elif table.kind_name == "task_storage":
            self._write_storage(table, key, mark, flags, by_program=by_program)
        else:
            self._write_hash(table, key, mark, flags)

    def _write_array(self, table: Table, key: int, mark: int, flags: int) -> None:
        if flags & ~BPF_F_LOCK > BPF_EXIST:
            raise Refused(errno.EINVAL, "bpf(2)")
        if key not in table.elements:
            raise Refused(errno.E2BIG, "bpf(2)")
        if flags & BPF_NOEXIST:
            raise Refused(errno.EEXIST, "bpf(2)")
        self._check_lock(table, flags)
        element = table.elements[key]
        element.mark = mark
        self._emptied(element)  # KPTR-FREE-001, -009: with BPF_F_LOCK, too

    def _write_hash(self, table: Table, key: int, mark: int, flags: int) -> None:
        if flags & ~BPF_F_LOCK > BPF_EXIST:
            raise Refused(errno.EINVAL, "bpf(2)")
        self._check_lock(table, flags)
        old = table.elements.get(key)
        self._check_exists(old, flags)
        if old is not None and flags & BPF_F_LOCK:
            old.mark = mark  # KPTR-FREE-007
            return
        if old is None and len(table.elements) == table.kind.entries:
            raise Refused(errno.E2BIG, "bpf(2)")
        if old is not None and table.kind_name != "lazy_hash":
            new, table.extra = table.extra, old  # KPTR-FREE-005
        else:
            new = table.pop()
            table.spares += [old] if old is not None else []  # KPTR-FREE-003
        new.mark = mark
        table.elements[key] = new
        if old is not None:
            self._emptied(old)

    def _write_lru(self, table: Table, key: int, mark: int, flags: int) -> None:
        if flags > BPF_EXIST:
            raise Refused(errno.EINVAL, "bpf(2)")
        old = table.elements.get(key)
        # Memory is taken before anything is looked at, and given back: nobody can tell.
        self._check_exists(old, flags)
        new = table.pop()
        new.mark = mark
        table.elements[key] = new
        if old is not None:
            self._freed(table, old)  # KPTR-FREE-008

    def _write_percpu_hash(self, table: Table, key: int, mark: int, flags: int) -> None:
        if flags > BPF_EXIST:
            raise Refused(errno.EINVAL, "bpf(2)")
        element = table.elements.get(key)
        self._check_exists(element, flags)
        if element is None:
            if len(table.elements) == table.kind.entries:
                raise Refused(errno.E2BIG, "bpf(2)")
            element = table.elements[key] = table.pop()
        elif self.features.percpu_hash_updates_release:
            self._destroy(element)  # KPTR-FREE-010
        element.mark = mark

    def _write_storage(self, table: Table, key: int, mark: int, flags: int, *, by_program: bool) -> None:
        """The player's own: key 0 is its pidfd. Programs don't update it, but get it, made if it isn't there."""
        if key and not by_program:
            raise Refused(errno.EBADF, "bpf(2)")
        old = table.elements.get(0)
        if by_program:
            table.elements[0] = old or Element(mark)
            return
        if flags > BPF_EXIST:
            raise Refused(errno.EINVAL, "bpf(2)")
        self._check_exists(old, flags)
        table.elements[0] = Element(mark)
        if old is not None:
            self._destroy(old)  # KPTR-FREE-016
            self._deferred = True

    @staticmethod
    def _check_exists(old: Element | str | None, flags: int) -> None:
        if old is not None and flags & ~BPF_F_LOCK == BPF_NOEXIST:
            raise Refused(errno.EEXIST, "bpf(2)")
        if old is None and flags & ~BPF_F_LOCK == BPF_EXIST:
            raise Refused(errno.ENOENT, "bpf(2)")

    def _remove(self, table: Table, key: int, *, by_program: bool = False) -> None:
        if table.kind.outer:
            self._unnest(table, key)
            return
        if table.kind_name in _ARRAYS:
            raise Refused(errno.EINVAL, "KPTR-FREE-002")
        storage = table.kind_name == "task_storage"
        if storage and key and not by_program:
            raise Refused(errno.EBADF, "bpf(2)")
        element = table.elements.pop(0 if storage else key, None)
        if element is None:
            raise Refused(errno.ENOENT, "bpf(2)")
        if storage:
            self._destroy(element)  # KPTR-FREE-016
            self._deferred = True
        else:
            self._freed(table, element)  # KPTR-FREE-004, -006, -008, -011

    def _freed(self, table: Table, element: Element) -> None:
        """The element's memory is the first to be used again. The newer rule: with what it owns."""
        self._emptied(element)
        table.spares.append(element)

    def _emptied(self, element: Element) -> None:
        """KPTR-PROBE-005, KPTR-HAZ-006."""
        if self.features.updates_release:
            self._destroy(element)

    def _lookup(self, call: Lookup) -> Any:
        """KPTR-USER-001, KPTR-LAW-004: the player sees to it that pointers read as zero. Of a map of maps the result
        is the map's name."""
        table = self._open_map(call.map)
        self._check_lock(table, call.flags)
        if table.kind.outer:
            if call.key not in table.held:
                raise Refused(errno.ENOENT, "bpf(2)")
            return table.held[call.key]
        return self._found(table, call.key).mark

    @staticmethod
    def _found(table: Table, key: int) -> Element:
        if table.kind_name == "task_storage" and key:
            raise Refused(errno.EBADF, "bpf(2)")
        if key not in table.elements:
            raise Refused(errno.ENOENT, "bpf(2)")
        return table.elements[key]

    def _take(self, call: Take) -> int:
        """KPTR-FREE-012."""
        table = self._open_map(call.map)
        self._check_lock(table, call.flags)
        if table.kind_name not in _RECYCLING:
            raise Refused(ENOTSUPP, "bpf(2)")
        mark = self._found(table, call.key).mark
        self._remove(table, call.key)
        return mark

    def _update_batch(self, call: UpdateBatch) -> Outcome:
        """As one update after the other, until one is refused. The result is how many were made."""
        table = self._owning(call.map)
        if table.kind_name == "task_storage":
            raise Refused(ENOTSUPP, "bpf(2)")
        self._check_lock(table, call.flags)
        for done in range(call.count):
            try:
                self._write(table, call.key + done, call.mark, call.flags, by_program=False)
            except Refused as refusal:
                return Outcome(refusal.errno, done, refusal.rule)
        return Outcome(0, call.count)

    def _delete_batch(self, call: DeleteBatch) -> Outcome:
        """As one deletion after the other, until one is refused (KPTR-FREE-012)."""
        table = self._owning(call.map)
        if table.kind_name not in _RECYCLING:
            raise Refused(ENOTSUPP, "bpf(2)")
        for done in range(call.count):
            try:
                self._remove(table, call.key + done)
            except Refused as refusal:
                return Outcome(refusal.errno, done, refusal.rule)
        return Outcome(0, call.count)

    def _lookup_batch(self, call: LookupBatch) -> Outcome:
        """ENOENT says that there is no more. The result is in order of keys."""
        table = self._owning(call.map)
        if table.kind_name == "task_storage" or (call.delete and table.kind_name not in _RECYCLING):
            raise Refused(ENOTSUPP, "bpf(2)")
        self._check_lock(table, call.flags)
        found = sorted([key, element.mark] for key, element in table.elements.items())
        if call.delete:
            kept = {tuple(element.objects) for element in table.elements.values()}
            if not self.features.updates_release and len(kept) > 1:
                # In which order they are used again depends on the map's hash seed.
                raise Refused(UNTRIED, "KPTR-HAZ-006")
            for key, _ in found:
                self._remove(table, key)
        return Outcome(errno.ENOENT, found, "bpf(2)")

    def _freeze(self, call: Freeze) -> None:
        self._owning(call.map)
        raise Refused(ENOTSUPP, "KPTR-MAP-024")

    # Maps of maps

    def _nest(self, call: Nest) -> None:
        table = self._open_map(call.map)
        if not table.kind.outer:
            raise Refused(UNTRIED, "the stage")
        array = table.kind_name == "array_of_maps"
        if array and call.flags:
            raise Refused(errno.EINVAL, "bpf(2)")
        if array and call.key >= table.kind.entries:
            raise Refused(errno.E2BIG, "bpf(2)")
        if self._open_map(call.inner).kind_name != table.inner:
            raise Refused(errno.EINVAL, "KPTR-MAP-026")
        if not array:
            if call.flags > BPF_EXIST:
                raise Refused(errno.EINVAL, "bpf(2)")
            self._check_exists(table.held.get(call.key), call.flags)
            if call.key not in table.held and len(table.held) == table.kind.entries:
                raise Refused(errno.E2BIG, "bpf(2)")
        table.held[call.key] = call.inner

    @staticmethod
    def _unnest(table: Table, key: int) -> None:
        if table.kind_name == "array_of_maps" and key >= table.kind.entries:
            raise Refused(errno.E2BIG, "bpf(2)")
        if table.held.pop(key, None) is None:
            raise Refused(errno.ENOENT, "bpf(2)")

    # Programs

    def _load(self, call: Load) -> None:
        self._deferred = True  # A refused program is freed as any other, and with it its hold on the module.
        for name in (call.map, call.other):
            self._open_map(name)
        self._deferred = False
        self.progs[call.prog] = Program((call.map, call.other), (call.field, call.other_field))

    def _bind(self, call: Bind) -> None:
        prog = self.progs[self._descriptor(call.prog, self.progs)]
        self._open_map(call.map)
        prog.bound.add(call.map)

    def _run(self, call: Run) -> list[Any]:
        """What the program returns, and the objects of both elements afterwards (None: there is none)."""
        prog = self.progs[self._descriptor(call.prog, self.progs)]
        keys = ((call.via, call.key), (call.other_via, call.other))
        tables = [self._reached(map, via) for map, (via, _) in zip(prog.maps, keys, strict=True)]
        slots = [
            self._slot(table, key, which)
            for table, (_, key), which in zip(tables, keys, prog.fields, strict=True)
        ]
        try:
            returned = self._verb(call, tables[0], *slots)
        except Refused as refusal:
            returned = -refusal.errno
        after = [
            self._slot(table, key, which)
            for table, (_, key), which in zip(tables, keys, prog.fields, strict=True)
        ]
        return [returned, *(slot[0].contents() if slot else None for slot in after)]

    def _reached(self, name: str, via: int) -> Table | None:
        table = self.maps[name]
        if not table.kind.outer:
            return table
        return self.maps[table.held[via]] if via in table.held else None

    @staticmethod
    def _slot(table: Table | None, key: int, field: int) -> Slot | None:
        if table is None:
            return None
        element = table.elements.get(0 if table.kind_name == "task_storage" else key)
        return (element, field) if element else None

    def _verb(self, call: Run, table: Table | None, slot: Slot | None, other: Slot | None) -> int:
        """What the program returns: of an object its number plus one, 0 for none."""
        if call.verb in (WRITE, REMOVE):
            if table is None:
                raise Refused(errno.ENOENT, "the program")
            if call.verb == WRITE:
                self._write(table, call.key, call.mark, call.flags, by_program=True)
            else:
                self._remove(table, call.key, by_program=True)
            return 0
        needs = {MOVE: 2, SWAP: 2, SHARE: 2, PUT_NEW: 1, PUT_STATIC: 1, TAKE: 1, COUNT: 1}.get(call.verb, 0)
        if None in (slot, other)[:needs]:
            raise Refused(errno.ENOENT, "the program")
        if not needs:
            return 0
        assert slot is not None
        if needs == 1:
            return self._with_one(call, slot)
        assert other is not None
        return self._with_two(call.verb, slot, other)

    def _with_one(self, call: Run, slot: Slot) -> int:
        if call.verb == PUT_NEW:
            self.created += 1
            self.in_hand.append(call.object)
            return self._release(self._exchange(slot, call.object))
        if call.verb == PUT_STATIC:
            if call.object not in STATIC:
                raise Refused(errno.ESRCH, "the module")
            return self._release(self._exchange(slot, self._acquire(call.object)))
        taken = self._exchange(slot, None)
        if call.verb == TAKE:
            return self._release(taken)
        if taken is None:
            return 0
        count = self.refs(taken)
        self._release(self._exchange(slot, taken))
        return count

    def _with_two(self, verb: int, slot: Slot, other: Slot) -> int:
        taken = self._exchange(slot, None)
        if taken is None and verb != SWAP:
            return 0
        if verb == MOVE:
            return self._release(self._exchange(other, taken))
        if verb == SHARE:
            assert taken is not None
            self._acquire(taken)
            self._release(self._exchange(slot, taken))
            return self._release(self._exchange(other, taken))
        back = self._exchange(other, taken)
        return self._release(self._exchange(slot, back))

    def _exchange(self, slot: Slot, incoming: int | None) -> int | None:
        """KPTR-XCHG-008, -009, KPTR-LAW-003: what was there is in the program's hand, what goes in no more."""
        element, field = slot
        out, element.objects[field] = element.objects[field], incoming
        if incoming is not None:
            self.in_hand.remove(incoming)
        if out is not None:
            self.in_hand.append(out)
        return out

    def _acquire(self, object: int) -> int:
        self.acquired += 1
        self.in_hand.append(object)
        return object

    def _release(self, object: int | None) -> int:
        if object is None:
            return 0
        self.released += 1
        self.in_hand.remove(object)
        return object + 1

    # Descriptors, pins, ids

    def _close(self, name: str) -> None:
        if not self._is_open(name):
            raise Refused(errno.EBADF, "close(2)")
        self._hold(name, open=False)

    def _pin(self, name: str) -> None:
        held = self._held(name)
        if held is None or not held.open:
            raise Refused(errno.EINVAL, "bpf(2)")
        if held.pinned:
            raise Refused(errno.EEXIST, "bpf(2)")
        self._hold(name, pinned=True)

    def _unpin(self, name: str) -> None:
        held = self._held(name)
        if held is None or not held.pinned:
            raise Refused(errno.ENOENT, "unlink(2)")
        self._hold(name, pinned=False)

    def _reopen(self, call: Reopen) -> None:
        held = self._held(call.name)
        if held is None or not (call.by_id or held.pinned):
            raise Refused(errno.ENOENT, "bpf(2)")
        self._hold(call.name, open=True)

    def _held(self, name: str) -> Table | Program | None:
        return self.maps.get(name) or self.progs.get(name)

    def _hold(self, name: str, *, open: bool | None = None, pinned: bool | None = None) -> None:
        """Change how a map or program is held."""
        held = self.maps.get(name) or self.progs[name]
        held.open = held.open if open is None else open
        held.pinned = held.pinned if pinned is None else pinned

    def _is_open(self, name: str) -> bool:
        held = self._held(name)
        return held is not None and held.open

    def _descriptor(self, name: str, wanted: Iterable[str]) -> str:
        if not self._is_open(name):
            raise Refused(errno.EBADF, "bpf(2)")
        if name not in wanted:
            raise Refused(errno.EINVAL, "bpf(2)")
        return name

    def _open_map(self, name: str) -> Table:
        return self.maps[self._descriptor(name, self.maps)]

    def _owning(self, name: str) -> Table:
        """A map with values of its own."""
        table = self._open_map(name)
        if table.kind.outer:
            raise Refused(UNTRIED, "the stage")
        return table

    # The module

    def users(self) -> int:
        """KPTR-MAP-027, KPTR-MAP-032: what keeps the module."""
        maps = sum(self.features.users[table.kind_name] for table in self.maps.values())
        return maps + len(self.progs) * self.features.prog_users

    def _unload(self) -> None:
        if self.users():
            raise Refused(errno.EAGAIN, "KPTR-MAP-027")
        self.created = self.acquired = self.released = self.destroyed = 0

    # References

    def _free(self) -> None:
        """Programs and maps that nothing holds go, and the maps that only these held."""
        for name, prog in list(self.progs.items()):
            if not prog.open and not prog.pinned:
                del self.progs[name]
                self._deferred = True
        while True:
            used = {name for prog in self.progs.values() for name in prog.holds()}
            used |= {name for table in self.maps.values() for name in table.held.values()}
            gone = [
                name
                for name, table in self.maps.items()
                if not table.open and not table.pinned and name not in used
            ]
            if not gone:
                return
            for name in gone:
                for element in self.maps.pop(name).memory():
                    self._destroy(element)  # KPTR-FREE-014
            self._deferred = True

    def _destroy(self, element: Element) -> None:
        """KPTR-FREE-018: the destructor runs once for each pointer."""
        self.destroyed += sum(object is not None for object in element.objects)
        element.objects = [None for _ in FIELDS]

    def _stored(self) -> list[int]:
        memory = [element for table in self.maps.values() for element in table.memory()]
        return [object for element in memory for object in element.objects if object is not None]

    def refs(self, object: int) -> int:
        """KPTR-LAW-001, as kr_obj_refs() says: pointers in maps, the program's own, the module's to a static one."""
        return [*self._stored(), *self.in_hand].count(object) + (object in STATIC)

    def look(self) -> Look:
        """KPTR-LAW-001, -002."""
        stored = self._stored()
        return Look(
            tuple(stored.count(object) for object in STATIC),
            self.created,
            self.acquired,
            self.released,
            self.destroyed,
            len(set(stored) - set(STATIC)),
            self.users(),
        )
