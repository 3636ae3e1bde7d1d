# SPDX-License-Identifier: MIT
"""Finds in a kernel log what the kernel complained about, from the first line of each complaint to its last.

A block ends where its own format says (`---[ end trace`, a line of equals signs, the end of the call trace),
or where the log goes silent for long or moves on to other matters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.verdict.headers import (
    BOOT,
    CUT_HERE,
    END_PANIC,
    END_TRACE,
    EQUALS,
    SANITIZERS,
    STALLS,
    TRACED,
    Header,
    Kind,
    header_of,
    title_of,
)
from harness.verdict.klog import Record
from harness.verdict.trace import functions_of

# mm/kmemleak.c writes its reports with pr_fmt's label before each line; in debugfs they have none.
_LABEL = re.compile(r"^kmemleak: (?=unreferenced object|  )")
_SILENCE_US = 5_000_000
_STALL_SILENCE_US = 30_000_000  # a stall waits up to 10 s for each CPU to answer the backtrace request
_FOREIGN_LINES = 20  # lines of other CPUs, or free text of the report, between two lines of known form

_BODY = re.compile(
    r"""
    \s | $ | [=*-]{10,} | ---\[ | ->\ \# | \#\d+: | \#PF: | \[<
  | (?:Call\ [Tt]race|stack\ backtrace|backtrace)\b
  | (?:CPU|Hardware\ name|Modules\ linked\ in|Tainted|Workqueue|Stopper): ?
  | CPU\#?\d+
  | (?:RIP|EIP|RSP|RBP|R[A-D]X|R[SD]I|R\d\d|E[A-D]X|E[SD]I|EBP|FS|CS|DS|CR\d|DR\d|PKRU|Code|EFLAGS|ORIG_RAX)\b
  | P[G4UM]D\ | PTE\ | BAD\b | Oops\b | KASAN:\ | kasan:\ | note:\ \S+\[\d+\]\ exited | Fixing\ recursive
  | Kernel\ Offset
  | irq\ event\ stamp | (?:hard|soft)irqs\ last | (?:no|\d+)\ locks?\ held\ by
  | (?:1\ lock|INFO:\ lockdep\ is\ turned)
  | (?:other\ info|the\ existing|but\ (?:task|now))
  | (?:which\ (?:lock|belongs)|Possible\ unsafe|and\ (?:the|this)|to\ a\ )
  | Preemption\ disabled | preempt_count | in_atomic | RCU\ nest | Disabling\ (?:lock|IRQ) | handlers:
  | Showing\ (?:all|busy|back) | pool\ \d+ | workqueue\ \S+: | pwq\ | pending: | rcu: | NMI\ backtrace
  | Sending\ NMI | task: | INFO:\ NMI
  | Future\ hung\ task | "echo\ 0 | watchdog: | Kernel\ panic
  | (?:Allocated|Freed|Last\ potentially|Uninit|Local\ variable)
  | (?:Bytes?\ |Memory\ (?:state|access)|The\ buggy|Data\ copied)
  | >?\s?(?:0x)?[0-9a-f]{8,16}:? | (?:page|head|raw|flags|anon|ksm)\b | page\ (?:dumped|last|_owner|has)
  | kfence-\#? | full:
  | (?:Object|Redzone|Padding|Bytes|Slab|FIX|First\ byte|INFO:\ (?:Slab|Object|Allocated|Freed|0x))\b
  | hex\ dump | comm\ "
  | (?:read|write|value\ changed)\b | Reported\ by\ Kernel\ Concurrency
  | Mem-Info | Node\ \d | lowmem_reserve | Tasks\ state | \[\s*(?:pid|\d+)\s*\]\ | (?:in)?active_
  | oom_reaper: | \d+\ (?:total|pages)
  | (?:Free\ swap|Total\ swap|Unreclaimable\ slab|Name\ +Used|memory:|swap:|kmem:|Memory\ cgroup\ stats)
  | ref_tracker: | Rebooting\ in | Dumping\ ftrace | list_ | next\ | Tracing
    """,
    re.VERBOSE,
)
_TASK_END = re.compile(r"\s*</TASK>")
_TRACE_BEGIN = re.compile(r"\s*(?:Call [Tt]race:|stack backtrace:|backtrace\b)")
_KILLED = re.compile(r".*: Kill(?:ed)? process ")
_IN_TRACED = TRACED | {Kind.BUG}
_NO_TEXT = frozenset({Kind.NETDEV_REF})
_SHORT = frozenset({Kind.BUG, Kind.SLAB, Kind.KMEMLEAK})


@dataclass(frozen=True)
class Splat:
    """One complaint of the kernel.

    `title` is its header without addresses, pids and times; `lines` are the kernel's lines of it, without
    timestamps; `functions` the faulting function and its callers, innermost first; `fingerprint` is the same
    for splats that are likely the same bug. `fatal`: the kernel panicked in it. It covers
    `records[start:end]` of what was scanned, and begins at `timestamp_us` since boot.
    """

    kind: Kind
    title: str
    lines: tuple[str, ...]
    functions: tuple[str, ...]
    fingerprint: str
    fatal: bool = False
    start: int = 0
    end: int = 0
    timestamp_us: int = 0


def find_splats(records: Sequence[Record]) -> tuple[Splat, ...]:
    """All splats in the records, in order; their ranges never overlap.

    What user space wrote to the log is no splat, nor are dumps that somebody asked for (sysrq), nor boot
    notes about mitigations. A panic that ends an oops, a WARNING or a lockup belongs to it, and so does all
    that a panicked kernel prints afterwards.
    """
    plain = [replace(each, text=_LABEL.sub("", each.text)) for each in records]
    scanner = _Scanner(plain)
    for index, record in enumerate(plain):
        if record.of_kernel:
            scanner.feed(index, record)
    return tuple(replace(block.splat(plain), lines=block.lines(records)) for block in scanner.finish())


@dataclass
class _Block:
    """A splat while it is being read: `start` and `end` are the indexes of its first line and its last one so
    far.
    """

    start: int
    end: int
    timestamp_us: int
    header: Header | None = None
    title: str = ""
    message: str = ""
    cut_here: bool = False
    ended: bool = False
    fatal: bool = False
    panic_over: bool = False
    tracing: bool = False
    trace_over: bool = False
    foreign: int = 0
    named_at: int = -1

    @property
    def kind(self) -> Kind:
        return self.header.kind if self.header else Kind.WARNING

    @property
    def awaits_end(self) -> bool:
        """Whether the format promises an end that has not come."""
        traced = self.cut_here or self.kind in TRACED
        return not self.ended and (traced or self.kind in SANITIZERS)

    def name(self, index: int, header: Header, text: str) -> None:
        """Take kind and title from a header, unless a better one came before."""
        if self.header is None or header.rank > self.header.rank:
            self.header, self.title = header, title_of(text, self.message)
            self.named_at = index

    def expects_message(self, index: int) -> bool:
        """Whether a line of free text at `index` is the text of a WARN(): it stands next to the header."""
        beside = self.header is None or self.named_at == index - 1
        return self.kind is Kind.WARNING and beside and not self.message

    def explain(self, message: str) -> None:
        """Take the text of a `WARN(condition, text)`: before the header or, on some architectures, behind
        it.
        """
        self.message = message
        if self.header:
            self.title = f"{self.title}: {title_of(message)}"

    def takes(self, header: Header, silence_us: int) -> bool:
        """Whether the header is one more of this same splat, coming after that much silence."""
        if header.kind is Kind.PANIC or self.fatal:
            return True
        if self.ended:
            return False
        if self.awaits_end and self.kind not in SANITIZERS:
            if self.header and self.kind is header.kind is Kind.WARNING:
                return False
            return header.kind in _IN_TRACED or header.kind is Kind.OOPS
        if self.kind is Kind.OOM:
            return header.kind is Kind.OOM and header.rank < 5
        again = self.kind is header.kind and self.kind in (Kind.RCU_STALL, Kind.NETDEV_REF)
        return again and silence_us <= _SILENCE_US

    def patience(self) -> int:
        """How many lines of unknown form may come before the next one of known form."""
        if self.awaits_end or (self.kind is Kind.OOM and not self.ended):
            return _FOREIGN_LINES
        if self.ended or self.kind in _NO_TEXT:
            return 0
        if self.kind in STALLS:
            return _FOREIGN_LINES // 2
        if self.tracing:
            return 0 if self.trace_over else 2
        return 5 if self.kind in _SHORT else _FOREIGN_LINES

    def add(self, index: int) -> None:
        self.end, self.foreign = index, 0

    def lines(self, records: Sequence[Record]) -> tuple[str, ...]:
        return tuple(record.text for record in records[self.start : self.end + 1] if record.of_kernel)

    def splat(self, records: Sequence[Record]) -> Splat:
        lines = self.lines(records)
        functions = functions_of(
            lines, outside_interrupts=self.kind in STALLS, from_start=self.kind in (Kind.KFENCE, Kind.KMSAN)
        )
        title = self.title or title_of(self.message) or title_of(lines[0])
        if functions and not any(re.search(rf"\b{re.escape(name)}\b", title) for name in functions):
            title = f"{title.rstrip(' .!')} in {functions[0]}"
        cause = functions[:3] or (re.sub(r"\d+", "N", title),)
        return Splat(
            kind=self.kind,
            title=title,
            lines=lines,
            functions=functions,
            fingerprint=":".join((self.kind.value, *cause)),
            fatal=self.fatal,
            start=self.start,
            end=self.end + 1,
            timestamp_us=self.timestamp_us,
        )


class _Scanner:
    """Reads kernel records one by one and groups them into blocks."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records
        self._blocks: list[_Block] = []
        self._open: _Block | None = None
        self._rule_line: int | None = None
        self._last_us = 0

    def feed(self, index: int, record: Record) -> None:
        silence, self._last_us = record.timestamp_us - self._last_us, record.timestamp_us
        block, text = self._open, record.text
        if block and (
            BOOT.match(text) or (not block.fatal and not 0 <= silence + 1_000_000 <= self._limit(block))
        ):
            block = self._open = None
        header = header_of(text)
        cut_here = header is None and CUT_HERE.match(text) is not None
        if block is None and header and header.kind is Kind.PANIC:
            block = self._open = self._cause_of_panic(record)
        if block and header and block.takes(header, silence):
            self._merge(block, index, header, text)
        elif block and block.fatal:
            self._follow_panic(block, index, text, cut_here)
        elif block and cut_here and block.kind is Kind.LIST and not block.ended:
            block.add(index)
        elif cut_here or header:
            self._start(index, record, header, text)
        elif block and not self._continue(block, index, text):
            self._open = None
        taken = bool(self._blocks) and self._blocks[-1].end == index
        self._rule_line = index if EQUALS.match(text) and not taken else None

    def finish(self) -> Iterable[_Block]:
        return self._blocks

    @staticmethod
    def _limit(block: _Block) -> int:
        return (_STALL_SILENCE_US if block.kind in STALLS else _SILENCE_US) + 1_000_000

    def _cause_of_panic(self, record: Record) -> _Block | None:
        """The block that just ended, when it explains a panic: an oops that killed init, a lockup, an OOM."""
        if not self._blocks:
            return None
        last = self._blocks[-1]
        near = 0 <= record.timestamp_us - self._records[last.end].timestamp_us <= 2_000_000
        return last if near and not last.fatal and last.kind not in (Kind.WARNING, Kind.LOCKDEP) else None

    def _start(self, index: int, record: Record, header: Header | None, text: str) -> None:
        start = index if self._rule_line is None else self._rule_line
        block = self._open = _Block(start, index, record.timestamp_us, cut_here=header is None)
        self._blocks.append(block)
        if header:
            self._merge(block, index, header, text)

    @staticmethod
    def _merge(block: _Block, index: int, header: Header, text: str) -> None:
        if not block.fatal:  # what a panicked kernel says of itself is a consequence
            block.name(index, header, text)
        block.add(index)
        block.fatal = block.fatal or header.kind is Kind.PANIC
        block.panic_over = block.panic_over and header.kind is not Kind.PANIC
        if block.kind is Kind.OOM and _KILLED.match(text):
            block.ended = True

    @staticmethod
    def _follow_panic(block: _Block, index: int, text: str, cut_here: bool) -> None:
        if text.strip() and (not block.panic_over or cut_here or _BODY.match(text)):
            block.add(index)
        if END_PANIC.match(text):
            block.panic_over = True

    @staticmethod
    def _continue(block: _Block, index: int, text: str) -> bool:
        """Take a line into the block; False when the line shows that the block is over."""
        if END_TRACE.match(text):
            block.add(index)
            block.ended = True
            return True
        if EQUALS.match(text):
            closes = block.kind in SANITIZERS or (block.kind is Kind.UBSAN and not block.cut_here)
            if closes and block.end > block.start + 1:
                block.add(index)
                return False
            if block.ended or (block.trace_over and block.kind not in STALLS):
                return False
        if _TRACE_BEGIN.match(text):
            block.tracing, block.trace_over = True, False
        elif _TASK_END.match(text):
            block.trace_over = True
        if _BODY.match(text):
            if text.strip():
                block.add(index)
            return True
        if block.expects_message(index):
            block.explain(text.strip())
        block.foreign += 1
        return block.foreign <= block.patience()
