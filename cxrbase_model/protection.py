"""What a plan asks for so that single updates stay hidden: its `aggregation.secure:` and `aggregation.privacy:` sections."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cxrbase_model.settings import SettingsError, knob

TAILS = 9  # standard deviations of noise that a span has room for; a draw beyond is refused, once in 10^18


@dataclass(frozen=True)
class Secure:
    """Secure aggregation (Bonawitz et al. 2017, CCS): the server learns the sum of a round's updates and no single one.

    Cost: four short exchanges instead of one, and masks as long as the update, one for each other hospital.
    """

    threshold: int = knob(
        2, unit="hospitals", low=2, high=200,
        why="fewest that must stay to the end of a round, and whose shares together open a mask; always more than half of the round's",
    )  # fmt: skip
    bits: int = knob(32, unit="bits", choices=(16, 32), why="width of a number on the wire; 16 wants a tight span")
    span: float = knob(
        1.0, low=1e-6, high=1e6,
        why="largest magnitude of one number of an update; one beyond is refused; with privacy the span follows from clip and noise",
    )  # fmt: skip
    hospitals: int = knob(
        50, unit="hospitals", low=3, high=200, why="most hospitals of a round: the sum has room for them"
    )
    examples: int = knob(
        100_000, unit="examples", low=1, high=10_000_000,
        why="largest weight, where weighting is by examples; a hospital with more counts as so many",
    )  # fmt: skip
    deadline: float = knob(
        300.0, unit="seconds", low=0.5, high=86_400.0, why="longest wait for each exchange that follows the training"
    )


@dataclass(frozen=True)
class Adaptive:
    """Clipping that follows a quantile of the norms (Andrew et al. 2021, arXiv 1905.03871), from noised counts of short updates."""

    quantile: float = knob(0.5, low=0.01, high=0.99, why="share of the updates that shall not be clipped")
    lr: float = knob(0.2, low=0.001, high=2.0, why="rate of the bound's geometric step")
    count_noise: float = knob(
        1.0, low=0.51, high=1000.0,
        why="noise of the count in multiples of noise_multiplier; the update's noise is raised so that both together cost the same",
    )  # fmt: skip


@dataclass(frozen=True)
class HospitalPrivacy:
    """Differential privacy of whole hospitals (DP-FedAvg, McMahan et al. 2018, arXiv 1710.06963): each update is clipped, and the sum
    of a round gets Gaussian noise once. Neighbouring runs have the same hospitals and differ in the updates of one, which are zero in
    the other run. The sum is divided by how many hospitals were asked, which no update changes. docs/hospital-privacy.md has the rest.
    """

    clip: float = knob(
        1.0, low=1e-9, high=1e9, why="largest Euclidean norm of an update, or the first bound if adaptive"
    )
    noise_multiplier: float = knob(
        1.0, low=0.0, high=1000.0, why="standard deviation of the sum's noise over clip; 0 clips and promises nothing"
    )
    delta: float = knob(1e-5, low=1e-15, high=0.1, why="chance with which epsilon may not hold")
    noise: str = knob(
        "server", choices=("server", "hospitals"),
        why="who adds the noise: the server, trusted to do so, or each hospital its share, so that no sum without noise exists",
    )  # fmt: skip
    honest: int | None = knob(
        None, unit="hospitals", low=1, high=10_000,
        why="hospitals whose shares make up the noise, at most federation.quorum, so that dropouts cannot lower it; none for one less: "
        "a hospital knows its own share and can take it off",
    )  # fmt: skip
    adaptive: Adaptive | None = knob(None, why="let the clip follow the updates; none keeps it fixed")

    @property
    def update_noise(self) -> float:
        """Standard deviation of the sum's noise over clip; with a noised count larger than `noise_multiplier` (theorem 1 of Andrew et al.)."""
        if self.adaptive is None or not self.noise_multiplier:
            return self.noise_multiplier
        return self.noise_multiplier / math.sqrt(1 - 1 / (2 * self.adaptive.count_noise) ** 2)

    @property
    def count_noise(self) -> float:
        """Standard deviation of the noise of the count of short updates."""
        return 0.0 if self.adaptive is None else self.adaptive.count_noise * self.noise_multiplier

    def share(self, quorum: int) -> float:
        """Standard deviation of one hospital's noise over clip, where a round has that quorum; 0 where the server adds it."""
        return self.update_noise * self._part(quorum)

    def count_share(self, quorum: int) -> float:
        """Standard deviation of one hospital's noise on its part of the count."""
        return self.count_noise * self._part(quorum)

    def makers(self, quorum: int) -> int:
        """The hospitals whose shares make up the noise; all of a round's but these may work together against one of them."""
        return self.honest or max(1, quorum - 1)

    def _part(self, quorum: int) -> float:
        return 0.0 if self.noise == "server" else 1 / math.sqrt(self.makers(quorum))


