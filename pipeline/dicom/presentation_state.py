"""Outline and text on the source images themselves: a Grayscale Softcopy Presentation State (PS3.3 A.33.1).

In: a case's result, and images of one series that one state can hold (`presentation_groups`). Out: a dataset ready for
`derived.write_object`: the region of each image as polylines in its pixels, beside it what the result is; and all that a viewer needs to
show the images as they show themselves: modality LUT and window of the source, gray scale inverted for MONOCHROME1, the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from fractions import Fraction

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, GrayscaleSoftcopyPresentationStateStorage
from pydicom.valuerep import VR

from pipeline.dicom.begin import LO_CHARACTERS, ST_CHARACTERS, begin_object, finish_object, source_items
from pipeline.dicom.case_result import CaseResult, ResultImage
from pipeline.dicom.derived import ascii_text
from pipeline.dicom.geometry import frame_group
from pipeline.dicom.lookup import LookupTable, read_table
from pipeline.dicom.outline import Polyline, closed_polylines
from pipeline.dicom.pixels import CT_CLASSES
from pipeline.dicom.secondary_capture import body_part, carry_laterality, picture_geometry
from pipeline.dicom.secondary_capture import why_not as why_no_reference
from pipeline.dicom.source import carried, carry_all, items
from pipeline.errors import ObjectError

GRAYSCALE = ("MONOCHROME1", "MONOCHROME2")
OUTLINE, TEXT = "OUTLINE", "TEXT"
"""Graphic layers, which viewers show and hide apart."""
TEXT_BOX = ((0.01, 0.86), (0.99, 0.99))
"""Of the displayed area, from its top left corner 0\\0 to its bottom right corner 1\\1: the lowest part of what is shown."""
MAX_POINTS = 65534 // 8
"""Of one graphic: the length of an explicit FL has 16 bits (PS3.5 7.1.2), a point 8 bytes. A longer outline goes on in the next."""
MODALITY_BITS, VOI_BITS = (8, 16), range(8, 17)
"""That an entry of each table may have (PS3.3 C.11.1.1, C.11.2.1.1)."""
WHITE = 0xFFFF  # GraphicLayerRecommendedDisplayGrayscaleValue
ASPECT_LIMIT = 1000
"""The largest number of an aspect ratio that stands for two spacings: to a thousandth of a pixel."""


def presentation_state(result: CaseResult, images: Sequence[ResultImage]) -> Dataset:
    """A presentation state for `images`: the outline of each one's region where it has one, and the result in words.

    Raises ObjectError where `why_not` says so of one, or where the images are of several of the groups that `presentation_groups` makes.
    """
    for reason in filter(None, (why_not(image.source) for image in images)):
        raise ObjectError(f"gsps: {reason}")
    if len(presentation_groups(images)) > 1:
        raise ObjectError("gsps: expected images of one series that are shown in one way, found several")
    source = images[0].source if images else Dataset()
    body = _body(source)
    state = begin_object(result, "gsps", "PR", images, series=body_part(body))
    state.update(body)
    state.SOPClassUID = UID(GrayscaleSoftcopyPresentationStateStorage)
    state.PresentationCreationDate, state.PresentationCreationTime = state.ContentDate, state.ContentTime
    del state.ContentDate, state.ContentTime  # of images and documents; this has a creation of its own
    state.ContentLabel = "MODEL_REGION"
    state.ContentDescription = ascii_text(f"Research use only. {result.said}", LO_CHARACTERS)
    state.ContentCreatorName = ""  # no person made it
    state.ReferencedSeriesSequence = [_series(images)]
    state.DisplayedAreaSelectionSequence = list(_per_group(images, _displayed_area))
    state.GraphicAnnotationSequence = [item for image in images for item in _annotations(result, image)]
    state.GraphicLayerSequence = _layers(result)
    state.update(_modality_lut(images[0]))
    vois = [voi for voi in _per_group(images, _voi) if len(voi) > 1]  # more than its references
    if vois:
        state.SoftcopyVOILUTSequence = vois
    state.PresentationLUTShape = "INVERSE" if source.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY"
    return finish_object(state, source)


def why_not(source: Dataset) -> str:
    """Why `source` cannot have a presentation state, in a sentence; '' where it can."""
    photometric = carried(source, "PhotometricInterpretation")
    if photometric is None or photometric.value not in GRAYSCALE:
        return "the source is no grayscale image, and this kind of presentation state is for these only"
    if carried(source, "SeriesInstanceUID") is None:
        return "the source has no valid SeriesInstanceUID, so no presentation state can refer to it"
    return why_no_reference(source)


def presentation_groups(images: Sequence[ResultImage]) -> list[list[ResultImage]]:
    """`images` by what one state can hold, in the order in which each group first comes: one series, one modality LUT (PET has
    one for each slice), one direction of the gray scale, one part of the body."""
    return list(
        _grouped(
            images,
            lambda image: (
                str(image.source.get("SeriesInstanceUID")),
                str(image.source.get("PhotometricInterpretation")),
                _modality_lut(image).to_json(),
                _body(image.source).to_json(),
            ),
        ).values()
    )


def _body(source: Dataset) -> Dataset:
    """Part and side of the body: of the images' series, so of the state's (PS3.3 C.7.3.1); the side from the image where it tells."""
    body = carry_all(source, ("BodyPartExamined",), Dataset())
    side = carried(source, "ImageLaterality")
    if side is not None and side.value in ("R", "L"):
        body.Laterality = side.value
    else:
        carry_laterality(source, body)
    return body


def _grouped(
    images: Sequence[ResultImage], key: Callable[[ResultImage], Hashable]
) -> dict[Hashable, list[ResultImage]]:
    groups: dict[Hashable, list[ResultImage]] = {}
    for image in images:
        groups.setdefault(key(image), []).append(image)
    return groups


def _per_group(images: Sequence[ResultImage], make: Callable[[ResultImage], Dataset]) -> Iterator[Dataset]:
    """What `make` says of images, once for all of which it says the same, with the references to these."""
    for group in _grouped(images, lambda image: make(image).to_json()).values():
        item = make(group[0])
        item.ReferencedImageSequence = _references(group)
        yield item


def _references(images: Sequence[ResultImage]) -> list[Dataset]:
    """Items of ReferencedImageSequence (PS3.3 10.3): without a purpose, which is plain here."""
    references = source_items(images)
    for item in references:
        del item.PurposeOfReferenceCodeSequence
    return references


def _series(images: Sequence[ResultImage]) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = images[0].source.SeriesInstanceUID
    series.ReferencedImageSequence = _references(images)
    return series


def _displayed_area(image: ResultImage) -> Dataset:
    """The whole image, to fit, in the shape of its pixels (PS3.3 C.10.4): pixels are counted from 1 here, at their centres."""
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [int(image.source.Columns), int(image.source.Rows)]
    area.PresentationSizeMode = "SCALE TO FIT"
    geometry = picture_geometry(image.source, image.frame)
    if "PixelSpacing" in geometry:
        area.PresentationPixelSpacing = list(geometry.PixelSpacing)
    else:
        area.PresentationPixelAspectRatio = _aspect(image.source, geometry)
    return area


def _aspect(source: Dataset, geometry: Dataset) -> list[int]:
    """Vertical, horizontal: PixelAspectRatio, else that of the spacing at the detector, else of squares."""
    if "PixelAspectRatio" in geometry:
        return [int(value) for value in geometry.PixelAspectRatio]
    spacing = carried(source, "ImagerPixelSpacing")
    if spacing is None or min(float(value) for value in spacing.value) <= 0:
        return [1, 1]
    vertical, horizontal = (Fraction(str(value)) for value in spacing.value)
    ratio = (vertical / horizontal).limit_denominator(ASPECT_LIMIT)
    return [ratio.numerator, ratio.denominator] if ratio else [1, 1]


def _annotations(result: CaseResult, image: ResultImage) -> Iterator[Dataset]:
    """One item a layer (PS3.3 C.10.5): the outline, where the image has a region, and the text."""
    graphics = [_graphic(line) for line in closed_polylines(result.region(image)) for line in _in_pieces(line)]
    for layer, keyword, objects in (
        (OUTLINE, "GraphicObjectSequence", graphics),
        (TEXT, "TextObjectSequence", [_text(result, image)]),
    ):
        if objects:
            item = Dataset()
            item.ReferencedImageSequence = _references([image])
            item.GraphicLayer = layer
            setattr(item, keyword, objects)
            yield item


def _in_pieces(line: Polyline) -> Iterator[Polyline]:
    """`line` in pieces of at most `MAX_POINTS`, each starting where the one before ends."""
    for first in range(0, len(line) - 1, MAX_POINTS - 1):
        yield line[first : first + MAX_POINTS]


def _graphic(line: Polyline) -> Dataset:
    graphic = Dataset()
    graphic.GraphicAnnotationUnits, graphic.GraphicDimensions = "PIXEL", 2
    graphic.NumberOfGraphicPoints = len(line)
    graphic.GraphicData = line.reshape(-1).tolist()
    graphic.GraphicType = "POLYLINE"
    if np.array_equal(line[0], line[-1]):
        graphic.GraphicFilled = "N"
    return graphic


def _text(result: CaseResult, image: ResultImage) -> Dataset:
    """What people read, in the site's words and letters, a line each, at the bottom of what is shown."""
    texts, count = result.profile.texts, len(result.key_images)
    place = [texts.key_image.format(place=image.key, count=count)] if image.key and count > 1 else []
    lines = [result.said, *place, *(texts.warning + note for note in result.notes), texts.research_only]
    text = Dataset()
    text.UnformattedTextValue = _lines(lines)
    text.BoundingBoxAnnotationUnits = "DISPLAY"
    text.BoundingBoxTopLeftHandCorner, text.BoundingBoxBottomRightHandCorner = map(list, TEXT_BOX)
    text.BoundingBoxTextHorizontalJustification = "LEFT"
    return text


