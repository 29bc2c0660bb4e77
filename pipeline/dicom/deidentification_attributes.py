"""Which attributes, beyond PS3.15's table, stay or identify: lists by keyword, as data."""

from __future__ import annotations

TECHNICAL = (
    *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "AcquisitionDeviceProcessingCode"),
    *("AttenuationCorrectionMethod", "CardiacFramingType", "ContrastBolusRoute", "DetectorManufacturerName"),
    *("DetectorManufacturerModelName", "ModalityLUTType", "PhosphorType", "PositionReferenceIndicator"),
    *("ProcessingFunction", "Radiopharmaceutical", "RadiopharmaceuticalRoute", "ReceiveCoilManufacturerName"),
    *(
        "TransmitCoilManufacturerName",
        "ReconstructionMethod",
        "RescaleType",
        "ScatterCorrectionMethod",
        "TypeOfFilters",
    ),
    *(
        "TriggerSourceOrType",
        "WindowCenterWidthExplanation",
        "DetectorLinesOfResponseUsed",
        "DimensionDescriptionLabel",
    ),
    *("ConvolutionKernel", "FilterType", "ImageFilter", "PlateType", "PulseSequenceName", "ReceiveCoilName"),
    *("TransmitCoilName", "MultiCoilElementName", "SequenceName", "StackID", "CollimatorGridName", "EnergyWindowName"),
    *("ImagedNucleus", "OpticalPathIdentifier", "OutputPower"),
)
"""Free text that the table does not name, and that devices fill in about themselves and their pictures, which lose their meaning
without it."""
CODE = ("CodeValue", "LongCodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")
"""Free text of an item that is a code (PS3.3 8.8), of one of `PUBLIC_SCHEMES`."""
PUBLIC_SCHEMES = frozenset(
    {
        *(
            "DCM",
            "SCT",
            "SRT",
            "SNM3",
            "SNOMED-RT",
            "99SDM",
            "UCUM",
            "LN",
            "RADLEX",
            "RADELEMENT",
            "FMA",
            "UMLS",
            "NCIt",
            "NCDR",
        ),
        *(
            "ICDO3",
            "ICD10",
            "I10",
            "I9",
            "ICD9",
            "BI",
            "MA",
            "MSH",
            "NEU",
            "NYUMCCG",
            "PUBCHEM_CID",
            "UNS",
            "ITIS_TSN",
            "ACR",
            "CD8",
        ),
        *("RFC5646", "ISO3166_1", "ISO639_1", "ISO639_2", "SCPECG", "MDC", "NDC", "C4", "C5", "CPT4", "HPC"),
    }
)
"""Coding Scheme Designators of PS3.16 8: their codes say the same everywhere. 99SDM is what old devices call SNOMED."""
TABLES = (
    *(f"{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    "LUTData",
)
"""Binary data beside pixels that are numbers."""
SAFE_PRIVATE = frozenset(
    {
        ("Philips PET Private Group", 0x7053, 0x00, "DS"),  # SUV factor
        ("Philips PET Private Group", 0x7053, 0x09, "DS"),  # activity concentration factor
        ("Philips MR Imaging DD 001", 0x2005, 0x0D, "FL"),  # scale intercept
        ("Philips MR Imaging DD 001", 0x2005, 0x0E, "FL"),  # scale slope
        ("ELSCINT1", 0x00E1, 0x21, "DS"),  # dose length product
        ("GEMS_ACQU_01", 0x0019, 0x23, "DS"),  # table speed
        ("GEMS_ACQU_01", 0x0019, 0x24, "DS"),  # mid scan time
        ("GEMS_ACQU_01", 0x0019, 0x25, "SS"),  # mid scan flag
        ("GEMS_ACQU_01", 0x0019, 0x27, "DS"),  # rotation speed
        ("GEMS_PARM_01", 0x0043, 0x6F, "DS"),  # scanner table entry
        ("GEMS_HELIOS_01", 0x0045, 0x01, "SS"),  # macro rows of the detector
        ("GEMS_HELIOS_01", 0x0045, 0x02, "FL"),  # their width
        ("SIEMENS MR HEADER", 0x0019, 0x0C, "IS"),  # b value
        ("SIEMENS MR HEADER", 0x0019, 0x0E, "FD"),  # diffusion gradient direction
        ("SIEMENS MR HEADER", 0x0019, 0x27, "FD"),  # b matrix
    }
)
"""Private attributes that hold numbers of the acquisition (after PS3.15 Table E.3.10-1): creator, group, element, VR."""
OVERLAY = {
    0x10: "US",
    0x11: "US",
    0x15: "IS",
    0x40: "CS",
    0x50: "SS",
    0x51: "US",
    0x100: "US",
    0x102: "US",
    0x3000: "OW",
}
"""What is kept of a plane of group 60xx where overlays are: its size, place, kind and bits (PS3.3 C.9.2)."""

IDENTIFYING = (
    *("PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName"),
    *(
        "PatientBirthDate",
        "PatientAddress",
        "PatientTelephoneNumbers",
        "AccessionNumber",
        "MilitaryRank",
        "ResponsiblePerson",
    ),
    *("ReferringPhysicianName", "PhysiciansOfRecord", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy"),
    *(
        "OperatorsName",
        "RequestingPhysician",
        "ScheduledPerformingPhysicianName",
        "ConsultingPhysicianName",
        "AdmissionID",
    ),
    *(
        "RequestedProcedureID",
        "ServiceEpisodeID",
        "IssuerOfPatientID",
        "MedicalRecordLocator",
        "InsurancePlanIdentification",
    ),
    *("ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID"),
)
"""Whose words must not stand in text that stays."""
PLACES = ("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName")
DEVICES = ("StationName", "DeviceSerialNumber")
"""Whose words must not either, unless an option keeps them."""
