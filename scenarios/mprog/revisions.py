# SPDX-License-Identifier: MIT
"""What tells from outside whether a direction of a device has a list, and how often it changed."""

from __future__ import annotations

import errno

from harness.guest.bpf import tcx
from harness.guest.bpf.syscall import BpfError
from harness.guest.bpf.uapi import BPF_F_REPLACE, BPF_TCX_EGRESS, BPF_TCX_INGRESS
from harness.guest.net import Device


def revisions(dev: Device) -> tuple[int, int]:
    """Of ingress and egress."""
    inward, outward = (tcx.query(dev, attach_type=each) for each in (BPF_TCX_INGRESS, BPF_TCX_EGRESS))
    return inward.revision, outward.revision


def is_held(dev: Device, attach_type: int) -> bool:
    """Whether the empty direction has a list: only then does a detach get as far as to refuse REPLACE."""
    try:
        tcx.detach(dev, attach_type=attach_type, flags=BPF_F_REPLACE)
    except BpfError as error:
        assert error.errno in (errno.EINVAL, errno.ENOENT)
        return error.errno == errno.EINVAL
    raise AssertionError("an empty list lost a program")
