"""The masked autoencoder against slow versions that loop over pictures and patches."""

from __future__ import annotations

import pytest
import torch

from cxrbase_model.mae import build_autoencoder
from cxrbase_model.plan import Plan
from cxrbase_model.seeds import generator
from cxrbase_model.settings import read, to_mapping
from cxrbase_model.state import digest, state_of
from cxrbase_model.vit import patchify, sincos_positions, unpatchify


@pytest.fixture
def cross_plan(small_plan: Plan) -> Plan:
    mapping = to_mapping(small_plan)
    mapping["model"] |= {"decoder": "cross", "decoder_depth": 2}
    return read(Plan, mapping)


def test_patches_are_cut_row_by_row() -> None:
    images = torch.arange(2 * 6 * 4, dtype=torch.float32).reshape(2, 6, 4)
    patches = patchify(images, 2)
    for picture in range(2):
        index = 0
        for top in range(0, 6, 2):
            for left in range(0, 4, 2):
                expected = images[picture, top : top + 2, left : left + 2].flatten()
                assert torch.equal(patches[picture, index], expected)
                index += 1


def test_patches_of_a_square_picture_go_back_to_it() -> None:
    images = torch.rand(3, 32, 32)
    assert torch.equal(unpatchify(patchify(images, 8), 8), images)


def test_positions_are_distinct_and_know_rows_from_columns() -> None:
    positions = sincos_positions(6, 32)
    distances = torch.cdist(positions, positions) + torch.eye(36) * 9
    assert distances.min() > 0.1
    grid = positions.reshape(6, 6, 32)
    assert torch.equal(grid[:, 2, :16], grid[:1, 2, :16].expand(6, -1)), "one half depends on the column alone"
    assert torch.equal(grid[4, :, 16:], grid[4, :1, 16:].expand(6, -1)), "the other on the row alone"


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_the_squared_error_on_hidden_patches_alone(small_plan: Plan, normalize: bool) -> None:
    model = build_autoencoder(small_plan)
    images = torch.randn(3, 32, 32)
    visible, hidden = model.random_masking(3, 0.75, generator(0, "masks"))
    patches = model.patchify(images)
    prediction = model.forward_decoder(model.forward_encoder(patches, visible), visible, hidden)
    losses = model(images, visible, hidden, normalize).detach()
    prediction = prediction.detach()
    for picture in range(3):
        total, count = 0.0, 0
        for position, patch in enumerate(hidden[picture].tolist()):
            target = patches[picture, patch].double()
            if normalize:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            for guessed, right in zip(prediction[picture, position].double(), target, strict=True):
                total, count = total + float((guessed - right) ** 2), count + 1
        assert float(losses[picture]) == pytest.approx(total / count, rel=1e-5)


def test_each_picture_hides_its_own_patches_and_every_patch_is_either_seen_or_hidden(small_plan: Plan) -> None:
    model = build_autoencoder(small_plan)
    visible, hidden = model.random_masking(4, 0.75, generator(1, "masks"))
    assert visible.shape == (4, 4)
    assert hidden.shape == (4, 12)
    for picture in range(4):
        assert sorted([*visible[picture].tolist(), *hidden[picture].tolist()]) == list(range(16))
    assert len({tuple(sorted(row.tolist())) for row in visible}) > 1
    again, _ = model.random_masking(4, 0.75, generator(1, "masks"))
    assert torch.equal(visible, again)


@pytest.mark.parametrize(("ratio", "seen"), [(0.05, 15), (0.9, 2), (0.98, 1)])
def test_at_least_one_patch_is_seen_and_one_hidden(small_plan: Plan, ratio: float, seen: int) -> None:
    visible, _ = build_autoencoder(small_plan).random_masking(2, ratio, generator(0, "masks"))
    assert visible.shape[1] == seen


def test_the_encoder_never_sees_a_hidden_patch(small_plan: Plan) -> None:
    model = build_autoencoder(small_plan)
    images = torch.randn(1, 32, 32)
    visible, hidden = model.random_masking(1, 0.75, generator(0, "masks"))
    patches = model.patchify(images)
    before = model.forward_encoder(patches, visible)
    patches[:, hidden[0]] = 1e3
    assert torch.equal(model.forward_encoder(patches, visible), before)


def test_initial_weights_follow_from_the_plans_seed(small_plan: Plan) -> None:
    first, again = build_autoencoder(small_plan), build_autoencoder(small_plan)
    assert digest(state_of(first)) == digest(state_of(again))


def test_no_module_has_parameters_that_opacus_cannot_hook(small_plan: Plan) -> None:
    hookable = (torch.nn.Linear, torch.nn.LayerNorm, torch.nn.Embedding)
    for module in build_autoencoder(small_plan).modules():
        if list(module.parameters(recurse=False)):
            assert isinstance(module, hookable)


def test_several_masks_of_one_picture_give_what_one_at_a_time_gives(small_plan: Plan) -> None:
    model = build_autoencoder(small_plan)
    images = torch.randn(2, 32, 32)
    visible, hidden = model.random_masking(6, 0.75, generator(0, "masks"))
    together = model(images, visible, hidden)
    for row in range(6):
        alone = model(images[row // 3 : row // 3 + 1], visible[row : row + 1], hidden[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_a_cross_decoder_predicts_a_patch_the_same_whichever_others_are_predicted(
    small_plan: Plan, cross_plan: Plan
) -> None:
    for plan, same in ((cross_plan, True), (small_plan, False)):
        model = build_autoencoder(plan)
        visible, hidden = model.random_masking(2, 0.75, generator(0, "masks"))
        features = model.forward_encoder(torch.randn(2, 16, 64), visible)
        whole = model.forward_decoder(features, visible, hidden)[:, :3]
        part = model.forward_decoder(features, visible, hidden[:, :3])
        assert torch.allclose(whole, part, atol=1e-5) == same


def test_learned_positions_start_as_the_fixed_ones_and_are_part_of_the_state(small_plan: Plan) -> None:
    mapping = to_mapping(small_plan)
    mapping["model"]["positions"] = "learned"
    fixed, learned = build_autoencoder(small_plan), build_autoencoder(read(Plan, mapping))
    assert state_of(learned).keys() - state_of(fixed).keys() == {"encoder.positions.learned.weight"}
    assert torch.equal(state_of(learned)["encoder.positions.learned.weight"], sincos_positions(4, 128))
    patches, (visible, _) = torch.randn(2, 16, 64), fixed.random_masking(2, 0.5, generator(0, "masks"))
    learned.load_state_dict(fixed.state_dict(), strict=False)
    for index in (None, visible):
        assert torch.equal(learned.encoder(patches, index), fixed.encoder(patches, index))
