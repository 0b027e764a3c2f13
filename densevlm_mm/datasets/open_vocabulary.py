"""Annotation files for open-vocabulary detection: fewer labels, but all categories, so that no label shifts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from densevlm_mm.vlm import Vocabulary
from densevlm_mm.vlm.checkpoints import save_atomically

Content = dict[str, Any]


def keep_labels(
    content: Content,
    vocabulary: Vocabulary,
    *,
    keep: Literal['base', 'all'] = 'base',
    images: Literal['all', 'labelled', 'complete'] = 'labelled',
) -> Content:
    """The same annotations without those of some classes.

    The categories of the result are those of the vocabulary, in its order and with their own ids, whatever is left of
    their annotations: the label of a class does not depend on what is kept.

    Args:
        content: COCO-style annotations with ``images``, ``annotations`` and ``categories``; left as they are.
        vocabulary: Classes by name. What it does not name is dropped.
        keep: 'base', the annotations of base classes; 'all', those of base and novel ones (of every class, if the
            vocabulary has no split).
        images: 'all'; 'labelled', those that an annotation is left of; 'complete', those that lost none, hence show
            nothing that is not labelled.

    Raises:
        ValueError: If something is missing: a list, a class of the vocabulary among the categories, base classes.
    """
    absent = {'images', 'annotations', 'categories'} - set(content)
    if absent:
        raise ValueError(f'has no {sorted(absent)}; a COCO-style instance file is needed')
    categories = ordered_categories(content['categories'], vocabulary)
    names = _kept_names(vocabulary, keep)
    ids = {category['id'] for category in categories if category['name'] in names}
    kept, dropped = [], []
    for annotation in content['annotations']:
        (kept if annotation['category_id'] in ids else dropped).append(annotation)
    labelled, reduced = ({annotation['image_id'] for annotation in part} for part in (kept, dropped))
    if images == 'labelled':
        chosen = [image for image in content['images'] if image['id'] in labelled]
    elif images == 'complete':
        chosen = [image for image in content['images'] if image['id'] not in reduced]
        kept = [annotation for annotation in kept if annotation['image_id'] not in reduced]
    else:
        chosen = list(content['images'])
    return {**content, 'images': chosen, 'annotations': kept, 'categories': categories}


def ordered_categories(categories: list[Content], vocabulary: Vocabulary) -> list[Content]:
    """The categories that the vocabulary names, in its order.

    Raises:
        ValueError: If one is missing or listed twice.
    """
    counts = Counter(category['name'] for category in categories)
    missing = [name for name in vocabulary.names if not counts[name]]
    twice = [name for name in vocabulary.names if counts[name] > 1]
    if missing:
        raise ValueError(f'lists no categories {missing}; start from a file that lists every class of the vocabulary')
    if twice:
        raise ValueError(f'lists categories {twice} more than once; give every category a name of its own')
    by_name = {category['name']: category for category in categories}
    return [by_name[name] for name in vocabulary.names]


def convert_file(
    source: Path,
    target: Path,
    vocabulary: Vocabulary,
    *,
    keep: Literal['base', 'all'],
    images: Literal['all', 'labelled', 'complete'],
) -> str:
    """Write what `keep_labels` leaves of an annotation file, whole or not at all.

    Returns:
        A line that says what was kept.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file, lacks something, or is the target itself.
    """
    if source.resolve() == target.resolve():
        raise ValueError(f'{target} is the source itself, of which labels would be lost: give another file')
    try:
        before = json.loads(source.read_text(encoding='utf-8'))
        after = keep_labels(before, vocabulary, keep=keep, images=images)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'{source}: is no COCO-style instance file ({error!r})') from error
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    write_annotations(target, after)
    counts = (f'{len(after[key]):,} of {len(before[key]):,} {key}' for key in ('images', 'annotations', 'categories'))
    return f'{target}: {", ".join(counts)}'


def write_annotations(path: Path, content: Content) -> None:
    """Write an annotation file, whole or not at all; the same content gives the same bytes."""
    save_atomically(path, lambda file: file.write(json.dumps(content, separators=(',', ':')).encode('utf-8')))


def _kept_names(vocabulary: Vocabulary, keep: str) -> set[str]:
    if keep == 'base':
        return set(vocabulary.base().names)
    pairs = zip(vocabulary.names, vocabulary.split, strict=True)
    return {name for name, part in pairs if part is not None} or set(vocabulary.names)
