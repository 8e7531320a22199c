"""Copy the first images of each class out of an archive, for studies that fit on two cores.

    python benchmarks/image_subset.py path/to/cifar10-jpeg.tar.gz path/to/jpeg-10k --train 1000

Reads   an archive of train/<class>/* and test/<class>/* (.tar or .tar.gz), at any depth
Writes  a directory of the same layout: the first `--train` images of each class by name, and all test images
"""

from __future__ import annotations

import argparse
import tarfile
from collections import defaultdict
from pathlib import Path

from flywheel import cli


def main() -> None:
    """Copy the images and print their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--train", type=int, default=1000, help="training images per class (default: 1000)")
    arguments = parser.parse_args()
    classes: dict[tuple[str, str], list[tuple[str, bytes]]] = defaultdict(list)
    with tarfile.open(arguments.archive) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and len(parts := Path(member.name).parts) >= 3 and parts[-3] in ("train", "test"):
                classes[parts[-3], parts[-2]].append((parts[-1], file.read()))
    counts: dict[str, int] = defaultdict(int)
    for (part, name), images in classes.items():
        folder = arguments.directory / part / name
        folder.mkdir(parents=True, exist_ok=True)
        for image, content in sorted(images)[: arguments.train if part == "train" else None]:
            (folder / image).write_bytes(content)
            counts[part] += 1
    print(f"{arguments.directory}: {counts['train']:,} training and {counts['test']:,} test images")


if __name__ == "__main__":
    cli.main(main)
