# SPDX-License-Identifier: MIT
"""Carries out a whole sequence of calls about owned objects in one job, and tells what the kernel answered.

The calls are those of `harness.oracle.kptr_calls` as JSON, in terms of names. Under TCG every line of Python counts, so
attributes and buffers are made once.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from harness.guest import kptr_mover, modules
from harness.guest.bpf import btf, uapi
from harness.guest.bpf.attrs import MapBatch, MapElem, ProgBindMap, TestRun
from harness.guest.bpf.map import Map, possible_cpus
from harness.guest.errnos import errno_of
from harness.guest.kptr_kinds import KINDS_OF_MAPS, PUT_STATIC, STATIC, Kind
from harness.guest.kptr_mover import NO_ELEMENT, ORDER, VALUE_SIZE, Place, Places, Template, ValueTypes
from harness.guest.kr_modules import KrKptr, missing
from harness.guest.playing import NOT_OPEN, UNTRIED, Staged, settled

SETTLE_SECONDS = 0.3  # grace periods, of RCU-tasks-trace and of plain RCU behind it
MOST = 16  # elements in a batch
GARBAGE = b"\xff" * 16  # what user space writes where pointers are
_ZEROS = bytes(16)
# A file of debugfs holds the module that made it.
OPEN_FILES = 2
_COUNTERS = ("created", "acquired", "released", "dtor_calls", "live")


def features() -> dict[str, Any]:
    """The fields of harness.oracle.kptr:Features; null if there is no module for this kernel, or more than the one CPU
    that the model has."""
    if missing("kr_kptr") or possible_cpus() > 1:
        return {}
    with Player() as player:
        users = {name: count for name in KINDS_OF_MAPS if (count := player.users_of(name)) is not None}
        return {
            "kinds": [name for name in users if not KINDS_OF_MAPS[name].outer],
            "users": users,
            "prog_users": player.users_of_program(),
            "updates_release": player.releases("array"),
            "percpu_hash_updates_release": "percpu_hash" in users and player.releases("percpu_hash"),
            "percpu_both_flags": "percpu_array" in users and player.takes_both_flags(),
        }


def play(
    calls: list[dict[str, Any]],
    untried: list[int],
    expected: list[list[int]],
    deferred: list[int],
    templates: list[list[Any]],
) -> dict[str, Any]:
    """Carry out the calls but those at the places `untried`. `expected` are the numbers that `Player.look` shall show
    after each call; at the places `deferred` it may take until after grace periods. `templates` are of programs, as
    `template_row` makes them.

    Returns "answers", for each call, up to the first after which the numbers are others, [errno, what else it returned,
    numbers or null: as expected]; "left" when all is closed: what still exists, and numbers other than zero; "seconds".
    """
    with Player(templates) as player:
        begin = time.monotonic()
        answers: list[Any] = []
        patient = set(deferred)
        for place, (call, wanted) in enumerate(zip(calls, expected, strict=True)):
            error, result = (UNTRIED, None) if place in untried else player.do(call)
            look = player.look()
            if look != wanted and place in patient:
                look = settled(player.look, wanted.__eq__, SETTLE_SECONDS)
            answers.append([error, result, None if look == wanted else look])
            if look != wanted:
                break  # What comes then is no news, and would be waited for.
        seconds = time.monotonic() - begin
        return {"answers": answers, "left": player.clear(), "seconds": seconds}


def template_row(places: Places) -> list[Any]:
    """Places, and the template of a program for them, as plain data."""
    made = kptr_mover.template(places)
    return [[astuple(place) for place in places], made.code.hex(), made.maps, made.kfuncs]


def _places(first: Sequence[Any], second: Sequence[Any]) -> Places:
    return Place(*first), Place(*second)


def _template(code: str, maps: Any, kfuncs: Any) -> Template:
    return Template(bytes.fromhex(code), maps, kfuncs)


class Player(Staged):
    """The stage, and how each call is made on it: the module, loaded, and nothing else."""

    def __init__(self, templates: Sequence[Sequence[Any]] = ()) -> None:
        super().__init__()
        self._templates = {_places(*row[0]): _template(*row[1:]) for row in templates}
        self._shapes: dict[str, Kind] = {}
        self._made_as: dict[str, str] = {}
        self._inner: dict[str, str] = {}
        self._elem, self._batch, self._bind = MapElem(), MapBatch(), ProgBindMap()
        self._run, self._sleeping_run = TestRun(), TestRun()
        self._key, self._inner_fd = ctypes.c_uint32(), ctypes.c_uint32()
        self._value = ctypes.create_string_buffer(VALUE_SIZE)
        self._order = ctypes.create_string_buffer(ORDER.size)
        self._storage_users: set[str] = set()
        self._keys = ctypes.create_string_buffer(4 * MOST)
        self._values = ctypes.create_string_buffer(VALUE_SIZE * MOST)
        self._position = ctypes.create_string_buffer(8)
        self._value_types: dict[bool, ValueTypes] = {}
        self._own_users = OPEN_FILES

    # Setting and clearing the stage

    def _set(self) -> None:
        self._module = KrKptr()
        self._stack.callback(lambda: self._module.__exit__())
        self._pidfd = os.pidfd_open(os.getpid())
        self._stack.callback(os.close, self._pidfd)
        self._open_counters()
        self._stack.callback(self._close_counters)
        self._stack.callback(self._close_types)
        self._stack.callback(self.clear)
        at, size = ctypes.addressof(self._order), ORDER.size
        self._run.data_in = self._run.data_out = at
        self._run.data_size_in = self._run.data_size_out = size
        self._sleeping_run.ctx_in, self._sleeping_run.ctx_size_in = at, size
        self._batch.keys, self._batch.values = ctypes.addressof(self._keys), ctypes.addressof(self._values)
        self._batch.out_batch = ctypes.addressof(self._position)

    def _open_counters(self) -> None:
        self._types = btf.module("kr_kptr")
        paths = [self._module.debugfs / name for name in ("static", "stats")]
        paths.append(modules.SYS_MODULE / "kr_kptr" / "refcnt")
        self._counters = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]

    def _close_counters(self) -> None:
        while self._counters:
            os.close(self._counters.pop())
        self._types.object.close()

    def clear(self) -> list[Any]:
        """Let go of everything; what still exists of it then, or after some time, and the numbers that are not zero
        though no map and no program is left."""
        self._let_go()
        existing = settled(self._existing, lambda found: not found, SETTLE_SECONDS)
        still = settled(self._held, lambda numbers: not any(numbers), SETTLE_SECONDS)
        return [sorted(existing), *(still if any(still) else [])]

    def _held(self) -> list[int]:
        look = self.look()
        return [*look[: len(STATIC)], *look[-2:]]

    # Calls

    def do(self, call: dict[str, Any]) -> tuple[int, Any]:
        """Carry out one call: 0 or its errno, and what else it returns."""
        done = getattr(self, f"_do_{call['op']}")(call)
        return done if isinstance(done, tuple) else (done, None)

    def _do_create(self, call: dict[str, Any]) -> int:
        name, kind = call["map"], KINDS_OF_MAPS[call["kind"]]
        error = errno_of(lambda: self._remember(name, self._create(kind, call["inner"])))
        if error == 0:
            self._shapes[name], self._made_as[name] = kind, call["kind"]
            self._inner[name] = self._made_as.get(call["inner"], "") if kind.outer else ""
        return error

    def _create(self, kind: Kind, inner: str | None = None) -> Map:
        """The map; of maps, if it is of such a kind, that are like `inner`."""
        if kind.outer:
            return Map.create(kind.type, 4, 4, kind.entries, inner_map=self._fd(inner))
        types = self._types_of(locked=kind.locked)
        return Map.create(
            kind.type,
            4,
            VALUE_SIZE,
            kind.entries,
            name="owning",
            flags=kind.flags,
            btf=types.btf,
            btf_key_type_id=types.key,
            btf_value_type_id=types.value,
        )

    def _types_of(self, *, locked: bool) -> ValueTypes:
        """Types for values, made once: the kernel looks for the name of their pointers' type in all it has."""
        if locked not in self._value_types:
            before = self._users()
            self._value_types[locked] = kptr_mover.value_types(locked=locked)
            self._own_users += self._users() - before  # KPTR-MAP-032
        return self._value_types[locked]

    def _close_types(self) -> None:
        while self._value_types:
            self._value_types.popitem()[1].btf.close()
        settled(self._users, lambda users: users == OPEN_FILES, SETTLE_SECONDS)
        self._own_users = OPEN_FILES

    # Elements

    def _at_key(self, command: int, call: dict[str, Any], value: Any = None) -> int:
        attr = self._elem
        attr.map_fd = self._fd(call["map"])
        key = call["key"]
        if (kind := self._shapes.get(call["map"])) and kind.type == uapi.BPF_MAP_TYPE_TASK_STORAGE:
            key = NOT_OPEN if key else self._pidfd
        self._key.value = key
        attr.key = ctypes.addressof(self._key)
        attr.value = 0 if value is None else ctypes.addressof(value)
        attr.flags = call.get("flags", 0)
        return -self._bpf(command, attr)

    def _do_update(self, call: dict[str, Any]) -> int:
        self._value.raw = self._bytes(call)
        return self._at_key(uapi.BPF_MAP_UPDATE_ELEM, call, self._value)

    def _bytes(self, call: dict[str, Any]) -> bytes:
        """A value, with garbage in the place of what is not user space's."""
        mark: bytes = call["mark"].to_bytes(4, "little")
        shape = self._shapes.get(call["map"])
        lock = b"\xff" * 4 if shape is not None and shape.locked else bytes(4)
        return mark + bytes(4) + GARBAGE + lock + mark

    @staticmethod
    def _mark(raw: bytes) -> Any:
        """The mark of a value that user space was shown, or all of it if it is not as it should be (KPTR-LAW-004)."""
        mark = raw[:4]
        if raw == mark + bytes(4) + _ZEROS + bytes(4) + mark:
            return int.from_bytes(mark, "little")
        return raw.hex(" ", 8)

    def _do_nest(self, call: dict[str, Any]) -> int:
        self._inner_fd.value = self._fd(call["inner"])
        return self._at_key(uapi.BPF_MAP_UPDATE_ELEM, call, self._inner_fd)

    def _do_delete(self, call: dict[str, Any]) -> int:
        return self._at_key(uapi.BPF_MAP_DELETE_ELEM, call)

    def _do_lookup(self, call: dict[str, Any]) -> tuple[int, Any]:
        kind = self._shapes.get(call["map"])
        if kind is None or not kind.outer:
            return self._looked_up(uapi.BPF_MAP_LOOKUP_ELEM, call)
        error = self._at_key(uapi.BPF_MAP_LOOKUP_ELEM, call, self._inner_fd)
        names = {id: name for name, id in self.ids.items() if self._kinds[name] is Map}
        return error, None if error else names.get(self._inner_fd.value)

    def _do_take(self, call: dict[str, Any]) -> tuple[int, Any]:
        return self._looked_up(uapi.BPF_MAP_LOOKUP_AND_DELETE_ELEM, call)

    def _looked_up(self, command: int, call: dict[str, Any]) -> tuple[int, Any]:
        self._value.raw = GARBAGE.ljust(VALUE_SIZE, b"\xff")
        error = self._at_key(command, call, self._value)
        return error, None if error else self._mark(self._value.raw)

    # Batches

    def _in_batch(self, command: int, call: dict[str, Any], keys: Sequence[int]) -> int:
        attr = self._batch
        attr.map_fd, attr.elem_flags = self._fd(call["map"]), call.get("flags", 0)
        attr.count = len(keys) or MOST
        self._keys.raw = b"".join(key.to_bytes(4, "little") for key in keys).ljust(len(self._keys), b"\0")
        return -self._bpf(command, attr)

    def _counted(self, error: int) -> tuple[int, Any]:
        """With how many were done; without, when none was tried."""
        return error, self._batch.count if error in (0, errno.ENOENT, errno.E2BIG, errno.EEXIST) else None

    def _do_update_batch(self, call: dict[str, Any]) -> tuple[int, Any]:
        self._values.raw = (self._bytes(call) * call["count"]).ljust(len(self._values), b"\0")
        keys = range(call["key"], call["key"] + call["count"])
        return self._counted(self._in_batch(uapi.BPF_MAP_UPDATE_BATCH, call, keys))

    def _do_delete_batch(self, call: dict[str, Any]) -> tuple[int, Any]:
        keys = range(call["key"], call["key"] + call["count"])
        return self._counted(self._in_batch(uapi.BPF_MAP_DELETE_BATCH, call, keys))

    def _do_lookup_batch(self, call: dict[str, Any]) -> tuple[int, Any]:
        command = uapi.BPF_MAP_LOOKUP_AND_DELETE_BATCH if call["delete"] else uapi.BPF_MAP_LOOKUP_BATCH
        self._values.raw = b"\xff" * len(self._values)
        error = self._in_batch(command, call, ())
        if error not in (0, errno.ENOENT):
            return error, None
        keys, values = self._keys.raw, self._values.raw
        return error, sorted(
            [
                int.from_bytes(keys[4 * at : 4 * at + 4], "little"),
                self._mark(values[VALUE_SIZE * at : VALUE_SIZE * (at + 1)]),
            ]
            for at in range(self._batch.count)
        )

    def _do_freeze(self, call: dict[str, Any]) -> int:
        return -self._bpf(uapi.BPF_MAP_FREEZE, MapElem(map_fd=self._fd(call["map"])))

    # Programs

    def _do_load(self, call: dict[str, Any]) -> int:
        places = (
            self._place(call["map"], call["field"]),
            self._place(call["other"], call["other_field"]),
        )
        self._storage_users.discard(call["prog"])
        if any(place.is_storage for place in places):
            self._storage_users.add(call["prog"])
        fds = self._fd(call["map"]), self._fd(call["other"])
        made = self._templates.get(places)
        return errno_of(lambda: self._remember(call["prog"], kptr_mover.load(places, fds, self._types, made)))

    def _place(self, name: str, field: int) -> Place:
        return Place(self._made_as.get(name, "array"), field, self._inner.get(name, ""))

    def _do_bind(self, call: dict[str, Any]) -> int:
        self._bind.prog_fd, self._bind.map_fd = self._fd(call["prog"]), self._fd(call["map"])
        return -self._bpf(uapi.BPF_PROG_BIND_MAP, self._bind)

    def _do_run(self, call: dict[str, Any]) -> tuple[int, Any]:
        words = ("verb", "object", "mark", "flags", "key", "via", "other", "other_via")
        ORDER.pack_into(self._order, 0, *(call[word] for word in words), 0, 0, 0, 0, 0)
        attr = self._sleeping_run if call["prog"] in self._storage_users else self._run
        attr.prog_fd = self._fd(call["prog"])
        if error := -self._bpf(uapi.BPF_PROG_TEST_RUN, attr):
            return error, None
        returned, *there = ORDER.unpack(self._order)[8:]
        return 0, [returned, self._contents(there[:2]), self._contents(there[2:])]

    @staticmethod
    def _contents(numbers: Sequence[int]) -> list[int | None] | None:
        if numbers[0] == NO_ELEMENT:
            return None
        return [number - 1 if number else None for number in numbers]

    # The module

    def _do_unload(self, _call: dict[str, Any]) -> int:
        if self._users() == self._own_users:
            self._close_types()
        self._close_counters()
        error = errno_of(self._module.unload)
        if error == 0:
            self._module = KrKptr()
        self._open_counters()
        return error

    def look(self) -> list[int]:
        """The numbers of harness.oracle.kptr:Look."""
        static, stats, users = (os.pread(fd, 512, 0).decode().split() for fd in self._counters)
        refs = [int(word[5:]) - 1 for word in static[1::3]]
        counters = dict(zip(stats[::2], stats[1::2], strict=True))
        return [*refs, *(int(counters[name]) for name in _COUNTERS), int(users[0]) - self._own_users]

    def _users(self) -> int:
        return int(os.pread(self._counters[-1], 16, 0))

    # Probes

    def users_of(self, name: str) -> int | None:
        """How often a map of this kind holds the module; None if the kernel has no such map, or no program may use it.
        A map of maps: beyond what its template does."""
        kind = KINDS_OF_MAPS[name]
        if kind.outer:
            self._do_create({"map": "template", "kind": "array", "inner": None})
        before = self.look()[-1]
        error = self._do_create({"map": "probe", "kind": name, "inner": "template"})
        users = self.look()[-1] - before
        if kind.locked or name == "task_storage":
            error = error or self._do_load(_PROBE)
        self.clear()
        return None if error else users

    def users_of_program(self) -> int:
        """How often a program holds the module."""
        self._do_create({"map": "probe", "kind": "array", "inner": None})
        before = self.look()[-1]
        self._do_load(_PROBE)
        users = self.look()[-1] - before
        self.clear()
        return users

    def releases(self, name: str) -> bool:
        """Whether an update of an existing element of such a map releases what it owned before it returns."""
        at_0 = {"map": "probe", "key": 0, "mark": 0, "flags": 0}
        self._do_create({"map": "probe", "kind": name, "inner": None})
        self._do_update(at_0)
        self._do_load(_PROBE)
        zeros = dict.fromkeys(("mark", "flags", "key", "via", "other", "other_via"), 0)
        self._do_run({"prog": "prog", "verb": PUT_STATIC, "object": 1, **zeros})
        self._do_update(at_0)
        released = self.look()[1] == 0
        self.clear()
        return released

    def takes_both_flags(self) -> bool:
        """Whether a per-CPU array is updated with BPF_NOEXIST and BPF_EXIST."""
        self._do_create({"map": "probe", "kind": "percpu_array", "inner": None})
        both = uapi.BPF_NOEXIST | uapi.BPF_EXIST
        error = self._do_update({"map": "probe", "key": 0, "mark": 0, "flags": both})
        self.clear()
        return error == 0


_PROBE = {"prog": "prog", "map": "probe", "other": "probe", "field": 0, "other_field": 1}
