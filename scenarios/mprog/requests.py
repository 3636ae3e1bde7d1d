# SPDX-License-Identifier: MIT
"""Tables of requests: each row goes to the list `A B* C` and says what becomes of the list, or the errno.

A row is `request | flags | anchor | replaced | result`, as in the spec's table of vectors. The request is
`attach P`, `link P`, `detach P` or, without naming a program, `detach -`. Link b owns B (`B*`); what else a
row may name is in the docstring of `Bench`. With the flag ID the anchor is named by its id, else by its
descriptor; `-` is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.guest.bpf import cgroup, netkit, tcx, uapi
from harness.guest.bpf.asm import asm, exit_, mov, r0
from harness.guest.bpf.attrs import LinkCreateMprog, ProgAttach
from harness.guest.bpf.descriptor import Descriptor
from harness.guest.bpf.link import Link
from harness.guest.bpf.map import Map
from harness.guest.bpf.probe import has
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.syscall import BpfError, bpf
from harness.guest.net import Device, VethPair
from harness.guest.rtnl import new_netkit
from scenarios.conftest import LoadSchedCls

FLAGS = {
    "0": 0,
    "BEFORE": uapi.BPF_F_BEFORE,
    "AFTER": uapi.BPF_F_AFTER,
    "REPLACE": uapi.BPF_F_REPLACE,
    "ID": uapi.BPF_F_ID,
    "LINK": uapi.BPF_F_LINK,
    "OVERRIDE": uapi.BPF_F_ALLOW_OVERRIDE,
    "MULTI": uapi.BPF_F_ALLOW_MULTI,
    "PREORDER": uapi.BPF_F_PREORDER,
    "UNKNOWN": 1 << 20,
}

Named = Descriptor | int


@dataclass(frozen=True)
class Bench:
    """The list `A B* C` of one direction of a device, and things to name in requests.

    Programs: D and X are not in this list. F is of another type. Links: b owns B here; x owns A on another
    device; o owns B in this device's other direction; z owned A here and has been detached (A was attached
    again, directly); f is of another kind and holds F; k, where there is netkit, owns A there. `map` is a
    descriptor of neither kind, `shut` a number that is no open descriptor and no id of anything.
    """

    dev: Device
    attach_type: int
    things: dict[str, Named]

    def check(self, table: str) -> None:
        """Send each row's request to `A B* C`. Raises AssertionError that names the rows that came out otherwise."""
        wrong = []
        for row in filter(None, map(str.strip, table.splitlines())):
            request, flags, anchor, replaced, expected = (cell.strip() for cell in row.split("|"))
            if anchor == "k" and anchor not in self.things:
                continue
            before = self.state()
            with self._sent(request, flags, anchor, replaced) as outcome:
                after = self.state()
                changed = outcome == ""
                shown = self.shown() if changed else outcome
                revision = before[0].revision + changed
                if shown != expected or after[0].revision != revision or not (changed or after == before):
                    wrong.append(f"{row}: {shown}, revision {before[0].revision} -> {after[0].revision}")
            self._repair()
        assert not wrong, "\n".join(wrong)

    def shown(self) -> str:
        """The list as it is now, in the spec's notation. A link's id that is not the owner's is shown as `?`."""
        found = tcx.query(self.dev, attach_type=self.attach_type)
        names = {thing.id: name for name, thing in self.things.items() if isinstance(thing, Prog)}
        marks = {0: "", self._link("b").id: "*"}
        return " ".join(
            names[prog] + marks.get(link, "*" if link in Link.ids() else "?")
            for prog, link in zip(found.prog_ids, found.link_ids, strict=True)
        )

    def state(self) -> tuple[tcx.QueryResult, object]:
        """All that a refused request must leave as it was."""
        return tcx.query(self.dev, attach_type=self.attach_type), self._link("b").info()

    @contextmanager
    def _sent(self, request: str, flags: str, anchor: str, replaced: str) -> Iterator[str]:
        """Carries out the request and yields the errno's name, or nothing; a link is closed when the block ends."""
        verb, prog = request.split()
        number = sum(FLAGS[name] for name in flags.split())
        relative = self.number(anchor, by_id=bool(number & uapi.BPF_F_ID))
        made: Link | None = None
        try:
            if verb == "link":
                made = Link.create(
                    LinkCreateMprog(
                        prog_fd=self.number(prog),
                        target_ifindex=self.dev.ifindex,
                        attach_type=self.attach_type,
                        flags=number,
                        relative_fd=relative,
                    )
                )
            else:
                attr = ProgAttach(
                    target_ifindex=self.dev.ifindex,
                    attach_bpf_fd=self.number(prog),
                    attach_type=self.attach_type,
                    attach_flags=number,
                    replace_bpf_fd=self.number(replaced),
                    relative_fd=relative,
                )
                bpf(uapi.BPF_PROG_ATTACH if verb == "attach" else uapi.BPF_PROG_DETACH, attr)
        except BpfError as error:
            yield error.errno_name
            return
        try:
            yield ""
        finally:
            if made is not None:
                made.close()

    def number(self, name: str, *, by_id: bool = False) -> int:
        """What names a thing in the attributes: its descriptor or its id, or the number that it is."""
        thing = 0 if name == "-" else self.things[name]
        if isinstance(thing, int):
            return thing
        if by_id:
            assert isinstance(thing, Prog | Link)
            return thing.id
        return thing.fd

    def _link(self, name: str) -> Link:
        link = self.things[name]
        assert isinstance(link, Link)
        return link

    def _repair(self) -> None:
        """Make the list `A B* C` again, whatever a row made of it."""
        found = self.shown().split()
        for extra in set(found) - {"A", "B*", "C"}:
            tcx.detach(self.dev, self.number(extra), attach_type=self.attach_type)
        if "A" not in found:
            tcx.attach(self.dev, self.number("A"), attach_type=self.attach_type, flags=uapi.BPF_F_BEFORE)
        if "C" not in found:
            tcx.attach(self.dev, self.number("C"), attach_type=self.attach_type)
        if found != ["A", "B*", "C"]:
            assert self.shown() == "A B* C", f"{found} could not be repaired: {self.shown()}"


