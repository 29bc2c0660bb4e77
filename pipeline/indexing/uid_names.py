"""Names of the UIDs that most exports hold (PS3.6 Annex A), so that counting them needs no pydicom; others are named by it."""

from __future__ import annotations

_IMAGE_STORAGE = {
    "1": "Computed Radiography Image Storage",
    "1.1": "Digital X-Ray Image Storage - For Presentation",
    "1.2": "Digital Mammography X-Ray Image Storage - For Presentation",
    "2": "CT Image Storage",
    "2.1": "Enhanced CT Image Storage",
    "3.1": "Ultrasound Multi-frame Image Storage",
    "4": "MR Image Storage",
    "4.1": "Enhanced MR Image Storage",
    "6.1": "Ultrasound Image Storage",
    "7": "Secondary Capture Image Storage",
    "12.1": "X-Ray Angiographic Image Storage",
    "12.2": "X-Ray Radiofluoroscopic Image Storage",
    "13.1.3": "Breast Tomosynthesis Image Storage",
    "20": "Nuclear Medicine Image Storage",
    "66.4": "Segmentation Storage",
    "128": "Positron Emission Tomography Image Storage",
}
_TRANSFER_SYNTAX = {
    "": "Implicit VR Little Endian",
    ".1": "Explicit VR Little Endian",
    ".4.50": "JPEG Baseline (Process 1)",
    ".4.51": "JPEG Extended (Process 2 and 4)",
    ".4.57": "JPEG Lossless, Non-Hierarchical (Process 14)",
    ".4.70": "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])",
    ".4.80": "JPEG-LS Lossless Image Compression",
    ".4.81": "JPEG-LS Lossy (Near-Lossless) Image Compression",
    ".4.90": "JPEG 2000 Image Compression (Lossless Only)",
    ".4.91": "JPEG 2000 Image Compression",
    ".5": "RLE Lossless",
}
COMMON_NAMES = {f"1.2.840.10008.5.1.4.1.1.{end}": name for end, name in _IMAGE_STORAGE.items()}
COMMON_NAMES |= {f"1.2.840.10008.1.2{end}": name for end, name in _TRANSFER_SYNTAX.items()}
COMMON_NAMES[""] = ""
