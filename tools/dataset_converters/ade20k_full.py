#!/usr/bin/env python
"""Make the images and label maps of ADE20K with 847 classes from the full release of 2021.

ROOT is the folder ADE20K_2021_17_01 of that release (groups.csail.mit.edu/vision/datasets/ADE20K, on request). Reads

    index_ade20k.pkl                         which images there are, and the names of all classes; nothing in it is run
    images/ADE/.../ADE_val_*.jpg             and ADE_val_*_seg.png: class R / 10 * 256 + G, 0 for none
    CLASSES                                  the 847 of the benchmark: name, number in the release and label of each

and writes, for the split "validation",

    images_847/validation/*.jpg              images as they are, those with both sides over 512 px reduced to 512 px
    annotations_847/validation/*.png         16 bits, labels 0..846; 65535 is ignored
    ade847.json                              the vocabulary: of synonyms the first is for prompts

CLASSES is no part of the release. It was published with MaskFormer as a list in a Python file, which is parsed and
never run: datasets/prepare_ade20k_full_sem_seg.py::ADE20K_SEM_SEG_FULL_CATEGORIES. A JSON list of these serves, too.

Example:
    python tools/dataset_converters/ade20k_full.py data/ADE20K_2021_17_01 \\
        --classes prepare_ade20k_full_sem_seg.py::ADE20K_SEM_SEG_FULL_CATEGORIES
"""

from __future__ import annotations

import argparse
import io
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from PIL import Image

from densevlm_mm.datasets.image_file import read_image
from densevlm_mm.datasets.semantic_maps import ignore_index, save_label_map
from densevlm_mm.vlm import Vocabulary
from densevlm_mm.vlm.checkpoints import save_atomically
from densevlm_mm.vlm.vocabulary_files import read_categories
from densevlm_mm.vlm.vocabulary_rules import flag_things

SPLITS = {'training': 'ADE_train_', 'validation': 'ADE_val_'}
LONGEST_SHORT_SIDE = 512
# Share of the classes that a list and the index must call the same: lists are mended by hand here and there.
SAME_NAMES = 0.9
KNOWN = ('coco_stuff', 'ade20k', 'ade20k_panoptic')
# All that arrays, texts and numbers need. NumPy 2 has moved the first two.
ALLOWED = {
    *product(('numpy.core.multiarray', 'numpy._core.multiarray'), ('_reconstruct', 'scalar')),
    ('numpy', 'ndarray'),
    ('numpy', 'dtype'),
    ('_codecs', 'encode'),
}


class IndexUnpickler(pickle.Unpickler):
    """Reads arrays, lists, texts and numbers. Whatever else a pickle names, which might run code, is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which such an index does not need; refused')
        return super().find_class(module, name)


def read_index(path: Path) -> dict[str, list[str]]:
    """``folder`` and ``filename`` of the images and ``objectnames``, all as lists.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such index.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path}: there is no such file; unpack ADE20K_2021_17_01.zip')
    try:
        with path.open('rb') as file:
            content = IndexUnpickler(file).load()
        index = {key: [str(value) for value in content[key]] for key in ('folder', 'filename', 'objectnames')}
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f'{path}: is no index of ADE20K that can be read ({error!r})') from error
    if len(index['folder']) != len(index['filename']):
        raise ValueError(f'{path}: lists {len(index["filename"])} images in {len(index["folder"])} folders')
    return index


def read_classes(source: str) -> list[Mapping[str, Any]]:
    """Entries with ``name`` and ``id``, ordered by ``trainId``, which counts from 0.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such list.
    """
    entries = read_categories(source)['categories']
    try:
        entries = sorted(entries, key=lambda entry: entry['trainId'])
        labels, ids = ([int(entry[key]) for entry in entries] for key in ('trainId', 'id'))
        [entry['name'] for entry in entries]
    except (KeyError, TypeError) as error:
        raise ValueError(f'{source}: its entries need "name", "id" and "trainId" ({error!r})') from error
    if labels != list(range(len(entries))) or len(set(ids)) < len(ids) or min(ids, default=0) < 1:
        raise ValueError(f'{source}: "trainId" must count from 0 without a gap, and "id" from 1 without a repetition')
    return entries


