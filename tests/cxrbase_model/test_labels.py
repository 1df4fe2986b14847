"""Hospital names and marks become label vectors that mean the same everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cxrbase_model.labels import (
    CHEXPERT_14,
    NIH_14,
    NO_FINDING,
    SUPPORT_DEVICES,
    VINDR_28,
    Mark,
    UnknownFinding,
    Vocabulary,
    prevalence,
)

POSITIVE, NEGATIVE, UNCERTAIN = Mark.POSITIVE, Mark.NEGATIVE, Mark.UNCERTAIN
PLAN = (NO_FINDING, "Cardiomegaly", "Pleural Effusion", "Pneumonia")
NAN = math.nan


def test_vocabularies_have_their_published_sizes_and_no_name_twice() -> None:
    for vocabulary, size in ((CHEXPERT_14, 14), (NIH_14, 14), (VINDR_28, 28)):
        assert len(set(vocabulary)) == len(vocabulary) == size


@pytest.mark.parametrize(
    "name", ["Pleural Effusion", "pleural_effusion", " PLEURAL  effusion ", "Effusion", "Pleural-Effusion"]
)
def test_spellings_of_a_name_mean_the_same(name: str) -> None:
    assert Vocabulary(PLAN).column(name) == 2


def test_a_synonym_in_the_plan_is_found_from_the_other_name() -> None:
    assert Vocabulary(("Fibrosis",)).column("Pulmonary Fibrosis") == 0
    assert Vocabulary(("Pulmonary Fibrosis",)).column("Fibrosis") == 0


def test_the_hospitals_mapping_wins_over_everything() -> None:
    vocabulary = Vocabulary(PLAN, {"Herzvergrößerung": "Cardiomegaly", "Pneumonia": "Pleural Effusion"})
    assert vocabulary.column("herzvergrößerung") == 1
    assert vocabulary.column("Pneumonia") == 2


def test_a_well_known_finding_that_the_plan_does_not_learn_is_no_error() -> None:
    assert Vocabulary(PLAN).column("Emphysema") is None


def test_an_unknown_name_is_an_error_that_lists_the_nearest() -> None:
    with pytest.raises(
        UnknownFinding, match=r"'Cardiomegalie' is no known finding; nearest: Cardiomegaly.*labels\.names"
    ):
        Vocabulary(PLAN).column("Cardiomegalie")
    with pytest.raises(
        UnknownFinding, match=r"labels\.names\.Herz: 'Cardiomegalia' is no known finding; nearest: Cardiomegaly"
    ):
        Vocabulary(PLAN, {"Herz": "Cardiomegalia"})


def test_unknown_names_pass_where_the_hospital_ignores_them_or_the_set_has_its_own_vocabulary() -> None:
    assert Vocabulary(PLAN, ignore=["reader"]).column("Reader") is None
    assert Vocabulary(PLAN, strict=False).column("costophrenic angle blunting") is None


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ({}, [NAN, NAN, NAN, NAN]),
        ({"Cardiomegaly": POSITIVE}, [0, 1, NAN, NAN]),
        ({"No Finding": POSITIVE}, [1, 0, 0, 0]),
        ({"No Finding": NEGATIVE}, [0, NAN, NAN, NAN]),
        ({"No Finding": POSITIVE, "Pneumonia": POSITIVE}, [0, NAN, NAN, 1]),
        ({"No Finding": POSITIVE, "Pneumonia": UNCERTAIN}, [1, 0, 0, NAN]),
        ({"Emphysema": POSITIVE}, [0, NAN, NAN, NAN]),
        ({"Support Devices": POSITIVE, "No Finding": POSITIVE}, [1, 0, 0, 0]),
        ({"Cardiomegaly": NEGATIVE, "Effusion": POSITIVE}, [0, 0, 1, NAN]),
        ({"normal": POSITIVE}, [1, 0, 0, 0]),
    ],
)
def test_no_finding_and_the_other_findings_imply_each_other(marks: dict[str, Mark], expected: list[float]) -> None:
    np.testing.assert_array_equal(Vocabulary(PLAN).encode(marks, "ignore"), np.array(expected, np.float32))


def test_no_finding_says_nothing_about_support_devices() -> None:
    labels = Vocabulary((NO_FINDING, SUPPORT_DEVICES, "Edema")).encode({"No Finding": POSITIVE}, "ignore")
    np.testing.assert_array_equal(labels, np.array([1, NAN, 0], np.float32))


def test_an_ignored_finding_is_as_if_it_had_not_been_written() -> None:
    labels = Vocabulary(PLAN, ignore=["COVID-19"]).encode({"COVID-19": POSITIVE}, "ignore")
    assert np.isnan(labels).all()


@pytest.mark.parametrize(("policy", "value"), [("ones", 1.0), ("zeros", 0.0), ("soft", 0.5), ("ignore", NAN)])
def test_uncertain_follows_the_plans_policy(policy: str, value: float) -> None:
    labels = Vocabulary(PLAN).encode({"Pneumonia": UNCERTAIN}, policy)
    np.testing.assert_array_equal(labels[3], np.float32(value))


def test_of_two_names_for_one_finding_the_stronger_mark_holds_in_any_order() -> None:
    vocabulary = Vocabulary(PLAN, {"Bacterial": "Pneumonia", "Viral": "Pneumonia"})
    for marks in ({"Bacterial": NEGATIVE, "Viral": POSITIVE}, {"Viral": POSITIVE, "Bacterial": NEGATIVE}):
        assert vocabulary.encode(marks, "ignore")[3] == 1.0
    for marks in ({"Bacterial": NEGATIVE, "Viral": UNCERTAIN}, {"Viral": UNCERTAIN, "Bacterial": NEGATIVE}):
        assert vocabulary.encode(marks, "soft")[3] == 0.5


def test_prevalence_counts_what_is_known() -> None:
    labels = np.array([[1, NAN], [0, 0.5], [0, 1]], np.float32)
    assert prevalence(labels, ("A", "B")) == {
        "A": {"positive": 1, "negative": 2, "uncertain": 0, "unknown": 0},
        "B": {"positive": 1, "negative": 0, "uncertain": 1, "unknown": 1},
    }
