# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from harness.verdict import Record, lost_records, parse_console, parse_kmsg, render


def test_kmsg_record_has_level_facility_and_time() -> None:
    (record,) = parse_kmsg("30,812,21304117,-;systemd[1]: ready\n")
    assert record == Record(812, 21304117, 6, 3, "systemd[1]: ready")
    assert not record.of_kernel


def test_kmsg_caller_is_kept() -> None:
    assert [record.caller for record in parse_kmsg("4,1,2,-,caller=T123;a\n4,2,3,-,caller=C1;b\n")] == [
        "T123",
        "C1",
    ]


def test_kmsg_dictionary_and_unknown_lines_are_dropped() -> None:
    text = "6,1,2,-;veth0: up\n SUBSYSTEM=net\n DEVICE=n2\nno record at all\n\n6,2,3,-;veth0: down\n"
    assert [record.text for record in parse_kmsg(text)] == ["veth0: up", "veth0: down"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (r"a\x5cb", "a\\b"),
        (r"caf\xc3\xa9", "café"),
        (r"tab\x09end", "tab\tend"),
        (r"bad\xff", "bad\N{REPLACEMENT CHARACTER}"),
        ("semi;colon, and comma", "semi;colon, and comma"),
    ],
)
def test_kmsg_escapes_are_undone(raw: str, text: str) -> None:
    (record,) = parse_kmsg(f"6,1,2,-;{raw}\n")
    assert record.text == text


def test_kmsg_message_with_line_breaks_becomes_records_of_one_sequence_number() -> None:
    records = parse_kmsg("4,7,2,-;one\\x0atwo\n")
    assert [(record.seq, record.text) for record in records] == [(7, "one"), (7, "two")]


def test_kmsg_fragment_continues_the_last_line_of_its_caller() -> None:
    text = "4,1,2,-,caller=T1;Modules linked in:\n6,2,2,-,caller=T2;other\n4,3,3,c,caller=T1; veth\n"
    assert [record.text for record in parse_kmsg(text)] == ["Modules linked in: veth", "other"]


def test_kmsg_fragment_with_nothing_to_continue_stands_alone() -> None:
    assert [record.text for record in parse_kmsg("4,3,3,c; veth\n")] == [" veth"]


def test_bytes_and_text_are_the_same() -> None:
    text = "4,3,3,-;café\n"
    assert parse_kmsg(text.encode()) == parse_kmsg(text)


@pytest.mark.parametrize(
    ("line", "text", "caller"),
    [
        ("[    1.234567] hello", "hello", ""),
        ("[    1.234567][  T123] hello", "hello", "T123"),
        ("[    1.234567][    C1]  indented", " indented", "C1"),
        ("[    1.234567] hello\r", "hello", ""),
        ("\x1b[0m[    1.234567] hello", "hello", ""),
        ("# echo c > /proc/sysrq-trigger[    1.234567] hello", "hello", ""),
        ("[    1.234567] ", "", ""),
        ("[    1.234567] a [    0.000001] b", "a [    0.000001] b", ""),
    ],
)
def test_console_line(line: str, text: str, caller: str) -> None:
    (record,) = parse_console(f"SeaBIOS (version 1.16.3)\n{line}\nlogin: \n")
    assert (record.text, record.caller, record.timestamp_us) == (text, caller, 1_234_567)
    assert (record.level, record.facility) == (None, None)
    assert record.of_kernel


def test_console_line_with_a_level_prefix() -> None:
    (record,) = parse_console("<12>[   12.000001] from user space\n")
    assert (record.level, record.facility, record.timestamp_us) == (4, 1, 12_000_001)


def test_overwritten_records_are_counted() -> None:
    assert lost_records(parse_kmsg("6,1,2,-;a\n6,2,2,-;b\\x0ac\n6,9,3,-;d\n6,10,3,-;e\n")) == 6
    assert lost_records(()) == 0


def test_rendered_records_parse_back() -> None:
    text = "[    1.234567] one\n[   21.000001][  T123]  two\n"
    assert render(parse_console(text)) == text
