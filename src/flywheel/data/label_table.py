"""Read the labels of images from tables (.csv, .tsv) beside them. Pure: bytes in, labels out."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from flywheel.data import DataError

SUFFIXES = (".csv", ".tsv")
LABEL_HEADERS = ("label", "class", "category", "target", "species", "breed", "diagnosis", "dx", "y")
SPLIT_HEADERS = ("split", "set", "subset", "partition", "dataset", "phase")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "valset"), "validation"),
}
SAMPLED_ROWS = 200  # to find the column of file names


@dataclass(frozen=True)
class Labels:
    """Image -> label, image -> split where a column or the table's name tells it, and the columns for people."""

    labels: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()  # tables that name images, with the reason why their labels are not known


def split_of(name: str) -> str | None:
    """Return the split that a name such as Training, seg_train or valid-set stands for, None if it is none."""
    words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    found = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return found.pop() if len(found) == 1 else None


def read(tables: Mapping[str, bytes], images: Sequence[str]) -> Labels:
    """Return the labels that the tables give the images. Raises DataError where two rows disagree.

    The column of file names is the one that names most images, with or without folder and suffix. The label's is found
    by its header, or is the only other one.
    """
    if not tables:
        return Labels()
    index: dict[str, list[str]] = defaultdict(list)
    for image in images:
        parts = image.split("/")
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            index[tail].append(image)
            if (stem := os.path.splitext(tail)[0]) != tail:  # noqa: PTH122 (pathlib takes five times as long)
                index[stem].append(image)
    labels: dict[str, str] = {}
    splits: dict[str, str] = {}
    columns, unlabelled = [], []
    for name, data in sorted(tables.items()):
        if "submission" in name.lower():  # the form of a contest's answers: its labels are examples
            continue
        rows = _rows(data)
        sample = rows[:SAMPLED_ROWS]
        hits = [
            len({hit for row in sample if column < len(row) if (hit := _image(row[column], index, name))})
            for column in range(max(map(len, rows), default=0))
        ]
        if not any(hits):
            continue
        file = hits.index(max(hits))
        has_header = _image(rows[0][file] if file < len(rows[0]) else "", index, name) is None
        header = rows[0] if has_header else [f"column {column + 1}" for column in range(len(hits))]
        label = _label_column(header, file)
        if label is None:
            unlabelled.append(f"{name} has the columns {', '.join(header)}: call the one with the labels `label`")
            continue
        columns.append(f"{header[label]} of {name}")
        split = next((i for i, head in enumerate(header) if _plain(head) in SPLIT_HEADERS and i != label), None)
        for row in rows[has_header:]:
            named = _image(row[file], index, name) if file < len(row) else None
            text = unicodedata.normalize("NFC", row[label].strip()) if label < len(row) else ""
            if named is None or not text:
                continue
            if labels.setdefault(named, text) != text:
                raise DataError(f"{name} labels {named} {text} and {labels[named]}; keep one row an image")
            part = split_of(row[split] if split is not None and split < len(row) else PurePosixPath(name).stem)
            if part:
                splits[named] = part
    return Labels(labels, splits, tuple(columns), tuple(unlabelled))


def _rows(data: bytes) -> list[list[str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    try:
        dialect: type[csv.Dialect] = csv.Sniffer().sniff(text[:10_000], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    try:
        return [row for row in csv.reader(io.StringIO(text), dialect) if row]
    except csv.Error:  # not a table
        return []


def _image(value: str, index: Mapping[str, list[str]], table: str) -> str | None:
    """Return the image that a table's cell names; of several, the one in the table's split."""
    parts = unicodedata.normalize("NFC", value.strip().replace("\\", "/")).split("/")
    found = next((index[tail] for i in range(len(parts)) if (tail := "/".join(parts[i:])) in index), [])
    if len(found) > 1 and (split := split_of(PurePosixPath(table).stem)):
        found = [image for image in found if any(split_of(folder) == split for folder in image.split("/")[:-1])]
    return found[0] if len(found) == 1 else None


def _label_column(header: Sequence[str], file: int) -> int | None:
    others = [column for column in range(len(header)) if column != file]
    if len(others) == 1:
        return others[0]

    def rank(column: int) -> tuple[bool, bool, int] | None:
        """Order label, class_name, class_id; the words by their place in LABEL_HEADERS."""
        head = _plain(header[column])
        for number, word in enumerate(LABEL_HEADERS):
            if head == word or (len(word) > 2 and (head.startswith(word) or head.endswith(word))):
                return head != word, head.endswith(("id", "index", "code")), number
        return None

    ranked = [(place, column) for column in others if (place := rank(column)) is not None]
    return min(ranked)[1] if ranked else None


def _plain(head: str) -> str:
    return re.sub(r"[^a-z]", "", head.lower())
