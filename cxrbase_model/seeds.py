"""Every generator of a run comes from here: a seed is a pure function of the run's seed, a purpose, and where it is used."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(run_seed: int, purpose: str, *where: int | str) -> int:
    """A 63-bit seed that is the same on every machine for the same (run seed, purpose, round, site, ...)."""
    text = "\x1f".join([str(run_seed), purpose, *(str(part) for part in where)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(run_seed: int, purpose: str, *where: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded by `derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(run_seed, purpose, *where))
