"""Phantom radiographs: repeatable, of the promised form, and each finding changes the picture where it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sim.phantom import FINDINGS, Lesion, Patient, Pose, Scanner, draw_lesions, draw_patient, draw_pose, findings_of
from sim.phantom import radiograph as draw
from sim.phantom_anatomy import build_chest
from sim.phantom_dirt import ct_slice, lateral
from sim.phantom_lesions import heart_ratio
from sim.phantom_patient import CARDIOMEGALY, CONSOLIDATION, EFFUSION, NODULE, PATHOLOGIES, PNEUMOTHORAX
from sim.phantom_sheet import contact_sheet, example_pictures, thumbnails
from sim.phantom_strokes import LEFT, PITCH, Map, splat, tubes

SIDE, FIELD = 240, 38.5
QUIET = Scanner(rows=SIDE, columns=SIDE, field=FIELD, noise=0.0)
PATIENT = Patient(seed=4)
STANDING = Pose()


def radiograph(*lesions: Lesion, patient: Patient = PATIENT, pose: Pose = STANDING, seed: int = 0) -> Map:
    return draw(patient, lesions, pose, QUIET, np.random.default_rng(seed))


def region(image: Map, left: float, right: float, top: float, bottom: float) -> Map:
    """The part of a picture in a straight pose that covers a rectangle given in cm of the patient."""
    columns = [round((x / FIELD + 0.5) * SIDE) for x in (left, right)]
    rows = [round((y + 0.125 * FIELD) / FIELD * SIDE) for y in (top, bottom)]
    return image[rows[0] : rows[1], columns[0] : columns[1]]


def beside(image: Map, side: int, near: float, far: float, top: float, bottom: float) -> Map:
    """The region between two distances from the middle, on the left (-1) or the right (1) of the picture."""
    left, right = sorted((side * near, side * far))
    return region(image, left, right, top, bottom)


def test_a_picture_is_float32_between_zero_and_one_in_the_scanners_matrix() -> None:
    scanner = Scanner(rows=120, columns=100, marker="L\nAP", shutter=1.0)
    image = draw(PATIENT, (), STANDING, scanner, np.random.default_rng(0))
    assert image.shape == (120, 100)
    assert image.dtype == np.float32
    assert image.min() == 0.0
    assert image.max() <= 1.0
    assert not image[:3].any()


def test_the_same_seed_draws_the_same_picture_and_another_seed_another_noise() -> None:
    noisy = replace(QUIET, noise=0.02)
    first, again, other = (draw(PATIENT, (), STANDING, noisy, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert 0.001 < np.abs(first - other).mean() < 0.05


def test_patients_lesions_and_poses_are_drawn_alike_from_the_same_seed() -> None:
    def drawn(seed: int) -> tuple[object, ...]:
        rng = np.random.default_rng(seed)
        return draw_patient(rng), draw_lesions(rng, PATHOLOGIES), draw_pose(rng, supine=True)

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_two_pictures_of_one_patient_are_more_alike_than_those_of_two_patients() -> None:
    rng = np.random.default_rng(0)
    patients = [draw_patient(rng) for _ in range(4)]
    poses = [replace(draw_pose(rng, supine=False), shift=(0.0, 0.0), tilt=0.0) for _ in range(2)]
    pictures = [[radiograph(patient=patient, pose=pose) for pose in poses] for patient in patients]
    within = np.mean([np.abs(one - two).mean() for one, two in pictures])
    between = np.mean([np.abs(pictures[i][0] - pictures[i - 1][1]).mean() for i in range(4)])
    assert within < 0.75 * between


def test_lungs_are_darker_than_the_mediastinum_and_lighter_than_the_air_outside() -> None:
    image = radiograph()
    lung, mediastinum = region(image, 5, 9, 8, 14).mean(), region(image, -1, 1, 10, 16).mean()
    assert image[:5, :5].mean() < lung < mediastinum - 0.3


def test_the_right_dome_of_the_diaphragm_stands_higher() -> None:
    image = radiograph()
    right, left = region(image, -11, -9, 23.8, 24.4).mean(), region(image, 9, 11, 23.8, 24.4).mean()
    assert right > left + 0.1


def test_cardiomegaly_widens_the_heart_beyond_half_of_the_thorax() -> None:
    for size in (0.0, 1.0):
        enlarged = (Lesion(CARDIOMEGALY, 1, size),)
        for ratio, wide in ((heart_ratio(PATIENT, ()), False), (heart_ratio(PATIENT, enlarged), True)):
            chest = build_chest(PATIENT, STANDING, ratio)
            columns = np.flatnonzero((chest.heart > 0.5).any(axis=0))
            breadth = (columns[-1] - columns[0]) * PITCH
            assert (breadth / (2 * PATIENT.half_width) > 0.5) == wide
    image, plain = radiograph(Lesion(CARDIOMEGALY, 1, 0.7)), radiograph()
    assert region(image, 7.5, 9, 16, 19).mean() > region(plain, 7.5, 9, 16, 19).mean() + 0.1


@pytest.mark.parametrize("side", [-1, 1])
def test_an_effusion_whitens_the_base_on_its_side_only(side: int) -> None:
    image, plain = radiograph(Lesion(EFFUSION, side, 0.6)), radiograph()
    difference = image - plain
    base = {one: beside(difference, one, 9, 12, 21, 23).mean() for one in (-1, 1)}
    assert base[side] > 0.2
    assert abs(base[-side]) < 0.07


def test_an_effusion_climbs_the_lateral_wall_as_a_meniscus() -> None:
    difference = radiograph(Lesion(EFFUSION, -1, 0.6)) - radiograph()
    lateral_part, middle = region(difference, -12, -11, 8, 22), region(difference, -8, -7, 8, 22)
    top_of = [int(np.argmax(part.mean(axis=1) > 0.15)) for part in (lateral_part, middle)]
    assert top_of[0] < top_of[1]


@pytest.mark.parametrize("side", [-1, 1])
def test_a_pneumothorax_darkens_the_periphery_on_its_side(side: int) -> None:
    difference = radiograph(Lesion(PNEUMOTHORAX, side, 0.8)) - radiograph()
    edge = {one: beside(difference, one, 10.5, 12, 9, 15).mean() for one in (-1, 1)}
    assert edge[side] < edge[-side] - 0.08


def test_a_small_pneumothorax_is_apical_only() -> None:
    difference = radiograph(Lesion(PNEUMOTHORAX, 1, 0.2)) - radiograph()
    assert region(difference, 4, 8, 1.2, 2.4).min() < -0.05
    assert np.abs(region(difference, 9, 13, 14, 19)).max() < 0.15


def test_a_nodule_is_a_round_opacity_of_its_size() -> None:
    nodule = Lesion(NODULE, 1, 1.0, across=0.6, down=0.4)
    difference = radiograph(nodule) - radiograph()
    bright = difference > 0.08
    area = bright.sum() * (10 * FIELD / SIDE) ** 2
    assert 15 < 2 * np.sqrt(area / np.pi) < 32  # mm
    rows, columns = np.nonzero(bright)
    assert 0.7 < np.ptp(rows) / np.ptp(columns) < 1.4


def test_a_consolidation_is_a_large_opacity_around_its_place() -> None:
    difference = radiograph(Lesion(CONSOLIDATION, -1, 0.7, across=0.5, down=0.6, seed=3)) - radiograph()
    assert region(difference, -10, -4, 11, 16).mean() > 0.08
    assert np.abs(region(difference, 4, 10, 8, 16)).mean() < 0.02


def test_findings_of_lesions_are_in_the_order_of_the_vocabulary() -> None:
    lesions = draw_lesions(np.random.default_rng(0), (NODULE, CARDIOMEGALY))
    assert findings_of(lesions) == (CARDIOMEGALY, NODULE)
    assert findings_of(()) == ("No Finding",)


def test_an_unknown_finding_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'Hernia' is not drawn; expected one of Cardiomegaly"):
        draw_lesions(np.random.default_rng(0), ("Hernia",))


def test_a_lateral_view_and_a_ct_slice_have_the_promised_form() -> None:
    rng = np.random.default_rng(0)
    side_view = lateral(PATIENT, QUIET, rng)
    assert side_view.shape == (SIDE, SIDE)
    assert side_view.dtype == np.float32
    slice_hu = ct_slice(PATIENT, 96, rng)
    assert slice_hu.shape == (96, 96)
    assert slice_hu.min() >= -1024
    assert np.median(slice_hu[:5, :5]) < -900
    assert 300 < np.percentile(slice_hu, 99.5) < 900


def test_a_tube_holds_the_volume_of_its_profile() -> None:
    x = np.linspace(-5, 5, 200)[None, :]
    thickness = splat([tubes(x, np.full_like(x, 10.0), 0.5, 1.0, across=31)])
    column = round((0.0 - LEFT) / PITCH)
    assert thickness[:, column].sum() * PITCH == pytest.approx(np.pi / 4, rel=0.02)  # half an ellipse, 1 cm by 1 cm


def test_the_contact_sheet_shows_every_finding_in_every_kind_of_hospital(tmp_path: Path) -> None:
    path = contact_sheet(tmp_path / "new" / "phantoms.png", side=40)
    with Image.open(path) as sheet:
        assert sheet.size[0] == 6 * 46
        assert np.asarray(sheet).std() > 20


def test_example_pictures_are_one_for_each_finding() -> None:
    pictures = example_pictures(48)
    assert pictures.shape == (len(FINDINGS), 48, 48)
    assert pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures, example_pictures(48))


def test_thumbnails_refuse_an_empty_sheet() -> None:
    with pytest.raises(ValueError, match="found 0 pictures"):
        thumbnails([])
