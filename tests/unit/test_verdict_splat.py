# SPDX-License-Identifier: MIT
"""The recogniser against the corpus in splats/: each file says in its header which splats it holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.verdict import Record, Splat, find_splats, parse_console, parse_kmsg

CORPUS = sorted((Path(__file__).parent / "splats").glob("*.txt"))
PARSERS = {"console": parse_console, "kmsg": parse_kmsg}


@dataclass(frozen=True)
class Expectation:
    kind: str
    fatal: bool
    title: str
    functions: tuple[str, ...]
    lines: int


@dataclass(frozen=True)
class Sample:
    records: tuple[Record, ...]
    expected: tuple[Expectation, ...]


def read_sample(path: Path) -> Sample:
    head, _, log = path.read_text(encoding="utf-8", errors="replace").partition("\n\n")
    fields = [line[2:].split(": ", 1) for line in head.splitlines()]
    expected = []
    for key, value in fields:
        if key == "splat":
            kind, rest = value.split(" | ", 1)
            title, functions, lines = map(str.strip, rest.rsplit("|", 2))
            name, *flags = kind.split()
            expected.append(Expectation(name, "fatal" in flags, title, tuple(functions.split()), int(lines)))
    return Sample(PARSERS[dict(fields)["format"]](log), tuple(expected))


def seen(splat: Splat, depth: int) -> Expectation:
    return Expectation(splat.kind.value, splat.fatal, splat.title, splat.functions[:depth], len(splat.lines))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_corpus_file_holds_the_splats_that_its_header_names(path: Path) -> None:
    sample = read_sample(path)
    splats = find_splats(sample.records)
    depths = [len(expectation.functions) for expectation in sample.expected]
    depths += [3] * (len(splats) - len(depths))
    assert tuple(map(seen, splats, depths)) == sample.expected


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_splats_are_in_order_disjoint_and_end_on_lines_of_theirs(path: Path) -> None:
    records = read_sample(path).records
    check_ranges(records, find_splats(records))


def check_ranges(records: tuple[Record, ...], splats: tuple[Splat, ...]) -> None:
    end = 0
    for splat in splats:
        assert end <= splat.start < splat.end <= len(records)
        kernel = tuple(record.text for record in records[splat.start : splat.end] if record.of_kernel)
        assert splat.lines == kernel
        assert len(splat.lines[-1].strip()) > 0
        end = splat.end


FRAGMENTS = sorted({record.text for path in CORPUS for record in read_sample(path).records})[::7]


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(FRAGMENTS) | st.text(max_size=60),
            st.integers(0, 40_000_000),
            st.sampled_from((0, 1, None)),
        ),
        max_size=40,
    )
)
def test_any_mixture_of_kernel_lines_gives_ordered_disjoint_splats(
    lines: list[tuple[str, int, int | None]],
) -> None:
    records = tuple(Record(seq, usec, 4, facility, text) for seq, (text, usec, facility) in enumerate(lines))
    check_ranges(records, find_splats(records))


@given(st.text() | st.binary())
def test_no_input_makes_the_parsers_raise(text: str | bytes) -> None:
    for parse in PARSERS.values():
        find_splats(parse(text))


def kernel(*texts: str, gap_us: int = 50) -> tuple[Record, ...]:
    return tuple(Record(seq, 1_000_000 + seq * gap_us, 4, 0, text) for seq, text in enumerate(texts))


def test_blank_lines_behind_a_panic_are_none_of_it() -> None:
    splat = find_splats(kernel("Kernel panic - not syncing: hung_task: blocked tasks", "CPU: 0", "", " "))[0]
    assert splat.lines[-1] == "CPU: 0"


def test_same_bug_at_other_addresses_has_the_same_title_and_fingerprint() -> None:
    def oops(address: str, pid: int) -> Splat:
        log = kernel(
            f"BUG: unable to handle page fault for address: {address}",
            f"CPU: 1 UID: 0 PID: {pid} Comm: test",
            "RIP: 0010:test_destroy+0x44/0x80 [sch_test]",
            "---[ end trace 0000000000000000 ]---",
        )
        return find_splats(log)[0]

    one, other = oops("ffffffffdeadb000", 412), oops("ffff888108d6a800", 9)
    assert (one.title, one.fingerprint) == (other.title, other.fingerprint)
    assert one.fingerprint == "oops:test_destroy"


def test_different_functions_give_different_fingerprints() -> None:
    def warning(function: str) -> Splat:
        return find_splats(kernel(f"WARNING: CPU: 0 PID: 1 at net/core/dev.c:1 {function}+0x1/0x2"))[0]

    assert warning("netif_rx").fingerprint != warning("dev_close").fingerprint


def test_user_space_cannot_fake_a_splat_through_kmsg() -> None:
    assert find_splats(parse_kmsg("8,1,5,-;Kernel panic - not syncing: fake\n12,2,9,-;BUG: fake\n")) == ()


def test_silence_ends_a_splat_whose_end_was_lost() -> None:
    header = "WARNING: CPU: 0 PID: 1 at net/core/dev.c:1 netif_rx+0x1/0x2"
    tail = "Modules linked in:"
    assert len(find_splats(kernel(header, tail))[0].lines) == 2
    assert len(find_splats(kernel(header, tail, gap_us=6_000_000))[0].lines) == 1


def test_two_warnings_are_two_splats_even_when_the_ends_were_lost() -> None:
    header = "WARNING: CPU: 0 PID: 1 at net/core/dev.c:1 netif_rx+0x1/0x2"
    assert len(find_splats(kernel(header, "Modules linked in:", header))) == 2


def test_a_stall_is_blamed_on_what_was_interrupted_not_on_the_watchdog() -> None:
    log = kernel(
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "Call Trace:",
        " <IRQ>",
        " some_timer_callback+0x1/0x2",
        " </IRQ>",
        " <TASK>",
        " test_spin+0x1/0x2",
        " </TASK>",
    )
    assert find_splats(log)[0].functions == ("test_spin",)


def test_what_only_interrupts_did_is_blamed_when_there_is_nothing_else() -> None:
    log = kernel(
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "Call Trace:",
        " <IRQ>",
        " test_timer+0x1/0x2",
        " </IRQ>",
    )
    assert find_splats(log)[0].functions == ("test_timer",)


def test_a_reboot_in_the_same_console_ends_even_a_panic() -> None:
    log = kernel(
        "Kernel panic - not syncing: one", "Linux version 6.12.107", "Kernel panic - not syncing: two"
    )
    assert [splat.title for splat in find_splats(log)] == [
        "Kernel panic - not syncing: one",
        "Kernel panic - not syncing: two",
    ]


def test_whatever_a_panicked_kernel_says_belongs_to_its_panic() -> None:
    log = kernel(
        "Kernel panic - not syncing: stop",
        "---[ end Kernel panic - not syncing: stop ]---",
        "------------[ cut here ]------------",
        "WARNING: CPU: 0 PID: 1 at kernel/sched/core.c:1 resched_curr+0x1/0x2",
        "veth0: a last word that is no complaint",
    )
    (splat,) = find_splats(log)
    assert splat.fatal
    assert splat.kind == "panic"
    assert len(splat.lines) == 4


def test_ordinary_lines_are_no_splat_however_many() -> None:
    log = kernel(*(f"veth{number}: entered promiscuous mode" for number in range(20_000)))
    assert find_splats(log) == ()


def test_the_line_that_closes_one_report_does_not_open_the_next() -> None:
    rule = "=" * 66
    log = kernel(
        rule, "BUG: KASAN: use-after-free in f+0x1/0x2", "Read of size 8", rule, "BUG: Bad page state"
    )
    assert [(splat.start, splat.end) for splat in find_splats(log)] == [(0, 4), (4, 5)]
