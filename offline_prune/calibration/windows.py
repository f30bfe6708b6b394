"""Windows of equal length out of documents of any length.

As the papers do it (Wanda's and SparseGPT's data loaders): documents in random order,
those shorter than a window passed over, and one window at a random place of each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from offline_prune.calibration.documents import Document
from offline_prune.errors import InputError


@dataclass(frozen=True, slots=True)
class Windows:
    """What was cut.

    Attributes:
        ids: the windows, ``seq_len`` ids each.
        documents: number of documents that were read.
        joined: why documents were joined; None if windows lie in single documents.
        overlapping: whether windows may share tokens.
    """

    ids: list[list[int]]
    documents: int
    joined: str | None = None
    overlapping: bool = False


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts windows.

    Attributes:
        count: number of windows wanted.
        seq_len: tokens of a window, ``<bos>`` included.
        separator: ids between joined documents that are texts.
        source: name of the data, for errors.
    """

    count: int
    seq_len: int
    separator: Sequence[int]
    source: str

    def from_single(self, documents: Iterator[Document], rng: random.Random) -> Windows:
        """Cut from documents that are long enough; join all of them if too few are.

        Raises:
            InputError: if all documents together have less than one window.
        """
        seen: list[Document] = []
        ids: list[list[int]] = []
        for document in documents:
            seen.append(document)
            if self._room(document):
                ids.append(self._cut(document, rng))
                if len(ids) == self.count:
                    return Windows(ids, len(seen))
        room = [self._room(document) for document in seen]
        if sum(room) < self.count:
            why = (
                f"only {len(ids)} of {len(seen)} documents have {self.seq_len} tokens, "
                f"together enough for {sum(room)} of {self.count} windows"
            )
            return self._from_joined(seen, rng, why)
        # A second window from every document that has room for two, and so on.
        for turn in range(1, max(room)):
            for document, places in zip(seen, room, strict=True):
                if places > turn and len(ids) < self.count:
                    ids.append(self._cut(document, rng))
        return Windows(ids, len(seen), overlapping=True)

    def from_joined(self, documents: Iterator[Document], rng: random.Random) -> Windows:
        """Cut from the documents joined, reading no more of them than needed.

        Raises:
            InputError: if all documents together have less than one window.
        """
        seen: list[Document] = []
        found = 0
        for document in documents:
            seen.append(document)
            found += len(document.ids)
            if found >= self.count * self.seq_len:
                break
        return self._from_joined(seen, rng, "asked for")

    def _from_joined(
        self, documents: Sequence[Document], rng: random.Random, why: str
    ) -> Windows:
        stream: list[int] = []
        for document in documents:
            if stream and document.kind == "text":
                stream.extend(self.separator)
            stream.extend(document.ids)
        lead = documents[0].lead if documents else []
        length = self.seq_len - len(lead)
        places = len(stream) // length
        if places == 0:
            raise InputError(
                f"Calibration data {self.source}: found {len(stream)} tokens in "
                f"{len(documents)} documents. Expected at least one window of "
                f"{self.seq_len}: give more text, or lower seq_len."
            )
        overlapping = places < self.count
        if overlapping:
            starts = [rng.randint(0, len(stream) - length) for _ in range(self.count)]
        else:
            starts = [i * length for i in rng.sample(range(places), self.count)]
        ids = [lead + stream[start : start + length] for start in starts]
        return Windows(ids, len(documents), joined=why, overlapping=overlapping)

    def _room(self, document: Document) -> int:
        """Return how many windows lie side by side in a document."""
        return len(document.ids) // (self.seq_len - len(document.lead))

    def _cut(self, document: Document, rng: random.Random) -> list[int]:
        """Return a window at a random place of a document that is long enough."""
        length = self.seq_len - len(document.lead)
        start = rng.randint(0, len(document.ids) - length)
        return document.lead + document.ids[start : start + length]
