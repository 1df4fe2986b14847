"""How weights and updates are packed for the wire: the plan's `transport:` section."""

from __future__ import annotations

from dataclasses import dataclass

from cxrbase_model.settings import knob

PRECISIONS = ("float32", "bf16", "int8")
COMPRESSIONS = ("none", "zstd")


@dataclass(frozen=True)
class Packing:
    """How a state travels: one of PRECISIONS, and one of COMPRESSIONS."""

    precision: str = "float32"
    compress: str = "none"

    @property
    def is_exact(self) -> bool:
        """Whether unpacking gives the very numbers that were packed."""
        return self.precision == "float32"


EXACT = Packing()


@dataclass(frozen=True)
class Transport:
    """Bytes against exactness, for each direction."""

    broadcast: str = knob(
        "float32",
        choices=PRECISIONS,
        why="precision of the weights that hospitals train from; the server keeps them whole, so small steps still add up",
    )
    update: str = knob(
        "float32",
        choices=PRECISIONS,
        why="precision of updates; what rounding leaves out stays in the hospital and is added to its next update",
    )
    compress: str = knob("none", choices=COMPRESSIONS, why="lossless compression of both")

    def down(self, kind: str) -> Packing:
        """How the weights of a round of that kind are packed; an evaluation is of the very weights that are exported."""
        return Packing("float32" if kind == "evaluate" else self.broadcast, self.compress)

    @property
    def up(self) -> Packing:
        """How updates are packed."""
        return Packing(self.update, self.compress)
