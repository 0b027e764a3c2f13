"""Make ADE20K's panoptic annotations, in COCO's panoptic format, from the public scene-parsing release.

ROOT is the folder ADEChallengeData2016 of that release, with annotations_instance/ of the instance challenge unpacked
into it; both are published at http://sceneparsing.csail.mit.edu. For the split "validation", reads

    images/validation/*.jpg
    annotations/validation/*.png            classes 1..150; 0 is void
    annotations_instance/validation/*.png   R: thing class 1..100, G: instance within the image; 0 is void

and writes ade20k_panoptic_val.json and ade20k_panoptic_val/*.png below ROOT. Stuff comes from the first map, things
from the second, which covers stuff where both have something; thing pixels that belong to no instance are void.

Example:
    python tools/dataset_converters/ade20k_panoptic.py data/ADEChallengeData2016 --split validation
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from densevlm_mm.datasets.miniworld.coco_files import bounding_box, encode_ids
from densevlm_mm.datasets.transforms.image import read_image
from densevlm_mm.datasets.transforms.panoptic_regions import read_segment_map
from densevlm_mm.evaluation.report import write_json
from densevlm_mm.vlm import build_vocabulary
from densevlm_mm.vlm.checkpoints import save_atomically

SPLITS = {'training': 'train', 'validation': 'val'}
INPUTS = {'images': '.jpg', 'annotations': '.png', 'annotations_instance': '.png'}
VOCABULARY = build_vocabulary('ade20k_panoptic')
# The instance challenge numbers its 100 classes in the order in which they come among the 150.
THINGS = np.flatnonzero(VOCABULARY.is_thing)
# Segment ids: instances of an image are numbered in one byte, stuff is number 0 of its class.
NUMBERS = 256


def merge_maps(classes: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Segment ids of one image.

    Args:
        classes: ``(H, W)``, 1..150, 0 for void.
        instances: ``(H, W, 3)``, thing class 1..100 in R and instance in G, 0 for void.

    Returns:
        ``(H, W)`` int32 of ``256 * (label + 1) + instance``, 0 for void, with labels 0..149 and 0 as the instance of
        stuff.

    Raises:
        ValueError: They differ in size or are no such maps, hold a class that does not exist, or an instance of
            several classes.
    """
    if (classes.ndim, instances.ndim) != (2, 3) or classes.shape != instances.shape[:2]:
        raise ValueError(
            f'an RGB image is expected, and a grey map of classes of its size; got {instances.shape} and '
            f'{classes.shape}'
        )
    if classes.max() > len(VOCABULARY):
        raise ValueError(f'the map of classes holds {classes.max()}, but there are {len(VOCABULARY)}')
    kinds, numbers = (instances[..., channel].astype(np.int32) for channel in (0, 1))
    pairs = np.unique(NUMBERS * numbers[numbers > 0] + kinds[numbers > 0])
    found, owners = pairs % NUMBERS, pairs // NUMBERS
    if outside := found[(found < 1) | (found > len(THINGS))].tolist():
        raise ValueError(f'holds instances of class {outside[0]}, but thing classes are 1..{len(THINGS)}')
    if len(set(owners.tolist())) < len(owners):
        twice = owners[:-1][np.diff(owners) == 0][0]
        raise ValueError(f'instance {twice} is of several classes')
    is_stuff = np.append(False, np.logical_not(VOCABULARY.is_thing))
    ids = np.where(is_stuff[classes], NUMBERS * classes.astype(np.int32), 0)
    labels = THINGS[np.maximum(kinds, 1) - 1]
    return np.where(numbers > 0, NUMBERS * (labels + 1) + numbers, ids).astype(np.int32)


def segments_info(ids: np.ndarray) -> list[dict]:
    """Entries of the annotation file for a map of segment ids: stuff by class, then things by instance."""
    found = np.unique(ids)
    order = sorted((int(i) for i in found[found > 0]), key=lambda i: (i % NUMBERS, i))
    segments = []
    for segment_id in order:
        mask = ids == segment_id
        segments.append(
            {
                'id': segment_id,
                'category_id': segment_id // NUMBERS - 1,
                'area': int(np.count_nonzero(mask)),
                'bbox': bounding_box(mask),
                'iscrowd': 0,
            }
        )
    return segments


