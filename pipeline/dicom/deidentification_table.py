"""What PS3.15 annex E has done to each attribute: Table E.1-1 (edition 2026c) as dicom-anonymizer carries it, and the options' columns.

`action_of` gives the Basic Profile's action of an attribute, None where the table does not name it. That package's functions are not
used: they pass over nested sequences, and make UIDs anew in each run. Of the table's option columns the package has none: what they
keep is named here, or follows from the VR (dates, UIDs). Attributes that the table does not name are `deidentification_rules`' affair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import cache

from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
from pydicom.datadict import dictionary_VR, keyword_for_tag

from pipeline.dicom.conformance_item import tag_of

EDITION = "2026c"
"""Of PS3.15, as DeidentificationMethod states it."""


class Action(StrEnum):
    """Of the Basic Profile (PS3.15 Table E.1-1a). Where several stand, the IOD's type of the attribute chooses."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    UID = "U"
    EMPTY_OR_DUMMY = "Z/D"
    REMOVE_OR_EMPTY = "X/Z"
    REMOVE_OR_DUMMY = "X/D"
    REMOVE_EMPTY_OR_DUMMY = "X/Z/D"
    REFERENCES = "X/Z/U*"


_CATEGORIES = {
    "X_TAGS": Action.REMOVE,
    "Z_TAGS": Action.EMPTY,
    "D_TAGS": Action.DUMMY,
    "U_TAGS": Action.UID,
    "Z_D_TAGS": Action.EMPTY_OR_DUMMY,
    "X_Z_TAGS": Action.REMOVE_OR_EMPTY,
    "X_D_TAGS": Action.REMOVE_OR_DUMMY,
    "X_Z_D_TAGS": Action.REMOVE_EMPTY_OR_DUMMY,
    "X_Z_U_STAR_TAGS": Action.REFERENCES,
}

RETAINED: Mapping[str, tuple[str, ...]] = {
    "device": (
        *(
            "CassetteID",
            "DetectorID",
            "DeviceDescription",
            "DeviceLabel",
            "DeviceSerialNumber",
            "DeviceUID",
            "GantryID",
        ),
        *("GeneratorID", "LensMake", "LensModel", "LensSerialNumber", "LensSpecification"),
        *(
            "ManufacturerDeviceClassUID",
            "ManufacturerDeviceIdentifier",
            "PerformedStationAETitle",
            "PerformedStationName",
        ),
        *("PlateID", "ScheduledStationAETitle", "ScheduledStationName", "SourceManufacturer", "SourceSerialNumber"),
        *("StationName", "TreatmentMachineName", "UDISequence", "UniqueDeviceIdentifier", "XRayDetectorID"),
        *("XRayDetectorLabel", "XRaySourceID"),
    ),
    "institution": (
        *("ClinicalTrialCoordinatingCenterName", "ClinicalTrialProtocolEthicsCommitteeName", "ClinicalTrialSiteID"),
        *("ClinicalTrialSiteName", "InstitutionAddress", "InstitutionalDepartmentName"),
        *("InstitutionalDepartmentTypeCodeSequence", "InstitutionCodeSequence", "InstitutionName"),
    ),
    "patient": (
        *("EthnicGroup", "PatientAge", "PatientSex", "PatientSexNeutered", "PatientSize", "PatientWeight"),
        *("PregnancyStatus", "SmokingStatus"),
    ),
    "uids": ("ReferencedPerformedProcedureStepSequence", "ReferencedStudySequence"),
}
"""What an option keeps (K of its column) beside what follows from the VR."""

BORN = frozenset({"PatientBirthDate", "PatientBirthTime"})
"""Dates that no option keeps."""

_DATES = ("DA", "DT", "TM")
_DESCRIBING_VRS = ("LO", "SH", "ST", "LT", "UT", "UC")
_DESCRIBING = re.compile(
    r"(Description|Comments?|Label|Text|Notes|Narrative|Impressions|Agent|TreatmentSites?|MedicalAlerts|Allergies|Occupation)$"
    r"|^(AdditionalPatientHistory|PatientState|ProtocolName|RequestedProcedureComments|ReasonFor.*|RTPlanName|EntityName|PreMedication"
    r"|SpecialNeeds|CommentsOn.*)$"
)


@cache
def table() -> Mapping[int, Action]:
    """Every attribute of the table by its tag; the repeating groups 50xx and 60xx, and private ones, go by rules of their own."""
    categories = dicom_anonymization_database_selector(f"dicomfields_{EDITION}")
    return {
        tag[0] << 16 | tag[1]: action
        for name, action in _CATEGORIES.items()
        for tag in categories[name]
        if len(tag) == 2  # longer ones are a repeating group and its mask
    }


def action_of(tag: int) -> Action | None:
    """The Basic Profile's; None where the table does not name the attribute."""
    return table().get(tag)


@cache
def retained_by(option: str) -> frozenset[int]:
    """Tags that an option keeps as they are, of those named by `RETAINED`."""
    return frozenset(map(tag_of, RETAINED[option]))


@cache
def is_longitudinal(tag: int) -> bool:
    """Whether the date options reach it: every date and time of the table, but for those of a birth, and the zone that they are in."""
    keyword = keyword_for_tag(tag)
    if keyword in BORN or tag not in table():
        return False
    return keyword == "TimezoneOffsetFromUTC" or (bool(keyword) and dictionary_VR(tag) in _DATES)


@cache
def is_descriptor(tag: int) -> bool:
    """Whether text of this attribute may stay where the user named it: a description or comment, no name or ID of anybody."""
    keyword = keyword_for_tag(tag)
    if not keyword or dictionary_VR(tag) not in _DESCRIBING_VRS:
        return False
    return tag not in table() or _DESCRIBING.search(keyword) is not None
