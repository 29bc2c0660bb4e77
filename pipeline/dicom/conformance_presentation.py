"""Presentation states and encapsulated documents: what their parts say of each other (PS3.3 C.10.4, C.10.5, C.11.11, C.24.2)."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.dicom.conformance_item import Item
from pipeline.dicom.conformance_terms import ENCAPSULATED_PDF

POINTS = {"POINT": (1, 1), "CIRCLE": (2, 2), "ELLIPSE": (4, 4), "POLYLINE": (2, None), "INTERPOLATED": (2, None)}
"""Fewest and most points of each GraphicType (PS3.3 C.10.5.1.2)."""


def presentation_findings(root: Item) -> Iterator[str]:
    """What is wrong with the annotations and displayed areas of a presentation state; nothing for any other object."""
    if "DisplayedAreaSelectionSequence" not in root and "GraphicAnnotationSequence" not in root:
        return
    known = {
        image.text("ReferencedSOPInstanceUID")
        for series in root.items("ReferencedSeriesSequence")
        for image in series.items("ReferencedImageSequence")
    }
    for keyword in ("GraphicAnnotationSequence", "DisplayedAreaSelectionSequence", "SoftcopyVOILUTSequence"):
        for item in root.items(keyword):
            named = {image.text("ReferencedSOPInstanceUID") for image in item.items("ReferencedImageSequence")}
            if not named <= known:
                yield f"{keyword} names an image that is not in ReferencedSeriesSequence"
    areas = root.items("DisplayedAreaSelectionSequence")
    shown = {
        image.text("ReferencedSOPInstanceUID") for area in areas for image in area.items("ReferencedImageSequence")
    }
    if all(area.items("ReferencedImageSequence") for area in areas) and not known <= shown:
        yield "an image of ReferencedSeriesSequence has no displayed area"
    yield from dict.fromkeys(_annotation_findings(root))


def document_findings(root: Item, sop_class_uid: str) -> Iterator[str]:
    """An encapsulated PDF must be one, of even length, with its true length beside it."""
    if sop_class_uid != ENCAPSULATED_PDF:
        return
    document = root.value("EncapsulatedDocument") or b""
    length = root.number("EncapsulatedDocumentLength")
    if not document.startswith(b"%PDF-"):
        yield "EncapsulatedDocument is no PDF"
    if len(document) % 2:
        yield "EncapsulatedDocument has an odd length"
    if length is not None and not len(document) - 1 <= length <= len(document):
        yield "EncapsulatedDocumentLength is not that of EncapsulatedDocument"


def _annotation_findings(root: Item) -> Iterator[str]:
    layers = {layer.text("GraphicLayer") for layer in root.items("GraphicLayerSequence")}
    for annotation in root.items("GraphicAnnotationSequence"):
        if annotation.text("GraphicLayer") not in layers:
            yield "GraphicAnnotationSequence is on a layer that is not in GraphicLayerSequence"
        if not annotation.items("GraphicObjectSequence") and not annotation.items("TextObjectSequence"):
            yield "GraphicAnnotationSequence has an item without graphics and text"
        for graphic in annotation.items("GraphicObjectSequence"):
            yield from _graphic_findings(graphic)
        for text in annotation.items("TextObjectSequence"):
            yield from _text_findings(text)


def _graphic_findings(graphic: Item) -> Iterator[str]:
    kind, points = graphic.text("GraphicType"), graphic.number("NumberOfGraphicPoints")
    if kind not in POINTS:
        yield f"GraphicObjectSequence: GraphicType is not enumerated, expected {', '.join(POINTS)}"
        return
    if graphic.number("GraphicDimensions") != 2:
        yield "GraphicObjectSequence: GraphicDimensions is not 2"
    if points is None or len(graphic.values("GraphicData")) != 2 * points:
        yield "GraphicObjectSequence: GraphicData does not hold NumberOfGraphicPoints points"
        return
    fewest, most = POINTS[kind]
    if points < fewest or (most is not None and points > most):
        yield f"GraphicObjectSequence: {kind} with {points} points"
    data = graphic.values("GraphicData")
    is_closed = kind in ("CIRCLE", "ELLIPSE") or (kind != "POINT" and data[:2] == data[-2:])
    if is_closed and not graphic.has_value("GraphicFilled"):
        yield "GraphicObjectSequence: GraphicFilled is missing (Type 1C for a closed graphic)"


def _text_findings(text: Item) -> Iterator[str]:
    box = ("BoundingBoxTopLeftHandCorner", "BoundingBoxBottomRightHandCorner")
    boxed = [text.has_value(keyword) for keyword in box]
    if not text.has_value("AnchorPoint") and not all(boxed):
        yield "TextObjectSequence has neither an anchor point nor a bounding box"
    due = []
    if any(boxed):
        due += [*box, "BoundingBoxAnnotationUnits", "BoundingBoxTextHorizontalJustification"]
    if text.has_value("AnchorPoint"):
        due += ["AnchorPointAnnotationUnits", "AnchorPointVisibility"]
    for keyword in due:
        if not text.has_value(keyword):
            yield f"TextObjectSequence: {keyword} is missing (Type 1C)"
