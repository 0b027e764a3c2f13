#!/usr/bin/env python
"""Ask a CLIP, detector or segmentor about images: results as JSON, and pictures.

python tools/infer.py checkpoints/EVA02_CLIP_B_psz16_s8B.pt photo.jpg --vocabulary cat dog grass
python tools/infer.py CHECKPOINT photos/ --task segment --vocabulary coco_stuff
python tools/infer.py configs/fvit/fvit_vitb16_ov-coco_densevlm.py photos/ --task detect --weights CHECKPOINT
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from densevlm_mm.apis import Inferencer, keep_freed_memory, vocabulary_of_words
from densevlm_mm.apis.inferencer import TASKS
from densevlm_mm.compat import CompatError
from densevlm_mm.vlm import CheckpointError


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', help="a CLIP's checkpoint, an architecture, or a config")
    parser.add_argument('inputs', nargs='+', help='images and folders of images')
    parser.add_argument('--task', choices=TASKS, default='regions', help='what to do (default: regions)')
    parser.add_argument('--vocabulary', nargs='+', help="class names, a shipped name or a file (default: the config's)")
    parser.add_argument('--stuff', nargs='+', help='further names, of stuff: grass, sky, ...')
    parser.add_argument('--weights', help='checkpoint, where the model is an architecture or a config')
    parser.add_argument('--arch', help='architecture of a checkpoint that leaves it open')
    parser.add_argument('--device', help="'cpu' or 'cuda' (default: the best there is)")
    parser.add_argument('--dense-mode', help="of a CLIP (default: its file's)")
    parser.add_argument('--templates', nargs='+', help="prompt templates of a CLIP (default: the config's, else vild)")
    parser.add_argument('--size', type=int, help='side that images are resized to for a CLIP, in px')
    parser.add_argument('--grid', nargs=2, type=int, default=(4, 4), metavar=('ROWS', 'COLUMNS'), help='of the regions')
    parser.add_argument('--score-thr', type=float, default=0.3, help='below it nothing is drawn (default: 0.3)')
    parser.add_argument('--batch-size', type=int, default=1, help='images at a time')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'), help='for preds/ and vis/ (default: outputs)')
    parser.add_argument('--no-save-vis', action='store_true', help='leave the pictures out')
    parser.add_argument('--no-save-pred', action='store_true', help='leave the JSON files out')
    parser.add_argument('--print', action='store_true', help='also print the results, one line of JSON per image')
    return parser.parse_args(argv)


def vocabulary_of(args: argparse.Namespace) -> object:
    """What `build_vocabulary` takes; with names of stuff, all words are names."""
    if args.stuff:
        return {'things': args.vocabulary or [], 'stuff': args.stuff}
    return vocabulary_of_words(args.vocabulary)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    keep_freed_memory()
    templates = args.templates
    if templates and len(templates) == 1 and '{' not in templates[0]:
        templates = templates[0]  # the name of a set, or a file
    options = {key: getattr(args, key) for key in ('weights', 'arch', 'device', 'dense_mode', 'size')}
    try:
        inferencer = Inferencer(args.model, args.task, vocabulary_of(args), templates=templates, **options)
        results = inferencer(
            args.inputs,
            batch_size=args.batch_size,
            grid=tuple(args.grid),
            score_thr=args.score_thr,
            out_dir=args.out_dir,
            no_save_vis=args.no_save_vis,
            no_save_pred=args.no_save_pred,
        )
    except (FileNotFoundError, ValueError, CheckpointError, CompatError) as error:
        raise SystemExit(f'{error}') from error
    bad = [entry for entry in results['predictions'] if 'error' in entry]
    if args.print:
        print(*map(json.dumps, results['predictions']), sep='\n')
    print(f'{len(results["predictions"]) - len(bad)} images: results in {args.out_dir}')
    for entry in bad:
        print(f'left out: {entry["error"]}')


if __name__ == '__main__':
    main()
