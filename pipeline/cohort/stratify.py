"""How many patients go to each place (a split or a fold), and with several findings at once who goes where.

Patients with the same set of labels could be a stratum each, but several findings make many sets that few patients have: there, findings
are divided one after the other, the rarest first, as in iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PLACES_TO_FILL = 3
"""With at least so many patients of a kind no place is left without one: train, validation and test."""

Places = NDArray[np.int8]
"""(patients,): the number of a place, `NOWHERE` where there is none yet."""
Integers = NDArray[np.int64]
NOWHERE = -1


def sizes_of(new: int, kept: Sequence[int], weights: Sequence[float], ties: Sequence[int]) -> list[int]:
    """How many of `new` go to each place, each to where most are missing of its weight of all, and of such places to the one with
    the lowest of `ties`; and none is left empty where there are enough for every split. No other distribution of the new is nearer
    to the weights (least squares)."""
    total = new + sum(kept)
    heap = [
        (count - total * weight, tie, number)
        for number, (count, weight, tie) in enumerate(zip(kept, weights, ties, strict=True))
    ]
    heapq.heapify(heap)
    sizes = [0] * len(kept)
    for _ in range(new):
        surplus, tie, number = heap[0]
        sizes[number] += 1
        heapq.heapreplace(heap, (surplus + 1, tie, number))
    for number in range(len(kept)):
        if total >= PLACES_TO_FILL and kept[number] + sizes[number] == 0:
            giver = max(range(len(kept)), key=lambda one: kept[one] + sizes[one] if sizes[one] else 0)
            if sizes[giver] and kept[giver] + sizes[giver] > 1:
                sizes[giver] -= 1
                sizes[number] = 1
    return sizes


def place_by_findings(
    place: Places, findings: NDArray[np.bool_], order: Integers, weights: Sequence[float], *, even: bool = False
) -> None:
    """Puts those of `order` into `place`. `findings` (patients, k): each patient has one at least, `none` being one of them.

    Of the patients that wait, those with the rarest finding go first: as many to each place as `sizes_of` says for it, and each to the
    place that most misses what else this patient has. `even`: as in `sizes_of`, places with fewer patients come first.
    """
    everybody = findings.shape[1]
    sets = [[*np.flatnonzero(row).tolist(), everybody] for row in findings]
    involved = np.concatenate([np.flatnonzero(place != NOWHERE), order])
    totals = [*findings[involved].sum(axis=0).tolist(), len(involved)]
    wanted = [[total * weight for weight in weights] for total in totals]
    have = [[0] * len(weights) for _ in totals]
    for patient in involved[: len(involved) - len(order)].tolist():
        for kind in sets[patient]:
            have[kind][int(place[patient])] += 1
    waiting = order
    while len(waiting):
        left = findings[waiting].sum(axis=0)
        rarest = int(np.where(left > 0, left, len(place) + 1).argmin())
        has = findings[waiting, rarest]
        members = waiting[has][np.argsort(-findings[waiting[has]].sum(axis=1), kind="stable")]  # the hardest to place
        quota = sizes_of(len(members), have[rarest], weights, have[everybody] if even else [0] * len(weights))
        for patient in members.tolist():
            others = [kind for kind in sets[patient] if kind != rarest]
            chosen = _most_missed(others, quota, wanted, have)
            place[patient] = chosen
            quota[chosen] -= 1
            for kind in sets[patient]:
                have[kind][chosen] += 1
        waiting = waiting[~has]
    for patient in order.tolist():
        _move(patient, place, sets[patient], have)


def _most_missed(kinds: list[int], quota: list[int], wanted: list[list[float]], have: list[list[int]]) -> int:
    """Of the places with room the one that lacks the largest part of what it should have of these kinds, the last of equals."""
    best, most = NOWHERE, -np.inf
    for number, room in enumerate(quota):
        if room:
            missing = sum(1.0 - have[kind][number] / wanted[kind][number] for kind in kinds)
            if missing >= most:
                best, most = number, missing
    return best


def _move(patient: int, place: Places, kinds: list[int], have: list[list[int]]) -> None:
    """To a place that has none of one of these kinds, as rarer findings took them all along; if this takes the last of none away."""
    here = int(place[patient])
    empty = [
        number
        for kind in kinds
        if sum(have[kind]) >= PLACES_TO_FILL
        for number, count in enumerate(have[kind])
        if not count
    ]
    if empty and all(have[kind][here] > 1 for kind in kinds):
        place[patient] = empty[-1]
        for kind in kinds:
            have[kind][here] -= 1
            have[kind][empty[-1]] += 1
