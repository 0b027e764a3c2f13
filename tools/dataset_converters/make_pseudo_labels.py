#!/usr/bin/env python
"""Make proposals from a COCO-style file, and label them with nouns by a CLIP.

Boxes without labels, for CLIPSelf:

python tools/dataset_converters/make_pseudo_labels.py BOXES.json OUT.json --random-boxes 4

The same with the likeliest of some nouns each, for RegionCLIP (an interrupted run goes on where it stopped):

python tools/dataset_converters/make_pseudo_labels.py BOXES.json OUT.json --nouns NOUNS.txt \
    --image-folder data/coco/train2017 --vlm EVA02-CLIP-B-16 --checkpoint checkpoints/EVA02_CLIP_B_psz16_s8B.pt
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device

from densevlm_mm.datasets.box_proposals import propose_boxes
from densevlm_mm.datasets.pseudo_labels import CropLabeler, label_boxes, read_nouns
from densevlm_mm.vlm import load_vlm
from densevlm_mm.vlm.checkpoints import save_atomically


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument('boxes', type=Path, help='COCO-style file of images and boxes; its labels are not used')
    parser.add_argument('out', type=Path, help='file to be written')
    parser.add_argument('--drop-boxes', action='store_true', help="leave out the file's own boxes")
    parser.add_argument('--random-boxes', type=int, default=0, metavar='N', help='add N random boxes per image')
    parser.add_argument('--grid', type=int, nargs=2, metavar=('ROWS', 'COLUMNS'), help='add the cells of a grid')
    parser.add_argument('--seed', type=int, default=0, help='seed of the random boxes')
    labels = parser.add_argument_group('labels')
    labels.add_argument('--nouns', type=Path, help='.txt with a noun per line, or .json: names, categories or captions')
    labels.add_argument('--min-count', type=int, default=10, help='words of captions that are rarer are no nouns')
    labels.add_argument('--image-folder', type=Path, help='where the file names of the images begin')
    labels.add_argument('--vlm', help='name of the CLIP, or a config file whose model.vlm or model.student it is')
    labels.add_argument('--checkpoint', help='its weights; those of the config by default')
    labels.add_argument('--template', action='append', help='prompt template with {}; the 63 of ViLD by default')
    labels.add_argument('--enlarge', type=float, default=1.0, help='factor by which boxes grow before they are cut out')
    labels.add_argument('--device', default=get_device())
    args = parser.parse_args(argv)
    if args.nouns and not (args.vlm and args.image_folder):
        parser.error('--nouns needs --vlm and --image-folder')
    if args.out.resolve() == args.boxes.resolve():
        parser.error(f'{args.out} is the source itself, of which labels would be lost: give another file')
    return args


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path}: not a JSON file ({error})') from error


def load_labeler(args: argparse.Namespace) -> CropLabeler:
    """The CLIP that the command names, with its nouns."""
    config: dict[str, Any] = {'arch': args.vlm}
    if args.vlm.endswith('.py'):
        model = Config.fromfile(args.vlm).model
        part = model['vlm' if 'vlm' in model else 'student']
        config = {key: part[key] for key in ('arch', 'checkpoint') if key in part}
    if args.checkpoint:
        config['checkpoint'] = args.checkpoint
    if not config.get('checkpoint'):
        raise ValueError('a CLIP without weights knows no nouns: give --checkpoint')
    nouns = read_nouns(args.nouns, min_count=args.min_count)
    return CropLabeler(
        load_vlm(**config, device=args.device), nouns, templates=args.template or 'vild', enlarge=args.enlarge
    )


def show_progress(done: int, total: int) -> None:
    """Keep one line of the terminal up to date."""
    print(f'\r{done}/{total} images', end='\n' if done == total else '', file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 when the file is there, 2 when it cannot be written."""
    args = parse_args(argv)
    try:
        proposals = propose_boxes(
            read_json(args.boxes),
            keep=not args.drop_boxes,
            random_boxes=args.random_boxes,
            grid=args.grid,
            seed=args.seed,
        )
        if args.nouns:
            label_boxes(proposals, args.image_folder, load_labeler(args), args.out, progress=show_progress)
        else:
            save_atomically(args.out, lambda file: file.write(json.dumps(proposals, separators=(',', ':')).encode()))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{args.out}: {len(proposals["annotations"])} boxes of {len(proposals["images"])} images')
    return 0


if __name__ == '__main__':
    sys.exit(main())
