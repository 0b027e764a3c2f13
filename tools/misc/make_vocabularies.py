"""Make the vocabularies that come with the package, or the larger one for training.

Names are those of mmdet's and mmseg's METAINFO, letter by letter, so that they compare equal to a data set's classes.

Example:
    python tools/misc/make_vocabularies.py shipped
    python tools/misc/make_vocabularies.py shipped --lvis data/lvis/annotations/lvis_v1_val.json
    python tools/misc/make_vocabularies.py coco-stuff_ade847 data/ade847/classes.txt data/vocabularies/coco-stuff_ade847.json
"""  # noqa: E501

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from densevlm_mm.vlm import Vocabulary
from densevlm_mm.vlm import vocabulary as module
from densevlm_mm.vlm.vocabulary_rules import flag_things, training_vocabulary

SHIPPED = Path(module.__file__).parent / 'vocabularies'
# Where mmseg's name of an ADE20K class is not the first of mmdet's synonyms.
ADE20K_PANOPTIC_NAMES = {
    'windowpane': 'window', 'bathtub': 'tub', 'railing': 'rail', 'streetlight': 'street lamp',
    'television receiver': 'tv', 'apparel': 'clothes', 'swimming pool': 'pool', 'waterfall': 'falls',
    'ashcan': 'trash can',
}  # fmt: skip
# PASCAL writes some names in one word; a text tower has read them in two.
PASCAL_PHRASES = {
    'diningtable': ['dining table'], 'pottedplant': ['potted plant'], 'tvmonitor': ['tv monitor'],
}  # fmt: skip
# PASCAL Context defines no things: one is what VOC, COCO or ADE20K call so, these under a name of their own.
CONTEXT_NAMES = {'shelves': 'shelf', 'sign': 'signboard'}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Make vocabularies.')
    commands = parser.add_subparsers(dest='command', required=True)
    shipped = commands.add_parser('shipped', help='those that come with the package, from mmdet and mmseg')
    shipped.add_argument('--out', type=Path, default=SHIPPED, help='folder (default: where the package has them)')
    shipped.add_argument('--lvis', help="LVIS v1's annotation file, for the rare classes of ov_lvis")
    larger = commands.add_parser('coco-stuff_ade847', help='for training, with all classes of ADE20K')
    larger.add_argument('index', help='list of the 847 classes, a line each: "name" or "1: name", or a table')
    larger.add_argument('out', type=Path, help='JSON file to write')
    larger.add_argument('--separator', default=',', help='what stands between synonyms, of which the first is taken')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when everything is written, 2 when something is missing or unusable."""
    args = parse_args(argv)
    try:
        if args.command == 'shipped':
            made = make_shipped() | ({'ov_lvis': make_ov_lvis(args.lvis)} if args.lvis else {})
            files = {args.out / f'{name}.json': vocabulary for name, vocabulary in made.items()}
        else:
            files = {args.out: make_larger(args.index, args.separator)}
        for path, vocabulary in files.items():
            vocabulary.save(path)
            print(f'{path}: {len(vocabulary)} classes, {vocabulary.num_things} things')
    except (ImportError, OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def make_shipped() -> dict[str, Vocabulary]:
    """The shipped vocabularies by name, without 'ov_lvis', for which METAINFO does not suffice."""
    from mmdet import datasets as det
    from mmseg import datasets as seg

    coco, voc = classes_of(det.CocoDataset), classes_of(det.VOCDataset)
    ov_coco = make_ov_coco(coco)
    coco_stuff = with_things(classes_of(seg.COCOStuffDataset), coco)
    ade = classes_of(seg.ADE20KDataset)
    panoptic = det.ADE20KPanopticDataset.METAINFO
    ade_panoptic = make_ade20k_panoptic(ade, panoptic['thing_classes'], panoptic['stuff_classes'])
    context, cityscapes = classes_of(seg.PascalContextDataset), classes_of(seg.CityscapesDataset)
    known = {*voc, *things_of(coco_stuff), *things_of(ade_panoptic)}
    context_things = {name for name in context if CONTEXT_NAMES.get(name, name) in known}
    return {
        'coco_detection': with_things(coco, coco),
        'ov_coco': ov_coco,
        'ov_coco_65': ov_coco.select([name for name, part in zip(coco, ov_coco.split, strict=True) if part]),
        'coco_object': with_things(('background', *coco), coco),
        'coco_panoptic': with_things(classes_of(det.CocoPanopticDataset), coco),
        'coco_stuff': coco_stuff,
        'ade20k': Vocabulary(ade, ade_panoptic.is_thing),
        'ade20k_panoptic': ade_panoptic,
        'coco-stuff_ade20k': training_vocabulary(coco_stuff, ade_panoptic),
        'voc20': with_pascal_phrases(with_things(voc, voc)),
        'voc20b': with_pascal_phrases(make_voc20b(voc, context)),
        'voc21': with_pascal_phrases(with_things(classes_of(seg.PascalVOCDataset), voc)),
        'pascal_context59': with_pascal_phrases(with_things(context[1:], context_things)),
        'pascal_context60': with_pascal_phrases(with_things(context, context_things)),
        'cityscapes': with_things(cityscapes, classes_of(det.CityscapesDataset)),
        'objects365_v1': all_things(classes_of(det.Objects365V1Dataset)),
        'objects365_v2': all_things(classes_of(det.Objects365V2Dataset)),
        'lvis_v1': all_things(classes_of(det.LVISV1Dataset)),
    }


def make_ade20k_panoptic(ade: Sequence[str], things: Sequence[str], stuff: Sequence[str]) -> Vocabulary:
    """ADE20K's 150 classes in the order of their labels, with mmdet's names and flags; of synonyms the first."""
    flags = {name.split(',')[0]: name in things for name in (*things, *stuff)}
    names = [ADE20K_PANOPTIC_NAMES.get(name.strip(), name.strip()) for name in ade]
    if set(names) != set(flags):
        raise ValueError(f'names of ADE20K that mmdet and mmseg do not share: {sorted(set(names) ^ set(flags))}')
    return Vocabulary(tuple(names), tuple(flags[name] for name in names))


def make_voc20b(voc: Sequence[str], context: Sequence[str]) -> Vocabulary:
    """VOC's 20 classes and a last one for which the other classes of Context stand; Context's "table" is VOC's own."""
    others = [name for name in context if name not in {'background', 'table', *voc}]
    return with_things((*voc, 'background'), voc).with_synonyms({'background': others})


