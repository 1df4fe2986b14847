"""Where the updates of a round point, beside where the others point."""

from __future__ import annotations

import numpy as np

from server.rules.rank import Matrix, inner_products, weiszfeld
from server.rules.spool import Spool

_SMOOTHING = 1e-6  # smallest distance that Weiszfeld's iteration divides by, of the closest majority's radius
_NOTHING = 1e-12  # length of a mean of directions that is none


def directions(spool: Spool) -> dict[str, float]:
    """The cosine of each hospital's update to the usual direction of the others, -1 to 1; reads all updates once."""
    found = cosines(inner_products(spool)) if len(spool) else np.zeros(0)
    return {site: float(cosine) for site, cosine in zip(spool.sites(), found, strict=True)}


def cosines(products: Matrix) -> Matrix:
    """The cosine of each of N updates to the usual direction of the others, [N]; 0 where either has none.

    products: inner products of all pairs, [N, N]. The usual direction is the geometric median of the updates, each scaled to a length of
    one, so that neither long ones nor fewer than half turn it; without an update's own share in it, which would speak for it.
    """
    lengths = np.sqrt(np.diag(products))
    units = lengths[:, None] * lengths[None, :]
    angles = np.divide(products, units, out=np.zeros_like(products), where=units > 0)
    weights = weiszfeld(angles, _SMOOTHING)
    others = np.where(np.eye(len(weights), dtype=bool), 0.0, weights)  # a row for each update, without itself
    along = (others * angles).sum(axis=1)
    usual = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", others, angles, others), 0.0))
    return np.asarray(np.clip(np.divide(along, usual, out=np.zeros_like(along), where=usual > _NOTHING), -1.0, 1.0))
