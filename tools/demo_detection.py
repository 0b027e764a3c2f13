#!/usr/bin/env python
"""Watch F-ViT detect classes that it was never given a box of, on a generated world.

Makes what tools/demo.py makes, trains F-ViT with each of its towers on boxes of seven things, and evaluates it on all
ten, with the scores of the tower and without. Finished steps, those of tools/demo.py included, are not repeated.

    python tools/demo_detection.py --seeds 0 1
"""

from __future__ import annotations

import time

from demo import Demo, Rows, make_demo, make_parser, table

STEPS = ('pretrain_student', 'pretrain_teacher')
TOWERS = ('densevlm', 'densevlm_coupled-group-mean')
DETECTORS = {
    'original CLIP': 'fvit_tiny_ov-miniworld_original',
    'DenseVLM': 'fvit_tiny_ov-miniworld_densevlm',
    'DenseVLM, coupled': 'fvit_tiny_ov-miniworld_coupled-group-mean',
}
# the same detector, alone
WITHOUT_VLM = ('model.roi_head.score_fusion.alpha=0', 'model.roi_head.score_fusion.beta=0')
GROUPS = ('novel', 'base', 'all')
COLUMNS = {f'{group} {ap}': f'bbox_{group}_{ap.lower()}' for ap in ('AP50', 'AP') for group in GROUPS}


def run_seed(demo: Demo) -> Rows:
    """All steps of one seed; figures, in percent, by row of the table."""
    for step in STEPS:
        demo.train(f'{step}_miniworld', step)
    for tower in TOWERS:
        demo.train(tower.replace('densevlm', 'densevlm_tiny_miniworld'), tower)
    rows = {}
    for name, config in DETECTORS.items():
        step = config.replace('_tiny_ov-miniworld', '')
        checkpoint = demo.train(config, step)
        rows[name] = demo.test(config, checkpoint, step)
        rows[f'{name}, without its scores'] = demo.test(config, checkpoint, f'{step}_without_vlm', *WITHOUT_VLM)
    return {name: {key: 100 * value for key, value in figures.items()} for name, figures in rows.items()}


def main() -> None:
    """Run the demo."""
    args = make_parser(__doc__.splitlines()[0]).parse_args()
    start = time.monotonic()
    report = table({seed: run_seed(make_demo(args, seed)) for seed in args.seeds}, COLUMNS)
    path = args.work_dir / 'table_detection.md'
    path.write_text(report + '\n')
    print('\nF-ViT on held-out images, box AP in %; in training, no box was of a novel class. "Without its scores":')
    print('the same detector, which then classifies alone:\n')
    print(f'{report}\n\ntable: {path}\ntime:  {time.monotonic() - start:.0f} s')


if __name__ == '__main__':
    main()
