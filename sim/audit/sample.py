"""The audited pictures as one table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pictures:
    """uint8 [N, S, S] and labels float32 [N, C], NaN where unknown; each of another patient."""

    images: NDArray[np.uint8]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.images)

    def part(self, start: int, stop: int | None = None) -> Pictures:
        """Some that follow each other."""
        return Pictures(self.images[start:stop], self.labels[start:stop])
