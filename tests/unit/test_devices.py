# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
import socket

import pytest

from harness.errors import KernrigError
from harness.vm import devices
from harness.vm.shape import Shape


def test_command_line_is_the_devices_in_order() -> None:
    line = devices.command_line(
        "/usr/bin/qemu", [devices.Board(384, 2, "max"), devices.Tcg(threads=True), devices.SerialConsole(7)]
    )
    assert line[0] == "/usr/bin/qemu"
    assert line[line.index("-m") + 1] == "384M"
    assert line[line.index("-smp") + 1] == "2"
    assert line.index("-accel") < line.index("-serial")
    assert "socket,id=console,fd=7" in line


def test_nothing_is_there_by_default_and_there_is_no_network() -> None:
    words = list(devices.Board(384, 1, "max").arguments())
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(words)
    assert not any("net" in word for word in words)


@pytest.mark.parametrize(("shared", "mode"), [(True, "share=on"), (False, "share=off,readonly=on,rom=off")])
def test_only_a_template_being_made_writes_to_its_memory_file(shared: bool, mode: str) -> None:
    (_, word) = devices.Memory(5, 384, shared=shared).arguments()
    assert word == f"memory-backend-file,id=mem,size=384M,mem-path=/proc/self/fd/5,{mode}"


@pytest.mark.parametrize(("threads", "word"), [(True, "thread=multi"), (False, "thread=single")])
def test_translator_threads(threads: bool, word: str) -> None:
    assert word in next(iter(list(devices.Tcg(threads=threads).arguments())[1:])).split(",")


def test_kvm_is_a_descriptor_that_was_opened_for_it() -> None:
    assert list(devices.Kvm(9).arguments()) == ["-add-fd", "fd=9,set=1", "-accel", "kvm,device=/dev/fdset/1"]


def test_ports_are_numbered_and_named() -> None:
    words = list(devices.VirtioPorts((("a.control", 3), ("b.ssh", 4))).arguments())
    assert "virtio-serial-pci,id=ports,max_ports=3,disable-legacy=on" in words
    assert "virtserialport,bus=ports.0,nr=2,chardev=port2,name=b.ssh" in words
    assert "socket,id=port1,fd=3" in words


def test_orders_of_a_clone_are_complete_qmp_in_the_right_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        orders = [json.loads(line) for line in devices.Incoming(11, 12, ours).orders().splitlines()]
    assert [order["execute"] for order in orders] == [
        *("qmp_capabilities", "migrate-set-capabilities", "migrate-incoming"),
    ]
    assert orders[1]["arguments"]["capabilities"] == [{"capability": "x-ignore-shared", "state": True}]
    assert orders[2]["arguments"] == {"uri": "file:/proc/self/fd/11"}


def test_sandbox_denies_what_it_can() -> None:
    (_, word) = devices.Sandbox().arguments()
    assert word.startswith("on,")
    assert {"spawn=deny", "elevateprivileges=deny", "resourcecontrol=deny"} <= set(word.split(","))


@pytest.mark.parametrize("wrong", [{"cpus": 0}, {"cpus": 65}, {"memory": 255}])
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(KernrigError) as caught:
        Shape(**wrong)  # type: ignore[arg-type]
    assert caught.value.hint


def test_kernel_with_kasan_gets_twice_the_memory() -> None:
    shape = Shape(2, 400)
    assert shape.on({"CONFIG_KASAN": "y"}) == Shape(2, 800)
    assert shape.on({"CONFIG_KFENCE": "y"}) is shape


def test_shape_in_words() -> None:
    assert str(Shape(1, 384)) == "1 CPU, 384 MiB"
    assert str(Shape(2, 512, ("a=1", "b"))) == "2 CPUs, 512 MiB, append 'a=1 b'"
