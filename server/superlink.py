"""Flower's SuperLink behind the gate: `python -m server.superlink CONSORTIUM.yaml DAEMON` is the process that hospitals speak to.

What it takes from Flower beyond its public names, and why:
- `flwr.superlink.main.create_app` is wrapped, because the SuperLink serves its Control, Runtime and Fleet APIs at one port, the first
  two without any proof of who asks, and has no switch for it.
- `uvicorn.config.create_ssl_context` is wrapped, so that a renewed certificate is taken without a restart.
- `flwr.supercore.sql_mixin.SQLITE_PRAGMAS` is wrapped, because requests that find the database busy fail after five seconds.
- `uvicorn.run` is wrapped, because it hangs up five seconds after it has written an answer, whether or not a slow line has taken it by then.
"""

from __future__ import annotations

import importlib
import logging
import ssl
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cxrbase_model.hello import HELLO_SCHEMA, Hello, signer
from cxrbase_model.messages import PROTOCOL
from cxrbase_model.processes import end_with_parent
from cxrbase_model.settings import SettingsError
from server.authority import Authority
from server.consortium import Consortium, read_consortium
from server.database import lay_out, patient
from server.enrolment import enrolled
from server.gate import Gate
from server.home import Home

_LOOK_EVERY = 2.0  # seconds between looks at the certificate's file
_TO_TAKE = 150  # seconds that a hospital has to take a piece of a message: a line of 0.5 Mbit/s takes two in that time


def main() -> None:
    """Serve until the process is ended."""
    end_with_parent(int(sys.argv[2]))
    file = Path(sys.argv[1])
    consortium = read_consortium(file)
    lay_out(Home(consortium.home).database)
    flower = importlib.import_module("flwr.superlink.main")
    server = importlib.import_module("uvicorn.config")
    _wrap(flower, "create_app", lambda made: _gated(made, lambda: _now(file, consortium)))
    _wrap(server, "create_ssl_context", lambda made: _renewing(made, Authority(consortium.home)))
    _wrap(importlib.import_module("flwr.supercore.sql_mixin"), "SQLITE_PRAGMAS", patient)
    _wrap(importlib.import_module("uvicorn"), "run", lambda made: partial(made, timeout_keep_alive=_TO_TAKE))
    program = importlib.import_module("flwr.superlink.cli.flower_superlink")
    sys.argv = ["flower-superlink", *arguments(consortium)]
    program.flower_superlink()


def arguments(consortium: Consortium) -> list[str]:
    """The SuperLink's own command line: TLS, hospitals by key, state on disk, nothing installed at run time."""
    authority, home = Authority(consortium.home), Home(consortium.home)
    return [
        "--host", consortium.bind, "--port", str(consortium.port),
        "--ssl-certfile", str(authority.server_file), "--ssl-keyfile", str(authority.server_key_file),
        "--ssl-ca-certfile", str(authority.certificate_file), "--enable-supernode-auth",
        "--database", str(home.database), "--disable-runtime-dependency-installation",
    ]  # fmt: skip


def greeting(consortium: Consortium, headers: dict[str, str]) -> Hello:
    """The answer to a hospital's hello; a key that was enrolled or revoked a moment ago counts as such."""
    home, key = Home(consortium.home), signer(headers, consortium.name)
    names = {public: name for name, public in enrolled(consortium).items()}
    return Hello(
        schema=HELLO_SCHEMA, consortium=consortium.name, release=version("cxrbase"), protocol=PROTOCOL,
        bundle=home.bundle_digest(), plan=home.plan_digest(), time=time.time(), hospital=names.get(key or b""),
    )  # fmt: skip


def _wrap(module: Any, name: str, around: Callable[[Any], Any]) -> None:
    made = getattr(module, name, None)
    if made is None:  # without the gate everybody could start runs, so nothing is served
        sys.exit(f"cxrbase-server: {module.__name__}.{name} is not in this version of Flower; install flwr 1.41")
    setattr(module, name, around(made))


def _now(file: Path, earlier: Consortium) -> Consortium:
    try:
        return read_consortium(file)
    except SettingsError:  # it is just being written
        return earlier


def _gated(create_app: Callable[..., Any], now: Callable[[], Consortium]) -> Callable[..., Any]:
    """`now` gives the consortium as its settings are at the moment: hospitals join while it runs."""

    def create(*arguments: Any, **settings: Any) -> Any:
        app = create_app(*arguments, **settings)
        app.add_middleware(Gate, hello=lambda headers: greeting(now(), headers))  # the last one added is the outermost
        return app

    return create


def _renewing(create_context: Callable[..., ssl.SSLContext], authority: Authority) -> Callable[..., ssl.SSLContext]:
    def create(*arguments: Any, **settings: Any) -> ssl.SSLContext:
        context = create_context(*arguments, **settings)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        logging.getLogger("uvicorn.access").setLevel(logging.WARNING)  # a line for each of several requests a second
        threading.Thread(target=_follow, args=(context, authority), name="certificate", daemon=True).start()
        return context

    return create


def _follow(context: ssl.SSLContext, authority: Authority) -> None:
    """Serve new connections with the newest certificate; one that cannot be read yet is looked at again."""
    served = authority.server_file.read_bytes()
    while True:
        time.sleep(_LOOK_EVERY)
        try:
            there = authority.server_file.read_bytes()
            if there != served:
                context.load_cert_chain(authority.server_file, authority.server_key_file)
                served = there
        except (OSError, ssl.SSLError):
            continue


if __name__ == "__main__":
    main()
