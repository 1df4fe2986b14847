"""The settings of the hospital's daemon: `daemon` in SITE.yaml."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from cxrbase_model.settings import SettingsError, knob


@dataclass(frozen=True)
class DaemonSettings:
    """How `cxrbase-client start` behaves; when tasks may run is said by policy.hours."""

    health: str = knob(
        "127.0.0.1:9447",
        why="address of the gRPC health service, of this machine alone; empty for none, and another port for a second hospital",
    )
    runtime_port: int = knob(
        0, low=0, high=65535, why="port of this machine alone at which the daemon's processes talk; 0 takes a free one"
    )
    least_free: float = knob(2.0, unit="GB", low=0.01, high=1e6, why="with less free disk no task is taken")
    log_size: int = knob(10, unit="MB", low=1, high=10_000, why="size at which a log begins a new file")
    log_files: int = knob(5, unit="files", low=1, high=1000, why="older files of a log that are kept")

    def __post_init__(self) -> None:
        if self.health:
            _check_loopback(self.health)


def _check_loopback(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        fits = ipaddress.ip_address(host.strip("[]")).is_loopback and 0 < int(port) < 65536
    except ValueError:
        fits = False
    if not fits:
        raise SettingsError(f"health: expected an address of this machine such as 127.0.0.1:9447, found {address!r}")
