"""The standard gRPC health service, by which a monitoring system sees whether this hospital is connected."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cxrbase_model.settings import SettingsError


class Health:
    """Answers grpc.health.v1 at an address of this machine; SERVING while connected. An empty address answers nowhere."""

    def __init__(self, address: str) -> None:
        self._servicer = health.HealthServicer()
        self._server: grpc.Server | None = None
        self.set(serving=False)
        if address:
            self._server = _serve(address, self._servicer)

    def set(self, *, serving: bool) -> None:
        """Say from now on whether the hospital is connected."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        self._servicer.set("", status)

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.stop(grace=None).wait()


def _serve(address: str, servicer: health.HealthServicer) -> grpc.Server:
    options = [("grpc.so_reuseport", 0)]  # else two hospitals of one machine would answer for each other
    server = grpc.server(ThreadPoolExecutor(2, thread_name_prefix="health"), options=options)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError:
        raise SettingsError(
            f"daemon.health: {address} is in use; give another port, or leave it empty for none"
        ) from None
    server.start()
    return server
