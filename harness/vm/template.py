# SPDX-License-Identifier: MIT
"""Templates: a machine booted once, frozen, and kept; then the same with a scenario tree loaded into it.

A template is a cache entry: `memory` (the guest's RAM, a sparse file that clones map copy-on-write), `state` (QEMU's
device state), the SSH key pair and host key, and the server's first words, which were received before the freeze.
The way is QEMU's: share=on while the template is made, migration with x-ignore-shared, so that RAM is never copied.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.bytecode import Bytecode
from harness.cache import Cache, digest
from harness.deadline import Deadline, DeadlineError
from harness.errors import KernrigError
from harness.guest import pace
from harness.vm import devices
from harness.vm.blueprint import Blueprint
from harness.vm.boot import cold_boot, give_to_qemu
from harness.vm.control import ControlPort, TemplateError, console_tail
from harness.vm.keys import load_key, new_key
from harness.vm.process import QemuProcess

if TYPE_CHECKING:
    import paramiko

    from harness.tree import Tree

Say = Callable[[str], None]

BOOT_KIND = "boot-template"
LOAD_KIND = "load-template"
KEPT_TEMPLATES = 8
LOAD_SECONDS = 240
# A shipped kernel boots in some 10 seconds and loads the scenarios in less.
_LOAD_BOOTS = 12
FREEZE_SECONDS = 60
BOOT_TRIES = 3
# Part of the key of every template: changes with what is kept in one.
FORMAT = "3"
_SSH_MSG_KEXINIT = 20  # RFC 4253, section 12


_held: list[int] = []


@dataclass(frozen=True)
class Template:
    """A frozen machine on disk, see this module's text."""

    blueprint: Blueprint
    directory: Path

    def __post_init__(self) -> None:
        """Keep it from being pruned as long as this process lives (the lock goes with its descriptor)."""
        fd = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_SH)
        _held.append(fd)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the guest said: `release`, `host_key`, and how long the boot took (`boot_seconds`).

        That of a loaded one also `items`, `errors` (of collection) and `pace` (how many times longer than on the host
        a piece of work took).
        """
        facts: dict[str, Any] = json.loads((self.directory / "facts.json").read_text())
        return facts

    @cached_property
    def ssh_key(self) -> paramiko.PKey:
        """The client's private key, made for this template only."""
        return load_key((self.directory / "key").read_text())

    @cached_property
    def ssh_prefix(self) -> bytes:
        """The SSH server's identification and key-exchange proposal, sent before the freeze."""
        return (self.directory / "ssh-prefix").read_bytes()

    def console(self) -> str:
        """What the guest printed before it was frozen."""
        return (self.directory / "console").read_text(errors="replace")

    def start(self, *, memory_file: Path | None = None, inherit: tuple[int, ...] = ()) -> QemuProcess:
        """A QEMU that goes on from the frozen state: a clone, or with `memory_file` (writable) a new template's start.

        Everything is inherited open, since QEMU itself has no right to read our files.
        """
        shared = memory_file is not None
        path = memory_file or self.directory / "memory"
        memory_fd = os.open(path, os.O_RDWR if shared else os.O_RDONLY)
        state_fd = os.open(self.directory / "state", os.O_RDONLY)
        ours, theirs = socket.socketpair()
        try:
            memory = devices.Memory(memory_fd, self.blueprint.shape.memory, shared=shared)
            incoming = devices.Incoming(state_fd, theirs.fileno(), ours)
            ours.sendall(incoming.orders())
            fds = (memory_fd, state_fd, theirs.fileno(), *inherit)
            return self.blueprint.start(memory, incoming, inherit=fds)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(memory_fd)
            os.close(state_fd)


