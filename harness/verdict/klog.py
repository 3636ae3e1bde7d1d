# SPDX-License-Identifier: MIT
"""The kernel's log as records, from /dev/kmsg (complete, with levels) or from a serial console (all that a
dead machine leaves).

Formats: Documentation/ABI/testing/dev-kmsg and `info_print_ext_header`, `msg_add_ext_text`, `print_time` and
`print_caller` in kernel/printk/printk.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

KERN = 0
"""The facility of what the kernel itself prints; a write to /dev/kmsg can't claim it (`devkmsg_write`)."""


@dataclass(frozen=True)
class Record:
    """One line of kernel log.

    `seq` is the kernel's sequence number (on a console: the line's number, from 0), `timestamp_us`
    microseconds since boot. `level` (0 emergency to 7 debug) and `facility` are None where the source doesn't
    tell, as on a console. `caller` is "T123" for a task, "C1" for a CPU in interrupt context, "" on kernels
    without CONFIG_PRINTK_CALLER.
    """

    seq: int
    timestamp_us: int
    level: int | None
    facility: int | None
    text: str
    caller: str = ""

    @property
    def of_kernel(self) -> bool:
        """Whether the kernel may have printed this; False for what user space wrote to /dev/kmsg."""
        return self.facility is None or self.facility == KERN


_KMSG = re.compile(
    r"(?P<prefix>\d{1,5}),(?P<seq>\d{1,20}),(?P<usec>\d{1,20}),(?P<flags>[^,;]*)"
    r"(?P<more>[^;]*);(?P<text>.*)",
    re.ASCII,
)
_CALLER = re.compile(r",caller=([TC]\d+)")
_CONSOLE = re.compile(
    r"(?:<(?P<prefix>\d{1,5})>)?\[\s*(?P<sec>\d{1,9})\.(?P<usec>\d{6})\](?:\[\s*(?P<caller>[TC]\d+)\])?"
    r"(?: (?P<text>.*)|$)",
    re.ASCII,
)
_ESCAPE = re.compile(r"(?:\\x[0-9a-fA-F]{2})+")
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]")


def parse_kmsg(text: str | bytes) -> tuple[Record, ...]:
    """The records that reads of /dev/kmsg gave, in order, one per line of text.

    Dictionary lines (SUBSYSTEM=, DEVICE=) and lines of no known form are dropped; escaped bytes become UTF-8
    again; a message with line breaks becomes several records with one `seq`; a fragment marked "c" or "+"
    continues the last line of the same caller.
    """
    records: list[Record] = []
    for line in _lines(text):
        match = _KMSG.fullmatch(line)
        if match is None:
            continue
        prefix = int(match["prefix"])
        caller = _CALLER.search(match["more"])
        record = Record(
            int(match["seq"]), int(match["usec"]), prefix & 7, prefix >> 3, "", caller[1] if caller else ""
        )
        first, *rest = _unescape(match["text"]).split("\n")
        earlier = _continued(records, record) if match["flags"][:1] in ("c", "+") else None
        if earlier is None:
            records.append(replace(record, text=first))
        else:
            records[earlier] = replace(records[earlier], text=records[earlier].text + first)
        records.extend(replace(record, text=part) for part in rest)
    return tuple(records)


def parse_console(text: str | bytes) -> tuple[Record, ...]:
    """The kernel's lines of a serial console, in order.

    A kernel line starts with `[    1.234567] `, with `[ T123]` behind it under CONFIG_PRINTK_CALLER and `<6>`
    before it in raw dumps. Where other output (a prompt, a program's last unfinished line) stands before the
    timestamp in the same line, it is cut off; lines without a timestamp are user space's or the firmware's
    and are dropped.
    """
    records: list[Record] = []
    for number, raw in enumerate(_lines(text)):
        line = _TERMINAL.sub("", raw)
        match = _CONSOLE.match(line) or _CONSOLE.search(line)
        if match is None:
            continue
        prefix = None if match["prefix"] is None else int(match["prefix"])
        records.append(
            Record(
                number,
                int(match["sec"]) * 1_000_000 + int(match["usec"]),
                None if prefix is None else prefix & 7,
                None if prefix is None else prefix >> 3,
                match["text"] or "",
                match["caller"] or "",
            )
        )
    return tuple(records)


def lost_records(records: Sequence[Record]) -> int:
    """How many /dev/kmsg records are missing between the first and the last: overwritten before they were
    read.
    """
    gaps = (after.seq - before.seq - 1 for before, after in pairwise(records))
    return sum(gap for gap in gaps if gap > 0)


def render(records: Iterable[Record]) -> str:
    """The records as `dmesg` shows them, one per line."""
    return "".join(
        f"[{record.timestamp_us // 1_000_000:5d}.{record.timestamp_us % 1_000_000:06d}]"
        f"{f'[{record.caller:>6}]' if record.caller else ''} {record.text}\n"
        for record in records
    )


def _lines(text: str | bytes) -> list[str]:
    """Split at line feeds only: the kernel's text may hold other characters that `splitlines` takes for
    ends.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return text.split("\n")


def _unescape(text: str) -> str:
    """Undo `msg_add_ext_text`: it writes bytes outside printable ASCII, and the backslash, as \\xNN."""
    return _ESCAPE.sub(
        lambda match: bytes.fromhex(match[0].replace("\\x", "")).decode("utf-8", "replace"), text
    )


def _continued(records: list[Record], fragment: Record) -> int | None:
    """The index of the line that `fragment` continues: the same caller's last one; None when there is none
    near.
    """
    for index in range(len(records) - 1, max(-1, len(records) - 1 - 64), -1):
        if records[index].caller == fragment.caller and records[index].facility == fragment.facility:
            return index
    return None
