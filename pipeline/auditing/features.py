"""What is known of a case without looking at its anatomy: its files' properties, its headers, and the border of its image.

`case_facts`: one row a case, with the index's columns of the middle one of its images. `case_features` and `border_features`:
numbers (float, NaN where unknown) and words (text, '' where unknown), in `GROUPS`. All text is made safe to show here: it comes
out of headers that anybody may have written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cohort.cases import Cases
from pipeline.columns import text
from pipeline.prepared.dataset import DECODE_MEMORY_BYTES, DECODE_TIMEOUT_S, ImageFile, image_files, read_image
from pipeline.progress import track
from pipeline.work import Failure, default_workers, run_each
from transforms.intensity import WINDOWS, FloatImage, to_unit_range

BORDER_SHARE = 0.02
"""Of the image's shorter side, the width of the border that is looked at: no anatomy, as a rule, reaches it by itself."""
LARGEST = 1e30
"""Numbers beyond are nonsense in a header, and overflow the forest's 32 bits."""
MOST_CHARACTERS = 64
"""Of a value that is shown; a DICOM Long String has no more."""
SIDES = ("top", "bottom", "left", "right")


@dataclass(frozen=True)
class Group:
    """Features that belong together. `meaning` and `advice` stand in the warning when they predict the class."""

    name: str
    title: str
    features: tuple[str, ...]
    meaning: str
    advice: str


BORDER_FEATURES = (
    *(f"border_{side}_{what}" for side in SIDES for what in ("mean", "std")),
    "border_black_share",
    "border_white_share",
    "padding_share",
)
DEMOGRAPHICS, TOGETHER = "demographics", "together"
GROUPS = (
    Group(
        "image_size",
        "Image size",
        ("rows", "columns", "aspect"),
        "images of the classes went through different scanners or software",
        "bring all images to one size and the same field of view, and see that figures hold among images of one size",
    ),
    Group(
        "bytes",
        "Bytes",
        ("bytes", "bytes_per_pixel"),
        "the classes differ in size, compression or noise",
        "take both classes from one export; find out which one was compressed anew",
    ),
    Group(
        "file",
        "Image size and bytes together",
        ("rows", "columns", "aspect", "bytes", "bytes_per_pixel"),
        "files of the classes were made in different ways",
        "make all images anew from one kind of source, and see that figures hold among images of one size",
    ),
    Group(
        "colour",
        "Colour mode",
        ("color_mode", "photometric_interpretation", "samples_per_pixel"),
        "the classes were saved by different software or people",
        "decode to gray and drop the alpha channel (radloop does), and look for other marks of the two origins",
    ),
    Group(
        "bit_depth",
        "Bit depth",
        ("bits_allocated", "bits_stored", "pixel_representation"),
        "some classes were converted to fewer bits, which leaves its trace in the gray values",
        "take all images at the scanner's depth, or convert all of them alike",
    ),
    Group(
        "encoding",
        "File format and compression",
        ("format", "transfer_syntax_uid", "lossy_image_compression"),
        "lossy compression leaves patterns in the pixels that a network sees",
        "take all images from one export, or test on data in which each format holds every class",
    ),
    Group(
        "border",
        "Border pixels",
        BORDER_FEATURES,
        "padding, collimation, cropping or burned-in marks differ between the classes",
        "crop or mask what is outside the body, and look at the heatmaps' edges",
    ),
    Group(
        "scanner",
        "Scanner",
        (
            *("manufacturer", "manufacturer_model_name", "convolution_kernel", "kvp"),
            *("slice_thickness", "pixel_spacing_mm"),
        ),
        "the class is confounded with the device",
        "balance the classes within each scanner, give figures for each, and test on a scanner not trained on",
    ),
    Group(
        "site",
        "Site",
        ("source", "institution_name", "station_name"),
        "the class is confounded with the place: patients, protocols and scanners differ with it",
        "give figures for each site, and test on a site not trained on",
    ),
    Group(
        "acquisition",
        "Acquisition",
        (
            *("modality", "body_part_examined", "view_position", "patient_position", "laterality"),
            *("contrast_bolus_agent", "study_year"),
        ),
        "patients of the classes were examined in other ways or at other times",
        "restrict the rules to one kind of examination, or give figures for each",
    ),
    Group(
        "descriptions",
        "Descriptions",
        ("study_description", "series_description", "protocol_name"),
        "what people wrote about an examination tells why it was made, and sometimes what was found",
        "give no model these words (radloop gives none), and let no rule choose series by them differently for each class",
    ),
    Group(
        "number_of_images",
        "Number of images",
        ("files", "images", "series"),
        "cases of the classes consist of different numbers of images",
        "choose the same series of each study by the rules, and no model whose result depends on the number of images",
    ),
    Group(
        DEMOGRAPHICS,
        "Sex and age",
        ("patient_sex", "patient_age_years"),
        "the classes differ in sex or age, which may belong to the disease, but which a network also reads off the anatomy",
        "match the classes, or give figures by sex and age",
    ),
)
"""`together` is all of them but sex and age, which the anatomy shows."""
TOGETHER_GROUP = Group(
    TOGETHER,
    "All but the anatomy, sex and age",
    tuple(dict.fromkeys(feature for group in GROUPS if group.name != DEMOGRAPHICS for feature in group.features)),
    "a network finds the class without looking at the disease",
    "believe a model only as far as it does better than this on data where these facts do not tell the class",
)
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
"""Of an Age String (PS3.5 6.2), in years."""
AGE = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?) *([YMWDymwd]?)$")
YEAR = re.compile(r"(19|20)[0-9]{2}")


