#!/usr/bin/env python
"""Make the label maps of COCO-Stuff 164k (171 classes) and of COCO-Object (81 classes) from the public pixel maps.

FOLDER is val2017 or train2017 of stuffthingmaps_trainval2017.zip (github.com/nightrome/cocostuff): 8 bits, COCO's
category id less one, 255 for pixels without a label. For STEM.png the label maps are

    stuff     STEM_labelTrainIds.png      0..170 in the order of the ids; 255 is ignored (as MMSegmentation has it)
    object    STEM_instanceTrainIds.png   1..80 for things, 0 for all that is none, labelled or not

Example:
    python tools/dataset_converters/coco_stuff.py data/coco_stuff164k/annotations/val2017 --labels stuff object
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from densevlm_mm.datasets.image_file import read_image
from densevlm_mm.datasets.semantic_maps import save_label_map

SUFFIXES = {'stuff': '_labelTrainIds.png', 'object': '_instanceTrainIds.png'}
NUM_CLASSES = {'stuff': 171, 'object': 81}
UNLABELLED = 255
LAST_THING, LAST_STUFF = 90, 182
# Ids that COCO reserved for classes without annotations.
UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
INVALID = -1


def lookup_table(labels: str) -> np.ndarray:
    """Label of each of the 256 values, ``INVALID`` for those that do not occur."""
    ids = [number for number in range(1, LAST_STUFF + 1) if number not in UNUSED]
    table = np.full(256, INVALID)
    table[np.array(ids) - 1] = range(len(ids))
    table[UNLABELLED] = UNLABELLED
    if labels == 'object':
        things = sum(number <= LAST_THING for number in ids)
        table = np.where(table == INVALID, INVALID, np.where(table < things, table + 1, 0))
    return table


def convert_map(path: Path, out: Path, labels: str) -> None:
    """Write one label map of a pixel map.

    Raises:
        ValueError: The pixel map cannot be decoded, or is none.
    """
    values = np.asarray(read_image(str(path)))
    if values.dtype != np.uint8 or values.ndim != 2:
        raise ValueError(f'{path}: is no map of 8 bits; take those of stuffthingmaps_trainval2017.zip')
    converted = lookup_table(labels)[values]
    if (converted == INVALID).any():
        raise ValueError(
            f'{path}: holds the value {values[converted == INVALID][0]}, which is no category of COCO-Stuff less one; '
            'take the maps of stuffthingmaps_trainval2017.zip'
        )
    save_label_map(out / f'{path.stem}{SUFFIXES[labels]}', converted, num_classes=NUM_CLASSES[labels])


def convert(folder: Path, out: Path, labels: Sequence[str], progress: Callable[[int, int], None] | None = None) -> int:
    """Write the label maps of a folder; those that are there already and right are left alone.

    Returns:
        The number of images.

    Raises:
        FileNotFoundError: There are no pixel maps.
        ValueError: See `convert_map`.
    """
    paths = [path for path in sorted(folder.glob('*.png')) if not path.name.endswith(tuple(SUFFIXES.values()))]
    if not paths:
        raise FileNotFoundError(f'{folder}: no .png file in there; unpack stuffthingmaps_trainval2017.zip')
    for number, path in enumerate(paths, start=1):
        for kind in labels:
            convert_map(path, out, kind)
        if progress:
            progress(number, len(paths))
    return len(paths)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('folder', type=Path, help='folder of the pixel maps')
    parser.add_argument('--labels', choices=SUFFIXES, nargs='+', default=list(SUFFIXES), help='which (default: both)')
    parser.add_argument('-o', '--out', type=Path, help='folder for the label maps (default: the same)')
    return parser.parse_args(argv)


def show_progress(done: int, total: int) -> None:
    """Keep one line of the terminal up to date."""
    print(f'\r{done}/{total} images', end='\n' if done == total else '', file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the label maps are there, 2 when they cannot be made."""
    args = parse_args(argv)
    out = args.out or args.folder
    try:
        count = convert(args.folder, out, args.labels, show_progress)
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{out}: {" and ".join(args.labels)} label maps of {count} images')
    return 0


if __name__ == '__main__':
    sys.exit(main())
