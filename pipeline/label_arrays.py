"""A case's label as text and as numbers: one class of several, or several findings at once.

As text it stands in split.csv and predictions.csv: a class, or, where a manifest has `labels.several`, the findings that are present,
joined by `|` in the order of the classes, `NO_FINDING` where none is. As numbers it is what a network learns. n cases, k classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

NO_FINDING = "(none)"
"""The label of a case with none of several findings."""
JOINED_BY = "|"
"""Between findings; so no finding's name may hold it."""


def label_array(
    labels: Iterable[str], classes: Sequence[str], several: bool
) -> NDArray[np.int64] | NDArray[np.float32]:
    """(n,) int64 class numbers; where `several`, (n, k) float32, 1 where a finding is present. ConfigError for a label that is none."""
    present = presence(labels, classes)
    if several:
        return present.astype(np.float32)
    if (present.sum(axis=1) != 1).any():
        raise ConfigError(f"expected one class a case of {', '.join(classes)}, found labels of several findings")
    return present.argmax(axis=1).astype(np.int64, copy=False)


def presence(labels: Iterable[str], classes: Sequence[str]) -> NDArray[np.bool_]:
    """(n, k) whether each case has each class; of one label a case one is true. ConfigError for a label that is none."""
    place = {name: number for number, name in enumerate(classes)}
    rows: dict[str, int] = {}
    codes = np.fromiter((rows.setdefault(label, len(rows)) for label in labels), dtype=np.int64)
    sets = np.zeros((len(rows), len(classes)), dtype=bool)
    for label, row in rows.items():
        found = [place.get(name) for name in findings_of(label, classes)]
        numbers = [number for number in found if number is not None]
        if len(numbers) < len(found):  # not quoted: a label of other data may hold anything
            raise ConfigError(
                f"a label is none of the classes {', '.join(classes)}; is it the data of another manifest or run?"
            )
        sets[row, numbers] = True
    return sets[codes]


def findings_of(label: str, classes: Sequence[str]) -> list[str]:
    """What a label's text names: itself where it is a class, else its parts; none for `NO_FINDING`."""
    if label in classes:
        return [label]
    return [] if label == NO_FINDING else label.split(JOINED_BY)


def label_texts(present: NDArray[np.bool_], classes: Sequence[str]) -> list[str]:
    """(n,) the labels of (n, k) findings, as split.csv has them."""
    sets, rows = np.unique(np.asarray(present, dtype=bool), axis=0, return_inverse=True)
    texts = [JOINED_BY.join(classes[number] for number in np.flatnonzero(one).tolist()) or NO_FINDING for one in sets]
    return [texts[row] for row in rows.reshape(-1).tolist()]
