#!/usr/bin/env python
"""Serve a local page where people drop an image, type class names and look at what a CLIP makes of it.

Examples:
    python tools/demo_app.py checkpoints/densevlm_coco_6_save6_512_eva_vib16_12layers.pt --arch EVA02-CLIP-B-16
    python tools/demo_app.py before.pth --compare after.pth --vocabulary coco_panoptic
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from densevlm_mm.apis import Inferencer, vocabulary_of_words
from densevlm_mm.apis.demo_inputs import Limits
from densevlm_mm.apis.demo_page import DemoPage
from densevlm_mm.apis.demo_widgets import is_loopback, require_gradio, serve
from densevlm_mm.compat import CompatError
from densevlm_mm.vlm import build_vocabulary

TASKS = ('regions', 'segment', 'similarity')
VOCABULARY = {'things': ['person', 'car', 'dog', 'cat', 'tree'], 'stuff': ['grass', 'sky', 'water', 'road', 'wall']}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    defaults = Limits()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', help='of a CLIP, of any format')
    parser.add_argument('--compare', metavar='CHECKPOINT', help='another one, shown beside it')
    parser.add_argument('--arch', help='architecture, of a checkpoint that leaves it open')
    parser.add_argument('--config', nargs=2, metavar=('CONFIG', 'WEIGHTS'), help='a detector, for the task "detect"')
    parser.add_argument('--vocabulary', nargs='+', help='classes to begin with: a shipped name, a file, or names')
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (default: this machine only)')
    parser.add_argument('--port', type=int, default=7860)
    parser.add_argument('--size', type=int, help='side in px that images are brought to for the model')
    parser.add_argument('--templates', help='prompt templates: vild, openai, photo, ... or a .txt file')
    parser.add_argument('--device', help='such as cpu or cuda:1 (default: a GPU, if there is one)')
    parser.add_argument('--max-megabytes', type=float, default=defaults.megabytes, help='size of a file at most')
    parser.add_argument('--max-pixels', type=int, default=defaults.pixels, help='pixels of an image at most')
    return parser.parse_args(argv)


def build_page(args: argparse.Namespace) -> DemoPage:
    """The page without its widgets, its first models loaded."""
    vocabulary = build_vocabulary(vocabulary_of_words(args.vocabulary) or VOCABULARY)
    options = dict(arch=args.arch, templates=args.templates, size=args.size, device=args.device)
    models: dict[str, dict[str, Callable[[], Inferencer]]] = {task: {} for task in TASKS}
    for title, file in titles(args.checkpoint, args.compare).items():
        for task in TASKS:
            models[task][title] = partial(Inferencer, file, task, vocabulary, **options)
    if args.config:
        config, weights = args.config
        detector = partial(Inferencer, config, 'detect', vocabulary, weights=weights, device=args.device)
        models['detect'] = {Path(config).stem: detector}
    page = DemoPage(models, vocabulary, Limits(megabytes=args.max_megabytes, pixels=args.max_pixels))
    for task in (TASKS[0], *(['detect'] if args.config else [])):
        page.prepare(task)  # now, since a wrong file should not wait for the first visitor
    return page


def titles(checkpoint: str, compare: str | None) -> dict[str, str]:
    """Files by title: as much of the end of their paths as tells them apart."""
    files = [file for file in (checkpoint, compare) if file]
    paths = [Path(file).resolve() for file in files]
    for shown in ([path.with_suffix('') for path in paths], paths):
        for count in range(1, max(len(path.parts) for path in shown)):
            names = ['/'.join(path.parts[-count:]) for path in shown]
            if len(set(names)) == len(files):
                return dict(zip(names, files, strict=True))
    raise ValueError(f'--compare names the same file: {compare}')


def main(argv: list[str] | None = None) -> int:
    """Serve until interrupted; 2 when the page cannot be made."""
    args = parse_args(argv)
    try:
        require_gradio()  # before a model is loaded in vain
        address = serve(build_page(args), host=args.host, port=args.port)
    except (ValueError, OSError, CompatError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    if not is_loopback(args.host):
        print('warning: everyone who reaches this address can use the page; it asks for no password', file=sys.stderr)
    print(f'the page is at {address}   (Ctrl+C ends it)', flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print('ended')
    return 0


if __name__ == '__main__':
    sys.exit(main())
