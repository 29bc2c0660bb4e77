"""Storage as a user (PS3.4 annex B): files go to a peer over one association, each in a transfer syntax that the peer takes.

Proposed are, for each SOP class, the syntaxes of its files alone, so that a file goes as it lies on the disk; and the uncompressed ones,
for peers that take nothing else: then it is encoded anew, with the same values.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context

import pipeline.dicom.codecs  # noqa: F401  (registers the decoder with pydicom)
from pipeline.dicom.association import MOST_CONTEXTS, NothingAccepted, associated, broken_off
from pipeline.dicom.bounded import quietly
from pipeline.dicom.sendable import Sendable, identifying_values
from pipeline.dicom.statuses import Outcome, outcome_of, words_of
from pipeline.peers import DimsePeer, Patience

UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
WORD_BYTES = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
NOT_SUPPORTED = 0x0122
"""Refused: SOP class not supported (PS3.7 C.5)."""
ENCODED_ANEW = "sent as {syntax}, the peer takes no {own}"

Answer = tuple[Sendable, Outcome, str]
"""A file, what became of it, and why."""


def batches(files: Sequence[Sendable], most: int) -> Iterator[list[Sendable]]:
    """`files` in their order, as many as one association may propose contexts for, and at most `most`."""
    batch: list[Sendable] = []
    for file in files:
        if batch and (len(batch) == most or len(_contexts([*batch, file])) > MOST_CONTEXTS):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def store(
    files: Sequence[Sendable], peer: DimsePeer, aet: str, patience: Patience, tls: ssl.SSLContext | None = None
) -> Iterator[Answer]:
    """Each of `files` (one of `batches`) with what the peer said. Raises PeerError where the association fails, also on the way."""
    try:
        with associated(peer, aet, _contexts(files), patience, tls) as association:
            for file in files:
                yield file, *_stored(association, file, peer)
    except NothingAccepted:
        for file in files:
            yield file, Outcome.REFUSED, words_of(NOT_SUPPORTED)


def _contexts(files: Sequence[Sendable]) -> list[PresentationContext]:
    wanted = dict.fromkeys((file.sop_class_uid, (file.transfer_syntax_uid,)) for file in files)
    for sop_class in dict.fromkeys(file.sop_class_uid for file in files):
        wanted.update(dict.fromkeys((sop_class, (str(syntax),)) for syntax in UNCOMPRESSED))
    return [build_context(sop_class, list(syntaxes)) for sop_class, syntaxes in wanted]


def _stored(association: Association, file: Sendable, peer: DimsePeer) -> tuple[Outcome, str]:
    accepted = {
        str(context.transfer_syntax[0])
        for context in association.accepted_contexts
        if context.abstract_syntax == file.sop_class_uid
    }
    if not accepted:
        return Outcome.REFUSED, words_of(NOT_SUPPORTED)
    note = ""
    try:
        sent: Dataset | str = str(file.path)
        if file.transfer_syntax_uid not in accepted:
            sent, note = _encoded_anew(file, accepted)
        with quietly():
            status = association.send_c_store(sent)
    except RuntimeError:  # there is no association any more
        raise broken_off(peer) from None
    except OSError as error:
        return Outcome.REFUSED, f"the file cannot be read ({error.strerror or type(error).__name__})"
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # a data set that cannot be decoded or encoded; pydicom raises a dozen types, with values in them
        return Outcome.REFUSED, f"cannot be sent in a transfer syntax that the peer takes ({type(error).__name__})"
    if "Status" not in status:
        raise broken_off(peer)
    outcome = outcome_of(int(status.Status))
    if int(status.Status) == 0:
        return outcome, note
    comment = str(status.get("ErrorComment", "") or "")
    said = words_of(int(status.Status), comment, identifying_values(file) if comment else ())
    return outcome, "; ".join(filter(None, (note, said)))


def _encoded_anew(file: Sendable, accepted: set[str]) -> tuple[Dataset, str]:
    """The file's data set in an uncompressed syntax of `accepted`, decompressed where need be; and that it was."""
    syntax = next((syntax for syntax in UNCOMPRESSED if syntax in accepted), None)
    if syntax is None:
        raise ValueError("no uncompressed syntax is accepted")
    with quietly():
        read = dcmread(file.path)
        own = UID(file.transfer_syntax_uid)
        if own.is_encapsulated:
            read.decompress(generate_instance_uid=False)
        dataset = Dataset()  # one that does not remember how it was encoded
        dataset.update({element.tag: element for element in read})
        if not own.is_little_endian:
            _swap_bytes(dataset)
        dataset.file_meta = read.file_meta
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian  # a like one of `accepted` is found by pynetdicom
    return dataset, ENCODED_ANEW.format(syntax=syntax.name, own=own.name)


def _swap_bytes(dataset: Dataset) -> None:
    """Of values that pydicom keeps as bytes: from big to little endian (PS3.5 7.3)."""
    for element in dataset.iterall():
        size = WORD_BYTES.get(element.VR, 1)
        if size > 1 and element.value:
            element.value = np.frombuffer(element.value, f">u{size}").astype(f"<u{size}").tobytes()
