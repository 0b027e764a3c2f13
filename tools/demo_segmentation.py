#!/usr/bin/env python
"""Watch two segmentors before and after DenseVLM, on a generated world.

Makes what tools/demo.py makes. Then the tiny CLIP segments all 18 classes as it is, in every dense mode; and CAT-Seg,
trained with labels of twelve classes on either tower, is evaluated on all of them. Finished steps, those of
tools/demo.py included, are not repeated.

    python tools/demo_segmentation.py --seeds 0 1
"""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from statistics import fmean

from demo import CONFIGS, Demo, Rows, make_demo, make_parser, show, table
from mmengine.config import Config

from densevlm_mm.datasets.semantic_maps import convert_panoptic
from densevlm_mm.vlm import Vocabulary, build_vocabulary

STEPS = ('pretrain_student', 'pretrain_teacher')
TOWERS = {'original': 'pretrain_student', 'DenseVLM': 'densevlm'}
MODES = ('value', 'vanilla', 'qq', 'kk', 'vv', 'csa', 'all')
TRAINING_FREE = 'segment_tiny_miniworld'
SEGMENTORS = {'original': 'catseg_tiny_ov-miniworld_original', 'DenseVLM': 'catseg_tiny_ov-miniworld_densevlm'}
COLUMNS = {'things': 'thing.mIoU', 'stuff': 'stuff.mIoU', 'all': 'mIoU'}
# each split by whether training has had labels
PARTS = {f'{part} {kind}': f'{part} {kind}' for part in ('novel', 'base') for kind in ('things', 'stuff')}


@cache
def vocabulary(key: str = 'vocabulary') -> Vocabulary:
    """All classes, or those that are 'seen' in training."""
    return build_vocabulary(Config.fromfile(CONFIGS / f'{SEGMENTORS["original"]}.py')[key])


def write_label_maps(demo: Demo) -> None:
    """Training images with seen classes alone, validation images with all; what is there already stays."""
    folder = demo.data / 'annotations'
    for part, suffix, key in (('train2017', '_seen', 'seen'), ('val2017', '', 'vocabulary')):
        maps, out = folder / f'panoptic_{part}', folder / f'semantic_{part}{suffix}'

        def progress(done: int, total: int) -> None:
            show(f'seed {demo.seed}: label maps {done}/{total}')

        convert_panoptic(maps.with_suffix('.json'), maps, out, vocabulary=vocabulary(key), progress=progress)
    show(f'seed {demo.seed}: label maps\n')


def parts_of(path: Path) -> dict[str, float]:
    """Mean IoU of novel and base, things and stuff, from the figures of all classes in a file."""
    classes = json.loads(path.read_text())['per_class']
    groups = {name: [] for name in PARTS.values()}
    for entry, part, is_thing in zip(classes, vocabulary().split, vocabulary().is_thing, strict=True):
        groups[f'{part} {"things" if is_thing else "stuff"}'].append(entry['iou'])
    return {name: fmean(values) for name, values in groups.items()}


def make_towers(demo: Demo) -> None:
    """What tools/demo.py trains, unless it is there."""
    for step in STEPS:
        demo.train(f'{step}_miniworld', step)
    demo.train('densevlm_tiny_miniworld', 'densevlm')


def run_training_free(demo: Demo) -> dict[str, Rows]:
    """Figures of the CLIPs as they are, by tower and dense mode."""
    found = {}
    for name, tower in TOWERS.items():
        checkpoint, found[name] = demo.work_dir / tower / 'final.pth', {}
        for mode in MODES:
            options = (f'model.vlm.dense_mode={mode}',)
            found[name][mode] = demo.test(TRAINING_FREE, checkpoint, f'segment_{tower}_{mode}', *options)
    return found


def run_cat_seg(demo: Demo) -> Rows:
    """Figures of CAT-Seg on all classes, by tower, and of the same towers without it."""
    folder, rows = demo.work_dir / 'results', {}
    options = (f'model.vocabulary={demo.data}/annotations/panoptic_val2017.json',)
    for name, tower in TOWERS.items():
        path = folder / f'segment_{tower}_value.json'
        rows[f'{name}, training-free'] = json.loads(path.read_text())['metrics'] | parts_of(path)
    for name, config in SEGMENTORS.items():
        step = config.replace('_tiny_ov-miniworld', '')
        figures = demo.test(config, demo.train(config, step), step, *options)
        rows[f'{name}, CAT-Seg'] = figures | parts_of(folder / f'{step}.json')
    return rows


def modes_table(results: dict[int, dict[str, Rows]]) -> str:
    """Figures of towers by dense mode as a Markdown table, with the means over the seeds if there are several."""
    seeds = {str(seed): [found] for seed, found in results.items()}
    if len(seeds) > 1:
        seeds['mean'] = list(results.values())
    lines = [f'| seed | CLIP | {" | ".join(MODES)} |', '|---|---|' + '---|' * len(MODES)]
    for seed, found in seeds.items():
        for name in TOWERS:
            cells = [
                ' / '.join(f'{fmean(one[name][mode][key] for one in found):.1f}' for key in COLUMNS.values())
                for mode in MODES
            ]
            lines.append(f'| {seed} | {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def main() -> None:
    """Run the demo."""
    args = make_parser(__doc__.splitlines()[0]).parse_args()
    start = time.monotonic()
    training_free, cat_seg = {}, {}
    for seed in args.seeds:
        demo = make_demo(args, seed)
        make_towers(demo)
        write_label_maps(demo)
        training_free[seed], cat_seg[seed] = run_training_free(demo), run_cat_seg(demo)
    novel = ', '.join(vocabulary().novel().names)
    report = '\n'.join(
        [
            'mIoU in % (mean over the classes in the ground truth or predicted) on held-out images.\n',
            f'CLIPs as they are, by dense mode: {" / ".join(COLUMNS)}\n',
            modes_table(training_free),
            f'\nCAT-Seg, which in training had no label of {novel}:\n',
            table(cat_seg, PARTS | COLUMNS),
        ]
    )
    path = args.work_dir / 'table_segmentation.md'
    path.write_text(report + '\n')
    print(f'\n{report}\n\ntable: {path}\ntime:  {time.monotonic() - start:.0f} s')


if __name__ == '__main__':
    main()
