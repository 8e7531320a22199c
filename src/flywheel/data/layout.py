"""Infer splits and classes from the names of a source's images. Pure: no file is opened.

Read are, below any number of wrapping folders:

    <class>/<image>                                  split by data.folder_split
    train/<class>/<image>, test/<class>/<image>      also Training, seg_test, valid, … in any case
    <class>/train/<image>, <class>/test/<image>
    <image>, and a table (.csv) of file names and labels; also below train and test, or with a column `split`

A class is the first folder; images in folders below it belong to it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flywheel.data import DataError, label_table
from flywheel.data.label_table import split_of

SPLITS = ("train", "validation", "test")
NAMED = 4  # folders or tables in a message; the others are counted
WANTED = (
    "it must hold <class>/<image>, train/<class>/<image> and test/<class>/<image>, or images and a table (.csv) of "
    "their names and labels"
)
UNLABELLED = "without a class (no folder of a class, no row of a table)"
OUTSIDE = "outside of train and test"


@dataclass(frozen=True)
class Layout:
    """Image -> class of each split. Without `test`, `train` holds all images and is to be split."""

    train: Mapping[str, str]
    validation: Mapping[str, str] = field(default_factory=dict)
    test: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)  # reason -> images
    notes: tuple[str, ...] = ()  # what a reader of the folder would not expect
    class_parent: str = ""  # the folder of the training classes' folders


def infer(images: Sequence[str], tables: Mapping[str, bytes]) -> Layout:
    """Return the layout of images (relative names with `/`). Raises DataError with what was found."""
    tree = _Tree(images)
    roots = tree.split_roots("")
    if len(roots) > 1 and not _classes_first(tree, roots):
        raise DataError(
            f"found {len(roots)} data sets: {_listed(root or 'the top folder' for root in roots)}; set data.path to "
            "one of them, or remove the others"
        )
    notes: list[str] = []
    parts: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    parent = ""
    if len(roots) > 1:
        for root in roots:
            for split, folder in tree.splits(root).items():
                parts[split] |= dict.fromkeys(tree.below(folder), root.rpartition("/")[2])
        inside = {image for root in roots for folder in tree.splits(root).values() for image in tree.below(folder)}
    elif roots:
        folders = tree.splits(roots[0])
        inside = {image for folder in folders.values() for image in tree.below(folder)}
        for split in SPLITS:
            if split in folders:
                known = set(parts["train"].values())
                parts[split], below, base = _by_folder(tree.below(folders[split]), folders[split], known)
                notes = notes or below
                parent = parent or base
    else:
        inside = set(images)
        parts["train"], notes, parent = _by_folder(images, "", set())
    labels = label_table.read(tables, sorted(inside))
    notes += _use_table(parts, labels, inside, tree, roots)
    if not parts["test"] and parts["validation"]:
        parts["test"], parts["validation"] = parts["validation"], {}
        notes.append("there is no labelled test folder, so the validation images are the test images")
    used = set().union(*parts.values())
    left_out = {UNLABELLED: sorted(inside - used), OUTSIDE: sorted(set(images) - inside)}
    if len(set(parts["train"].values())) < 2:
        raise DataError(_too_few_classes(parts["train"], images, labels))
    return Layout(
        parts["train"], parts["validation"], parts["test"],
        {reason: names for reason, names in left_out.items() if names}, tuple(notes), parent,
    )  # fmt: skip


class _Tree:
    """The folders of the images."""

    def __init__(self, images: Iterable[str]) -> None:
        self.images = sorted(images)
        self.children: dict[str, set[str]] = defaultdict(set)
        self.holding: set[str] = set()  # folders with images of their own
        for image in self.images:
            folder = image.rpartition("/")[0]
            self.holding.add(folder)
            while folder:
                parent = folder.rpartition("/")[0]
                self.children[parent].add(folder)
                folder = parent

    def below(self, folder: str) -> list[str]:
        return [image for image in self.images if image.startswith(f"{folder}/")] if folder else self.images

    def splits(self, parent: str) -> dict[str, str]:
        """Return split -> folder in `parent`. Exact names go before names such as seg_train."""
        exact: dict[str, list[str]] = defaultdict(list)
        loose: dict[str, list[str]] = defaultdict(list)
        for child in sorted(self.children[parent]):
            name = child.rpartition("/")[2]
            if split := split_of(name):
                (exact if name.lower() in label_table.SPLIT_WORDS else loose)[split].append(child)
        found = {**loose, **exact}
        doubled = next((folders for folders in found.values() if len(folders) > 1), None)
        if len(found) > 1 and doubled:
            raise DataError(f"found {_listed(doubled)} side by side; keep one of them")
        return {split: folders[0] for split, folders in found.items()}

    def split_roots(self, parent: str) -> list[str]:
        """Return the folders that hold train and test, or a train of classes with nothing like it beside."""
        found = self.splits(parent)
        train = found.get("train", "")
        exact = train.rpartition("/")[2].lower() in label_table.SPLIT_WORDS
        root = len(found) > 1 or (exact and bool(self.children[train]) and not self.split_roots(train))
        inside = set(found.values()) if root else set()
        deeper = [deep for child in sorted(self.children[parent] - inside) for deep in self.split_roots(child)]
        return [parent, *deeper] if root else deeper


def _classes_first(tree: _Tree, roots: Sequence[str]) -> bool:
    """Return whether the layout is <class>/train/<image>: no split has folders, and all lie in one folder."""
    return len({root.rpartition("/")[0] for root in roots}) == 1 and not any(
        tree.children[folder] for root in roots for folder in tree.splits(root).values()
    )


def _by_folder(images: Sequence[str], base: str, known: set[str]) -> tuple[dict[str, str], list[str], str]:
    """Return image -> first folder below `base` or below single folders in it, notes, and the classes' parent."""
    folders = {image: image[len(base) :].strip("/").split("/")[:-1] for image in images}
    while True:
        first = {parts[0] for parts in folders.values() if parts}
        if len(first) != 1 or first <= known:
            break
        (single,) = first
        again = (split := split_of(single)) and split == split_of(base.rpartition("/")[2])  # test/test/<image>
        if not again and all(len(parts) < 2 for parts in folders.values()):
            break
        base = f"{base}/{single}".strip("/")
        folders = {image: parts[1:] for image, parts in folders.items() if parts}
    classes = {image: parts[0] for image, parts in folders.items() if parts}
    inner: dict[str, set[str]] = {name: set() for name in classes.values()}
    for parts in folders.values():
        if parts:
            inner[parts[0]].add(parts[1] if len(parts) > 1 else "")
    deep = sorted(image for image, parts in folders.items() if len(parts) > 1)
    if not deep:
        return classes, [], base
    common = set.intersection(*inner.values())
    if not known and len(inner) > 1 and len(common - {""}) > 1 and all("" not in names for names in inner.values()):
        raise DataError(
            f"found the same folders {_listed(common)} in {_listed(inner)}: two data sets or classes with parts; set "
            "data.path to one of them, or move the images into the folders of their classes"
        )
    return classes, [f"images below a class belong to it, such as {deep[0]} to {classes[deep[0]]}"], base


