"""One backward pass gives the sum of clipped gradients, one a unit: as Opacus has them, and as they are one by one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from cxrbase_model.bookkeeping import STABILITY, Bookkeeper
from cxrbase_model.classifier import build_classifier
from cxrbase_model.features import build_objective
from cxrbase_model.mae import MaskedAutoencoder, build_autoencoder
from cxrbase_model.plan import FinetuneStage, Plan, PretrainStage, Privacy
from cxrbase_model.seeds import generator
from cxrbase_model.settings import read, to_mapping

UNITS, MASKS = 5, 2
PICTURES = torch.randn(UNITS, 32, 32, generator=torch.Generator().manual_seed(0))
Losses = Callable[[nn.Module, slice], Tensor]  # of some units, one each

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]


def changed(plan: Plan, stage: int, **changes: Any) -> Plan:
    mapping = to_mapping(plan)
    mapping["model"] |= {"positions": changes.pop("positions", "fixed"), "decoder": changes.pop("decoder", "joint")}
    mapping["stages"][stage] |= changes
    return read(Plan, mapping)


def classifier(plan: Plan, **changes: Any) -> tuple[nn.Module, Losses]:
    plan = changed(plan, 1, **changes)
    stage = plan.stage("detect")
    assert isinstance(stage, FinetuneStage)
    model = build_classifier(plan, stage)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if (
            name.startswith("head.") or "lora_up" in name
        ):  # they start at zero, and nothing before them would have a gradient
            nn.init.normal_(parameter, std=0.3, generator=draw)
    paths = model.encoder.draw_paths(UNITS, torch.Generator().manual_seed(2))

    def losses(module: nn.Module, rows: slice) -> Tensor:
        found: Tensor = module(PICTURES[rows], None if paths is None else paths[rows])
        return found.square().mean(dim=1)

    return model, losses


def autoencoder(plan: Plan, masks: int = 1, **changes: Any) -> tuple[nn.Module, Losses]:
    plan = changed(plan, 0, **changes)
    stage = plan.stage("mae")
    assert isinstance(stage, PretrainStage)
    model = build_objective(plan, stage)
    visible, hidden = model.random_masking(UNITS * masks, 0.75, generator(0, "masks"))

    def losses(module: nn.Module, rows: slice) -> Tensor:
        taken = slice(rows.start * masks, rows.stop * masks)
        found: Tensor = module(PICTURES[rows], visible[taken], hidden[taken], True)
        return found.reshape(-1, masks).mean(dim=1)

    return model, losses


MODELS: dict[str, Callable[[Plan], tuple[nn.Module, Losses]]] = {
    "full": classifier,
    "dropping paths": lambda plan: classifier(plan, drop_path=0.5),
    "linear probe": lambda plan: classifier(plan, trains="head"),
    "attentive": lambda plan: classifier(plan, pooling="attentive"),
    "attentive probe": lambda plan: classifier(plan, trains="head", pooling="attentive"),
    "standardised grid": lambda plan: classifier(plan, trains="head", pooling="grid", grid=2, standardise=True),
    "last block": lambda plan: classifier(plan, trains="last", last_blocks=1),
    "lora": lambda plan: classifier(plan, trains="lora", lora_rank=2),
    "mae": autoencoder,
    "cross decoder": lambda plan: autoencoder(plan, decoder="cross"),
    "learned positions": lambda plan: autoencoder(plan, positions="learned"),
    "features": lambda plan: autoencoder(plan, objective="features"),
    "repeated masks": lambda plan: autoencoder(plan, masks=MASKS),
    "repeated masks, cross decoder": lambda plan: autoencoder(plan, masks=MASKS, decoder="cross", positions="learned"),
}
CLIPPINGS = ("flat", "per-layer", "automatic")


def one_by_one(model: nn.Module, losses: Losses) -> list[dict[str, Tensor]]:
    """Each unit's gradient by ordinary autograd on the unit alone."""
    found = []
    for unit in range(UNITS):
        model.zero_grad()
        torch.autograd.backward(losses(model, slice(unit, unit + 1)).sum())
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    return found


def length(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(each.double().square().sum()) for each in gradients.values()))


