"""consortium.yaml: what an operator says about the consortium. Relative paths are relative to the file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

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
    hospitals: tuple[str, ...] = knob(why="the hospitals that may take part, by name")
    home: Path = knob(
        Path("consortium"), why="folder of keys, certificates, kits and enrolled keys; the operator's alone"
    )
    certificate_days: int = knob(365, unit="days", low=1, high=825, why="how long a server certificate is valid")
    authority_days: int = knob(3650, unit="days", low=1, high=7300, why="how long the authority is valid")

    def __post_init__(self) -> None:
        check_name("name", self.name)
        for address in (self.address, *self.more_addresses):
            check_address("address", address)
        if not self.hospitals or len(set(self.hospitals)) != len(self.hospitals):
            raise SettingsError(f"hospitals: expected one or more, each once, found {list(self.hospitals)}")
        for hospital in self.hospitals:
            check_name("hospitals", hospital)


def read_consortium(path: Path) -> Consortium:
    """Read and check a consortium.yaml, `home` made absolute; SettingsError names the file, the key and what would be right."""
    try:
        consortium = read(Consortium, load_yaml(path))
    except SettingsError as error:
        raise SettingsError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    return dataclasses.replace(consortium, home=path.resolve().parent / consortium.home)
