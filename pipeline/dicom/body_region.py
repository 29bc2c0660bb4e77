"""Which part of the body an image shows, as objects state it: a coded region and its side (PS3.16 Annex L, PS3.3 C.7.6.16.2.8).

In: a source (`source.as_source`) and one of its frames. Out: an item of AnatomicRegionSequence and a FrameLaterality. Nothing is guessed:
where the part or, of a pair, the side is not known, the region is the entire body, which is true of any image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from pipeline.dicom.derived import code_item
from pipeline.dicom.geometry import frame_group
from pipeline.dicom.source import carried, carry_all, items

UNPAIRED: Mapping[str, Code] = {
    "ABDOMEN": Code("818981001", "SCT", "Abdomen"),
    "ABDOMENPELVIS": Code("818982008", "SCT", "Abdomen and Pelvis"),
    "AORTA": Code("15825003", "SCT", "Aorta"),
    "BLADDER": Code("89837001", "SCT", "Bladder"),
    "BRAIN": Code("12738006", "SCT", "Brain"),
    "CHEST": Code("816094009", "SCT", "Chest"),
    "CHESTABDOMEN": Code("416550000", "SCT", "Chest and Abdomen"),
    "CHESTABDPELVIS": Code("416775004", "SCT", "Chest, Abdomen and Pelvis"),
    "COLON": Code("71854001", "SCT", "Colon"),
    "CSPINE": Code("122494005", "SCT", "Cervical spine"),
    "ESOPHAGUS": Code("32849002", "SCT", "Esophagus"),
    "HEAD": Code("69536005", "SCT", "Head"),
    "HEADNECK": Code("774007", "SCT", "Head and Neck"),
    "HEART": Code("80891009", "SCT", "Heart"),
    "JAW": Code("661005", "SCT", "Jaw region"),
    "LIVER": Code("10200004", "SCT", "Liver"),
    "LSPINE": Code("122496007", "SCT", "Lumbar spine"),
    "LSSPINE": Code("1217253001", "SCT", "Lumbo-sacral spine"),
    "MEDIASTINUM": Code("72410000", "SCT", "Mediastinum"),
    "NECK": Code("45048000", "SCT", "Neck"),
    "PANCREAS": Code("15776009", "SCT", "Pancreas"),
    "PELVIS": Code("816092008", "SCT", "Pelvis"),
    "PROSTATE": Code("41216001", "SCT", "Prostate"),
    "SKULL": Code("89546000", "SCT", "Skull"),
    "SPINE": Code("421060004", "SCT", "Spine"),
    "SPLEEN": Code("78961009", "SCT", "Spleen"),
    "STOMACH": Code("69695003", "SCT", "Stomach"),
    "THORAX": Code("816094009", "SCT", "Chest"),
    "TLSPINE": Code("1217256009", "SCT", "Thoraco-lumbar spine"),
    "TRACHEA": Code("44567001", "SCT", "Trachea"),
    "TSPINE": Code("122495006", "SCT", "Thoracic spine"),
    "WHOLEBODY": Code("38266002", "SCT", "Entire body"),
}
"""BodyPartExamined → region, of parts that are no pair."""
PAIRED: Mapping[str, Code] = {
    "ANKLE": Code("70258002", "SCT", "Ankle joint"),
    "BREAST": Code("76752008", "SCT", "Breast"),
    "ELBOW": Code("16953009", "SCT", "Elbow joint"),
    "FOOT": Code("56459004", "SCT", "Foot"),
    "FOREARM": Code("14975008", "SCT", "Forearm"),
    "HAND": Code("85562004", "SCT", "Hand"),
    "HIP": Code("24136001", "SCT", "Hip joint"),
    "KIDNEY": Code("64033007", "SCT", "Kidney"),
    "KNEE": Code("72696002", "SCT", "Knee"),
    "LUNG": Code("39607008", "SCT", "Lung"),
    "SHOULDER": Code("16982005", "SCT", "Shoulder"),
    "THIGH": Code("68367000", "SCT", "Thigh"),
    "WRIST": Code("74670003", "SCT", "Wrist joint"),
}
"""The same of pairs: their side is to be said."""
ENTIRE_BODY = UNPAIRED["WHOLEBODY"]
LATERALITIES = ("R", "L", "U", "B")  # right, left, unpaired, both (PS3.3 C.7.6.16.2.8)


@dataclass(frozen=True)
class BodyRegion:
    """A coded region, and its FrameLaterality."""

    code: Code
    laterality: str


def body_region(source: Dataset, frame: int) -> BodyRegion:
    """What the frame shows: by its functional group, else by the dataset's own code, else by BodyPartExamined."""
    anatomy = frame_group(source, frame, "FrameAnatomySequence")
    side = _laterality(source, anatomy)
    part = carried(source, "BodyPartExamined")
    name = str(part.value) if part is not None else ""
    stated = (
        _stated_code(anatomy if isinstance(anatomy, Dataset) else Dataset())
        or _stated_code(source)
        or PAIRED.get(name)
        or UNPAIRED.get(name)
    )
    if stated is None:
        return BodyRegion(ENTIRE_BODY, "U")
    if side:
        return BodyRegion(stated, side)
    if any(code.value == stated.value for code in UNPAIRED.values()):
        return BodyRegion(stated, "U")
    return BodyRegion(ENTIRE_BODY, "U")


def region_item(region: BodyRegion) -> Dataset:
    """An item of AnatomicRegionSequence."""
    return code_item(region.code)


def anatomy_item(region: BodyRegion) -> Dataset:
    """An item of FrameAnatomySequence (PS3.3 C.7.6.16.2.8)."""
    item = Dataset()
    item.AnatomicRegionSequence = [region_item(region)]
    item.FrameLaterality = region.laterality
    return item


def _stated_code(dataset: Dataset) -> Code | None:
    """The code of AnatomicRegionSequence, where it is complete and valid."""
    for item in items(dataset, "AnatomicRegionSequence")[:1]:
        found = carry_all(item, ("CodeValue", "CodingSchemeDesignator", "CodeMeaning"), Dataset())
        if len(found) == 3:
            return Code(str(found.CodeValue), str(found.CodingSchemeDesignator), str(found.CodeMeaning))
    return None


def _laterality(source: Dataset, anatomy: object) -> str:
    """The frame's side, where one is stated; '' where none is."""
    places = [(anatomy, "FrameLaterality"), (source, "ImageLaterality"), (source, "Laterality")]
    for dataset, keyword in places:
        element = carried(dataset, keyword) if isinstance(dataset, Dataset) else None
        if element is not None and element.value in LATERALITIES:
            return str(element.value)
    return ""
