"""The plan's promise: what is refused beside it, who is drawn, what it costs, and how it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cxrbase_model.composition import epsilon
from cxrbase_model.dpsgd import Protection, check_runtime, mechanism_of, protect
from cxrbase_model.normals import NoiseSource
from cxrbase_model.plan import Plan, Privacy
from cxrbase_model.privacy import Mechanism, describe
from cxrbase_model.rows import poisson_rows
from cxrbase_model.runtime import Runtime
from cxrbase_model.settings import SettingsError, read, to_mapping

PATIENTS = np.array([4, 4, 4, 4, 7, 1, 1, 9])  # the patient of each of eight pictures
ROWS = np.arange(100, 108)


def private(plan: Plan, stage: dict[str, Any] | None = None, **privacy: Any) -> Plan:
    mapping = to_mapping(plan)
    mapping["privacy"] = privacy
    mapping["stages"][1] |= {"positive_weight": 1.0} | (stage or {})
    return read(Plan, mapping)


def test_a_plan_may_promise_nothing_or_patients_or_pictures(small_plan: Plan) -> None:
    assert small_plan.privacy is None
    assert private(small_plan).privacy == Privacy()
    assert private(small_plan, unit="picture").privacy == Privacy(unit="picture")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"positive_weight": 4.0}, r"stages\[1\]\.positive_weight: expected 1\.0 under privacy, .*, found 4\.0"),
        ({"balance": "findings"}, r"stages\[1\]\.balance: expected none under privacy, .*, found findings"),
        ({"label_fraction": 0.5}, r"stages\[1\]\.label_fraction: expected 1\.0 under privacy, .*, found 0\.5"),
    ],
)
def test_what_no_noise_would_cover_is_refused_by_its_key(small_plan: Plan, stage: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        private(small_plan, stage)


@pytest.mark.parametrize(
    ("key", "value"),
    [("unit", "hospital"), ("noise_multiplier", 0.0), ("clip", 0.0), ("clipping", "none")],
)
def test_a_promise_that_cannot_be_is_refused_by_its_key(small_plan: Plan, key: str, value: object) -> None:
    privacy: dict[str, Any] = {key: value}
    with pytest.raises(SettingsError, match=rf"privacy\.{key}"):
        private(small_plan, **privacy)


@pytest.mark.parametrize("clipping", ["flat", "per-layer", "automatic"])
def test_the_promise_reads_as_words_with_its_numbers(clipping: str) -> None:
    patient = describe(Privacy(noise_multiplier=1.5, clip=0.2, clipping=clipping))
    assert patient.startswith("Each patient, with all pictures and labels of that patient, is protected")
    assert "one picture drawn" in patient
    assert "0.3 (1.5 times" in patient
    assert " 0.2" in patient
    assert "not a patient who has several" in describe(Privacy(unit="picture", clipping=clipping))


def test_a_promise_without_a_source_of_noise_is_an_error() -> None:
    assert protect(None, None) is None
    with pytest.raises(ValueError, match="there is no source"):
        protect(Privacy(), None)
    found = protect(Privacy(), NoiseSource())
    assert found is not None
    assert not found.source.seeded


@pytest.mark.parametrize("name", ["compile", "recompute"])
def test_ways_of_computing_that_hooks_do_not_see_are_refused_by_name(name: str) -> None:
    hidden: dict[str, Any] = {name: True}
    with pytest.raises(SettingsError, match=f"compute.{name}: expected false under a plan with privacy, found true"):
        check_runtime(Runtime(torch.device("cpu"), **hidden))
    check_runtime(Runtime(torch.device("cpu"), "bf16", micro_batch=2))


def test_the_cost_counts_patients_or_pictures_as_the_plan_says() -> None:
    assert mechanism_of(Privacy(), PATIENTS, 2, 3.0) == Mechanism("patient", 1.0, 0.5, 6)
    assert mechanism_of(Privacy(unit="picture"), PATIENTS, 2, 3.0) == Mechanism("picture", 1.0, 0.25, 12)
    assert mechanism_of(Privacy(noise_multiplier=2.0), PATIENTS, 64, 1.0) == Mechanism("patient", 2.0, 1.0, 1)


def drawn(unit: str, mechanism: Mechanism, source: NoiseSource | None = None) -> list[list[int]]:
    protection = Protection(Privacy(unit=unit), source or NoiseSource())
    return [chosen.tolist() for chosen in protection.batches(ROWS, PATIENTS, mechanism)]


def test_a_patient_is_in_a_step_with_one_picture_at_most_each_as_likely() -> None:
    steps = 4000
    found = drawn("patient", Mechanism("patient", 1.0, 0.5, steps))
    assert len(found) == steps
    for rows in found:
        patients = PATIENTS[np.array(rows, np.int64) - 100]
        assert len(set(patients.tolist())) == len(patients)
    counts = np.bincount(np.concatenate([np.array(rows, np.int64) for rows in found]) - 100, minlength=8)
    expected = steps * 0.5 / np.array([4, 4, 4, 4, 1, 2, 2, 1])
    assert np.all(np.abs(counts - expected) < 6 * np.sqrt(expected))  # six standard deviations at least


def test_each_unit_is_drawn_for_itself_so_that_steps_differ_in_size_and_may_be_empty() -> None:
    sizes = [len(rows) for rows in drawn("picture", Mechanism("picture", 1.0, 0.2, 4000))]
    assert 0 in sizes
    assert np.mean(sizes) == pytest.approx(8 * 0.2, abs=0.11)  # six standard errors
    assert np.var(sizes) == pytest.approx(8 * 0.2 * 0.8, abs=0.2)
    assert {tuple(rows) for rows in drawn("picture", Mechanism("picture", 1.0, 1.0, 3))} == {tuple(ROWS)}


def test_who_is_drawn_follows_from_the_source_alone_and_a_secure_one_never_repeats() -> None:
    mechanism = Mechanism("patient", 1.0, 0.5, 64)
    assert drawn("patient", mechanism, NoiseSource(3)) == drawn("patient", mechanism, NoiseSource(3))
    assert drawn("patient", mechanism, NoiseSource(3)) != drawn("patient", mechanism, NoiseSource(4))
    assert drawn("patient", mechanism) != drawn("patient", mechanism)


def test_the_last_picture_of_a_patient_can_be_drawn_and_none_beyond_it() -> None:
    values = iter([np.zeros(4), np.full(4, 1 - 2.0**-53)])
    rows = next(poisson_rows(ROWS, PATIENTS, 1.0, 1, lambda count: next(values)))
    assert sorted(rows.tolist()) == [103, 104, 106, 107]


def test_costs_add_up_as_an_independent_sum_of_renyi_divergences_says() -> None:
    once, other = Mechanism("patient", 1.1, 0.02, 300), Mechanism("patient", 2.0, 1.0, 2)
    assert epsilon([], "patient", 1e-5) == 0.0
    assert (
        epsilon([once], once.unit, 1e-5)
        < epsilon([once, other], once.unit, 1e-5)
        < epsilon([once], once.unit, 1e-5) + epsilon([other], once.unit, 1e-5)
    )
    plain = Mechanism("patient", 4.0, 1.0, 1)  # the Gaussian mechanism has alpha / (2 sigma^2) at every order
    orders = np.linspace(1.1, 200, 20000)
    delta = 1e-5
    bound = orders / (2 * 16) + np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    assert epsilon([plain], plain.unit, delta) == pytest.approx(float(bound.min()), rel=1e-3)
