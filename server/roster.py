"""Which hospital is behind which node, as each described itself in this session."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from server.records import Record


@dataclass
class Roster:
    """The hospitals of a session."""

    sites: dict[str, int] = field(default_factory=dict)  # name to node number
    kinds: dict[str, list[str]] = field(default_factory=dict)  # name to the task kinds it can take part in
    entries: dict[str, Record] = field(default_factory=dict)  # name to its line in the record
    asked: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def admit(self, node: int, line: Record, kinds: list[str]) -> None:
        """Take in what a hospital has said of itself; a node that it had before is forgotten."""
        name = line["site"]
        self.sites[name], self.kinds[name], self.entries[name] = node, kinds, line

    def refuse(self, node: int, line: Record) -> None:
        """Note that a node has refused to describe itself; the line of a hospital that has joined stays."""
        if line["site"] not in self.sites:
            self.entries[line["site"]] = line
        self.refused.add(node)

    def ask_refused_again(self) -> None:
        """Let the hospitals that refused be asked anew: they may have mended what was wrong."""
        self.asked -= self.refused
        self.refused.clear()

    def is_complete(self, expected: int | None, quorum: int) -> bool:
        """Whether all that are expected have answered, be it by a refusal, or enough have joined where none are."""
        if expected is None:
            return len(self.sites) >= quorum
        return len(self.sites) + len(self.refused) >= expected

    def able(self, kind: str, nodes: Iterable[int]) -> list[str]:
        """The connected hospitals that can take part in a task of that kind, sorted."""
        present = set(nodes)
        return sorted(name for name, node in self.sites.items() if node in present and kind in self.kinds[name])

    def names(self) -> dict[int, str]:
        """The hospital behind each node."""
        return {node: name for name, node in self.sites.items()}
