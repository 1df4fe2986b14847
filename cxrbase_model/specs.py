"""What a plan says of the pictures, the network and the round: the parts of it that no stage changes."""

from __future__ import annotations

from dataclasses import dataclass

from cxrbase_model.settings import SettingsError, knob

ENCODERS: dict[str, tuple[int, int, int]] = {  # timm's names without patch and size: width, depth, heads
    "vit_micro": (128, 6, 4),
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
}


@dataclass(frozen=True)
class DataSpec:
    """How each hospital turns its archive into pixels, labels and splits; a cache built to another one is refused."""

    findings: tuple[str, ...] = knob(why="the label vocabulary, in the order of the classifier's outputs")
    image_size: int = knob(224, unit="pixels", low=16, high=2048, why="side of the square picture the model sees")
    aspect: str = knob(
        "pad",
        choices=("pad", "crop", "shortest", "stretch"),
        why="pad to a square; crop the centre square and resize it; resize the shortest side and crop; or stretch",
    )
    remove_borders: bool = knob(False, why="cut away black collimation borders before resizing")
    intensity: str = knob(
        "as-is", choices=("as-is", "equalize"),
        why="grey values as the archive shows them, or equalised: each level as often as any other, whatever the scanner's window",
    )  # fmt: skip
    validation: float = knob(0.1, low=0.0, high=0.5, why="share of the patients kept for choosing the model")
    test: float = knob(0.2, low=0.0, high=0.5, why="share of the patients kept for the one final test")
    uncertain: str = knob(
        "ignore", choices=("ignore", "zeros", "ones", "soft"), why="what an uncertain label counts as; soft is 0.5"
    )

    def __post_init__(self) -> None:
        if not self.findings:
            raise SettingsError("findings: expected at least one finding, found none")
        if len(set(self.findings)) != len(self.findings):
            raise SettingsError(f"findings: expected each finding once, found {list(self.findings)}")


@dataclass(frozen=True)
class ModelSpec:
    """The encoder and the light decoder it is pretrained with."""

    encoder: str = knob("vit_small", choices=tuple(ENCODERS), why="width, depth and heads of the ViT encoder")
    patch_size: int = knob(16, unit="pixels", low=2, high=64, why="side of a square patch; smaller sees finer detail")
    depth: int | None = knob(None, low=1, high=48, why="number of encoder blocks, where it is not the encoder's own")
    positions: str = knob(
        "fixed", choices=("fixed", "learned"), why="sines and cosines, or learned from those: wanted by foreign weights"
    )
    decoder: str = knob(
        "joint", choices=("joint", "cross"),
        why="hidden patches look at all others, or at the visible ones alone (CrossMAE, arXiv 2401.14391), which is cheaper",
    )  # fmt: skip
    decoder_width: int = knob(512, low=32, high=2048, why="embedding width of the decoder")
    decoder_depth: int = knob(2, low=1, high=16, why="decoder blocks; two suffice for radiographs (medical_mae)")
    decoder_heads: int = knob(8, low=1, high=32, why="attention heads of the decoder")

    def __post_init__(self) -> None:
        if self.decoder_width % 4:  # a sine and a cosine for the row and for the column
            raise SettingsError(f"decoder_width: expected a multiple of 4, found {self.decoder_width}")
        if self.decoder_width % self.decoder_heads:
            raise SettingsError(
                f"decoder_heads: expected a divisor of decoder_width {self.decoder_width}, found {self.decoder_heads}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, depth and heads of the encoder."""
        width, depth, heads = ENCODERS[self.encoder]
        return width, self.depth or depth, heads


@dataclass(frozen=True)
class Federation:
    """How hospitals are chosen, waited for, weighed and checked."""

    fraction: float = knob(1.0, low=0.001, high=1.0, why="share of the available hospitals asked in a round")
    quorum: int = knob(2, unit="hospitals", low=1, high=10_000, why="fewest admitted replies that make a round count")
    deadline: float = knob(3600.0, unit="seconds", low=1.0, high=604_800.0, why="longest wait for replies of a round")
    join_deadline: float = knob(
        600.0, unit="seconds", low=1.0, high=604_800.0, why="longest wait for the quorum to appear"
    )
    absence: float = knob(
        900.0, unit="seconds", low=0.0, high=604_800.0,
        why="longest wait for a hospital that has lost the connection, once the quorum is there",
    )  # fmt: skip
    repeats: int = knob(2, low=0, high=100, why="how often a round without quorum is repeated before the run stops")
    weighting: str = knob("examples", choices=("examples", "uniform"), why="weigh updates by examples, or all alike")
    max_update_norm: float | None = knob(
        None, low=0.0, why="largest admitted Euclidean norm of an update; none means that any finite one is admitted"
    )
    outlier: float | None = knob(
        None, low=1.0,
        why="largest admitted norm, as a multiple of the median of the stage's last rounds, or of what more than half of all hospitals "
        "reach where that is above it; none for any",
    )  # fmt: skip
    longest: float | None = knob(
        None, low=1.0,
        why="largest norm that counts, as a multiple of the median of the same round's updates, its first round included; none for any",
    )  # fmt: skip
    shortest: float | None = knob(
        None, low=1e-6, high=1.0,
        why="smallest norm that counts, as a share of that median, against who trains nothing; none for any, since few pictures "
        "honestly make a short update",
    )  # fmt: skip
    cosine: float | None = knob(
        None, low=-1.0, high=1.0,
        why="smallest cosine that counts of an update to the usual direction of the others of its round; none for any, since hospitals "
        "whose labels differ honestly pull apart",
    )  # fmt: skip
    claimed_examples: float | None = knob(
        2.0, low=1.0,
        why="most examples that a reply may claim, as a multiple of what the described pictures allow; none for any",
    )  # fmt: skip
    keep_checkpoints: int = knob(3, low=1, high=10_000, why="committed rounds whose weights stay on disk")

    def __post_init__(self) -> None:
        if self.compares and self.quorum < 3:
            raise SettingsError(
                f"quorum: expected at least 3 where longest, shortest or cosine is set, since of two nobody is unlike; found {self.quorum}"
            )

    @property
    def compares(self) -> bool:
        """Whether the updates of a round are held against each other before they count."""
        return any(limit is not None for limit in (self.longest, self.shortest, self.cosine))
