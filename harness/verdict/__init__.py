# SPDX-License-Identifier: MIT
"""Why a scenario ended as it did: kernel log, taint, leaks and machine ends become one explained outcome."""

from __future__ import annotations

from harness.verdict.expected import ExpectedSplat, KnownIssue, Matching, match_expected
from harness.verdict.explanation import excerpt, explain
from harness.verdict.headers import Kind
from harness.verdict.inventory import Inventory, Item
from harness.verdict.klog import Record, lost_records, parse_console, parse_kmsg, render
from harness.verdict.leaks import Leak, leaks
from harness.verdict.machine import End, MachineEnd, end_of_qemu
from harness.verdict.outcome import Outcome, PhaseReport, Verdict, judge
from harness.verdict.splat import Splat, find_splats
from harness.verdict.taint import TaintFlag, decode, dirty_taint, letters, new_taint

__all__ = [
    "End",
    "ExpectedSplat",
    "Inventory",
    "Item",
    "Kind",
    "KnownIssue",
    "Leak",
    "MachineEnd",
    "Matching",
    "Outcome",
    "PhaseReport",
    "Record",
    "Splat",
    "TaintFlag",
    "Verdict",
    "decode",
    "dirty_taint",
    "end_of_qemu",
    "excerpt",
    "explain",
    "find_splats",
    "judge",
    "leaks",
    "letters",
    "lost_records",
    "match_expected",
    "new_taint",
    "parse_console",
    "parse_kmsg",
    "render",
]
