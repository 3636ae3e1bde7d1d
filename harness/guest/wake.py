# SPDX-License-Identifier: MIT
"""What has to differ between clones of one template: random state, identity, clock.

Every clone does this first, so it uses as little of the interpreter as it can.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from typing import Any

RNDADDENTROPY = 0x40085203  # include/uapi/linux/random.h
RNDRESEEDCRNG = 0x5207


def wake(message: dict[str, Any]) -> None:
    """Credit fresh random bytes to the kernel's pool and make it use them at once (random(4)); set machine-id, clock
    and the slow factor."""
    seed = bytes.fromhex(message["seed"])
    pool = os.open("/dev/urandom", os.O_WRONLY)
    fcntl.ioctl(pool, RNDADDENTROPY, struct.pack("ii", len(seed) * 8, len(seed)) + seed)
    fcntl.ioctl(pool, RNDRESEEDCRNG)
    os.close(pool)
    time.clock_settime(time.CLOCK_REALTIME, message["time"])
    identity = os.open("/etc/machine-id", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o444)
    os.write(identity, message["machine_id"].encode() + b"\n")
    os.close(identity)
    os.environ["KERNRIG_SLOW"] = message["slow"]
