#!/usr/bin/env python
"""Watch a CLIP learn unbiased dense features on a generated world.

Generates the mini world, pre-trains its two tiny CLIPs, trains DenseVLM through tools/train.py, evaluates before and
after through tools/test.py, prints the table and writes one picture. Finished steps are not repeated.

    python tools/demo.py                             # DenseVLM
    python tools/demo.py --compare --seeds 0 1 2     # and what it is compared with
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs' / 'miniworld'
DENSEVLM = {'DenseVLM': 'densevlm_tiny_miniworld'}
COMPARED = {
    'RegionCLIP': 'regionclip_tiny_miniworld',
    'CLIPSelf': 'clipself_tiny_miniworld',
    'DeCLIP-style': 'declip_tiny_miniworld',
    'DenseVLM, coupled, one mean': 'densevlm_tiny_miniworld_coupled-one-mean',
    'DenseVLM, coupled, mean per group': 'densevlm_tiny_miniworld_coupled-group-mean',
    'DenseVLM, coupled, stuff twice': 'densevlm_tiny_miniworld_coupled-stuff-twice',
    'DenseVLM, block-diagonal': 'densevlm_tiny_miniworld_block-diagonal',
}
COLUMNS = {
    'thing boxes': 'boxes.thing.macc1',
    'thing masks': 'masks.thing.macc1',
    'stuff masks': 'masks.stuff.macc1',
    'bias': 'bias',
    'reverse bias': 'reverse_bias',
    'thing crops': 'crops.thing.macc1',
}
# figures by column, by row of a table
Rows = dict[str, dict[str, float]]


class Demo:
    """The steps of one seed, each skipped when its result is there already."""

    def __init__(self, seed: int, data: Path, work_dir: Path, options: Sequence[str]) -> None:
        self.seed, self.data, self.work_dir = seed, data, work_dir
        self.options = list(options)
        self.seconds: dict[str, float] = {}

    def train(self, config: str, step: str) -> Path:
        """Train one config; return its last checkpoint."""
        folder = self.work_dir / step
        final = folder / 'final.pth'
        if not final.exists():
            options = ['--cfg-options', f'randomness.seed={self.seed}', *self.options]
            if config.startswith('regionclip'):
                labels = self._label_boxes()
                options += [f'model.nouns={labels}', f'train_dataloader.dataset.ann_file={labels}']
            self._run(step, 'train.py', CONFIGS / f'{config}.py', '--work-dir', folder, '--resume', *options)
            newest = Path((folder / 'last_checkpoint').read_text().strip())
            os.replace(newest, final)
        return final

    def test(self, config: str, checkpoint: Path, step: str, *options: str) -> dict[str, float]:
        """Evaluate one checkpoint, with overrides of the config; return its figures."""
        figures = self.work_dir / 'results' / f'{step}.json'
        if not figures.exists():
            options = [f'test_evaluator.out_json={figures}', 'test_evaluator.per_class=True', *options]
            args = [CONFIGS / f'{config}.py', checkpoint, '--work-dir', self.work_dir / 'evaluation']
            self._run(f'test {step}', 'test.py', *args, '--cfg-options', *options)
        return json.loads(figures.read_text())['metrics']

    def _label_boxes(self) -> Path:
        """Boxes with pseudo-labels by the student as it is before training; unless they are there."""
        annotations, config = self.data / 'annotations', CONFIGS / 'regionclip_tiny_miniworld.py'
        target = self.work_dir / 'pseudo_train2017.json'
        if not target.exists():
            options = ['--random-boxes', 4, '--seed', self.seed, '--template', 'a photo of a {}.', '--vlm', config]
            options += ['--nouns', annotations / 'panoptic_train2017.json', '--image-folder', self.data / 'train2017']
            tool = 'dataset_converters/make_pseudo_labels.py'
            self._run('label boxes', tool, annotations / 'instances_train2017.json', target, *options)
        return target

    def _run(self, step: str, tool: str, *args: object) -> None:
        log = self.work_dir / 'logs' / f'{step.replace(" ", "_")}.log'
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, 'MINIWORLD_DATA': str(self.data), 'MINIWORLD_WEIGHTS': str(self.work_dir)}
        command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)]
        start = time.monotonic()
        with log.open('w', buffering=1) as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for line in process.stdout:
                file.write(line)
                shown = re.search(r'Iter\((train|test|val)\) *\[ *(\d+)/(\d+)\]', line)
                if shown:
                    show(f'seed {self.seed}: {step} {shown[2]}/{shown[3]}')
        self.seconds[step] = time.monotonic() - start
        show(f'seed {self.seed}: {step}, {self.seconds[step]:.0f} s\n')
        if process.wait():
            tail = ''.join(log.read_text().splitlines(keepends=True)[-15:])
            raise SystemExit(f'{step} failed; the end of {log}:\n{tail}')


def show(text: str) -> None:
    """Progress on one line of a terminal; whole lines elsewhere."""
    if sys.stdout.isatty():
        print(f'\r\033[K{text}', end='', flush=True)
    elif text.endswith('\n'):
        print(text, end='', flush=True)


def run_seed(demo: Demo, methods: dict[str, str]) -> Rows:
    """All steps of one seed; figures, in percent, by row of the table."""
    crops = 'test_dataloader.dataset.pipeline.2.crop_size=64'
    student = demo.train('pretrain_student_miniworld', 'pretrain_student')
    teacher = demo.train('pretrain_teacher_miniworld', 'pretrain_teacher')
    rows = {
        'teacher': demo.test('eval_teacher_miniworld', teacher, 'teacher', crops),
        'initial': demo.test('eval_student_miniworld', student, 'initial', crops),
    }
    for name, config in methods.items():
        step = config.replace('_tiny_miniworld', '')
        rows[name] = demo.test('eval_student_miniworld', demo.train(config, step), step, crops)
    return rows


def table(results: dict[int, Rows], columns: dict[str, str]) -> str:
    """Figures by seed and row as a Markdown table, with the means over the seeds if there are several."""
    blocks: dict[object, Rows] = dict(results)
    if len(results) > 1:
        rows = next(iter(results.values()))
        blocks['mean'] = {
            name: {key: fmean(result[name][key] for result in results.values()) for key in columns.values()}
            for name in rows
        }
    lines = [
        '| seed | model | ' + ' | '.join(columns) + ' |',
        '|---|---|' + '---|' * len(columns),
    ]
    for seed, rows in blocks.items():
        for name, figures in rows.items():
            lines.append(f'| {seed} | {name} | ' + ' | '.join(f'{figures[key]:.1f}' for key in columns.values()) + ' |')
    return '\n'.join(lines)


def draw(demo: Demo, path: Path, count: int = 8) -> None:
    """One picture: images, ground truth, dense prediction before and after."""
    from mmengine.config import Config

    from densevlm_mm.registry import DATASETS, MODELS
    from densevlm_mm.visualization import dense_labels, panoptic_labels, plot_dense_predictions

    os.environ['MINIWORLD_DATA'] = str(demo.data)
    cfg = Config.fromfile(CONFIGS / 'eval_student_miniworld.py')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    model = MODELS.build(cfg.model).eval()
    items = [dataset[i] for i in range(min(count, len(dataset)))]
    batch = model.data_preprocessor({key: [item[key] for item in items] for key in items[0]})

    def unpad(maps: Iterable) -> list:
        """The part of each padded map that its image covers."""
        shapes = [[round(side * sample.scale) for side in sample.ori_shape] for sample in batch['data_samples']]
        return [m[:height, :width].numpy() for m, (height, width) in zip(maps, shapes, strict=True)]

    label_maps = {'ground truth': [panoptic_labels(dataset.get_data_info(i)) for i in range(len(items))]}
    for row, step in (('before', 'pretrain_student'), ('after DenseVLM', 'densevlm')):
        model.load_weights(demo.work_dir / step / 'final.pth')
        label_maps[row] = unpad(dense_labels(model.vlm, batch['inputs'], model.eval_text()))
    images = unpad(item['inputs'].permute(1, 2, 0) for item in items)
    classes, is_thing = dataset.metainfo['classes'], dataset.metainfo['is_thing']
    title = f'Mini world, validation images, seed {demo.seed}'
    plot_dense_predictions(path, images, label_maps, classes, is_thing, title)


def generate(data: Path, seed: int, num_train: int) -> None:
    """The world of one seed, unless it is there."""
    from densevlm_mm.datasets.miniworld import generate_miniworld

    def progress(done: int, total: int) -> None:
        show(f'seed {seed}: generating images {done}/{total}')

    generate_miniworld(data, num_train=num_train, seed=seed, progress=progress)
    show(f'seed {seed}: images in {data}\n')


def make_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that every demo takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], help='worlds and runs to make')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/miniworld'), help='one folder per seed goes here'
    )
    parser.add_argument('--data-root', type=Path, default=Path('data/miniworld'), help='and here')
    parser.add_argument('--images', type=int, default=4000, help='training images')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='overrides for every training step, key=value')
    return parser


def make_demo(args: argparse.Namespace, seed: int) -> Demo:
    """The demo of one seed, its world generated."""
    data, work_dir = ((root / f'seed{seed}').resolve() for root in (args.data_root, args.work_dir))
    generate(data, seed, args.images)
    return Demo(seed, data, work_dir, args.cfg_options)


def main() -> None:
    """Run the demo."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument('--compare', action='store_true', help='also train what DenseVLM is compared with')
    args = parser.parse_args()

    start, demos, results = time.monotonic(), [], {}
    for seed in args.seeds:
        demos.append(make_demo(args, seed))
        results[seed] = run_seed(demos[-1], COMPARED | DENSEVLM if args.compare else DENSEVLM)
    picture = args.work_dir / f'seed{args.seeds[0]}' / 'dense_predictions.png'
    draw(demos[0], picture)
    report, path = table(results, COLUMNS), args.work_dir / 'table.md'
    path.write_text(report + '\n')
    print(
        '\nRegion classification on held-out images, mean class accuracy in % (bias: share of stuff regions taken for'
    )
    print('things; reverse bias: things taken for stuff; crops: things cut out and seen as images):\n')
    print(report)
    print(f'\npicture: {picture}\ntable:   {path}\ntime:    {time.monotonic() - start:.0f} s')


if __name__ == '__main__':
    main()
