# SPDX-License-Identifier: MIT
"""Constants of bpf(2) under their UAPI names, as of Linux 7.3; one submodule per enum."""

from __future__ import annotations

from types import ModuleType

from harness.guest.bpf.uapi import attach_types, commands, link_types, map_types, prog_types
from harness.guest.bpf.uapi.attach_types import *  # noqa: F403
from harness.guest.bpf.uapi.commands import *  # noqa: F403
from harness.guest.bpf.uapi.flags import *  # noqa: F403
from harness.guest.bpf.uapi.helper_ids import *  # noqa: F403
from harness.guest.bpf.uapi.link_types import *  # noqa: F403
from harness.guest.bpf.uapi.map_types import *  # noqa: F403
from harness.guest.bpf.uapi.prog_types import *  # noqa: F403

_ENUM_OF_FIELD: dict[str, ModuleType] = {
    "cmd": commands,
    "map_type": map_types,
    "prog_type": prog_types,
    "attach_type": attach_types,
    "expected_attach_type": attach_types,
    "link_type": link_types,
}


def name_of(field: str, value: int) -> str | None:
    """The UAPI name of `value` in an attribute field such as "map_type", or "cmd"; None if it has none."""
    module = _ENUM_OF_FIELD.get(field)
    if module is None:
        return None
    return next(
        (name for name, number in vars(module).items() if number == value and name.startswith("BPF_")), None
    )
