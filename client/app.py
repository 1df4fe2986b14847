"""The Flower ClientApp: decode, call, encode. It answers codes, never texts.

Flower sends an exception's text to the server, so nothing may be raised past `answer`: whatever goes wrong is written to the
hospital's own log and leaves as a code.
"""

from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.budget import ledger_of
from client.dataset import Cache, CacheError
from client.guard import Noise, secure
from client.policy import Refused, check_plan, check_policy
from client.release import leave, refusal
from client.secure import outbox
from client.secure_steps import take_step
from client.site import Compute, Site, read_site
from client.work import describe, evaluate, train
from cxrbase_model.engine import Runtime, TrainingDiverged
from cxrbase_model.messages import Code, Reply, Task, WireError, reply_to_message, task_from_message
from cxrbase_model.secure.letters import STEPS
from cxrbase_model.settings import SettingsError

log = logging.getLogger("cxrbase.client")
log.setLevel(logging.INFO)

_UNKNOWN_SITE = "unknown"
_LOG_BYTES = 1 << 20


def answer(task: Task, site: Site, noise: Noise = secure) -> Reply:
    """Do a task and return what may leave; every failure becomes a code."""
    try:
        plan = check_plan(task)
        check_policy(plan, task, site)
        answers = outbox(site, task, plan)
        if (kept := answers.find()) is not None:
            log.info("round %d: asked again; the answer of before leaves again", task.round)
            return leave(kept, task, site)
        began = ledger_of(site).count()
        reply = leave(perform(task, site, noise), task, site, began)
        answers.keep(reply)
        log.info("round %d: %s done, %d bytes of update leave", task.round, task.kind, len(reply.update))
        return reply
    except Refused as refused:
        code = refused.code
    except CacheError:
        code = Code.CACHE_MISSING
        log.exception("round %d: the cache cannot be opened", task.round)
    except TrainingDiverged:
        code = Code.DIVERGED
    except (torch.OutOfMemoryError, MemoryError):
        code = Code.OUT_OF_MEMORY
    except Exception:
        code = Code.FAILED
        log.exception("round %d: the task failed", task.round)
    log.warning("round %d: answered %s", task.round, code.value)
    return refusal(site.site, task, code)


def perform(task: Task, site: Site, noise: Noise = secure) -> Reply:
    """Do a task that the hospital's policy allows; Refused with the code where it cannot be done."""
    if task.kind in STEPS:
        return take_step(task, site, check_plan(task))
    cache = Cache.open(site.cache_folder)
    if task.kind == "describe":
        return describe(task, site, cache)
    if task.kind not in ("pretrain", "finetune", "evaluate"):
        raise Refused(Code.TASK_UNKNOWN)
    runtime = runtime_for(site.compute, check_plan(task).precision)
    return evaluate(task, site, cache, runtime) if task.kind == "evaluate" else train(task, site, cache, runtime, noise)


def runtime_for(compute: Compute, precision: str) -> Runtime:
    """The device that the hospital's settings name, and how its training is computed."""
    torch.set_num_threads(compute.threads)
    name = compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return Runtime(
        torch.device(name), precision, compute.micro_batch, compute.compile, compute.recompute, compute.deterministic
    )


def make_app(site_file: Callable[[Context], Path], noise: Noise = secure) -> ClientApp:
    """A ClientApp that finds its hospital's SITE.yaml by `site_file`; simulation and deployment differ in nothing else, unless a simulation
    seeds its privacy `noise`.
    """
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        try:
            task = task_from_message(message)
        except WireError as error:
            return reply_to_message(_no_task(error.code), message)
        try:
            site = read_site(site_file(context))
        except (SettingsError, OSError, KeyError):
            log.exception("the site file cannot be used")
            return reply_to_message(refusal(_UNKNOWN_SITE, task, Code.SITE_INVALID), message)
        try:
            with _own_log(site.private):
                return reply_to_message(answer(task, site, noise), message)
        except OSError:
            log.exception("the private folder cannot be written")
            return reply_to_message(refusal(site.site, task, Code.FAILED), message)

    app.query()(handle)
    app.train()(handle)
    app.evaluate()(handle)
    return app


@contextmanager
def _own_log(folder: Path) -> Iterator[None]:
    """Write what is logged meanwhile to the hospital's own log, which only its owner can read."""
    path = folder / "client.log"
    path.touch(mode=0o600)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=3, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def refuse_bundle(message: Message, context: Context) -> Message:
    """The answer to a server that wants code run which this hospital has not approved; nothing else is looked at."""
    try:
        task = task_from_message(message)
    except WireError as error:
        return reply_to_message(_no_task(error.code), message)
    try:
        name = read_site(_deployed_site(context)).site
    except (SettingsError, OSError, KeyError):
        log.exception("the site file cannot be used")
        name = _UNKNOWN_SITE
    return reply_to_message(refusal(name, task, Code.BUNDLE), message)


def _no_task(code: Code) -> Reply:
    return Reply(site=_UNKNOWN_SITE, kind="", round=-1, stage="", plan_digest="", code=code)


def _deployed_site(context: Context) -> Path:
    """The SITE.yaml named on the hospital's own SuperNode command line, the one channel the operator does not control."""
    return Path(str(context.node_config["site"]))


app = make_app(_deployed_site)