def boot_template(blueprint: Blueprint, *, cache: Cache, say: Say) -> Template:
    """The boot stage, made unless it is in the cache."""

    def make(directory: Path) -> None:
        for attempt in range(1, BOOT_TRIES + 1):
            say(f"booting {blueprint.kernel.release} ({blueprint.shape}, {blueprint.accel.name})")
            try:
                _make_boot(blueprint, directory)
                return
            except (TemplateError, DeadlineError) as error:
                # What dies early may be innocent; what is silent until the deadline will be so again.
                if attempt == BOOT_TRIES or isinstance(error.__cause__, DeadlineError):
                    raise
                say(f"try {attempt} of {BOOT_TRIES} failed: {str(error).splitlines()[0]}")
                for file in directory.iterdir():
                    file.unlink()

    return Template(blueprint, _built(BOOT_KIND, digest(FORMAT, blueprint.key), make, cache, say))


def load_template(base: Template, tree: Tree, *, cache: Cache, say: Say) -> Template:
    """The load stage: `base` with the tree unpacked, imported and collected."""

    def make(directory: Path) -> None:
        say(f"loading {tree.scenario_files} scenario files")
        _make_load(base, tree, directory, cache)

    key = digest(base.directory.name, tree.digest)
    return Template(base.blueprint, _built(LOAD_KIND, key, make, cache, say))


def _built(kind: str, key: str, make: Callable[[Path], None], cache: Cache, say: Say) -> Path:
    found = cache.get(kind, key)
    if found is None:
        prune(cache, kind)
        found = cache.build(kind, key, make, say=say)
    return found


def prune(cache: Cache, kind: str) -> None:
    """Every edit of a scenario leaves a template behind, some 250 MB: keep the latest, and those in use."""
    templates = sorted(cache.entries(kind), key=lambda entry: -entry.mtime)
    for entry in templates[KEPT_TEMPLATES:]:
        with suppress(OSError, KernrigError):
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                cache.remove(entry.kind, entry.key)
            finally:
                os.close(fd)


def load(process: QemuProcess, tree: Tree, *, boot_seconds: float, cache: Cache) -> dict[str, Any]:
    """Send the tree to a booted machine that is not loaded yet; returns what was collected. What took long to boot
    gets longer."""
    seconds = max(LOAD_SECONDS, _LOAD_BOOTS * boot_seconds)
    deadline = Deadline.after(seconds, "the scenarios to be loaded in the guest")
    control = ControlPort(process)
    bytecode = Bytecode(cache)
    archive = tree.archive(bytecode.of(tree.contents))
    control.send(**tree.request(), size=len(archive))
    control.send_bytes(archive, deadline)
    try:
        loaded = control.receive(deadline)
        compiled = control.receive_bytes(loaded["size"], deadline)
        loaded["pace"] = round(loaded["seconds"] / pace.seconds(), 1)
    except (DeadlineError, TemplateError) as error:
        raise TemplateError(
            f"The scenario tree could not be loaded: {error}{console_tail(process)}"
        ) from error
    if compiled:
        bytecode.keep(compiled, tree.contents)
    return loaded


def wake_message(slow: float) -> dict[str, Any]:
    """What a clone is told first: fresh randomness, its identity, the time, its slow factor (see
    harness.guest.wake)."""
    return {
        "op": "wake",
        "seed": secrets.token_hex(64),
        "machine_id": secrets.token_hex(16),
        "time": time.time(),
        "slow": str(slow),
    }


def _first_flight(connection: socket.socket, deadline: Deadline) -> bytes:
    """Read the SSH server's identification line and its KEXINIT packet (RFC 4253, sections 4.2 and 6)."""
    data = b""
    while True:
        line_end = data.find(b"\n") + 1
        if line_end and len(data) >= line_end + 6:
            length = int.from_bytes(data[line_end : line_end + 4], "big")
            if data[line_end + 5] != _SSH_MSG_KEXINIT:
                raise TemplateError(f"the guest's SSH server began with {data[:80]!r}")
            if len(data) >= line_end + 4 + length:
                return data
        connection.settimeout(deadline.check())
        try:
            part = connection.recv(4096)
        except TimeoutError:
            raise deadline.error("the guest's SSH server says nothing") from None
        if not part:
            raise TemplateError("the guest's SSH port was closed")
        data += part