def clipped(gradients: dict[str, Tensor], privacy: Privacy) -> dict[str, Tensor]:
    """A unit's gradient as the plan's words say it is clipped."""
    norm = length(gradients)
    if privacy.clipping == "flat":
        return {name: each * min(1.0, privacy.clip / norm) for name, each in gradients.items()}
    if privacy.clipping == "automatic":
        return {name: each * privacy.clip / (norm + STABILITY) for name, each in gradients.items()}
    share = privacy.clip / math.sqrt(len(gradients))
    return {name: each * min(1.0, share / max(1e-30, float(each.norm()))) for name, each in gradients.items()}


def kept(model: nn.Module, losses: Losses, privacy: Privacy, rows: slice = slice(0, UNITS)) -> dict[str, Tensor]:
    """The clipped sum by book-keeping."""
    model.zero_grad()
    keeper = Bookkeeper(model, privacy)
    with keeper.watch(rows.stop - rows.start):
        torch.autograd.backward(losses(model, rows).sum())
    keeper.add_clipped()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def total(gradients: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name] for each in gradients]).sum(dim=0) for name in gradients[0]}


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    scale = length(expected)
    assert scale > 0
    assert length({name: found[name] - expected[name] for name in found}) < tolerance * scale


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_is_that_of_gradients_taken_one_by_one(small_plan: Plan, name: str, clipping: str) -> None:
    model, losses = MODELS[name](small_plan)
    alone = one_by_one(model, losses)
    middle = sorted(length(each) for each in alone)[UNITS // 2]  # so that some are clipped and some are not
    privacy = Privacy(clip=middle, clipping=clipping)
    expected = total([clipped(each, privacy) for each in alone])
    assert_alike(kept(model, losses, privacy), expected, 1e-3)  # 2.4e-4 of it is the room for rounding


@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_is_that_of_opacus(small_plan: Plan, name: str) -> None:
    model, losses = MODELS[name](small_plan)
    if "masks" in name:
        pytest.skip("Opacus takes the masks of a picture for units")
    twin = copy.deepcopy(model)
    wrapped = GradSampleModule(twin, strict=True, force_functorch=False, loss_reduction="sum")
    torch.autograd.backward(losses(wrapped, slice(0, UNITS)).sum())
    trained: dict[str, Any] = {key: p for key, p in twin.named_parameters() if p.requires_grad}  # with grad_sample
    alone = [{key: p.grad_sample[unit].detach() for key, p in trained.items()} for unit in range(UNITS)]
    privacy = Privacy(clip=0.5 * length(alone[0]))
    expected = total([clipped(each, privacy) for each in alone])
    assert_alike(kept(model, losses, privacy), expected, 1e-3)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("name", ["full", "lora", "attentive", "repeated masks", "cross decoder", "learned positions"])
def test_no_unit_moves_the_sum_by_more_than_the_clip(small_plan: Plan, name: str, clipping: str) -> None:
    model, losses = MODELS[name](small_plan)
    model.double()
    double = lambda module, rows: losses(_Doubled(module), rows)  # noqa: E731  # one line says it
    privacy = Privacy(clip=1e-3, clipping=clipping)  # far below every gradient
    everybody = kept(model, double, privacy)
    others = kept(model, double, privacy, slice(0, UNITS - 1))
    moved = length({key: everybody[key] - others[key] for key in everybody})
    least = 0.3 if clipping == "per-layer" else 0.9  # a tensor whose gradient is below its share is left as it is
    assert least * privacy.clip < moved <= privacy.clip * (1 + 1e-9)


class _Doubled(nn.Module):
    """A model that is given its pictures in float64."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module

    def forward(self, pictures: Tensor, *others: Any) -> Tensor:
        found: Tensor = self._module(pictures.double(), *others)
        return found


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("name", ["full", "lora", "mae", "repeated masks", "learned positions"])
def test_sixteen_bits_keep_a_units_part_within_the_clip(small_plan: Plan, name: str, clipping: str) -> None:
    model, losses = MODELS[name](small_plan)
    modules: Iterator[Any] = model.modules()
    for module in modules:
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    alone = one_by_one(model, losses)
    privacy = Privacy(clip=0.3 * min(length(each) for each in alone), clipping=clipping)

    def rounded(module: nn.Module, rows: slice) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return losses(module, rows)

    for unit in range(UNITS):
        found = kept(model, rounded, privacy, slice(unit, unit + 1))
        assert all(each.dtype == torch.float32 for each in found.values())
        least = 0.3 if clipping == "per-layer" else 0.8
        assert least * privacy.clip < length(found) <= privacy.clip
    expected = total([clipped(each, privacy) for each in alone])
    assert_alike(kept(model, rounded, privacy), expected, 0.1)


def test_both_ways_of_a_matrix_are_used_and_none_of_its_gradients_is_made_where_ghosts_are_cheaper(
    small_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cxrbase_model import unitgrads

    counted = {"_ghost_squares": 0, "_add_made": 0}
    for name in counted:
        real = getattr(unitgrads, name)

        def counting(*arguments: Any, name: str = name, real: Any = real) -> Any:
            counted[name] += 1
            return real(*arguments)

        monkeypatch.setattr(unitgrads, name, counting)
    model, losses = classifier(small_plan)
    kept(model, losses, Privacy())
    matrices = [module for module in model.modules() if isinstance(module, nn.Linear)]
    wide = [
        m
        for m in matrices
        if m is not model.head and m.in_features * m.out_features > 16 * (m.in_features + m.out_features)
    ]
    assert counted["_ghost_squares"] == len(wide) + 1, "and the head, which sees one place"
    assert counted["_add_made"] == len([p for p in model.parameters() if p.requires_grad]) - len(wide) - 1


@pytest.mark.parametrize("worst", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_a_unit_whose_gradient_is_not_finite_counts_as_zero(small_plan: Plan, clipping: str, worst: float) -> None:
    model, losses = autoencoder(small_plan)
    privacy = Privacy(clip=0.1, clipping=clipping)

    def spoilt(module: nn.Module, rows: slice) -> Tensor:
        return losses(module, rows) * torch.tensor([1.0, 1.0, 1.0, 1.0, worst])[rows]

    assert_alike(kept(model, spoilt, privacy), kept(model, losses, privacy, slice(0, UNITS - 1)), 1e-5)


@pytest.mark.parametrize("cached", [1, 1 << 30])
def test_how_many_units_a_norm_layer_takes_at_once_changes_nothing(
    small_plan: Plan, monkeypatch: pytest.MonkeyPatch, cached: int
) -> None:
    model, losses = autoencoder(small_plan, masks=MASKS)
    expected = kept(model, losses, Privacy(clip=0.1))
    monkeypatch.setattr("cxrbase_model.unitgrads._CACHED", cached)
    assert_alike(kept(model, losses, Privacy(clip=0.1)), expected, 1e-6)


def test_what_the_pass_has_changed_is_as_before_after_it_even_where_it_fails(small_plan: Plan) -> None:
    model, losses = classifier(small_plan)
    keeper = Bookkeeper(model, Privacy())
    trained = [parameter.requires_grad for parameter in model.parameters()]

    def fail() -> None:
        torch.autograd.backward(losses(model, slice(0, UNITS)).sum())
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), keeper.watch(UNITS):
        fail()
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


class Scaled(nn.Module):
    """A layer that nobody has written a rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Derived(nn.Linear):
    """It may compute anything."""


def test_a_layer_without_a_rule_is_refused_by_name() -> None:
    for module in (Scaled(), Derived(3, 3), nn.Embedding(3, 3, padding_idx=0), nn.LayerNorm((2, 3))):
        with pytest.raises(ValueError, match=f"no rule for the gradients of a {type(module).__name__}"):
            Bookkeeper(nn.Sequential(module), Privacy())
    Bookkeeper(nn.Sequential(Scaled().requires_grad_(False), nn.Linear(3, 3)), Privacy())


def test_a_weight_of_two_layers_or_of_two_uses_is_refused() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    with pytest.raises(ValueError, match="each weight in one layer"):
        Bookkeeper(nn.Sequential(first, second), Privacy())
    keeper = Bookkeeper(nn.Sequential(first), Privacy())
    with pytest.raises(RuntimeError, match="one use of each layer"), keeper.watch(2):
        first(first(torch.ones(2, 3)))
    with pytest.raises(RuntimeError, match="rows of 2 units"), keeper.watch(2):
        first(torch.ones(3, 3))


def test_the_autoencoder_of_the_plan_is_one_that_has_rules(small_plan: Plan) -> None:
    model = build_autoencoder(small_plan)
    assert isinstance(model, MaskedAutoencoder)
    assert len(Bookkeeper(model, Privacy()).parameters) == len(list(model.parameters()))
