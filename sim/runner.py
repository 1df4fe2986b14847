"""A simulation: the deployed ServerApp logic and ClientApp over Flower's simulation runtime, hospitals as Ray actors."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from flwr.app import ConfigRecordValues, Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from client.app import make_app
from client.guard import Noise, secure
from client.site import Site
from cxrbase_model.messages import Task
from cxrbase_model.normals import NoiseSource
from cxrbase_model.plan import plan_from_text
from cxrbase_model.seeds import derive_seed
from server.app import RunSettings, serve
from server.exchange import Stopped
from server.report import tell_seeded
from server.rounds import Observer
from sim.config import SimConfig


def simulate(
    sites: Sequence[Path],
    settings: RunSettings,
    config: SimConfig,
    observers: Iterable[Observer] = (),
) -> None:
    """Run a plan over simulated hospitals, one for each SITE.yaml.

    Raises what the server raised (RunFailed, StoreError). KeyboardInterrupt ends the run after telling the server to stop;
    everything up to the last committed round is on disk.
    """
    stop = threading.Event()
    failure: list[BaseException] = []
    server_app = _server_app(settings, list(observers), stop, failure)
    files = [path.resolve() for path in sites]

    def site_file(context: Context) -> Path:
        return files[int(context.node_config["partition-id"])]

    noise = noise_of(config, settings)
    _quiet_flower()
    try:
        run_simulation(server_app, make_app(site_file, noise), len(files), backend_config=_backend(config))
    except KeyboardInterrupt:
        stop.set()
        raise
    except Exception:
        if not failure:
            raise
    if failure:
        raise failure[0]


def noise_of(config: SimConfig, settings: RunSettings) -> Noise:
    """Where the privacy noise of a run comes from; the run's report is told where it is seeded."""
    if not config.seeded_noise or settings.plan.privacy is None:
        return secure
    tell_seeded(settings.folder)
    return seeded_noise


def seeded_noise(site: Site, task: Task) -> NoiseSource:
    """Noise that everybody can repeat who has the plan: for experiments alone."""
    return NoiseSource(derive_seed(plan_from_text(task.plan_text).seed, "privacy noise", task.round, site.site))


def _server_app(
    settings: RunSettings, observers: list[Observer], stop: threading.Event, failure: list[BaseException]
) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            serve(grid, settings, observers, stop.is_set)
        except Stopped:
            return
        except Exception as error:
            failure.append(error)  # the runtime wraps what a ServerApp raises; the caller wants the error itself
            raise

    return app


def _backend(config: SimConfig) -> dict[str, dict[str, ConfigRecordValues]]:
    cores = os.cpu_count() or 1
    return {
        "client_resources": {"num_cpus": max(1, cores // config.concurrent), "num_gpus": config.gpu_share},
        "init_args": {
            "num_cpus": max(cores, config.concurrent * max(1, cores // config.concurrent)),
            "include_dashboard": False,
            "logging_level": "ERROR",
            "log_to_driver": False,
        },
    }


def _quiet_flower() -> None:
    """Flower logs each step of its runtime; the run has a progress bar of its own, and failures come as codes."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
