"""A proxy before a PACS that does what goes wrong on the way."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests


class Proxy:
    """An HTTP server that passes GET requests on to a PACS, with faults.

    `faults` says for each path what goes wrong: "503", "cut" in the middle of the answer, "hang", "nonsense", or None.
    """

    def __init__(self, target: str, context: ssl.SSLContext | None) -> None:
        self.paths: list[str] = []
        self.faults: Callable[[str], str | None] = lambda path: None
        proxy, (origin, root) = self, target.rsplit("/", 1)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name http.server calls
                proxy.paths.append(self.path)
                fault = proxy.faults(self.path)
                if fault == "hang":
                    time.sleep(2)
                    return
                if fault in ("503", "nonsense"):
                    self._answer(503 if fault == "503" else 200, "text/html", b"<html>")
                    return
                with requests.Session() as session:
                    session.trust_env = False
                    headers = {name: self.headers[name] for name in ("Accept", "Authorization") if name in self.headers}
                    answer = session.get(origin + self.path, headers=headers, timeout=10)
                self._answer(answer.status_code, answer.headers.get("Content-Type", ""), answer.content, fault == "cut")

            def _answer(self, status: int, kind: str, body: bytes, cut: bool = False) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if context else ''}://localhost:{self._server.server_port}/{root}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
