# SPDX-License-Identifier: MIT
"""`kernrig kernel`: which kernels there are, fetching them, and what they can do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from harness.cli.failure import say
from harness.cli.options import read_settings, shared_options
from harness.deadline import Deadline, DeadlineError
from harness.errors import KernrigError

if TYPE_CHECKING:
    from harness.kernels import AvailableKernel, Kernel, KernelConfig
    from harness.kernels.source.build import Progress
    from harness.settings import Settings
    from harness.vm.machine import Machine

NOTABLE = (
    "CONFIG_HZ",
    "CONFIG_PREEMPT",
    "CONFIG_PREEMPT_DYNAMIC",
    "CONFIG_MODULES",
    "CONFIG_MODULE_SIG_FORCE",
    "CONFIG_DEBUG_INFO_BTF_MODULES",
    "CONFIG_BPF_JIT_ALWAYS_ON",
    "CONFIG_BPF_LSM",
    "CONFIG_FUNCTION_TRACER",
    "CONFIG_NET_XGRESS",
    "CONFIG_NETKIT",
    "CONFIG_SCHED_CLASS_EXT",
    "CONFIG_KASAN",
    "CONFIG_KCSAN",
    "CONFIG_UBSAN",
    "CONFIG_PROVE_LOCKING",
    "CONFIG_DEBUG_KMEMLEAK",
    "CONFIG_DEBUG_ATOMIC_SLEEP",
)
"""Options that decide what can be tested, and what the kernel notices by itself."""

_PROBE_SECONDS = 60


@click.group(short_help="list, fetch and show kernels")
def kernel() -> None:
    """Kernels: those that Debian has, and those that were given by path."""


@kernel.command("list", short_help="kernels that Debian's suites have")
@click.option("--all", "everything", is_flag=True, help="the incomplete ones too, with the reason")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def list_(everything: bool, as_json: bool) -> None:
    """The kernels that Debian's suites have, oldest first; `*` marks those that are fetched already."""
    from dataclasses import asdict

    from harness import kernels
    from harness.cache import Cache

    found = [each for each in kernels.available(Cache.default(), say) if everything or not each.incomplete]
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=1))
        return
    for line in _table(found):
        click.echo(line)


@kernel.command(short_help="fetch kernels")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--refresh", is_flag=True, help="ask Debian's lists again, even if they were asked a while ago")
def fetch(names: tuple[str, ...], refresh: bool) -> None:
    """Get the kernels ready to boot: debian, debian:6.12, debian:VERSION, debian:SUITE or a bzImage's path."""
    from harness import kernels
    from harness.cache import Cache

    for name in names:
        found = kernels.resolve(name, cache=Cache.default(), say=say, refresh=refresh)
        click.echo(f"{name}: {found.release} ({found.provenance.package} {found.provenance.version})")


@kernel.command(short_help="build kernels from source")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--refresh", is_flag=True, help="ask Debian's lists again, even if they were asked a while ago")
def build(names: tuple[str, ...], refresh: bool) -> None:
    """Build kernels: tree:PATH[@REV][+FLAVOUR...] or deb-source:SERIES[+FLAVOUR...].

    Flavours are debug, coverage, race, and clang for another compiler. A tree is only read, never written to. What was
    built before is not built again, and a build after a small change is small.
    """
    from harness.cache import Cache
    from harness.kernels import source

    for name in names:
        with _bar(name) as progress:
            found = source.resolve(name, cache=Cache.default(), say=say, refresh=refresh, progress=progress)
        click.echo(f"{name}: {found.release} ({found.provenance.version}), {found.vmlinuz}")


@kernel.command(short_help="a kernel's configuration, or how two differ")
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--diff", "pair", nargs=2, metavar="A B", help="only the options in which A and B differ")
def config(names: tuple[str, ...], pair: tuple[str, str] | None) -> None:
    """The configuration of the kernels NAME, each a kernel's name or a file with a configuration.

    A kernel from source is configured for this, not built.
    """
    from harness.bisect.options import differences

    if pair is not None:
        if names:
            raise click.UsageError("--diff takes both names itself")
        left, right = (_config(each) for each in pair)
        for each in differences(left, right):
            click.echo(f"{each.option:<48} {each.good:<24} {each.bad}")
        return
    if not names:
        raise click.UsageError("name a kernel")
    for name in names:
        for option, value in sorted(_config(name).items()):
            click.echo(f"{option}={value}")


@kernel.command(short_help="where a kernel comes from and what it can do")
@click.argument("name", metavar="NAME")
@shared_options("modules", "qemu", "accel")
@click.option(
    "--features/--no-features", default=True, show_default=True, help="probe the features in a clone"
)
@click.option("--json", "as_json", is_flag=True, help="as JSON, with the whole configuration")
def show(name: str, features: bool, as_json: bool, **given: Any) -> None:
    """One kernel: release, files, provenance with checksums, notable options, and what scenarios may rely on.

    It is fetched when it has to be. The features are found out by behaviour, in a clone.
    """
    from harness import kernels
    from harness.cache import Cache

    settings = read_settings(given | {"kr_kernel": (name,)})
    found = kernels.resolve(name, modules=settings.modules, cache=Cache.default(), say=say)
    facts = describe(found)
    failure: Exception | None = None
    if features:
        try:
            facts["features"] = _features(settings)
        except (KernrigError, DeadlineError) as error:
            failure = error
    if as_json:
        facts["config"] = dict(found.config)
        click.echo(json.dumps(facts, indent=1))
    else:
        click.echo("\n".join(_lines(facts)))
    if failure is not None:
        raise failure  # what is known without booting the kernel has been shown