@contextmanager
def laid_out(veth: VethPair, attach_type: int, load: LoadSchedCls, group: Path) -> Iterator[Bench]:
    """A bench at end b of `veth`, in whose namespace the caller is; `group` is a cgroup for link f."""
    other = uapi.BPF_TCX_EGRESS if attach_type == uapi.BPF_TCX_INGRESS else uapi.BPF_TCX_INGRESS
    things: dict[str, Named] = {"shut": 1 << 30}
    progs = {name: load(name=name) for name in ("A", "B", "C", "D", "X")}
    with ExitStack() as stack:
        hold = stack.enter_context
        foreign = hold(Prog.load(asm(mov(r0, 1), exit_()), uapi.BPF_PROG_TYPE_CGROUP_SKB, name="F"))
        things["f"] = hold(cgroup.link(group, foreign))
        things["map"] = hold(Map.create(uapi.BPF_MAP_TYPE_ARRAY, 4, 4, 1))
        things["z"] = retired = hold(tcx.link(veth.b, progs["A"], attach_type=attach_type))
        retired.detach()
        with veth.ns_a.entered():
            things["x"] = hold(tcx.link(veth.a, progs["A"], attach_type=attach_type))
        things["o"] = hold(tcx.link(veth.b, progs["B"], attach_type=other))
        if has("netkit"):
            primary = 501
            veth.ns_b.rtnl.request(
                new_netkit("nk", primary, "nk_peer", primary + 1, veth.ns_b.fd, policy=uapi.NETKIT_PASS)
            )
            things["k"] = hold(netkit.link(primary, progs["A"]))
        tcx.attach(veth.b, progs["A"], attach_type=attach_type)
        things["b"] = hold(tcx.link(veth.b, progs["B"], attach_type=attach_type))
        tcx.attach(veth.b, progs["C"], attach_type=attach_type)
        yield Bench(veth.b, attach_type, {**things, **progs, "F": foreign})