def case_facts(cases: Cases, table: pd.DataFrame) -> pd.DataFrame:
    """One row a case, by case_id and in its order: label, patient_key, `files`, `images` (frames included), `series`, and the columns
    of the middle one of its images: the images' own where they have them (facts filled in), else those of the index's `table`."""
    images = cases.images
    codes, ids = pd.factorize(text(images["case_id"]))
    order, counts = np.argsort(codes, kind="stable"), np.bincount(codes, minlength=len(ids))
    middle = order[np.cumsum(counts) - counts + (counts - 1) // 2]
    own = images.iloc[middle].reset_index(drop=True)
    places = pd.Index(_place(table)).get_indexer(_place(own))
    rest = table.iloc[places].reset_index(drop=True)
    facts = own.assign(**{name: rest[name] for name in table.columns if name not in own.columns})
    files = images.assign(case=codes).drop_duplicates(["source", "path"])["case"]
    series = images.assign(case=codes).drop_duplicates(["case", "series_instance_uid"])["case"]
    facts["images"] = counts
    facts["files"] = np.bincount(files, minlength=len(ids))
    facts["series"] = np.bincount(series, minlength=len(ids))
    known = cases.cases.set_index("case_id")[["label", "patient_key"]]
    facts = facts.set_index(pd.Index(ids, name="case_id"), drop=False).drop(
        columns=list(known.columns), errors="ignore"
    )
    return facts.rename_axis(None).join(known.apply(text), how="inner").sort_index()


def _place(table: pd.DataFrame) -> pd.Series:
    return text(table["source"]) + "\x1f" + text(table["path"])


def case_features(facts: pd.DataFrame) -> pd.DataFrame:
    """Features of each case, by case_id: numbers as floats with NaN, words as text with ''. Nothing here looks at a pixel."""
    number = {name: _numbers(facts, name) for name in ("rows", "columns", "bytes", "frames")}
    pixels = number["rows"] * number["columns"] * number["frames"].fillna(1).clip(lower=1)
    derived = {
        "aspect": number["columns"] / number["rows"].where(number["rows"] > 0),
        "bytes_per_pixel": number["bytes"] / pixels.where(pixels > 0),
        "pixel_spacing_mm": _first_number(facts, "pixel_spacing").fillna(_first_number(facts, "imager_pixel_spacing")),
        "study_year": years(facts),
        "patient_age_years": ages(facts),
        "patient_sex": sexes(facts),
    }
    numeric = ("samples_per_pixel", "bits_allocated", "bits_stored", "pixel_representation", "kvp", "slice_thickness")
    derived |= {name: _numbers(facts, name) for name in (*numeric, "files", "images", "series")}
    names = dict.fromkeys(feature for group in GROUPS for feature in group.features if feature not in BORDER_FEATURES)
    return pd.DataFrame(
        {name: derived[name] if name in derived else number.get(name, words(facts, name)) for name in names},
        index=facts.index,
    )


def _numbers(facts: pd.DataFrame, column: str) -> pd.Series:
    if column not in facts.columns:
        return pd.Series(np.nan, index=facts.index)
    found = pd.to_numeric(facts[column], errors="coerce").astype("Float64").to_numpy(dtype=float, na_value=np.nan)
    return _sane(pd.Series(found, index=facts.index))


def _sane(numbers: pd.Series) -> pd.Series:
    return numbers.where(numbers.abs() < LARGEST)


def words(facts: pd.DataFrame, column: str) -> pd.Series:
    """The column as text that is safe to show, by case_id; '' where there is none."""
    return _of_each_value(facts, column, printable).astype("str")


def _of_each_value(facts: pd.DataFrame, column: str, wanted: Callable[[str], Any]) -> pd.Series:
    """The column through `wanted`, which is asked once a distinct value; missing ones are ''."""
    if column not in facts.columns:
        return pd.Series(wanted(""), index=facts.index)
    codes, values = pd.factorize(facts[column], use_na_sentinel=False)
    answers = pd.Series([wanted(value) for value in text(pd.Series(values))])
    return answers.take(codes).set_axis(facts.index)


def printable(value: str) -> str:
    """On one line, without control and formatting characters (a terminal obeys them), at most `MOST_CHARACTERS` long."""
    line = "".join(character if character.isprintable() else " " for character in value)
    line = " ".join(line.split())
    return line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 1] + "…"


