"""How weights and updates are packed for the wire: the plan's `transport:` section."""

from __future__ import annotations

from dataclasses import dataclass

from cxrbase_model.settings import knob

PRECISIONS = ("float32", "bf16", "int8")
SPARSE = "topk"  # of updates alone: most numbers are left out
COMPRESSIONS = ("none", "zstd")
# Of Flower's pieces: two are on their way at a time, and are sent again where a line breaks; each costs the SuperLink about 10 ms.
CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Packing:
    """How a state travels: one of PRECISIONS or SPARSE, one of COMPRESSIONS, and the share of numbers that SPARSE keeps."""

    precision: str = "float32"
    compress: str = "none"
    keep: float = 1.0

    @property
    def is_exact(self) -> bool:
        """Whether unpacking gives the very numbers that were packed."""
        return self.precision == "float32"


EXACT = Packing()


@dataclass(frozen=True)
class Transport:
    """Bytes against exactness, for each direction.

    The default sends at most 0.34 of the bytes of float32 down and 0.26 up; docs/aggregation.md has what it does to AUROC.
    `{broadcast: float32, update: float32, compress: none}` is exact.
    """

    broadcast: str = knob(
        "bf16",
        choices=PRECISIONS,
        why="precision of the weights that hospitals train from; the server keeps them whole, so small steps still add up",
    )
    update: str = knob(
        "auto",
        choices=("auto", *PRECISIONS, SPARSE),
        why="precision of updates; auto is int8, or float32 where aggregation.secure, privacy or scaffold wants exact ones; topk sends the largest numbers of each tensor alone, as bf16 (Aji and Heafield 2017, arXiv "
        "1704.05021); what is left out stays in the hospital and is added to its next update",
    )
    keep: float = knob(0.05, low=1e-5, high=1.0, why="share of each tensor's numbers that topk sends, at least one")
    compress: str = knob("zstd", choices=COMPRESSIONS, why="lossless compression of both")
    difference: bool = knob(
        True,
        why="weights travel as what has changed since those that the hospital holds, which loses nothing; whole to a hospital that "
        "does not hold them, and to all where compress is none, since only zstd makes small changes short",
    )

    compress_update: str = knob(
        "same",
        choices=("same", *COMPRESSIONS),
        why="another choice for updates: int8 hardly gets smaller, for seconds of work",
    )

    def down(self, kind: str) -> Packing:
        """How the weights of a round of that kind are packed; an evaluation is of the very weights that are exported."""
        return Packing("float32" if kind == "evaluate" else self.broadcast, self.compress)

    @property
    def differs(self) -> bool:
        """Whether weights travel as differences."""
        return self.difference and self.compress == "zstd"

    @property
    def up(self) -> Packing:
        """How updates are packed."""
        compress = self.compress if self.compress_update == "same" else self.compress_update
        update = "int8" if self.update == "auto" else self.update
        return Packing(update, compress, self.keep if update == SPARSE else 1.0)