def _lines(lines: Sequence[str]) -> str:
    """Lines as ST has them, without control characters; of a text too long for it the last line stays: research use only."""
    plain = [" ".join("".join(letter if letter.isprintable() else " " for letter in line).split()) for line in lines]
    room = ST_CHARACTERS - len(plain[-1]) - len("\r\n")
    before = "\r\n".join(plain[:-1])
    return f"{before if len(before) <= room else before[: room - 3] + '...'}\r\n{plain[-1]}"


def _layers(result: CaseResult) -> list[Dataset]:
    """Graphic Layer (PS3.3 C.10.7): the outline in the profile's colour, the text in white above it."""
    from highdicom.color import CIELabColor

    layers = []
    for order, (name, rgb, description) in enumerate(
        (
            (OUTLINE, result.profile.colors.outline, "Region of the model"),
            (TEXT, (255, 255, 255), "Result of the model"),
        ),
        start=1,
    ):
        layer = Dataset()
        layer.GraphicLayer, layer.GraphicLayerOrder, layer.GraphicLayerDescription = name, order, description
        layer.GraphicLayerRecommendedDisplayGrayscaleValue = WHITE
        layer.GraphicLayerRecommendedDisplayCIELabValue = [int(value) for value in CIELabColor.from_rgb(*rgb).value]
        layers.append(layer)
    return layers