def check_names(classes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Compare the classes with the release's, by their first synonyms.

    Args:
        classes: From `read_classes`.
        names: Of all classes of the release; class number 1 comes first.

    Returns:
        Which differ, in words; few.

    Raises:
        ValueError: Many do: the list is of another release.
    """
    different = []
    for entry in classes:
        number = int(entry['id'])
        found = names[number - 1] if number <= len(names) else None
        if found is None or first_synonym(found) != first_synonym(entry['name']):
            different.append(f'class {number} is {entry["name"]!r} in the list, but {found!r} in the index')
    if len(different) > (1 - SAME_NAMES) * len(classes):
        raise ValueError(
            f'{len(different)} of {len(classes)} classes are called otherwise in the index: {different[0]}; both must '
            'be of ADE20K_2021_17_01'
        )
    return different


def first_synonym(name: str) -> str:
    """What a name begins with, up to the first comma."""
    return name.split(',')[0].strip()


def make_vocabulary(classes: Sequence[Mapping[str, Any]]) -> Vocabulary:
    """The classes by their whole names, with first synonyms for the prompts and the flags of known vocabularies."""
    names = [entry['name'] for entry in classes]
    firsts = [first_synonym(name) for name in names]
    known = flag_things(firsts, [Vocabulary.from_name(name) for name in KNOWN])
    things = {name for name, flag in zip(known.names, known.is_thing, strict=True) if flag}
    return Vocabulary(
        tuple(names),
        tuple(first in things for first in firsts),
        allow_duplicates=True,  # three of the classes begin with "bag"
        synonyms=tuple((first,) for first in firsts),
    )


def lookup_table(classes: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Label of every class number that a map can hold."""
    table = np.full(2**16, ignore_index(len(classes)), np.int32)
    table[[int(entry['id']) for entry in classes]] = range(len(classes))
    return table


def reduced_size(width: int, height: int) -> tuple[int, int]:
    """Width and height with a shorter side of at most 512 px."""
    scale = min(1.0, LONGEST_SHORT_SIDE / min(width, height))
    return round(width * scale), round(height * scale)


def convert_image(source: Path, image_path: Path, map_path: Path, table: np.ndarray, num_classes: int) -> None:
    """Write image and label map of one image of the release.

    Raises:
        FileNotFoundError: It or its map is missing.
        ValueError: One cannot be decoded, or they do not fit each other.
    """
    seg_path = source.with_name(f'{source.stem}_seg.png')
    image, seg = read_image(str(source)), read_image(str(seg_path))
    if seg.mode != 'RGB' or seg.size != image.size:
        raise ValueError(
            f'{seg_path}: is {seg.mode} of {seg.width}x{seg.height} px; RGB of the size of its image, '
            f'{image.width}x{image.height} px, is needed'
        )
    channels = np.asarray(seg).astype(np.int32)
    labels = table[channels[..., 0] // 10 * 256 + channels[..., 1]]
    size = reduced_size(*image.size)
    if size == image.size:
        data = source.read_bytes()
    else:
        labels = mmcv.imresize(labels, size, interpolation='nearest')
        data = encode_jpeg(mmcv.imresize(np.asarray(image.convert('RGB')), size))
    save_label_map(map_path, labels, num_classes=num_classes)
    if not (image_path.is_file() and image_path.read_bytes() == data):
        save_atomically(image_path, lambda file: file.write(data))


def encode_jpeg(image: np.ndarray) -> bytes:
    """An RGB image as a JPEG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, 'jpeg', quality=95)
    return stream.getvalue()


def convert(
    root: Path, classes_file: str, split: str, progress: Callable[[int, int], None] | None = None
) -> tuple[int, list[str]]:
    """Write the images and label maps of a split, and then the vocabulary.

    What is there already and right is left alone, so that an interrupted conversion goes on where it was.

    Returns:
        The number of images, and names that differ, see `check_names`.

    Raises:
        FileNotFoundError: A part of the release is missing.
        ValueError: A file is not as it should be.
    """
    classes, index = read_classes(classes_file), read_index(root / 'index_ade20k.pkl')
    different = check_names(classes, index['objectnames'])
    images = sorted(
        # folders of the index begin with that of the release, whatever it is called here
        (name, root.joinpath(*Path(folder).parts[1:], name))
        for folder, name in zip(index['folder'], index['filename'], strict=True)
        if name.startswith(SPLITS[split])
    )
    if not images:
        raise ValueError(f'{root / "index_ade20k.pkl"}: lists no image {SPLITS[split]}*')
    table = lookup_table(classes)
    for number, (name, source) in enumerate(images, start=1):
        targets = root / 'images_847' / split / name, root / 'annotations_847' / split / f'{Path(name).stem}.png'
        convert_image(source, *targets, table, len(classes))
        if progress:
            progress(number, len(images))
    make_vocabulary(classes).save(root / 'ade847.json')
    return len(images), different


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('root', type=Path, help='folder ADE20K_2021_17_01')
    parser.add_argument('--classes', required=True, help='FILE.py::NAME or FILE.json, the list of the classes')
    parser.add_argument('--split', choices=SPLITS, default='validation', help='which images (default: validation)')
    return parser.parse_args(argv)


def show_progress(done: int, total: int) -> None:
    """Keep one line of the terminal up to date."""
    print(f'\r{done}/{total} images', end='\n' if done == total else '', file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when everything is there, 2 when it cannot be made."""
    args = parse_args(argv)
    try:
        count, different = convert(args.root, args.classes, args.split, show_progress)
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    for line in different:
        print(f'note: {line}', file=sys.stderr)
    print(f'{args.root / "annotations_847" / args.split}: {count} label maps')
    return 0


if __name__ == '__main__':
    sys.exit(main())