def make_ov_coco(coco: Sequence[str]) -> Vocabulary:
    """COCO's 80 classes with the 48 base and 17 novel ones that mmdet's converter keeps."""
    import mmdet

    path = Path(mmdet.__file__).parent / '.mim/tools/dataset_converters/coco2ovd.py'
    lists = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(path.read_text(encoding='utf-8')).body
        if isinstance(node, ast.Assign)
    }
    return all_things(coco).with_split(base=lists['base_classes'], novel=lists['novel_classes'])


def make_ov_lvis(annotations: str) -> Vocabulary:
    """LVIS's 1203 classes with the split by ``frequency``: rare ones are novel."""
    from mmdet.datasets import LVISV1Dataset

    listed = Vocabulary.from_file(annotations, allow_duplicates=True)
    names = classes_of(LVISV1Dataset)
    if listed.names != names or None in listed.split:
        raise ValueError(f"{annotations} does not list LVIS v1's 1203 classes with their frequency")
    return all_things(names).with_split(base=listed.base().names, novel=listed.novel().names)


def make_larger(index: str, separator: str) -> Vocabulary:
    """COCO-Stuff and a longer list of ADE20K's classes by the rule for training."""
    coco_stuff, *known = (Vocabulary.from_name(name) for name in ('coco_stuff', 'ade20k', 'ade20k_panoptic'))
    names = Vocabulary.from_index(index, separator=separator, allow_duplicates=True).names
    return training_vocabulary(coco_stuff, flag_things(names, [coco_stuff, *known]))


def classes_of(dataset: type) -> tuple[str, ...]:
    """Class names of a registered data set."""
    return tuple(dataset.METAINFO['classes'])


def things_of(vocabulary: Vocabulary) -> set[str]:
    """Names of the thing classes."""
    return {name for name, flag in zip(vocabulary.names, vocabulary.is_thing, strict=True) if flag}


def with_things(names: Sequence[str], things: Collection[str]) -> Vocabulary:
    """Classes of which these are things."""
    return Vocabulary(tuple(names), tuple(name in things for name in names))


def all_things(names: Sequence[str]) -> Vocabulary:
    """Classes of a detection set."""
    return with_things(names, names)


def with_pascal_phrases(vocabulary: Vocabulary) -> Vocabulary:
    """The same classes with readable prompts."""
    return vocabulary.with_synonyms({key: PASCAL_PHRASES[key] for key in vocabulary.names if key in PASCAL_PHRASES})


if __name__ == '__main__':
    sys.exit(main())
