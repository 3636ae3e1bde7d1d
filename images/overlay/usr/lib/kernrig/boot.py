# SPDX-License-Identifier: MIT
"""What runs in a freshly booted guest until a scenario tree is loaded into it.

The host speaks with it over the virtio-serial port `kernrig.control`: lines of JSON, some followed by raw bytes. It
starts the SSH server on the port `kernrig.ssh`, imports what every scenario needs (slow in a cold machine, hence done
once, before the machine is frozen), and at `load` unpacks the host's tree and hands over to harness.guest.agent in it.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

PORTS = Path("/sys/class/virtio-ports")
TREE = Path("/opt/kernrig/tree")
HOST_KEY = "/etc/dropbear/host_key"


def open_port(name):
    """A descriptor, opened read-write, of the virtio-serial port of that name; waits for it up to ten seconds."""
    end = time.monotonic() + 10
    while True:
        for port in PORTS.iterdir() if PORTS.exists() else ():
            if (port / "name").read_text().strip() == name:
                return os.open(f"/dev/{port.name}", os.O_RDWR | os.O_CLOEXEC)
        if time.monotonic() > end:
            raise SystemExit(f"kernrig: the machine has no port {name}")
        time.sleep(0.01)


class Control:
    """Messages to and from the host: one JSON object a line; `size` in one announces that many raw bytes."""

    def __init__(self, fd):
        self.fd = fd
        self._rest = b""

    def fileno(self):
        return self.fd

    def _fill(self):
        data = os.read(self.fd, 1 << 16)
        if not data:
            time.sleep(0.005)  # the host's end is not connected
        self._rest += data

    def receive(self):
        """The next message, blocking."""
        while b"\n" not in self._rest:
            self._fill()
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)

    def receive_bytes(self, size):
        """The raw bytes behind a message."""
        parts, have = [self._rest], len(self._rest)
        while have < size:
            data = os.read(self.fd, min(1 << 18, size - have))
            parts.append(data)
            have += len(data)
        data = b"".join(parts)
        data, self._rest = data[:size], data[size:]
        return data

    def send(self, raw=b"", **message):
        """One message, and the raw bytes behind it if there are any; it says how many."""
        data = memoryview(json.dumps(message | {"size": len(raw)}).encode() + b"\n" + raw)
        while data:
            data = data[os.write(self.fd, data[: 1 << 16]) :]


def new_bytecode(tree, sent):
    """A tar archive of what was compiled below `tree` and is not among the names that the host sent."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(tree.rglob("__pycache__/*.pyc")):
            name = str(path.relative_to(tree))
            if name not in sent:
                archive.add(path, name)
    return buffer.getvalue()


class SshServer:
    """dropbear in inetd mode on the virtio port, started anew whenever it ends (its client has hung up)."""

    def __init__(self, fd):
        self._fd = fd
        self.pid = 0

    def start(self):
        # -s, -g: no passwords; -j, -k would forbid forwards, which is how the agent's socket is reached
        arguments = ["dropbear", "-i", "-s", "-g", "-r", HOST_KEY, "-I", "0", "-K", "0", "-W", "262144"]
        environment = {"PATH": os.environ["PATH"], "LD_PRELOAD": "/usr/lib/kernrig/port_as_socket.so"}
        self.pid = os.posix_spawn(
            "/usr/sbin/dropbear",
            arguments,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, self._fd, 0),
                (os.POSIX_SPAWN_DUP2, self._fd, 1),
                (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
            ],
            setsid=True,
        )


def make_host_key():
    """Makes the host key of this template; returns its public part in base64."""
    Path(HOST_KEY).parent.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["dropbearkey", "-t", "ed25519", "-f", HOST_KEY], check=True, capture_output=True, text=True
    ).stdout
    return next(line for line in made.splitlines() if line.startswith("ssh-ed25519")).split()[1]


def authorize(public_key):
    """Let the holder of this key log in, and nobody else."""
    directory = Path("/root/.ssh")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = directory / "authorized_keys"
    file.write_text(public_key + "\n")
    file.chmod(0o600)


def import_what_scenarios_need():
    """The slow imports, once per template."""
    import ctypes  # noqa: F401
    import logging  # noqa: F401
    import multiprocessing  # noqa: F401
    import threading  # noqa: F401

    import _pytest.python  # noqa: F401
    import pyroute2
    import pytest  # noqa: F401

    with pyroute2.IPRoute() as rtnl:
        rtnl.get_links()


def main():
    """Come up, tell the host so, wait for a tree, become the agent."""
    control = Control(open_port("kernrig.control"))
    control.send(hello=1, release=os.uname().release)
    config = control.receive()
    time.clock_settime(time.CLOCK_REALTIME, config["time"])
    os.environ["KERNRIG_SLOW"] = str(config["slow"])
    authorize(config["authorized_key"])
    host_key = make_host_key()
    ssh = SshServer(open_port("kernrig.ssh"))
    ssh.start()
    import_what_scenarios_need()
    control.send(ready=1, host_key=host_key)
    load = control.receive()
    with tarfile.open(fileobj=io.BytesIO(control.receive_bytes(load["size"]))) as archive:
        archive.extractall(TREE, filter="fully_trusted")
        sent = set(archive.getnames())
    sys.path.insert(0, str(TREE))
    sys.dont_write_bytecode = False  # until the tree is loaded
    from harness.guest import agent

    agent.main(control, ssh, load, lambda: new_bytecode(TREE, sent))


if __name__ == "__main__":
    main()
