# SPDX-License-Identifier: MIT
"""Addresses in a log become file and line, by a small program that stands for vmlinux."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.verdict.addresses import Decoder

SOURCE = """\
static inline __attribute__((always_inline)) int inner(volatile int *p)
{
	return *p / 3;
}
__attribute__((noinline)) int outer(volatile int *p)
{
	return inner(p) + 1;
}
int main(void)
{
	volatile int x = 1;
	return outer(&x);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vmlinux") / "source"
    folder.mkdir()
    (folder / "calls.c").write_text(SOURCE)
    built = folder / "vmlinux"
    subprocess.run(["gcc", "-g", "-O1", "-no-pie", "-o", str(built), str(folder / "calls.c")], check=True)
    return built


def symbol(program: Path, name: str) -> tuple[int, int]:
    output = subprocess.run(["nm", "-S", str(program)], check=True, capture_output=True, text=True).stdout
    words = next(line.split() for line in output.splitlines() if line.endswith(f" {name}"))
    return int(words[0], 16), int(words[1], 16)


def test_instruction_and_return_address_get_their_lines(program: Path) -> None:
    start, size = symbol(program, "main")
    disassembly = subprocess.run(
        ["objdump", "-d", "--disassemble=main", str(program)], check=True, capture_output=True, text=True
    ).stdout
    lines = [line for line in disassembly.splitlines() if "\t" in line]
    call = next(index for index, line in enumerate(lines) if "call" in line)
    behind = int(lines[call + 1].split(":")[0], 16) - start
    _, outer = symbol(program, "outer")
    log = f" main+0x{behind:x}/0x{size:x}\nRIP: 0010:outer+0x0/0x{outer:x}"
    returned, faulted = Decoder(program).decode(log).splitlines()
    assert returned == f" main+0x{behind:x}/0x{size:x} (calls.c:12)"
    assert faulted.startswith(f"RIP: 0010:outer+0x0/0x{outer:x} (calls.c:")
    assert faulted.endswith(("calls.c:6)", "calls.c:3, inlined at calls.c:7)"))


def test_what_vmlinux_does_not_know_stays_as_it_is(program: Path, tmp_path: Path) -> None:
    start, size = symbol(program, "outer")
    del start
    text = f" outer+0x1/0x{size:x} [kr_ops]\n outer+0x1/0x{size + 999:x}\n nothing+0x1/0x10\n no address at all\n"
    assert Decoder(program).decode(text) == text
    assert Decoder(tmp_path / "missing").decode(f"outer+0x1/0x{size:x}") == f"outer+0x1/0x{size:x}"
