#!/usr/bin/env python
"""Make the label maps of PASCAL Context with 459 classes, or with 59 and background, from the public release.

ROOT is the folder VOC2010 of PASCAL VOC 2010, with trainval.tar.gz and labels.txt of PASCAL Context in it
(www.cs.stanford.edu/~roozbeh/pascal-context). Reads

    labels.txt                   the 459 classes, "1: accordion" and so on
    trainval/*.mat               LabelMap, 1..459; 0 for pixels without a label
    ImageSets/Main/val.txt       the images (or another list, --images)

and writes

    459   SegmentationClassContext459/*.png   16 bits, 0..458; 65535 is ignored
          pascal_context459.json              the vocabulary
    60    SegmentationClassContext60/*.png    8 bits, 0 for what is none of the 59 classes, which are 1..59

Needs SciPy, to read .mat files.

Example:
    python tools/dataset_converters/pascal_context.py data/VOCdevkit/VOC2010 --classes 459
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from densevlm_mm.datasets.semantic_maps import ignore_index, save_label_map
from densevlm_mm.vlm import Vocabulary
from densevlm_mm.vlm.vocabulary_rules import flag_things

FULL = 459
# Whose things are things here, too.
KNOWN = ('pascal_context60', 'voc20', 'coco_stuff', 'ade20k', 'ade20k_panoptic')


def read_vocabulary(path: Path) -> Vocabulary:
    """The classes of labels.txt, with the flags of known vocabularies.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such list.
    """
    names = Vocabulary.from_index(path).names
    if len(names) != FULL:
        raise ValueError(f'{path}: lists {len(names)} classes; take that of the full release, with {FULL}')
    return flag_things(names, [Vocabulary.from_name(name) for name in KNOWN])


def lookup_table(names: Sequence[str], num_classes: int) -> np.ndarray:
    """Label of each value of a LabelMap, of 0 first.

    Raises:
        ValueError: The names are not those of PASCAL Context's release.
    """
    if num_classes == FULL:
        return np.array([ignore_index(FULL), *range(FULL)])
    labels = {name: label for label, name in enumerate(Vocabulary.from_name('pascal_context60').names)}
    missing = sorted(labels.keys() - {'background', *names})
    if missing:
        raise ValueError(f'labels.txt lists no {missing}; take that of PASCAL Context')
    return np.array([0, *(labels.get(name, 0) for name in names)])


def read_label_map(path: Path) -> np.ndarray:
    """LabelMap ``(H, W)`` of a .mat file.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: SciPy is not installed.
        ValueError: It holds no LabelMap.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError('.mat files are read by SciPy, which is not installed: pip install scipy') from error
    if not path.is_file():
        raise FileNotFoundError(f'{path}: there is no such file; unpack trainval.tar.gz of PASCAL Context')
    try:
        values = loadmat(str(path), variable_names=['LabelMap'])['LabelMap']
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f'{path}: holds no LabelMap that can be read ({error!r}); unpack it again') from error
    if values.ndim != 2 or values.dtype.kind not in 'iu':
        raise ValueError(f'{path}: LabelMap is {values.dtype} of {values.ndim} dimensions, not whole numbers of two')
    return values


def convert(
    root: Path, num_classes: int, image_list: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, int]:
    """Write the label maps of the images in a list, and the vocabulary of the 459 classes.

    Label maps that are there already and right are left alone, so that an interrupted conversion goes on where it was.

    Returns:
        Their folder, and the number of images.

    Raises:
        FileNotFoundError: A part of the release is missing.
        ImportError: SciPy is not installed.
        ValueError: A file is not as it should be.
    """
    vocabulary = read_vocabulary(root / 'labels.txt')
    table = lookup_table(vocabulary.names, num_classes)
    stems = read_list(image_list)
    out = root / f'SegmentationClassContext{num_classes}'
    for number, stem in enumerate(stems, start=1):
        path = root / 'trainval' / f'{stem}.mat'
        values = read_label_map(path)
        if values.max(initial=0) >= len(table) or values.min(initial=0) < 0:
            raise ValueError(f'{path}: holds class {values.max()}, but there are {FULL}')
        save_label_map(out / f'{stem}.png', table[values], num_classes=num_classes)
        if progress:
            progress(number, len(stems))
    if num_classes == FULL:
        vocabulary.save(root / 'pascal_context459.json')
    return out, len(stems)


def read_list(path: Path) -> list[str]:
    """Names of the images, one per line.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It lists nothing.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path}: there is no such list of images; unpack VOCtrainval_03-May-2010.tar')
    stems = path.read_text(encoding='utf-8').split()
    if not stems:
        raise ValueError(f'{path}: lists no images')
    return stems


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('root', type=Path, help='folder VOC2010')
    parser.add_argument('--classes', type=int, choices=(FULL, 60), required=True, help='459, or 59 and background')
    parser.add_argument('--images', type=Path, help='list of the images (default: ROOT/ImageSets/Main/val.txt)')
    args = parser.parse_args(argv)
    args.images = args.images or args.root / 'ImageSets' / 'Main' / 'val.txt'
    return args


def show_progress(done: int, total: int) -> None:
    """Keep one line of the terminal up to date."""
    print(f'\r{done}/{total} images', end='\n' if done == total else '', file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the label maps are there, 2 when they cannot be made."""
    args = parse_args(argv)
    try:
        out, count = convert(args.root, args.classes, args.images, show_progress)
    except (ImportError, OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{out}: {count} label maps')
    return 0


if __name__ == '__main__':
    sys.exit(main())
