"""consortium.yaml: what an operator says about the consortium. Relative paths are relative to the file."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
from dataclasses import dataclass
from pathlib import Path

import yaml

from cxrbase_model.kit import check_address, check_name
from cxrbase_model.settings import SettingsError, knob, load_yaml, read

SCHEMA = 1


@dataclass(frozen=True)
class Consortium:
    """See the module's docstring."""

    schema: int = knob(why=f"version of the file's format; {SCHEMA} here", choices=(SCHEMA,))
    name: str = knob(why="the public name: letters, digits, - and _")
    address: str = knob(why="name or IP address at which hospitals reach the server")
    more_addresses: tuple[str, ...] = knob((), why="other names and IP addresses of the server, for its certificate")
    port: int = knob(9443, low=1, high=65535, why="port at which hospitals reach the server")
    bind: str = knob("0.0.0.0", why="IP address of this machine at which the server listens; 0.0.0.0 for all of them")
    hospitals: tuple[str, ...] = knob(why="the hospitals that may take part, by name")
    home: Path = knob(
        Path("consortium"), why="folder of keys, certificates, kits and enrolled keys; the operator's alone"
    )
    plan: Path | None = knob(None, why="the training plan; needed to start")
    run: Path = knob(Path("run"), why="folder of the run: checkpoints, records, report")
    certificate_days: int = knob(365, unit="days", low=1, high=825, why="how long a server certificate is valid")
    authority_days: int = knob(3650, unit="days", low=1, high=7300, why="how long the authority is valid")

    def __post_init__(self) -> None:
        check_name("name", self.name)
        for address in (self.address, *self.more_addresses):
            check_address("address", address)
        try:
            ipaddress.ip_address(self.bind)
        except ValueError:
            raise SettingsError(f"bind: expected an IP address of this machine, found {self.bind!r}") from None
        if not self.hospitals or len(set(self.hospitals)) != len(self.hospitals):
            raise SettingsError(f"hospitals: expected one or more, each once, found {list(self.hospitals)}")
        for hospital in self.hospitals:
            check_name("hospitals", hospital)

    @property
    def certified(self) -> tuple[str, ...]:
        """The names and addresses that the server's certificate is for: those told to hospitals, and this machine's own."""
        named = (self.address, *self.more_addresses, "localhost", "127.0.0.1", self._own)
        return tuple(dict.fromkeys(map(_plain, named)))

    @property
    def here(self) -> str:
        """The address at which this machine's own programs reach the server."""
        return f"[{self._own}]:{self.port}" if ":" in self._own else f"{self._own}:{self.port}"

    @property
    def _own(self) -> str:
        bound = ipaddress.ip_address(self.bind)
        loopback = "127.0.0.1" if bound.version == 4 else "::1"  # a server at :: listens over IPv6 alone
        return loopback if bound.is_unspecified else str(bound)


def _plain(address: str) -> str:
    """A host name as it is, an IP address in the one form that certificates give it."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(address))
    return address


def read_consortium(path: Path) -> Consortium:
    """Read and check a consortium.yaml, its paths made absolute; SettingsError names the file, the key and what would be right."""
    try:
        consortium = read(Consortium, load_yaml(path))
    except SettingsError as error:
        raise SettingsError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    folder = path.resolve().parent
    plan = None if consortium.plan is None else folder / consortium.plan
    return dataclasses.replace(consortium, home=folder / consortium.home, run=folder / consortium.run, plan=plan)


def settle(path: Path, consortium: Consortium, home: Path) -> Consortium:
    """Make a folder the consortium's `home` and say so in its file; SettingsError where the file names another one already."""
    home = home.resolve()
    if "home" in load_yaml(path):
        if consortium.home.resolve() != home:
            raise SettingsError(f"--out: expected {consortium.home}, which is home in {path}; found {home}")
        return consortium
    text = path.read_text(encoding="utf-8")
    break_ = "" if text.endswith("\n") else "\n"
    path.write_text(f"{text}{break_}{yaml.safe_dump({'home': str(home)})}", encoding="utf-8")
    return dataclasses.replace(consortium, home=home)
