"""An audit from its configuration to its report: part by part, each kept on disk, so that one that was interrupted goes on."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cxrbase_model.composition import epsilon
from cxrbase_model.files import private_folder, write_private
from cxrbase_model.privacy import Mechanism
from cxrbase_model.settings import SettingsError, digest, to_mapping
from sim.audit.bounds import area, best_bound, hits_at, most_measurable, roc
from sim.audit.config import AuditConfig, View, privacy_of
from sim.audit.membership import Guesses, canary_run, gradient_canaries, shadow_run
from sim.audit.page import page
from sim.audit.pictures import pictures
from sim.audit.sample import Pictures
from sim.audit.sheet import sheet
from sim.audit.subject import Subject
from sim.audit.views import Recovery, recovery, warmed
from sim.prepare import Progress

SCHEMA = 1
FALSE_RATES = (0.001, 0.01)

Content = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


class Audit:
    """One audit in a folder: audit.json with every number, report.html, pictures.png, and parts/ to go on from."""

    def __init__(self, config: AuditConfig, subject: Subject, data: Path | None, out: Path) -> None:
        self.config, self.subject, self.plan, self.data, self.out = config, subject, subject.plan, data, out
        self.parts = private_folder(out / "parts")
        mark = digest(
            {"audit": to_mapping_of(config), "plan": to_mapping(self.plan), "data": str(data.resolve()) if data else ""}
        )
        file = out / "audit.digest"
        if file.exists() and file.read_text(encoding="ascii") != mark:
            raise SettingsError(f"--out: {out} holds another audit's results; name another folder")
        file.write_text(mark, encoding="ascii")

    def run(self, told: Callable[[str], None], progress: Progress) -> Content:
        """Do what is missing and write the report; returns the content of audit.json."""
        pool = self._pictures(progress)
        used = self.config.members
        content: Content = {
            "schema": SCHEMA,
            "plan": to_mapping(self.plan),
            "stage": self.subject.stage.name,
            "kind": self.subject.stage.kind,
            "audit": to_mapping_of(self.config),
            "pictures": len(pool),
            "threads": torch.get_num_threads(),
            "trainings": [],
            "views": [],
        }
        for view in self.config.inversion.views:
            content["views"].append(self._view(view, pool.part(used), pool.part(0, used), told))
        for noise in (0.0, *self.config.noise):
            content["trainings"].append(self._training(noise, pool, told))
        write_private(self.out / "audit.json", json.dumps(content, indent=1).encode())
        shown = {view.name: self._arrays(_file_name("view", view.name)) for view in self.config.inversion.views}
        drawn = BytesIO()
        sheet(content["views"], shown).save(drawn, "PNG")
        write_private(self.out / "pictures.png", drawn.getvalue())
        write_private(self.out / "report.html", page(content, shown).encode())
        return content

    def _pictures(self, progress: Progress) -> Pictures:
        def make() -> tuple[Content, Arrays]:
            found = pictures(self.config, self.plan, self.data, self.out, progress)
            return {}, {"images": found.images, "labels": found.labels}

        self._kept("pictures", make)
        arrays = self._arrays("pictures")
        return Pictures(arrays["images"], arrays["labels"])

    def _training(self, noise: float, pool: Pictures, told: Callable[[str], None]) -> Content:
        """What membership inference finds with so much noise, and what it proves of epsilon."""
        settings, privacy = self.config.canaries, privacy_of(self.plan, noise)
        name = f"noise-{noise:g}"
        what = f"DP-SGD with noise {noise:g}" if privacy else "no privacy"
        result: Content = {"noise": noise, "name": what, "attacks": {}}

        def canaries() -> tuple[Content, Arrays]:
            run = canary_run(
                self.subject, pool.part(0, settings.count),
                pool.part(settings.count, settings.count + settings.others), settings.rounds, privacy,
            )  # fmt: skip
            costs = [dataclasses.asdict(each) for each in run.mechanisms]
            return {"mechanisms": costs}, _packed(model=run.model, updates=run.updates)

        kept = self._kept(f"canaries-{name}", canaries, told)
        guesses = _unpacked(self._arrays(f"canaries-{name}"))
        result["seconds"] = kept["seconds"]
        if privacy is not None:
            costs = [Mechanism(**each) for each in kept["mechanisms"]]
            result |= {"mechanisms": kept["mechanisms"], "upper": epsilon(costs, costs[0].unit, self.config.delta)}

            def gradients() -> tuple[Content, Arrays]:
                found = gradient_canaries(privacy, costs, settings.gradients, self.plan.seed)
                return {}, _packed(gradients=found)

            self._kept(f"gradients-{name}", gradients, told)
            guesses |= _unpacked(self._arrays(f"gradients-{name}"))
        for attack, found in guesses.items():
            result["attacks"][attack] = self._judged(found, bound=True)
        if self.config.shadows.models:

            def shadows() -> tuple[Content, Arrays]:
                shadow = self.config.shadows
                run = shadow_run(self.subject, pool.part(0, shadow.pictures), shadow.models, shadow.rounds, privacy)
                costs = [dataclasses.asdict(each) for each in run.mechanisms]
                return {"mechanisms": costs}, _packed(shadows=run.ratio, loss=run.loss)

            kept = self._kept(f"shadows-{name}", shadows, told)
            costs = [Mechanism(**each) for each in kept["mechanisms"]]
            for attack, found in _unpacked(self._arrays(f"shadows-{name}")).items():
                result["attacks"][attack] = self._judged(found, bound=False)
                if costs:
                    result["attacks"][attack]["upper"] = epsilon(costs, costs[0].unit, self.config.delta)
        return result

    def _judged(self, found: Guesses, *, bound: bool) -> Content:
        """A test's ROC curve and its numbers; a bound on epsilon where its guesses were made in one run."""
        false, true = roc(found.scores, found.inside)
        result: Content = {
            "candidates": len(found.scores),
            "inside": int(found.inside.sum()),
            "area": dataclasses.asdict(area(found.scores, found.inside, found.pictures)),
            "hits": {
                f"{rate:g}": dataclasses.asdict(hits_at(found.scores, found.inside, rate)) for rate in FALSE_RATES
            },
            "curve": [[round(float(x), 6), round(float(y), 6)] for x, y in zip(false, true, strict=True)],
        }
        if bound:
            delta, confidence = self.config.delta, self.config.confidence
            result["bound"] = dataclasses.asdict(best_bound(found.scores, found.inside, delta, confidence))
            result["most"] = most_measurable(len(found.scores), delta, confidence)
        return result

    def _view(self, view: View, targets: Pictures, known: Pictures, told: Callable[[str], None]) -> Content:
        """What a server recovers from one view."""
        settings = self.config.inversion

        def attack() -> tuple[Content, Arrays]:
            subject, state = warmed(self.subject, known, settings, view.positions)
            found = recovery(subject, state, view, targets, known, settings.effort)
            return _told(found), {"truth": found.truth.numpy(), "recovered": found.attempts[0].pictures.numpy()}

        kept = self._kept(_file_name("view", view.name), attack, told)
        return {**to_mapping(view), **kept}

    def _kept(
        self, name: str, make: Callable[[], tuple[Content, Arrays]], told: Callable[[str], None] | None = None
    ) -> Content:
        """A part's content, made where it is not on disk yet; `seconds` is the processor time that it took."""
        file = self.parts / f"{name}.json"
        if not file.exists():
            if told:
                told(name)
            started = time.process_time()
            content, arrays = make()
            part = self.parts / f"{name}.part.npz"
            np.savez(part, **arrays)  # type: ignore[arg-type]  # numpy means its own keyword
            part.rename(self.parts / f"{name}.npz")
            content["seconds"] = round(time.process_time() - started, 1)
            write_private(file, json.dumps(content).encode())
        found: Content = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _arrays(self, name: str) -> Arrays:
        with np.load(self.parts / f"{name}.npz") as found:
            return dict(found)


def to_mapping_of(config: AuditConfig) -> Any:
    """The configuration as JSON has it."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _told(found: Recovery) -> Content:
    return {
        "attempts": {
            each.attack: {"psnr": [like.psnr for like in each.likeness], "ssim": [like.ssim for like in each.likeness]}
            for each in found.attempts
        },
        "best": found.attempts[0].attack,
        "identified": found.identified,
        "stranger": {
            "psnr": [like.psnr for like in found.stranger],
            "ssim": [like.ssim for like in found.stranger],
        },
    }


def _packed(**guesses: Guesses) -> Arrays:
    return {
        f"{name}.{field}": getattr(each, field)
        for name, each in guesses.items()
        for field in ("scores", "inside", "pictures")
    }


def _unpacked(arrays: Arrays) -> dict[str, Guesses]:
    names = dict.fromkeys(key.split(".")[0] for key in arrays)
    return {name: Guesses(*(arrays[f"{name}.{field}"] for field in ("scores", "inside", "pictures"))) for name in names}


def _file_name(kind: str, name: str) -> str:
    return f"{kind}-" + "-".join("".join(c if c.isalnum() or c == "." else " " for c in name.lower()).split())