def _config(name: str) -> KernelConfig:
    from pathlib import Path

    from harness import kernels
    from harness.cache import Cache
    from harness.kernels import source, vmlinux
    from harness.kernels.config import KernelConfig

    path = Path(name).expanduser()
    if path.is_file():
        try:
            vmlinux.identify(path)
        except KernrigError:
            return KernelConfig.read(path)
    if source.is_name(name):
        return KernelConfig.parse(source.settled(name, cache=Cache.default(), say=say))
    return kernels.resolve(name, cache=Cache.default(), say=say).config


@contextmanager
def _bar(name: str) -> Iterator[Progress | None]:
    """A progress bar on a terminal; None elsewhere, where a line now and then has to do."""
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label=name, file=sys.stderr, item_show_func=_short) as bar:

        def progress(done: int, total: int | None, file: str) -> None:
            # Without an earlier build to go by, the end is not known.
            bar.length = max(total or 2 * done, done)
            bar.pos = done - 1
            bar.update(1, file)

        yield progress


def _short(file: str | None) -> str:
    return "" if file is None else file[-40:]


def describe(kernel: Kernel) -> dict[str, Any]:
    """What is known about a kernel without booting it, as JSON's types."""
    origin = kernel.provenance
    return {
        "name": kernel.name,
        "release": kernel.release,
        "vmlinuz": str(kernel.vmlinuz),
        "modules": str(kernel.modules) if kernel.modules is not None else None,
        "btf": str(kernel.btf),
        "btf_bytes": kernel.btf.stat().st_size,
        "digest": kernel.digest,
        "provenance": {
            "source": origin.source,
            "package": origin.package,
            "version": origin.version,
            "sha256": origin.sha256,
            "suites": list(origin.suites),
            "parts": list(origin.parts),
        },
        "config": {option: kernel.config.get(option, "n") for option in NOTABLE},
    }


def _features(settings: Settings) -> dict[str, bool | str]:
    """Each feature that scenarios can require, and whether a booted machine has it (or why that is unknown); last the
    kernel's own struct_ops types.
    """
    from harness.cli.session import lend_machine
    from harness.guest.bpf.probe import FEATURES

    with lend_machine(settings) as machine:
        found = {feature: _has(machine, feature) for feature in FEATURES}
        return found | _struct_ops_types(machine)


def _has(machine: Machine, feature: str) -> bool | str:
    answer, failure = _ask(machine, "harness.guest.bpf.probe:has", feature)
    return failure or bool(answer)


def _struct_ops_types(machine: Machine) -> dict[str, bool | str]:
    """The types as scenarios name them, all of which the kernel has: nobody knows those that it lacks."""
    answer, failure = _ask(machine, "harness.guest.bpf.struct_ops:types")
    return {"struct_ops:*": failure} if failure else {f"struct_ops:{name}": True for name in answer}


def _ask(machine: Machine, target: str, *arguments: str) -> tuple[Any, str]:
    """What a function returns in the machine, and "", or None and why it did not."""
    request = {"op": "call", "target": target, "args": list(arguments), "kwargs": {}}
    what = f"the probe of {' '.join(arguments) or target}"
    answer: Any = None
    failure = "no answer"
    for message in machine.job(request, deadline=Deadline.after(_PROBE_SECONDS, what)):
        if message["type"] == "result":
            answer, failure = message["value"], ""
        elif message["type"] == "error":
            failure = f"{message['exception']}: {message['text']}".splitlines()[0]
    return answer, failure


def _table(found: Sequence[AvailableKernel]) -> Iterator[str]:
    """The list for a terminal: a mark for those in the cache, name, release, suites, what is wrong."""
    names = max((len(each.name) for each in found), default=0)
    releases = max((len(each.release) for each in found), default=0)
    for each in found:
        mark = "*" if each.fetched else " "
        line = f"{mark} {each.name:<{names}}  {each.release:<{releases}}  {', '.join(each.suites)}"
        yield f"{line}  (incomplete: {each.incomplete})" if each.incomplete else line


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    """The facts for a terminal."""
    origin = facts["provenance"]
    suites = f" ({', '.join(origin['suites'])})" if origin["suites"] else ""
    yield f"release     {facts['release']}"
    yield f"from        {origin['source']}: {origin['package']} {origin['version']}{suites}"
    yield f"kernel      {facts['vmlinuz']}"
    yield f"  sha256    {origin['sha256']}"
    yield f"modules     {facts['modules'] or 'none'}"
    yield f"BTF         {facts['btf']} ({facts['btf_bytes'] / 2**20:.1f} MiB)"
    for part in origin["parts"]:
        yield f"made from   {part}"
    settings = facts["config"]
    yield from _wrapped("options", [f"{name.removeprefix('CONFIG_')}={settings[name]}" for name in settings])
    features = facts.get("features", {})
    yield from _wrapped("features", [name for name, has in features.items() if has is True])
    yield from _wrapped("lacks", [name for name, has in features.items() if has is False])
    for name, why in features.items():
        if isinstance(why, str):
            yield f"unknown     {name}: {why}"


def _wrapped(title: str, words: Sequence[str]) -> list[str]:
    import textwrap

    if not words:
        return []
    text = " ".join(words)
    return textwrap.wrap(text, 100, initial_indent=f"{title:<12}", subsequent_indent=" " * 12)
