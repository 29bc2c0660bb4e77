"""The content tree of a structured report or key object selection (PS3.3 C.17.3, C.18) and its evidence (C.17.2.3).

Judged: what each value type needs, which relationships its items may have, references by identifier, coordinates; that every instance
which the content names is listed as evidence, once and with the same class; and the roots of the templates that radloop writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.dicom.conformance_item import Item
from pipeline.dicom.conformance_terms import COMPREHENSIVE_3D_SR, KEY_OBJECTS

REFERRING = frozenset({"COMPOSITE", "IMAGE", "WAVEFORM"})

NEEDED: Mapping[str, tuple[str, ...]] = {
    "TEXT": ("TextValue",),
    "CODE": ("ConceptCodeSequence",),
    "DATETIME": ("DateTime",),
    "DATE": ("Date",),
    "TIME": ("Time",),
    "UIDREF": ("UID",),
    "PNAME": ("PersonName",),
    "COMPOSITE": ("ReferencedSOPSequence",),
    "IMAGE": ("ReferencedSOPSequence",),
    "WAVEFORM": ("ReferencedSOPSequence",),
    "SCOORD": ("GraphicType", "GraphicData"),
    "SCOORD3D": ("GraphicType", "GraphicData", "ReferencedFrameOfReferenceUID"),
    "TCOORD": ("TemporalRangeType",),
    "CONTAINER": ("ContinuityOfContent",),
    "NUM": (),
    "TABLE": ("TabulatedValuesSequence",),
}
"""Type 1 of each value type. NUM may be without a value, if it says why (`_number_findings`)."""

NAMED = frozenset({"TEXT", "CODE", "NUM", "DATETIME", "DATE", "TIME", "UIDREF", "PNAME"})
"""Value types that need a concept name (PS3.3 C.17.3.2.1)."""

_FACTS = frozenset({"TEXT", "CODE", "NUM", "DATETIME", "DATE", "TIME", "UIDREF", "PNAME"})
_COORDINATES = frozenset({"SCOORD", "SCOORD3D", "TCOORD"})
_ANY = _FACTS | REFERRING | _COORDINATES | {"CONTAINER", "TABLE"}

RELATIONSHIPS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "CONTAINS": (frozenset({"CONTAINER"}), _ANY),
    "HAS OBS CONTEXT": (_ANY, _FACTS | {"COMPOSITE", "CONTAINER"}),
    "HAS ACQ CONTEXT": (REFERRING | {"CONTAINER", "NUM"}, _FACTS | {"CONTAINER"}),
    "HAS CONCEPT MOD": (_ANY, frozenset({"TEXT", "CODE"})),
    "HAS PROPERTIES": (frozenset({"TEXT", "CODE", "NUM", "PNAME"}), _ANY),
    "INFERRED FROM": (frozenset({"TEXT", "CODE", "NUM"}), _ANY),
    "SELECTED FROM": (_COORDINATES, REFERRING | _COORDINATES),
}
"""Who may have which relationship to whom: what all SR IODs together allow (PS3.3 A.35)."""

SCOORD_POINTS = {"POINT": (1, 1), "MULTIPOINT": (1, None), "POLYLINE": (2, None), "CIRCLE": (2, 2), "ELLIPSE": (4, 4)}
SCOORD3D_POINTS = {
    "POINT": (1, 1),
    "MULTIPOINT": (1, None),
    "POLYLINE": (2, None),
    "POLYGON": (4, None),
    "ELLIPSE": (4, 4),
    "ELLIPSOID": (6, 6),
}
"""Fewest and most points of each GraphicType (PS3.3 C.18.6.1.2, C.18.9.1.2)."""

MEASUREMENT_REPORT, KEY_OBJECT_TEMPLATE = "1500", "2010"  # PS3.16
LANGUAGE, PROCEDURE_REPORTED = ("121049", "DCM"), ("121058", "DCM")
PARTS_OF_REPORT = {("126010", "DCM"), ("126011", "DCM"), ("C0034375", "UMLS")}
"""Imaging measurements, derived ones, qualitative evaluations: TID 1500 wants one of them."""
MEASUREMENT_GROUP = ("125007", "DCM")
TRACKING = (("112039", "DCM"), ("112040", "DCM"))
"""Tracking Identifier and Tracking Unique Identifier, of which TID 1410, 1411 and 1501 want both or neither."""

EVIDENCE = ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")


def content_findings(root: Item, sop_class_uid: str) -> Iterator[str]:
    """What is wrong with the content of `root`; nothing for an object that has no content tree."""
    if "ValueType" not in root or "ContinuityOfContent" not in root:
        if sop_class_uid in (COMPREHENSIVE_3D_SR, KEY_OBJECTS):
            yield "the root content item is missing: ValueType and ContinuityOfContent (Type 1)"
        return
    yield from dict.fromkeys(_tree_findings(root))
    yield from dict.fromkeys(_evidence_findings(root))
    yield from _template_findings(root, sop_class_uid)


def _tree_findings(root: Item) -> Iterator[str]:
    if root.text("ValueType") != "CONTAINER":
        yield "the root content item is no CONTAINER"
    if not root.items("ConceptNameCodeSequence"):
        yield "the root content item has no ConceptNameCodeSequence (the document's title)"
    for parent, item in _pairs(root):
        yield from _relationship_findings(parent, item, root)
        if "ReferencedContentItemIdentifier" not in item:
            yield from _item_findings(item)


def _pairs(parent: Item) -> Iterator[tuple[Item, Item]]:
    """(source, target) of every relationship."""
    for item in parent.items("ContentSequence"):
        yield parent, item
        yield from _pairs(item)


def _relationship_findings(parent: Item, item: Item, root: Item) -> Iterator[str]:
    relationship, source = item.text("RelationshipType"), parent.text("ValueType")
    if relationship not in RELATIONSHIPS:
        yield f"a content item's RelationshipType is not enumerated, expected {', '.join(RELATIONSHIPS)}"
        return
    target = item
    if "ReferencedContentItemIdentifier" in item:
        found = _by_identifier(root, item.values("ReferencedContentItemIdentifier"))
        if found is None:
            yield "ReferencedContentItemIdentifier leads to no content item"
            return
        target = found
    sources, targets = RELATIONSHIPS[relationship]
    kind = target.text("ValueType")
    if kind in NEEDED and (source not in sources or kind not in targets):
        yield f"{source} {relationship} {kind} is no relationship of PS3.3 A.35"


def _by_identifier(root: Item, identifier: list[object]) -> Item | None:
    """The item that 1\\3\\2 names: the second item of the third of the root (PS3.3 C.17.3.2.5)."""
    if not identifier or identifier[0] != 1:
        return None
    found = root
    for place in identifier[1:]:
        items = found.items("ContentSequence")
        if not isinstance(place, int) or not 1 <= place <= len(items):
            return None
        found = items[place - 1]
    return found


def _item_findings(item: Item) -> Iterator[str]:
    kind = item.text("ValueType")
    if kind not in NEEDED:
        yield f"a content item's ValueType is not enumerated, expected {', '.join(NEEDED)}"
        return
    for keyword in NEEDED[kind]:
        if not item.has_value(keyword):
            yield f"{kind}: {keyword} is missing (Type 1)"
    if kind in NAMED and not item.items("ConceptNameCodeSequence"):
        yield f"{kind}: ConceptNameCodeSequence is missing (Type 1C)"
    for keyword in ("ConceptNameCodeSequence", "ConceptCodeSequence"):
        for code in item.items(keyword):
            if not code.has_value("CodeMeaning") or not any(
                code.has_value(value) for value in ("CodeValue", "LongCodeValue", "URNCodeValue")
            ):
                yield f"{kind}: {keyword} holds no code (PS3.3 8.8)"
    if kind in REFERRING and len(item.items("ReferencedSOPSequence")) > 1:
        yield f"{kind}: ReferencedSOPSequence has {len(item.items('ReferencedSOPSequence'))} items, expected one"
    if kind == "NUM":
        yield from _number_findings(item)
    if kind in ("SCOORD", "SCOORD3D"):
        yield from _coordinate_findings(item, kind)


def _number_findings(item: Item) -> Iterator[str]:
    """PS3.3 C.18.1: one value with its unit, or none and the reason for it."""
    measured = item.items("MeasuredValueSequence")
    if "MeasuredValueSequence" not in item or len(measured) > 1:
        yield "NUM: MeasuredValueSequence: expected none or one item"
    if not measured and not item.items("NumericValueQualifierCodeSequence"):
        yield "NUM: neither a value nor NumericValueQualifierCodeSequence"
    for value in measured:
        if not value.has_value("NumericValue") or not value.items("MeasurementUnitsCodeSequence"):
            yield "NUM: MeasuredValueSequence needs NumericValue and MeasurementUnitsCodeSequence (Type 1)"


def _coordinate_findings(item: Item, kind: str) -> Iterator[str]:
    dimensions, allowed = (2, SCOORD_POINTS) if kind == "SCOORD" else (3, SCOORD3D_POINTS)
    shape, data = item.text("GraphicType"), item.values("GraphicData")
    if shape not in allowed:
        yield f"{kind}: GraphicType is not enumerated, expected {', '.join(allowed)}"
        return
    fewest, most = allowed[shape]
    points, rest = divmod(len(data), dimensions)
    if rest or points < fewest or (most is not None and points > most):
        yield f"{kind}: {shape} with {len(data)} numbers in GraphicData"
    elif shape == "POLYGON" and data[:dimensions] != data[-dimensions:]:
        yield f"{kind}: POLYGON whose last point is not its first"
    if kind == "SCOORD" and not any(
        inner.text("RelationshipType") == "SELECTED FROM" for inner in item.items("ContentSequence")
    ):
        yield "SCOORD is not SELECTED FROM an image"


def _evidence_findings(root: Item) -> Iterator[str]:
    listed: dict[str, str] = {}
    where: dict[str, tuple[str, str]] = {}
    for keyword in EVIDENCE:
        for study in root.items(keyword):
            for series in study.items("ReferencedSeriesSequence"):
                for instance in series.items("ReferencedSOPSequence"):
                    uid = instance.text("ReferencedSOPInstanceUID")
                    place = study.text("StudyInstanceUID"), series.text("SeriesInstanceUID")
                    if where.setdefault(uid, place) != place:
                        yield f"{keyword} lists an instance in two series"
                    listed[uid] = instance.text("ReferencedSOPClassUID")
    for _, item in _pairs(root):
        if item.text("ValueType") not in REFERRING:
            continue
        for reference in item.items("ReferencedSOPSequence"):
            uid = reference.text("ReferencedSOPInstanceUID")
            if uid not in listed:
                yield f"{item.text('ValueType')} names an instance that is not listed as evidence"
            elif listed[uid] != reference.text("ReferencedSOPClassUID"):
                yield f"{item.text('ValueType')} names an instance by another class than its evidence does"


def _template_findings(root: Item, sop_class_uid: str) -> Iterator[str]:
    template = next((item.text("TemplateIdentifier") for item in root.items("ContentTemplateSequence")), "")
    if template == MEASUREMENT_REPORT:
        yield from _measurement_report_findings(root)
    if sop_class_uid == KEY_OBJECTS:
        if template != KEY_OBJECT_TEMPLATE:
            yield "ContentTemplateSequence: expected TID 2010, the only template of a key object selection"
        if not any(item.text("ValueType") in REFERRING for item in root.items("ContentSequence")):
            yield "the key object selection names no object"


def _measurement_report_findings(root: Item) -> Iterator[str]:
    """TID 1500 (PS3.16): its root's mandatory rows, and its measurement groups' tracking."""
    found = {(item.text("RelationshipType"), _concept(item)) for item in root.items("ContentSequence")}
    if ("HAS CONCEPT MOD", LANGUAGE) not in found:
        yield "TID 1500: Language of Content Item and Descendants is missing"
    if ("HAS CONCEPT MOD", PROCEDURE_REPORTED) not in found:
        yield "TID 1500: Procedure reported is missing"
    if not any(("CONTAINS", part) in found for part in PARTS_OF_REPORT):
        yield "TID 1500: it holds neither measurements nor qualitative evaluations"
    for _, item in _pairs(root):
        if _concept(item) == MEASUREMENT_GROUP:
            inner = {_concept(child) for child in item.items("ContentSequence")}
            if len(inner & set(TRACKING)) == 1:
                yield "TID 1500: a measurement group has one of tracking identifier and tracking unique identifier"


def _concept(item: Item) -> tuple[str, str]:
    for code in item.items("ConceptNameCodeSequence"):
        return code.text("CodeValue"), code.text("CodingSchemeDesignator")
    return "", ""