def check_secure(secure: Secure, rule: str, quorum: int, packing: str, bounds: dict[str, float | None]) -> None:
    """SettingsError where a plan asks for what cannot be done with a sum alone; `bounds` are its bounds of single updates by key."""
    if rule != "mean":
        raise SettingsError(
            f"aggregation.rule: expected mean where aggregation.secure is set, since {rule} looks at single updates; found {rule}"
        )
    least = max(3, secure.threshold)
    if not least <= quorum <= secure.hospitals:
        raise SettingsError(
            f"federation.quorum: expected {least} to {secure.hospitals} by aggregation.secure, found {quorum}"
        )
    if packing != "float32":
        raise SettingsError(
            "transport.update: expected float32 where aggregation.secure is set, whose bits say how wide a number is; "
            f"found {packing}"
        )
    for key, bound in bounds.items():
        if bound is not None:
            raise SettingsError(
                f"{key}: expected none where aggregation.secure is set, since nobody sees a single update; found {bound:g}"
            )


def check_privacy(
    privacy: HospitalPrivacy, rule: str, weighting: str, packing: str, quorum: int, bounds: dict[str, float | None], *,
    secure: Secure | None,
) -> None:  # fmt: skip
    """SettingsError where a plan promises hospitals what the rest of it would break; `bounds` are its bounds of single updates by key."""
    if weighting != "uniform":
        raise SettingsError(
            f"federation.weighting: expected uniform where aggregation.privacy is set: with weights, one hospital could "
            f"move the sum by more than the clip; found {weighting}"
        )
    if rule != "mean":
        raise SettingsError(f"aggregation.rule: expected mean where aggregation.privacy is set, found {rule}")
    if packing != "float32":
        raise SettingsError(
            "transport.update: expected float32 where aggregation.privacy is set, since rounding and what is owed from "
            f"earlier rounds would lengthen an update after it was clipped; found {packing}"
        )
    for key, bound in bounds.items():
        if key != "federation.max_update_norm" and bound is not None:
            raise SettingsError(
                f"{key}: expected none where aggregation.privacy is set, since whose update counts would follow "
                f"from updates without noise; found {bound:g}"
            )
    if secure is not None and secure.bits != 32:
        raise SettingsError(
            "aggregation.secure.bits: expected 32 where aggregation.privacy is set, since coarse steps would lengthen an "
            f"update after it was clipped; found {secure.bits}"
        )
    if privacy.noise == "hospitals":
        _check_shares(privacy, quorum, bounds, secured=secure is not None)


def _check_shares(privacy: HospitalPrivacy, quorum: int, bounds: dict[str, float | None], *, secured: bool) -> None:
    if privacy.makers(quorum) > quorum:
        raise SettingsError(
            f"aggregation.privacy.honest: expected at most federation.quorum {quorum}, found {privacy.honest}"
        )
    if bounds["federation.max_update_norm"] is not None:
        raise SettingsError(
            "federation.max_update_norm: expected none where hospitals add the noise, which is most of an update's norm; "
            f"found {bounds['federation.max_update_norm']:g}"
        )
    if privacy.adaptive is not None and not secured:
        raise SettingsError(
            "aggregation.privacy.adaptive: expected none where hospitals add the noise without aggregation.secure, "
            "since the server would see who is short; found it set"
        )