def _use_table(
    parts: dict[str, dict[str, str]], labels: label_table.Labels, inside: set[str], tree: _Tree, roots: Sequence[str]
) -> list[str]:
    """Give labels of tables to images without the folder of a class. Returns notes."""
    by_folder = parts["train"]
    if not labels.labels:
        return []
    if not roots and len(set(by_folder.values())) > 1:
        pairs = {(by_folder[image], label) for image, label in labels.labels.items() if image in by_folder}
        if len(pairs) > max(len({folder for folder, _ in pairs}), len({label for _, label in pairs})):
            raise DataError(
                f"found folders of classes, {_listed(set(by_folder.values()))}, and other labels in "
                f"{_listed(labels.columns)}; remove the table, or move the images into one folder"
            )
        return []
    if len(set(by_folder.values())) < 2:
        parts |= {split: {} for split in SPLITS}
    folders = tree.splits(roots[0]) if len(roots) == 1 else {}
    of_image = {image: split for split, folder in folders.items() for image in tree.below(folder)}
    unlabelled = inside - set().union(*parts.values())
    for image in sorted(unlabelled & set(labels.labels)):
        split = of_image.get(image) or labels.splits.get(image, "train")
        parts[split][image] = labels.labels[image]
    return [f"the labels are in column {_listed(labels.columns)}"] if unlabelled & set(labels.labels) else []


def _too_few_classes(train: Mapping[str, str], images: Sequence[str], labels: label_table.Labels) -> str:
    if not images:
        return f"found no image; {WANTED}"
    counted = Counter(image.rpartition("/")[0] or "the top folder" for image in images)
    found = _listed(f"{count} images in {folder}" for folder, count in counted.most_common())
    classes = sorted(set(train.values()))
    problem = f"only the class {classes[0]}" if classes else "none in the folder of a class"
    hint = f"; {labels.unlabelled[0]}" if labels.unlabelled else ""
    return f"found {found}, {problem}{hint}; {WANTED}, of two classes at least"


def _listed(names: Iterable[str]) -> str:
    found = sorted(names) if isinstance(names, set) else list(names)
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more