@contextmanager
def _state_file(directory: Path) -> Iterator[int]:
    """The descriptor, for QEMU to inherit, of the file that takes the device state."""
    fd = os.open(directory / "state", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        give_to_qemu(fd)
        yield fd
    finally:
        os.close(fd)


def _freeze(process: QemuProcess, state_fd: int) -> None:
    """Write the machine's device state and end it. RAM is in the memory file and is not written.

    Migration stops the machine itself, and remembers that it ran: a clone then needs no order to go on.
    """
    monitor = process.monitor()
    monitor.execute(
        "migrate-set-capabilities", {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
    )
    monitor.execute("migrate", {"uri": f"file:/proc/self/fd/{state_fd}"})
    deadline = Deadline.after(FREEZE_SECONDS, "the machine's state to be written")
    while (status := monitor.execute("query-migrate").get("status")) != "completed":
        if status in ("failed", "cancelled"):
            raise TemplateError(f"QEMU could not write the machine's state: {status}{process.errors()}")
        deadline.check()
        time.sleep(0.002)
    monitor.execute("quit")
    process.wait(Deadline.after(20, "QEMU to quit"))


def _make_boot(blueprint: Blueprint, directory: Path) -> None:
    private, public = new_key()
    with ExitStack() as stack:
        state_fd = stack.enter_context(_state_file(directory))
        memory = directory / "memory"
        process, said = cold_boot(blueprint, public_key=public, memory_file=memory, inherit=(state_fd,))
        stack.callback(process.close)
        prefix = _first_flight(process.ssh, Deadline.after(30, "the guest's SSH server"))
        _freeze(process, state_fd)
        (directory / "console").write_text(process.console.text())
    (directory / "ssh-prefix").write_bytes(prefix)
    key = directory / "key"
    key.touch(mode=0o600)
    key.write_text(private)
    facts = {name: said[name] for name in ("release", "host_key", "boot_seconds")}
    (directory / "facts.json").write_text(json.dumps(facts))


def _make_load(base: Template, tree: Tree, directory: Path, cache: Cache) -> None:
    copy_sparse(base.directory / "memory", directory / "memory")
    with ExitStack() as stack:
        state_fd = stack.enter_context(_state_file(directory))
        process = base.start(memory_file=directory / "memory", inherit=(state_fd,))
        stack.callback(process.close)
        loaded = load(process, tree, boot_seconds=base.facts["boot_seconds"], cache=cache)
        if loaded["ssh_ended"]:
            # It gives a client 300 s of the guest's time to log in; a clone can't go on with what it said.
            raise TemplateError(
                f"the guest's SSH server ended while the scenarios were loaded{console_tail(process)}",
                hint="the guest's clock may run too fast: see what its console says of clocksource and TSC",
            )
        _freeze(process, state_fd)
        console = (base.directory / "console").read_text() + process.console.text()
        (directory / "console").write_text(console)
    for name in ("ssh-prefix", "key"):
        (directory / name).write_bytes((base.directory / name).read_bytes())
    (directory / "key").chmod(0o600)
    (directory / "facts.json").write_text(
        json.dumps(base.facts | {name: loaded[name] for name in ("items", "errors", "pace")})
    )


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a sparse file: only its data, and by reference where the file system can."""
    with source.open("rb") as reader:
        fd = os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            size = os.fstat(reader.fileno()).st_size
            os.ftruncate(fd, size)
            offset = 0
            while offset < size:
                try:
                    start = os.lseek(reader.fileno(), offset, os.SEEK_DATA)
                except OSError:  # ENXIO: nothing but a hole is left
                    break
                end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
                while start < end:
                    done = os.copy_file_range(reader.fileno(), fd, end - start, start, start)
                    if done == 0:
                        raise TemplateError(f"{source} became shorter while it was copied")
                    start += done
                offset = end
            give_to_qemu(fd)
        finally:
            os.close(fd)
