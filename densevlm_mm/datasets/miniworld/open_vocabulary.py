"""The mini world for open-vocabulary detection: three of its things are never labelled in training."""

from __future__ import annotations

import json
from pathlib import Path

from densevlm_mm.vlm import Vocabulary

from ..open_vocabulary import keep_labels, write_annotations
from .classes import THINGS
from .coco_files import annotation_files

# Each has base classes of its supercategory, of about its proportions and, on both sides, of its hues: what a detector
# learns from base classes fits their boxes and masks, and only their names tell them apart. All captions name them.
NOVEL_THINGS: tuple[str, ...] = ('tree', 'star', 'boat')


def open_vocabulary() -> Vocabulary:
    """The things, seven of them base and three novel."""
    base = [name for name in THINGS if name not in NOVEL_THINGS]
    return Vocabulary(THINGS, (True,) * len(THINGS)).with_split(base=base, novel=NOVEL_THINGS)


def open_vocabulary_files(root: Path) -> dict[str, Path]:
    """Where the split lies.

    ``train``: base labels; novel things are there to be seen, but unlabelled, as in OV-COCO. ``train_absent``: only the
    images that show no novel thing. ``val``: all labels. ``vocabulary``: the classes with their split.
    """
    folder = root / 'annotations'
    return {
        'train': folder / 'instances_train2017_ov.json',
        'train_absent': folder / 'instances_train2017_ov_absent.json',
        'val': folder / 'instances_val2017_ov.json',
        'vocabulary': folder / 'vocabulary_ov.json',
    }


def write_open_vocabulary(root: Path) -> bool:
    """Write the split of a mini world beside its other annotations, unless it is there.

    Returns:
        Whether anything was written.
    """
    files = open_vocabulary_files(root)
    if all(path.is_file() for path in files.values()):
        return False
    vocabulary = open_vocabulary()
    train, val = (
        json.loads(annotation_files(root, split)['instances'].read_text(encoding='utf-8'))
        for split in ('train2017', 'val2017')
    )
    write_annotations(files['train'], keep_labels(train, vocabulary, keep='base', images='labelled'))
    write_annotations(files['train_absent'], keep_labels(train, vocabulary, keep='base', images='complete'))
    write_annotations(files['val'], keep_labels(val, vocabulary, keep='all', images='all'))
    vocabulary.save(files['vocabulary'])
    return True