def read_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A map of 8-bit values as an array.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded, has more than 8 bits, or is not of ``size``, width and height.
    """
    image = read_image(str(path))
    if image.size != size:
        raise ValueError(f'{path}: is {image.width}x{image.height} px, but its image is {size[0]}x{size[1]} px')
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise ValueError(f'{path}: holds {array.dtype} values; a map of 8 bits is needed')
    return array


def convert_image(root: Path, split: str, stem: str) -> tuple[dict, dict]:
    """Write the map of one image; return its entries in ``images`` and ``annotations``."""
    with Image.open(root / 'images' / split / f'{stem}.jpg') as image:
        size = image.size
    files = [root / folder / split / f'{stem}.png' for folder in ('annotations', 'annotations_instance')]
    maps = [read_map(file, size) for file in files]
    try:
        ids = merge_maps(*maps)
    except ValueError as error:
        raise ValueError(f'{files[1]}: {error}') from error
    path = root / f'ade20k_panoptic_{SPLITS[split]}' / f'{stem}.png'
    if not (path.is_file() and _holds(path, ids)):
        save_atomically(path, lambda file: Image.fromarray(encode_ids(ids)).save(file, 'png'))
    listed = {'id': stem, 'file_name': f'{stem}.jpg', 'width': size[0], 'height': size[1]}
    return listed, {'image_id': stem, 'file_name': path.name, 'segments_info': segments_info(ids)}


def convert(root: Path, split: str, progress: Callable[[int, int], None] | None = None) -> int:
    """Write the maps and then the annotation file of a split.

    A map that is there already and right is left alone, so that an interrupted conversion goes on where it was.

    Args:
        root: Folder of the release.
        split: One of ``SPLITS``.
        progress: Called with the number of images done and of all.

    Returns:
        The number of images.

    Raises:
        FileNotFoundError: A folder or file of the release is missing.
        ValueError: Maps do not fit their image or each other.
    """
    stems = find_images(root, split)
    entries = []
    for number, stem in enumerate(stems, start=1):
        entries.append(convert_image(root, split, stem))
        if progress:
            progress(number, len(stems))
    images, annotations = zip(*entries, strict=True)
    kinds = zip(VOCABULARY.names, VOCABULARY.is_thing, strict=True)
    categories = [{'id': i, 'name': name, 'isthing': int(flag)} for i, (name, flag) in enumerate(kinds)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    write_json(root / f'ade20k_panoptic_{SPLITS[split]}.json', content)
    return len(stems)


def find_images(root: Path, split: str) -> list[str]:
    """Names of the images of a split without suffix, sorted.

    Raises:
        FileNotFoundError: A folder is missing or empty, or an image lacks one of its maps.
    """
    stems = {}
    for folder, suffix in INPUTS.items():
        stems[folder] = {path.stem for path in (root / folder / split).glob(f'*{suffix}')}
        if not stems[folder]:
            raise FileNotFoundError(
                f'{root / folder / split}: no {suffix} file in there; unpack the scene-parsing release '
                '(ADEChallengeData2016) and, into it, annotations_instance of the instance challenge'
            )
    for folder in ('annotations', 'annotations_instance'):
        if missing := sorted(stems['images'] - stems[folder]):
            raise FileNotFoundError(
                f'{root / folder / split}: no map of {len(missing)} of {len(stems["images"])} images, such as '
                f'{missing[0]}.png; the releases do not belong together, or are unpacked in part'
            )
    return sorted(stems['images'])


def _holds(path: Path, ids: np.ndarray) -> bool:
    try:
        return np.array_equal(read_segment_map(str(path)), ids)
    except ValueError:
        return False


def show_progress(done: int, total: int) -> None:
    """Keep one line of the terminal up to date."""
    print(f'\r{done}/{total} images', end='\n' if done == total else '', file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the annotations are there, 2 when they cannot be made."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n\n')[0],
        epilog='\n\n'.join(__doc__.split('\n\n')[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('root', type=Path, help='folder ADEChallengeData2016')
    parser.add_argument('--split', choices=SPLITS, default='validation', help='which images (default: validation)')
    args = parser.parse_args(argv)
    try:
        count = convert(args.root, args.split, show_progress)
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{args.root / f"ade20k_panoptic_{SPLITS[args.split]}.json"}: {count} images')
    return 0


if __name__ == '__main__':
    sys.exit(main())