def _modality_lut(image: ResultImage) -> Dataset:
    """Modality LUT (PS3.3 C.11.1) as the frame has it: without it in the state, a viewer would take stored values for modality values."""
    source = image.source
    group = frame_group(source, image.frame, "PixelValueTransformationSequence") or source
    found = Dataset()
    tables = items(group, "ModalityLUTSequence")
    if tables:
        item = _table_item(tables[0], source, signed_input=_is_signed(source), depths=MODALITY_BITS)
        kind = carried(tables[0], "ModalityLUTType")
        item.ModalityLUTType = kind.value if kind is not None else "US"
        found.ModalityLUTSequence = [item]
        return found
    slope, intercept, kind = (carried(group, f"Rescale{name}") for name in ("Slope", "Intercept", "Type"))
    if slope is None and intercept is None:
        return found
    found.RescaleSlope = slope.value if slope is not None else 1
    found.RescaleIntercept = intercept.value if intercept is not None else 0
    is_ct = source.SOPClassUID in CT_CLASSES
    found.RescaleType = (
        kind.value if kind is not None else "HU" if is_ct else "US"
    )  # the default of CT: PS3.3 C.8.2.1.1.2
    return found


def _voi(image: ResultImage) -> Dataset:
    """An item of SoftcopyVOILUTSequence (PS3.3 C.11.8) with what the frame is first shown by: its VOI LUT, else its first usable window.

    Empty for a source that has neither.
    """
    source = image.source
    group = frame_group(source, image.frame, "FrameVOILUTSequence") or source
    voi = Dataset()
    tables = items(group, "VOILUTSequence")
    if tables:
        voi.VOILUTSequence = [_table_item(tables[0], source, signed_input=_can_be_negative(image), depths=VOI_BITS)]
        return voi
    name = carried(group, "VOILUTFunction")
    function = name.value if name is not None and name.value in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
    for place, (center, width) in enumerate(
        zip(_values(group, "WindowCenter"), _values(group, "WindowWidth"), strict=False)
    ):
        across = float(str(width))
        if across >= (1 if function == "LINEAR" else 0) and across > 0:  # PS3.3 C.11.2.1.2
            voi.WindowCenter, voi.WindowWidth = center, width
            if function != "LINEAR":
                voi.VOILUTFunction = function
            words = _values(group, "WindowCenterWidthExplanation")[place : place + 1]
            if words and words[0]:
                voi.WindowCenterWidthExplanation = ascii_text(str(words[0]), LO_CHARACTERS)
            return voi
    return voi


