"""The process that assembles: its memory is its own, and it ends with its parent."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Final, Protocol

from shortstack.assembly.plan import AssembledVersion, AssemblyPlan
from shortstack.core.errors import Fatal, Poison, ShortstackError, Transient, wire_code

__all__ = ["Assembler", "ChildAssembler"]

_COMMAND: Final = (sys.executable, "-m", "shortstack.assembly.assemble")


class Assembler(Protocol):
    """Makes a version from a plan."""

    def __call__(self, plan: AssemblyPlan) -> AssembledVersion:
        """Blocks until the version is there.

        Raises:
            Transient: the object store is away; the same plan is tried again for as long as it is.
            Poison: the plan names what is not there.
            Fatal: it did not work, for whatever else; the same plan is tried a few times more.
        """
        ...


class ChildAssembler:
    """Runs `shortstack.assembly.assemble` in a process of its own, one a call. Calls may come from several threads.

    Args:
        timeout_s: after which a child is ended.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._closed = False
        self._children: set[subprocess.Popen[bytes]] = set()

    def __call__(self, plan: AssemblyPlan) -> AssembledVersion:
        """See `Assembler`."""
        with self._lock:
            if self._closed:
                raise Transient("the service is stopping", where=plan.prefix)
            child = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self._children.add(child)
        try:
            with child:
                out, words = self._talk(child, plan)
        finally:
            with self._lock:
                self._children.discard(child)
        if child.returncode != 0:
            raise _ended(child.returncode, words, plan.prefix)
        return AssembledVersion.from_json(out)

    @property
    def running(self) -> int:
        """Children at work."""
        with self._lock:
            return len(self._children)

    def close(self) -> None:
        """Ends every child: an interpreter waits for its threads, and those wait for them."""
        with self._lock:
            self._closed = True
            for child in self._children:
                child.kill()

    def _talk(self, child: subprocess.Popen[bytes], plan: AssemblyPlan) -> tuple[bytes, bytes]:
        try:
            return child.communicate(plan.to_json(), timeout=self._timeout_s)
        except subprocess.TimeoutExpired as error:
            child.kill()
            raise Fatal(
                f"assembling took longer than {self._timeout_s:.0f} s",
                where=plan.prefix,
                remedy="Raise SHORTSTACK_ASSEMBLY_TIMEOUT_S, or publish the dataset in smaller ones.",
            ) from error


def _ended(status: int, words: bytes, where: str) -> ShortstackError:
    """The error of a child that ended with ``status``; what `run_service` makes of an error, backwards."""
    lines = words.decode(errors="replace").strip().splitlines()
    said = lines[-1] if lines else f"the assembling process ended with status {status}"
    if status == wire_code(Transient("")).exit_code:
        return Transient(said, where=where)
    if status in {wire_code(kind("")).exit_code for kind in Poison.__subclasses__()}:
        return Poison(said, where=where)
    return Fatal(said, where=where, remedy="See the log of assembly, then: shortstack datasets retry NAME")
