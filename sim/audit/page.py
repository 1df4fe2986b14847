"""report.html of an audit: one self-contained page made of audit.json and the pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from server.charts import legend
from server.page import environment
from sim.audit.charts import bounds_chart, roc_chart

Content = dict[str, Any]

_WORDS = {  # what is said of canaries and of other pictures, by the kind of the stage
    "finetune": {"canaries": "pictures with random labels", "others": "pictures with their own labels"},
    "pretrain": {"canaries": "pictures whose patches lie in an order of their own", "others": "pictures as they are"},
}
_GRANTED = {
    "finetune": "Labels are granted to it",
    "pretrain": "A view says whether it knows the masks, which follow from the plan's seed in an ordinary training and from nothing that it knows in one with differential privacy",
}
ATTACKS = {
    "gradients": (
        "gradients as canaries",
        "made-up gradients at right angles, through DP-SGD's own sampling, clipping and noise; its noised sums are seen",
    ),
    "updates": ("the server, by updates", "{canaries}; the server sees each round's update"),
    "model": ("anybody, by the last model", "{canaries}; only the model before and after is seen"),
    "shadows": (
        "shadow models (LiRA)",
        "{others}; likelihood ratio from models trained with and without them",
    ),
    "loss": ("the loss alone", "{others}; a low loss is taken for a member"),
}
_FLOOR = 3e-4  # the lowest rate that the ROC charts show
_SHOWN = 8  # pictures of a view


def page(content: Content, arrays: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> str:
    """The whole page."""
    used = [name for name in ATTACKS if any(name in each["attacks"] for each in content["trainings"])]
    template = environment("sim").get_template("audit.html")
    return template.render(
        content=content,
        headlines=list(headlines(content)),
        bounds=list(bound_rows(content)),
        bounds_chart=bounds_chart(list(_spans(content)), title="bounds on epsilon"),
        attacks=[(name, what.format(**_WORDS[content["kind"]])) for name, what in map(ATTACKS.__getitem__, used)],
        granted=_GRANTED[content["kind"]],
        rocs=list(_rocs(content, used)),
        members=list(member_rows(content)),
        views=[_view(view, arrays[view["name"]]) for view in content["views"]],
        recovered=list(view_rows(content)),
        promises=list(_promises(content)),
        confidence=f"{content['audit']['confidence']:.0%}",
        delta=f"{content['audit']['delta']:g}",
        audit_text=yaml.safe_dump(content["audit"], sort_keys=False),
        plan_text=yaml.safe_dump(content["plan"], sort_keys=False),
    )


def headlines(content: Content) -> Iterable[dict[str, str]]:
    """The few numbers to begin with."""
    for training in content["trainings"]:
        proved = {name: each["bound"]["epsilon"] for name, each in training["attacks"].items() if "bound" in each}
        name = max(proved, key=proved.__getitem__)
        upper = f"at most {training['upper']:.2f} is stated" if "upper" in training else "nothing is stated"
        yield {"number": f"ε ≥ {proved[name]:.2f}", "text": f"{training['name']}: by {ATTACKS[name][0]}; {upper}"}
    views = content["views"]
    if views:
        sharp = sum(mean(view["attempts"][view["best"]]["ssim"]) > 0.9 for view in views)
        yield {
            "number": f"{sharp} of {len(views)}",
            "text": "views of a server gave the pictures back (SSIM above 0.9)",
        }


def bound_rows(content: Content) -> Iterable[list[str]]:
    """Training, attack, guesses, lower bound, the most that could be measured, upper bound."""
    for training in content["trainings"]:
        for name in ATTACKS:
            found = training["attacks"].get(name, {})
            if "bound" in found:
                bound = found["bound"]
                yield [
                    training["name"],
                    ATTACKS[name][0],
                    f"{bound['correct']} of {bound['guesses']}",
                    f"{bound['epsilon']:.2f}",
                    f"{found['most']:.2f}",
                    f"{training['upper']:.2f}" if "upper" in training else "none",
                ]


def member_rows(content: Content) -> Iterable[list[str]]:
    """Training, its stated epsilon, attack, candidates, area under the curve, true positive rates at the low false positive rates."""
    for training in content["trainings"]:
        for name in ATTACKS:
            if name in training["attacks"]:
                found = training["attacks"][name]
                hits = [f"{_percent(each)}" for each in found["hits"].values()]
                area = found["area"]
                value = f"{area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})"
                upper = found.get("upper", training.get("upper"))
                stated = "none" if upper is None else f"{upper:.1f}"
                yield [training["name"], stated, ATTACKS[name][0], str(found["candidates"]), value, *hits]


def view_rows(content: Content) -> Iterable[list[str]]:
    """View, best attack, mean PSNR and SSIM of it and of a stranger's guess, and how many pictures it points at."""
    for view in content["views"]:
        best = view["attempts"][view["best"]]
        yield [
            view["name"],
            view["best"],
            f"{mean(best['psnr']):.1f}",
            f"{mean(best['ssim']):.2f}",
            f"{mean(view['stranger']['psnr']):.1f}",
            f"{mean(view['stranger']['ssim']):.2f}",
            f"{sum(view['identified'])} of {len(view['identified'])}",
            f"{view['seconds']:.0f}",
        ]


def mean(values: list[float]) -> float:
    """Of a list that is not empty."""
    return sum(values) / len(values)


def _percent(interval: Mapping[str, float]) -> str:
    return f"{100 * interval['value']:.1f} % ({100 * interval['low']:.1f} to {100 * interval['high']:.1f})"


def _spans(content: Content) -> Iterable[dict[str, Any]]:
    for training in content["trainings"]:
        for name, found in training["attacks"].items():
            if "bound" in found:
                short = training["name"].replace("DP-SGD with ", "")
                yield {
                    "name": f"{short}: {ATTACKS[name][0].split(',')[0]}",
                    "low": found["bound"]["epsilon"],
                    "high": training.get("upper"),
                }


def _rocs(content: Content, used: list[str]) -> Iterable[dict[str, Any]]:
    for training in content["trainings"]:
        names = [name for name in used if name in training["attacks"]]
        curves = {ATTACKS[name][0]: training["attacks"][name]["curve"] for name in names}
        yield {
            "title": training["name"],
            "chart": roc_chart(curves, _FLOOR, title=f"ROC curves: {training['name']}"),
            "legend": legend(list(curves)),
        }


def _promises(content: Content) -> Iterable[list[str]]:
    for training in content["trainings"]:
        if "upper" in training:
            cost = training["mechanisms"]
            steps = sum(each["steps"] for each in cost)
            yield [
                training["name"],
                f"{steps} steps, each unit in one with chance {cost[0]['rate']:.3f}",
                f"{training['upper']:.2f}",
            ]


def _view(view: Content, shown: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    best = view["attempts"][view["best"]]
    pairs = list(zip(shown["truth"], shown["recovered"], best["psnr"], best["ssim"], strict=True))[:_SHOWN]
    return {
        "name": view["name"],
        "attack": view["best"],
        "pairs": [{"truth": _png(a), "found": _png(b), "text": f"{p:.1f} dB, SSIM {s:.2f}"} for a, b, p, s in pairs],
    }


def _png(picture: NDArray[np.float32]) -> str:
    data = BytesIO()
    Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


__all__ = ["ATTACKS", "bound_rows", "headlines", "member_rows", "page", "view_rows"]
