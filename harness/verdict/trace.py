# SPDX-License-Identifier: MIT
"""Which functions a splat's first call trace names: what tells two splats of one kind apart."""

from __future__ import annotations

import re
from collections.abc import Sequence

DEPTH = 8
"""How many functions are kept."""

_FRAME = re.compile(
    r"\s*(?:\[<[0-9a-fx]+>\]\s*)?(?P<unsure>\? )?"
    r"(?P<function>[A-Za-z_][\w.$]*)\+0x[0-9a-f]+/0x[0-9a-f]+(?:\s|$)"
)
_AT_FAULT = re.compile(
    r"(?:RIP: [0-9a-f]{4}:|RIP: \[<\w+>\] |EIP: |pc : |WARNING: .* at (?:\S+:\d+ )?|"
    r"BUG: (?:KASAN|KFENCE|KMSAN|KCSAN): .* in )"
    r"(?P<function>[A-Za-z_][\w.$]*)\+0x"
)
_BEGIN = re.compile(r"\s*(?:Call [Tt]race:|stack backtrace:|backtrace(?: \(.*\))?:)|ref_tracker: .* users at")
_IRQ = re.compile(r"\s*<(?P<off>/?)(?:IRQ|NMI|#DF|ENTRY_TRAMPOLINE)>")
_TASK_END = re.compile(r"\s*</TASK>")
_ENTRY = re.compile(r"asm_(?:sysvec|common|exc)_")
_SUFFIX = re.compile(r"\.(?:isra|constprop|part|cold|llvm|localalias|lto_priv|unlikely|\d+)\b.*")

# Machinery that reports, checks or waits, and the way into the kernel: the same whatever went wrong.
_GENERIC = re.compile(
    r"""
    (?:__)?(?:
        dump_stack\w* | show_stack\w* | show_regs\w* | show_trace\w* | dump_header | stack_trace_\w+
        | save_stack\w* | panic
      | vpanic | pfx_\w+ | nmi_panic | die\w* | oops_\w+ | page_fault_oops | no_context | bad_area\w*
      | kernelmode_fixup_or_oops
      | do_(?:user|kern)_addr_fault | exc_\w+ | asm_\w+ | handle_(?:bug|stack_overflow) | report_bug\w*
      | fixup_bug | do_error_trap
      | do_trap\w* | do_general_protection | general_protection | do_page_fault | page_fault
      | async_page_fault | invalid_op
      | error_entry | warn | warn_slowpath\w* | warn_printk | bug_\w+ | WARN_trap
      | kasan_\w+ | asan_\w+ | hwasan_\w+ | print_(?:report|address_description|memory_metadata)
      | check_(?:memory_)?region\w*
      | kfence_\w+ | kmsan_\w+ | msan_\w+ | kcsan_\w+ | tsan_\w+ | ubsan_\w+ | handle_overflow
      | refcount_\w+ | list_(?:add|del|del_entry)_valid\w* | list_(?:add|del)
      | lock_acquire\w* | lock_release | validate_chain
      | check_(?:noncircular|prev_add|prevs_add|deadlock|irq_usage|usage_\w+)
      | print_(?:\w*bug\w*|usage_bug\w*|unlock_imbalance_bug|bad_irq_dependency|irq_inversion_bug)
      | mark_lock\w* | mark_usage
      | lockdep_\w+ | register_lock_class | debug_\w+ | raw_spin_(?:un)?lock\w* | _raw_\w+
      | mutex_(?:un)?lock\w* | rcu_lockdep\w*
      | might_resched\w* | might_sleep\w* | might_fault | schedule\w* | preempt_schedule\w* | io_schedule\w*
      | cond_resched\w*
      | wait_for_common | wait_for_completion\w* | context_switch | mutex_lock_common
      | nmi_\w+ | trigger_\w*backtrace\w* | arch_trigger\w* | watchdog\w*
      | rcu_(?:sched|preempt|check|dump|pending)\w*
      | check_cpu_stall | print_(?:cpu|other_cpu)_stall\w* | update_process_times | tick_\w+ | hrtimer_\w+
      | sysvec_\w+
      | check_hung\w+ | spin_(?:bug|dump) | report_bad_irq | object_err | slab_\w*err\w* | print_trailer
      | kmemleak_\w+
      | kmalloc\w* | kzalloc\w* | kmem_cache_alloc\w* | kmem_cache_free | kfree | slab_\w+ | do_kmalloc\w*
      | ref_tracker_\w+
      | out_of_memory | oom_\w+
      | (?:folio_|vma_)?alloc_(?:frozen_)?(?:pages|folio|mpol)\w* | x64_sys_call | do_syscall_64
      | entry_\w+ | ret_from_fork\w*
    )
    """,
    re.VERBOSE,
)


def functions_of(
    lines: Sequence[str], *, outside_interrupts: bool = False, from_start: bool = False
) -> tuple[str, ...]:
    """The first functions that a splat blames, innermost first: the faulting one, then its callers as the
    first call trace that names any gives them. Compiler suffixes and the reporting machinery are left out, as
    are frames marked `?` (words on the stack that may be stale), unless a trace has no others.

    `outside_interrupts` skips what ran between `<IRQ>` and `</IRQ>`: in a stall that is the watchdog itself.
    `from_start` is for reports whose frames need no `Call Trace:` before them.
    """
    faulting: list[str] = []
    called: list[str] = []
    interrupts: list[str] = []
    doubtful: list[str] = []
    tracing, inside, certain = from_start, False, False
    for line in lines:
        fault = _AT_FAULT.match(line.lstrip())
        frame = _FRAME.match(line)
        if fault and not (faulting and tracing):
            _add(faulting, fault["function"])
        elif _BEGIN.match(line):
            if called:
                break
            tracing, inside = True, False
        elif tracing and (mark := _IRQ.match(line)):
            inside = not mark["off"]
        elif tracing and frame and not frame["unsure"]:
            certain = True
            _add(interrupts if inside and outside_interrupts else called, frame["function"])
        elif tracing and frame:
            if _ENTRY.match(frame["function"]):
                doubtful.clear()
            _add(doubtful, frame["function"])
        elif (called or doubtful) and (_TASK_END.match(line) or (from_start and not frame)):
            break
        if len(called) >= DEPTH:
            break
    if not called:
        called = interrupts or ([] if faulting or certain else doubtful)
    found: list[str] = []
    for name in (*faulting, *called):
        if name not in found:
            found.append(name)
    return tuple(found[:DEPTH])


def _add(names: list[str], function: str) -> None:
    name = _SUFFIX.sub("", function)
    if name not in names and not _GENERIC.fullmatch(name):
        names.append(name)
