"""Which files are frontal chest radiographs: each place a header may say so, in the order in which they are asked."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.sr.codedict import codes

from client.archive.reasons import Excluded, Reason
from client.archive.select import Rules, View, classify


def header(**elements: Any) -> Dataset:
    """The header of a chest radiograph that says nothing of its view; `elements` replace or, as None, remove elements."""
    values: dict[str, Any] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "Modality": "DX", "BodyPartExamined": "CHEST", "Rows": 2, "Columns": 2,
        "ImageType": ["ORIGINAL", "PRIMARY"], "PresentationIntentType": "FOR PRESENTATION", "PixelData": b"\0" * 8,
    } | elements  # fmt: skip
    dataset = Dataset()
    with disable_value_validation():
        for keyword, value in values.items():
            if value is not None:
                setattr(dataset, keyword, value)
    return dataset


def coded(value: str = "", meaning: str = "") -> list[Dataset]:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = value, meaning
    return [item]


def outcome(rules: Rules | None = None, **elements: Any) -> View | Reason:
    """The view of such a file, or the reason why it is left out."""
    try:
        return classify(header(**elements), rules or Rules())
    except Excluded as excluded:
        return excluded.reason


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"Modality": "CR"}, View.UNKNOWN),
        ({"Modality": "dx "}, View.UNKNOWN),
        ({"Modality": "RG"}, View.UNKNOWN),
        ({"Modality": "CT"}, Reason.MODALITY),
        ({"Modality": "MG"}, Reason.MODALITY),
        ({"Modality": "OT"}, Reason.MODALITY),
        ({"Modality": ""}, Reason.MODALITY),
        ({"Modality": None}, Reason.MODALITY),
    ],
)
def test_only_radiographs_are_used(elements: dict[str, Any], expected: View | Reason) -> None:
    assert outcome(**elements) is expected


def test_a_modality_that_is_not_there_is_forgiven_where_the_rules_say_so_and_another_one_is_not() -> None:
    rules = Rules(unknown_modality=True)
    assert outcome(rules, Modality=None) is View.UNKNOWN
    assert outcome(rules, Modality="CT") is Reason.MODALITY


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PixelData": None}, Reason.UNREADABLE),  # it describes pixels, so they were cut off
        ({"PixelData": None, "Rows": None, "Modality": "SR"}, Reason.NO_PIXELS),
        ({"PixelData": None, "Rows": None}, Reason.NO_PIXELS),
        ({"PresentationIntentType": "FOR PROCESSING"}, Reason.FOR_PROCESSING),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, Reason.SECONDARY_CAPTURE),
        ({"ImageType": ["DERIVED", "PRIMARY"]}, View.UNKNOWN),  # as processed radiographs are
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Reason.SECONDARY_CAPTURE),
        ({"ImageType": "ORIGINAL"}, View.UNKNOWN),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, Reason.SECONDARY_CAPTURE),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, Reason.SECONDARY_CAPTURE),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1"}, View.UNKNOWN),
        ({"BurnedInAnnotation": "YES"}, Reason.BURNED_IN),
        ({"BurnedInAnnotation": "NO"}, View.UNKNOWN),
        ({"NumberOfFrames": 2}, Reason.MULTI_FRAME),
        ({"NumberOfFrames": 1}, View.UNKNOWN),
    ],
)
def test_kinds_that_are_not_used_have_a_reason_each(elements: dict[str, Any], expected: View | Reason) -> None:
    assert outcome(**elements) is expected


@pytest.mark.parametrize(
    ("elements", "rules"),
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, Rules(for_processing=True)),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, Rules(secondary_capture=True)),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, Rules(secondary_capture=True)),
        ({"BurnedInAnnotation": "YES"}, Rules(burned_in=True)),
        ({"BodyPartExamined": None}, Rules(unknown_body_part=True)),
        ({"BodyPartExamined": "SKULL"}, Rules(body_parts=("SKULL",))),
        ({"Modality": "OT"}, Rules(modalities=("OT",))),
        ({"ViewPosition": "LL"}, Rules(lateral=True)),
    ],
)
def test_each_of_these_is_a_rule_that_the_site_may_change(elements: dict[str, Any], rules: Rules) -> None:
    assert isinstance(outcome(**elements), Reason)
    assert outcome(rules, **elements) is View.UNKNOWN


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"BodyPartExamined": "Thorax "}, View.UNKNOWN),
        ({"BodyPartExamined": "TÓRAX"}, View.UNKNOWN),
        ({"BodyPartExamined": "RIB"}, View.UNKNOWN),
        ({"BodyPartExamined": "ABDOMEN"}, Reason.NOT_CHEST),
        ({"BodyPartExamined": "TSPINE"}, Reason.NOT_CHEST),
        ({"BodyPartExamined": "PANCREAS"}, Reason.NOT_CHEST),  # whatever it is, it is named and not the chest
        ({"BodyPartExamined": "ABDOMEN", "SeriesDescription": "Chest PA"}, Reason.NOT_CHEST),
        ({"BodyPartExamined": "", "AnatomicRegionSequence": coded("51185008", "Chest")}, View.UNKNOWN),
        ({"BodyPartExamined": "", "AnatomicRegionSequence": coded("T-D8700", "Ankle joint")}, Reason.NOT_CHEST),
        ({"BodyPartExamined": None, "SeriesDescription": "Lunge liegend"}, View.AP),
        ({"BodyPartExamined": None, "ProtocolName": "RX TORAX FRENTE"}, View.UNKNOWN),
        ({"BodyPartExamined": None, "StudyDescription": "Bettlunge"}, View.UNKNOWN),
        ({"BodyPartExamined": None, "StudyDescription": "Thorax"}, View.UNKNOWN),
        ({"BodyPartExamined": None, "StudyDescription": "Brustwirbelsäule"}, Reason.NOT_CHEST),
        ({"BodyPartExamined": None, "StudyDescription": "Thorakale Wirbelsäule"}, Reason.NOT_CHEST),
        ({"BodyPartExamined": None, "SeriesDescription": "Hand"}, Reason.NOT_CHEST),
        ({"BodyPartExamined": None, "SeriesDescription": "Pelvis", "StudyDescription": "Chest, pelvis"}, Reason.NOT_CHEST),
        ({"BodyPartExamined": None, "SeriesDescription": "Chest", "StudyDescription": "Chest, pelvis"}, View.UNKNOWN),
        ({"BodyPartExamined": None, "StudyDescription": "As described"}, Reason.BODY_PART_UNKNOWN),  # no RIB
        ({"BodyPartExamined": None, "SeriesDescription": "1", "StudyDescription": "A"}, Reason.BODY_PART_UNKNOWN),
        ({"BodyPartExamined": None}, Reason.BODY_PART_UNKNOWN),
    ],
)  # fmt: skip
def test_the_body_part_is_taken_from_the_first_place_that_tells(
    elements: dict[str, Any], expected: View | Reason
) -> None:
    assert outcome(**elements) is expected


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("PA", View.PA),
        ("ap ", View.AP),
        ("AP SUPINE", View.AP),
        ("LL", Reason.LATERAL),
        ("RL", Reason.LATERAL),
        ("LLD", Reason.LATERAL),
        ("LAO", Reason.LATERAL),
        ("RPO", Reason.LATERAL),
        ("LATERAL", Reason.LATERAL),
        ("LEFT LATERAL", Reason.LATERAL),
        ("PA OBLIQUE", Reason.LATERAL),
        ("", View.UNKNOWN),
        ("ERECT", View.UNKNOWN),
    ],
)
def test_the_view_position_goes_first(position: str, expected: View | Reason) -> None:
    assert outcome(ViewPosition=position) is expected


@pytest.mark.parametrize(
    ("code", "meaning", "expected"),
    [
        ("272479007", "", View.PA),
        ("R-10214", "", View.PA),
        ("399348003", "", View.AP),
        ("R-10206", "", View.AP),
        ("399033003", "frontal", View.UNKNOWN),
        ("399067008", "", Reason.LATERAL),
        ("R-10236", "", Reason.LATERAL),
        ("R-10208", "antero-posterior oblique", Reason.LATERAL),
        ("99PRIVATE", "postero-anterior", View.PA),
        ("99PRIVATE", "Antero-posterior", View.AP),
        ("99PRIVATE", "Thorax seitlich", Reason.LATERAL),
        ("99PRIVATE", "Thorax", View.UNKNOWN),
    ],
)
def test_the_view_code_goes_second(code: str, meaning: str, expected: View | Reason) -> None:
    assert outcome(ViewCodeSequence=coded(code, meaning)) is expected
    assert outcome(ViewCodeSequence=coded(code, meaning), ViewPosition="PA") is View.PA


def test_of_the_views_of_cid_4010_only_the_three_frontal_ones_are_frontal() -> None:
    views = codes.cid4010
    found = {name: outcome(ViewCodeSequence=coded(getattr(views, name).value)) for name in views.dir()}
    unlikely = {  # of the skull, the foot, the breast and the teeth, and tissue: the body part keeps them out
        "Acanthioparietal", "CaudoCranial", "CranioCaudal", "Dorsoplantar", "ObliqueCaudoCranial", "ObliqueCranioCaudal",
        "OcclusalProjection", "Orbitoparietal", "Parietoacanthial", "ParietoOrbital", "Plantodorsal", "Submentovertical",
        "TissueSpecimen", "Verticosubmental",
    }  # fmt: skip
    frontal = {"PosteroAnterior": View.PA, "AnteroPosterior": View.AP, "Frontal": View.UNKNOWN}
    assert {
        name: view for name, view in found.items() if view is not Reason.LATERAL and name not in unlikely
    } == frontal


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (["A", "F"], Reason.LATERAL),
        (["P", "F"], Reason.LATERAL),
        (["L", "F"], View.UNKNOWN),
        (["R", "F"], View.UNKNOWN),
        ("", View.UNKNOWN),
    ],
)
def test_the_orientation_goes_third(orientation: Any, expected: View | Reason) -> None:
    assert outcome(PatientOrientation=orientation) is expected
    assert outcome(PatientOrientation=orientation, ViewCodeSequence=coded("R-10214")) is View.PA
    described = outcome(PatientOrientation=orientation, SeriesDescription="Thorax p.a.")
    assert described is (View.PA if expected is View.UNKNOWN else expected)


@pytest.mark.parametrize(
    ("series", "study", "expected"),
    [
        ("W Chest P.A.", "", View.PA),
        ("CHEST_PA", "", View.PA),
        ("Thorax a.p. liegend", "", View.AP),
        ("portable chest", "", View.AP),
        ("Thorax seitl. / LAT", "", Reason.LATERAL),
        ("Tórax perfil", "", Reason.LATERAL),
        ("", "Chest PA", View.PA),
        ("Chest", "Chest lateral", Reason.LATERAL),
        ("LAT", "Chest PA and lateral", Reason.LATERAL),
        ("PA", "Chest PA and lateral", View.PA),
        ("", "Chest PA and lateral", View.UNKNOWN),  # the study holds both, and this file may be either
        ("", "Chest AP oblique", Reason.LATERAL),
        ("Capital", "Plateau", View.UNKNOWN),
    ],
)
def test_descriptions_go_last_and_the_series_before_the_study(series: str, study: str, expected: View | Reason) -> None:
    assert outcome(SeriesDescription=series, StudyDescription=study) is expected
    assert outcome(SeriesDescription=series, StudyDescription=study, ViewPosition="LL") is Reason.LATERAL


def test_a_view_that_is_not_said_is_left_out_where_the_rules_want_to_know() -> None:
    rules = Rules(unknown_view=False)
    assert outcome(rules) is Reason.VIEW_UNKNOWN
    assert outcome(rules, ViewPosition="AP") is View.AP
    assert outcome(rules, ViewCodeSequence=coded("R-10202", "frontal")) is View.UNKNOWN  # frontal is all that is asked
