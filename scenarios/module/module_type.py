# SPDX-License-Identifier: MIT
"""A struct_ops type of a loaded module of ours: programs for its members, with the module's kfuncs, and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from harness.guest.bpf import btf, uapi
from harness.guest.bpf.asm import Insn, Item, asm, call_kfunc, exit_, mov, r0
from harness.guest.bpf.btf import BtfObject
from harness.guest.bpf.prog import Prog
from harness.guest.bpf.struct_ops import Filling, StructOps

_MODULE_IN_FD_ARRAY = 1


class ModuleType:
    """Type `name` of the loaded module; the module's BTF is parsed once."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name
        self.btf = btf.module(module)
        self.id = self.btf.struct(name)

    def kfunc(self, name: str) -> Insn:
        """A call of one of the module's kfuncs. Raises LookupError."""
        return call_kfunc(self.btf.func(name), _MODULE_IN_FD_ARRAY)

    def load(
        self,
        member: str,
        *items: Item,
        flags: int = 0,
        types: BtfObject | None = None,
        func_info: Sequence[tuple[int, int]] = (),
    ) -> Prog:
        """A program of these instructions, and an exit, for a member; with `types` of its own, and where its functions
        begin, if it has several. Raises BpfError, LookupError.
        """
        return Prog.load(
            asm(*items, exit_()),
            uapi.BPF_PROG_TYPE_STRUCT_OPS,
            name=member,
            expected_attach_type=self.btf.member(self.id, member).index,
            attach_btf_id=self.id,
            attach_btf_obj_fd=self.btf.object.fd,
            flags=flags,
            fd_array=[0, self.btf.object],
            btf=types,
            func_info=func_info,
        )

    def returning(self, member: str, value: int) -> Prog:
        """A program for a member that returns `value`. Raises BpfError, LookupError."""
        return self.load(member, mov(r0, value))

    def empty_table(self, *, flags: int = 0) -> StructOps:
        """A map of this type in its first state. Raises BpfError."""
        return StructOps.create(self.name, flags=flags, module=self.module)

    def table(self, filling: Mapping[str, Filling], *, flags: int = 0) -> StructOps:
        """A map that is filled with these members: registered, or with BPF_F_LINK ready to be. Raises BpfError."""
        table = self.empty_table(flags=flags)
        try:
            table.update(filling)
        except BaseException:
            table.close()
            raise
        return table

    @contextmanager
    def linked(self, filling: Mapping[str, Filling]) -> Iterator[StructOps]:
        """A table that a link registers while the context lasts. Raises BpfError."""
        with self.table(filling, flags=uapi.BPF_F_LINK) as table, table.link():
            yield table