def _values(dataset: Dataset, keyword: str) -> list[object]:
    """The values of an attribute that is valid, else none."""
    element = carried(dataset, keyword)
    if element is None:
        return []
    return [element.value] if element.VM == 1 else list(element.value)


def _table_item(item: Dataset, source: Dataset, *, signed_input: bool, depths: Sequence[int]) -> Dataset:
    """A lookup table as the source has it, its words and their VRs put right, the bits of an entry the next of `depths`.

    Raises Rejected where it is none.
    """
    little_endian = source.original_encoding[1] is not False
    table = read_table(item, signed_input=signed_input, little_endian=little_endian)
    bits = next((depth for depth in depths if depth >= table.bits), depths[-1])
    made = Dataset()
    made.add_new("LUTDescriptor", *_descriptor(table, bits))
    entries = table.entries.astype("u1" if bits == 8 else "<u2").tobytes()  # PS3.3 C.11.1.1: 8 bits are bytes
    made.add_new("LUTData", VR.OW, entries + b"\0" * (len(entries) % 2))
    explanation = carried(item, "LUTExplanation")
    if explanation is not None:
        made.LUTExplanation = ascii_text(str(explanation.value), LO_CHARACTERS)
    return made


def _descriptor(table: LookupTable, bits: int) -> tuple[str, list[int]]:
    """VR and value of LUTDescriptor (PS3.3 C.11.1.1): 16-bit words, 0 for 65536 entries, signed only where the first input is."""
    words = [len(table.entries) & 0xFFFF, table.first & 0xFFFF, bits]
    if table.first >= 0:
        return VR.US, words
    return VR.SS, [word - 0x10000 if word & 0x8000 else word for word in words]


def _is_signed(source: Dataset) -> bool:
    return source.get("PixelRepresentation") == 1


def _can_be_negative(image: ResultImage) -> bool:
    """Whether modality values can be below 0, which is what goes into a VOI LUT."""
    lut = _modality_lut(image)
    if "ModalityLUTSequence" in lut:
        return False
    rescaled = "RescaleSlope" in lut and (float(lut.RescaleIntercept) < 0 or float(lut.RescaleSlope) < 0)
    return rescaled or _is_signed(image.source)
