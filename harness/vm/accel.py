# SPDX-License-Identifier: MIT
"""Which accelerator to use: KVM only after a kernel was seen to boot under it on this host.

/dev/kvm can exist, open, and answer every ioctl, and still abort QEMU or hang the guest (nested and restricted hosts).
So `auto` boots the very kernel once under KVM, and remembers the answer for this boot of the host, QEMU and kernel.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.cache import Cache, digest
from harness.errors import KernrigError
from harness.vm import boot, keys
from harness.vm.blueprint import Accel, Blueprint, open_kvm
from harness.vm.control import TemplateError

PROBE_SECONDS = 20.0
_STATE = "accelerator"


def choose(setting: str, blueprint: Blueprint, *, cache: Cache, say: Callable[[str], None]) -> Accel:
    """The accelerator for this blueprint (whose own `accel` is not looked at); `setting` is auto, kvm or tcg."""
    if setting == "tcg":
        return Accel("tcg", "asked for")
    try:
        os.close(open_kvm())
    except OSError as error:
        if setting == "kvm":
            raise KernrigError(
                f"KVM was asked for, but /dev/kvm can't be opened: {error.strerror}.",
                hint="join the group of /dev/kvm, or use --kr-accel=tcg",
            ) from error
        return Accel("tcg", f"/dev/kvm can't be opened: {error.strerror}")
    if setting == "kvm":
        return Accel("kvm", "asked for")
    return _proven(blueprint, cache, say)


def _proven(blueprint: Blueprint, cache: Cache, say: Callable[[str], None]) -> Accel:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = digest(boot_id, str(blueprint.qemu), blueprint.kernel.digest)
    file = cache.root / "state" / _STATE / f"{key}.json"
    try:
        known = json.loads(file.read_text())
        return Accel(known["name"], known["reason"])
    except (OSError, ValueError, KeyError):
        pass
    with cache.state(_STATE, say=say) as folder:
        say(f"proving KVM: booting {blueprint.kernel.release} under it")
        failure = _boot_failure(replace(blueprint, accel=Accel("kvm", "probe")))
        accel = (
            Accel("kvm", "the kernel was seen to boot under it")
            if failure is None
            else Accel("tcg", f"KVM is there but the kernel does not boot under it: {failure}")
        )
        new = folder / f".{key}.{os.getpid()}"
        new.write_text(json.dumps({"name": accel.name, "reason": accel.reason}))
        new.rename(folder / f"{key}.json")
    return accel


def _boot_failure(blueprint: Blueprint) -> str | None:
    """Why the kernel does not come up, in a few words; None when it does."""
    _, public = keys.new_key()
    try:
        process, _ = boot.cold_boot(blueprint, public_key=public, seconds=PROBE_SECONDS)
    except TemplateError as error:
        reason = error.what.split("\n", 1)[0].removeprefix("The guest did not come up: ")
        return " ".join(reason.split())
    process.close()
    return None