def _first_number(facts: pd.DataFrame, column: str) -> pd.Series:
    """Of several values in one column, the first; NaN where it is no number."""

    def first(value: str) -> float:
        try:
            return float(value.split("\\")[0])
        except ValueError:
            return np.nan

    return _sane(_of_each_value(facts, column, first))


def years(facts: pd.DataFrame) -> pd.Series:
    """Of StudyDate, as a number; NaN where there is none."""
    return _of_each_value(facts, "study_date", lambda value: float(value[:4]) if YEAR.match(value) else np.nan)


def ages(facts: pd.DataFrame) -> pd.Series:
    """In years, from an Age String (045Y, 018M; PS3.5 6.2) or a sheet's number; NaN for anything else."""

    def age(value: str) -> float:
        found = AGE.match(value.strip())
        return float(found[1]) * YEARS[found[2].upper() or "Y"] if found else np.nan

    return _of_each_value(facts, "patient_age", age)


def sexes(facts: pd.DataFrame) -> pd.Series:
    """M, F, or whatever else stands there in upper case."""
    known = {"MALE": "M", "FEMALE": "F"}

    def sex(value: str) -> str:
        shown = printable(value.upper())
        return known.get(shown, shown)

    return _of_each_value(facts, "patient_sex", sex).astype("str")


def border_features(
    facts: pd.DataFrame, roots: Mapping[str, Path], *, workers: int | None = None, progress: bool = False
) -> tuple[pd.DataFrame, dict[str, int]]:
    """`BORDER_FEATURES` of each case's middle image, by case_id, decoded in worker processes under a budget; and, by reason, how
    many could not be decoded (their row is NaN)."""
    count = default_workers() if workers is None else workers
    files = image_files(facts, dict(roots))
    outcomes = run_each(
        border_values, files, workers=count, timeout_s=DECODE_TIMEOUT_S, memory_bytes=DECODE_MEMORY_BYTES, chunk=4
    )
    rows: list[dict[str, float]] = []
    failures: dict[str, int] = {}
    for _, outcome in track(outcomes, "border pixels", len(files), show=progress):
        if isinstance(outcome, Failure):
            failures[str(outcome.reason)] = failures.get(str(outcome.reason), 0) + 1
        rows.append({} if isinstance(outcome, Failure) else outcome)
    table = pd.DataFrame(rows, index=facts.index, columns=list(BORDER_FEATURES), dtype=float)
    return table, dict(sorted(failures.items()))


def border_values(image: ImageFile) -> dict[str, float]:
    """`BORDER_FEATURES` of one frame as a reader would see it, 0 black to 1 white. Raises Rejected where it cannot be decoded."""
    return describe_border(to_unit_range(read_image(image), WINDOWS["wide"]))


def describe_border(shown: FloatImage) -> dict[str, float]:
    """`BORDER_FEATURES` of `shown` (rows, columns) in 0-1. `padding_share`: of the frame that lies in rows and columns of one
    single value, counted from the edges inwards."""
    width = max(1, round(BORDER_SHARE * min(shown.shape)))
    strips = (shown[:width], shown[-width:], shown[:, :width], shown[:, -width:])
    values: dict[str, float] = {}
    for side, strip in zip(SIDES, strips, strict=True):
        values[f"border_{side}_mean"] = float(strip.mean())
        values[f"border_{side}_std"] = float(strip.std())
    ring = np.concatenate([strip.ravel() for strip in strips])
    values["border_black_share"] = float((ring <= 0).mean())
    values["border_white_share"] = float((ring >= 1).mean())
    values["padding_share"] = _padding(shown)
    return values


def _padding(shown: FloatImage) -> float:
    inner = shown
    for _ in range(2):  # rows, then columns of what is left
        several = np.flatnonzero(inner.max(axis=1) > inner.min(axis=1))
        if not len(several):
            return 1.0
        inner = inner[several[0] : several[-1] + 1].T
    return 1.0 - inner.size / shown.size
