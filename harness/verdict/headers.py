# SPDX-License-Identifier: MIT
"""The lines with which the kernel begins a complaint, and the kinds of complaint.

Headers are matched from the start of a line, in the kernel's own wording and capitals. A mitigation's
`Spectre V2 : WARNING:` or a `[Firmware Bug]:` is a note; `traps: prog[12] general protection fault` is user
space's fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """What sort of complaint a splat is."""

    PANIC = "panic"
    OOPS = "oops"
    DOUBLE_FAULT = "double-fault"
    STACK = "stack-overflow"
    KASAN = "kasan"
    KFENCE = "kfence"
    KMSAN = "kmsan"
    KCSAN = "kcsan"
    SLAB = "slab-corruption"
    LIST = "list-corruption"
    REFCOUNT = "refcount"
    UBSAN = "ubsan"
    BUG = "bug"
    WARNING = "warning"
    LOCKDEP = "lockdep"
    ATOMIC_SLEEP = "atomic-sleep"
    RCU_STALL = "rcu-stall"
    SOFT_LOCKUP = "soft-lockup"
    HARD_LOCKUP = "hard-lockup"
    WORKQUEUE_LOCKUP = "workqueue-lockup"
    HUNG_TASK = "hung-task"
    OOM = "oom"
    KMEMLEAK = "kmemleak"
    NETDEV_REF = "netdev-ref"
    IRQ = "irq"


SANITIZERS = frozenset({Kind.KASAN, Kind.KFENCE, Kind.KMSAN, Kind.KCSAN})
"""Reports that close with a line of equals signs."""

STALLS = frozenset(
    {Kind.RCU_STALL, Kind.SOFT_LOCKUP, Kind.HARD_LOCKUP, Kind.WORKQUEUE_LOCKUP, Kind.HUNG_TASK}
)
"""Reports that may hold backtraces of several CPUs or tasks, gathered over seconds."""

TRACED = frozenset(
    {Kind.OOPS, Kind.DOUBLE_FAULT, Kind.STACK, Kind.WARNING, Kind.REFCOUNT, Kind.LIST, Kind.UBSAN}
)
"""Reports that end with `---[ end trace ... ]---`."""


@dataclass(frozen=True)
class Header:
    """A line that begins a splat of `kind`. Where a splat has several headers (`refcount_t: underflow` inside
    a WARNING, `list_del corruption` before a kernel BUG), the one with the highest `rank` names it.
    """

    kind: Kind
    pattern: re.Pattern[str] = field(repr=False)
    rank: int


CUT_HERE = re.compile(r"-+\[ cut here \]-+")
END_TRACE = re.compile(r"---\[ end trace ")
END_PANIC = re.compile(r"---\[ end Kernel panic")
EQUALS = re.compile(r"={20,}")
BOOT = re.compile(r"Linux version \d")

_LOCKDEP_WARNINGS = (
    r"possible (?:circular locking|recursive locking|irq lock inversion)",
    r"inconsistent lock state",
    r"held lock freed!",
    r"suspicious RCU usage",
    r"bad unlock balance",
    r"[Nn]ested lock was not taken",
    r"lock held when returning to user space",
    r"(?:HARD|SOFT)IRQ(?:-READ)?-safe -> ",
    r"(?:RECLAIM_FS|FS_RECLAIM|[A-Z_]+)(?:-READ)?-safe -> ",
    r"\S+/\d+ still has locks held!",
)

# Sources: x86 fault.c, traps.c, dumpstack.c; lib/bug.c, lib/ubsan.c, lib/list_debug.c, lib/refcount.c;
# kernel/panic.c, watchdog.c, hung_task.c, workqueue.c, locking/lockdep.c, sched/core.c, rcu/tree_stall.h,
# rcu/tasks.h; mm/kasan/report.c, kfence/report.c, slub.c, kmemleak.c, oom_kill.c; net/core/dev.c.
_RULES: tuple[tuple[Kind, int, str], ...] = (
    (Kind.PANIC, 0, r"Kernel panic - not syncing"),
    (Kind.DOUBLE_FAULT, 6, r"(?:traps: )?PANIC: double fault|(?:Oops: )?double fault: [0-9a-f]{4} "),
    (
        Kind.STACK,
        7,
        r"BUG: (?:\w+ )?stack guard page was hit|BUG: kernel stack overflow|kernel stack overflow \(",
    ),
    (Kind.STACK, 7, r"Kernel stack overflow|Thread overran stack|BUG: (?:\w+ )?stack overflow"),
    (Kind.KASAN, 5, r"BUG: KASAN: "),
    (Kind.KFENCE, 5, r"BUG: KFENCE: "),
    (Kind.KMSAN, 5, r"BUG: KMSAN: "),
    (Kind.KCSAN, 5, r"BUG: KCSAN: "),
    (Kind.SLAB, 5, r"BUG [\w.:/-]+ \((?:Not tainted|Tainted)"),
    (
        Kind.SLAB,
        5,
        r"cache_from_obj: Wrong slab cache|(?:virt_to_cache|__cache_free): Object is not a Slab page",
    ),
    (Kind.LIST, 6, r"(?:list_(?:add|del|move)\w*|slist_\w+) (?:corruption|double)|plist corruption"),
    (Kind.REFCOUNT, 6, r"refcount_t: "),
    (Kind.UBSAN, 6, r"UBSAN: "),
    (Kind.ATOMIC_SLEEP, 5, r"BUG: (?:sleeping function called from invalid context|scheduling while atomic)"),
    (Kind.ATOMIC_SLEEP, 5, r"BUG: using (?:__this_cpu_\w+|smp_processor_id)\(?\)? in preemptible"),
    (Kind.ATOMIC_SLEEP, 5, r"Voluntary context switch within RCU read-side critical section!"),
    (Kind.LOCKDEP, 5, rf"(?:WARNING|INFO|BUG): (?:{'|'.join(_LOCKDEP_WARNINGS)})"),
    (Kind.LOCKDEP, 5, rf"\[ (?:BUG: |INFO: )?(?:Invalid wait context|{'|'.join(_LOCKDEP_WARNINGS)}).*\]$"),
    (
        Kind.LOCKDEP,
        5,
        r"\[ BUG: .*\]$|INFO: trying to register non-static key|BUG: key \S+ (?:not in|has not been)",
    ),
    (Kind.LOCKDEP, 5, r"BUG: MAX_\w+ too low|BUG: bad contention detected"),
    (Kind.RCU_STALL, 5, r"(?:rcu: )?INFO: (?:rcu\w*|task_rcu\w*) (?:self-)?detected (?:\w+ )?stalls?"),
    (Kind.RCU_STALL, 5, r"rcu: INFO: \w+ detected expedited stalls"),
    (Kind.SOFT_LOCKUP, 5, r"(?:NMI )?(?:watchdog: )?BUG: soft lockup"),
    (
        Kind.HARD_LOCKUP,
        5,
        r"(?:NMI )?watchdog: (?:CPU\d+: )?(?:BUG: hard lockup|Watchdog detected hard LOCKUP)",
    ),
    (Kind.WORKQUEUE_LOCKUP, 5, r"BUG: workqueue lockup"),
    (Kind.HUNG_TASK, 5, r"INFO: task \S.* blocked (?:\S.* )?for more than"),
    (Kind.HUNG_TASK, 5, r"INFO: task \S.* can't die for more than"),
    (Kind.OOM, 5, r"(?:\S.* )?invoked oom-killer: "),
    (Kind.OOM, 4, r"oom-kill:constraint=|(?:Memory cgroup )?[Oo]ut of memory(?: \([^)]*\))?: Kill"),
    (Kind.KMEMLEAK, 5, r"unreferenced object 0x|kmemleak: \d+ new suspected memory leaks"),
    (Kind.NETDEV_REF, 5, r"unregister_netdevice: waiting for "),
    (Kind.NETDEV_REF, 4, r"ref_tracker: .* has \d+/\d+ users at"),
    (Kind.IRQ, 5, r"irq \d+: nobody cared"),
    (Kind.OOPS, 5, r"BUG: unable to handle |BUG: kernel NULL pointer dereference|BUG: supervisor "),
    (Kind.OOPS, 5, r"Unable to handle kernel "),
    (Kind.OOPS, 4, r"kernel tried to execute \S+ ?protected page|unable to execute userspace code"),
    (
        Kind.OOPS,
        5,
        r"(?:Oops: )?(?:general protection fault|invalid opcode|divide error|stack segment|int3)\b.*: ",
    ),
    (Kind.OOPS, 4, r"Oops: |Internal error: |[A-Za-z][^\[]*: [0-9a-f]{4,8} \[#\d+\]"),
    (Kind.BUG, 5, r"kernel BUG at |BUG: "),
    (Kind.BUG, 4, r"Bad page (?:state|map)|Kernel bug detected|Unable to handle "),
    (
        Kind.WARNING,
        3,
        r"WARNING: CPU: \d+ PID: \d+ at |WARNING: at |WARNING: (?:\[.*\] )?\S+:\d+ at \S+, CPU#\d+",
    ),
    (Kind.WARNING, 3, r"WARNING: (?:stack recursion|kernel stack |can't access registers|zero-size vmalloc)"),
    (Kind.WARNING, 3, r"WARNING: \S+ at \S+\+0x|WARNING: CPU#?:? ?\d+"),
)

_LONGEST = 1024  # PRINTK_MESSAGE_MAX is 2048, of which a header uses little; a console may hold any garbage
_HEADERS = tuple(Header(kind, re.compile(pattern), rank) for kind, rank, pattern in _RULES)
# One pass over all patterns rejects the ordinary line: logs are long, splats are rare.
_ANY = re.compile("|".join(f"(?:{pattern})" for _, _, pattern in _RULES))


def header_of(text: str) -> Header | None:
    """The header that this line of kernel log is, or None for an ordinary line."""
    text = text[:_LONGEST]
    if _ANY.match(text) is None:
        return None
    return next((header for header in _HEADERS if header.pattern.match(text)), None)


_WARN_OLD = re.compile(r"WARNING: CPU: \d+ PID: \d+ at (?P<where>\S+)(?: (?P<function>[^\s+]+)\+0x\S+)?")
_WARN_NEW = re.compile(
    r"WARNING: (?:\[(?P<condition>.*)\] )?(?P<where>\S+) at (?P<function>[^\s+]+)\+0x\S+,? "
)
_VARIABLE = (
    (re.compile(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{16}\b|\b(?=[0-9a-f]*\d)[0-9a-f]{8,15}\b"), "ADDR"),
    (re.compile(r"\+ADDR/ADDR"), ""),
    (re.compile(r"\b(CPU#?:? ?|PID: |pid |cpu )\d+"), r"\1N"),
    (re.compile(r"(\[\s*)[\w./-]+:\d+(\])"), r"\1TASK\2"),
    (re.compile(r"\b(?:by|in) task \S.*?[/:]\d+"), "by task TASK"),
    (re.compile(r"(: \S+)/\d+/ADDR\b"), r"\1"),
    (re.compile(r"(\S)[:/]\d+(?= blocked| still\b)|(code: \S+)/\d+$"), r"\1\2"),
    (re.compile(r"\b\d+(\.\d+)?(?=s\b| seconds?\b| bytes?\b)"), "N"),
    (re.compile(r"\[#\d+\]"), "[#N]"),
    (re.compile(r"\s+"), " "),
)


def title_of(text: str, message: str = "") -> str:
    """A header line as a title that is the same at each occurrence: without addresses, pids and times.

    `message` is the text a `WARN(1, "...")` printed before its header.
    """
    text, message = text[:_LONGEST], message[:_LONGEST]
    match = _WARN_OLD.match(text) or _WARN_NEW.match(text)
    if match:
        function, condition = match["function"], match.groupdict().get("condition")
        text = f"WARNING: {match['where']}" + (f" at {function}" if function else "")
        message = message or condition or ""
    title = f"{text}: {message}" if message else text
    for pattern, stand_in in _VARIABLE:
        title = pattern.sub(stand_in, title)
    return title.strip()[:200]
