#!/usr/bin/env python
"""Measure training steps, data loading, evaluation or inference, against the same work done the plain way.

python tools/analysis_tools/benchmark.py step --dtype bfloat16 --out work_dirs/benchmark/step.json
python tools/analysis_tools/benchmark.py loader --num-workers 2
python tools/analysis_tools/benchmark.py loader --sweep-size
python tools/analysis_tools/benchmark.py evaluate --no-crops
python tools/analysis_tools/benchmark.py inference --arch EVA02-CLIP-L-14-336
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields
from pathlib import Path

from densevlm_mm.benchmark import BENCHMARKS, as_document, as_text
from densevlm_mm.benchmark.options import BASELINES, DTYPES
from densevlm_mm.evaluation.report import write_json

SWEEP = (1000, 10_000, 100_000)
# Seconds instead of minutes: to see that a command works.
TINY = {
    'step': dict(student='tiny-student', teacher='tiny-teacher', image_size=64, batch_sizes=(2,), matmul_size=256),
    'loader': dict(images=4, image_size=64, batch_size=2),
    'evaluate': dict(arch='tiny-student', image_size=64, images=2, batch_size=2, regions=3),
    'inference': dict(arch='tiny-student', image_size=64),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; names and defaults are those of ``densevlm_mm.benchmark.options``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='benchmark', required=True)
    subparsers = {name: commands.add_parser(name, help=help_) for name, help_ in HELP.items()}
    for name, subparser in subparsers.items():
        add_common_arguments(subparser)
        ADD_ARGUMENTS[name](subparser)
        subparser.set_defaults(**{f.name: f.default for f in fields(BENCHMARKS[name][0])})
    args = parser.parse_args(argv)
    if args.tiny:  # once more, with other defaults
        subparsers[args.benchmark].set_defaults(**TINY[args.benchmark])
        args = parser.parse_args(argv)
    return args


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every benchmark takes."""
    parser.add_argument('--baseline', choices=[*BASELINES, 'none'], help='what to compare with')
    parser.add_argument('--device', help="'cpu' or 'cuda'")
    parser.add_argument('--repeats', type=int, help='rounds that count; in each, all candidates take their turn')
    parser.add_argument('--warmup', type=int, help='rounds before them')
    parser.add_argument('--tiny', action='store_true', help='models and images of no size, to see that it works')
    parser.add_argument('--out', help='JSON file for the figures')


def add_sizes(parser: argparse.ArgumentParser, *, dtype: bool = True, many: bool = False) -> None:
    """Add sizes of images and batches, one or ``many``, and the dtype."""
    parser.add_argument('--image-size', type=int, help='side of the images in px')
    several = dict(dest='batch_sizes', nargs='+', metavar='N') if many else {}
    each = ', one measurement each' if many else ''
    parser.add_argument('--batch-size', type=int, help=f'images at once{each}', **several)
    if dtype:
        parser.add_argument('--dtype', choices=DTYPES, help='dtype of matrix products')


def add_step(parser: argparse.ArgumentParser) -> None:
    """Add the options of a training step."""
    add_sizes(parser, many=True)
    parser.add_argument('--baseline-dtype', choices=DTYPES, help='that of the baseline, if it is another')
    parser.add_argument('--student', help='architecture')
    parser.add_argument('--teacher', help='architecture')
    parser.add_argument('--classes', type=int, nargs='+', help='sizes of the vocabulary, one measurement each')
    parser.add_argument('--compile', action='store_true', help='compile the blocks of both towers')
    parser.add_argument('--teacher-cache', choices=['warm'], help='read what the teacher said from a cache on disk')
    parser.add_argument('--load', action='store_true', help='load every batch, in this process')
    parser.add_argument('--settle', type=int, metavar='N', help='steps before each measured one that do not count')
    parser.add_argument('--no-memory', dest='memory', action='store_false', help='do not measure memory')
    parser.add_argument('--profile', metavar='PATH', help='write the profile of one step of this project')
    parser.add_argument('--matmul-size', type=int, help='side of the matrices that tell what the device can do')


def add_loader(parser: argparse.ArgumentParser) -> None:
    """Add the options of the loader."""
    add_sizes(parser, dtype=False)
    parser.add_argument('--images', type=int, help='JPEGs to make and load')
    parser.add_argument('--num-workers', type=int, help='processes that load; 0 loads in this one')
    sizes = '/'.join(map(str, SWEEP))
    parser.add_argument(
        '--sweep-size', type=int, nargs='*', metavar='N', help=f'entries of the annotation file instead ({sizes})'
    )


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the options of an evaluation."""
    add_sizes(parser)
    parser.add_argument('--arch', help='architecture')
    parser.add_argument('--images', type=int, help='images in each run')
    parser.add_argument('--regions', type=int, help='boxes, and as many masks, per image')
    parser.add_argument('--classes', type=int, help='size of the vocabulary')
    parser.add_argument('--no-crops', dest='crops', action='store_false', help='boxes and masks only')


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Add the options of dense inference."""
    add_sizes(parser)
    parser.add_argument('--arch', help='architecture')


ADD_ARGUMENTS = {'step': add_step, 'loader': add_loader, 'evaluate': add_evaluate, 'inference': add_inference}
HELP = {
    'step': 'a training step of DenseVLM',
    'loader': 'the training pipeline',
    'evaluate': 'classification of regions',
    'inference': 'dense features',
}


def show_progress(message: str) -> None:
    """Tell what was done; the table comes on the other stream."""
    print(message, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run a benchmark; 2 when it cannot be run as asked for."""
    argv = sys.argv[1:] if argv is None else argv
    args = vars(parse_args(argv))
    benchmark, out, _ = (args.pop(key) for key in ('benchmark', 'out', 'tiny'))
    if args.get('sweep_size') == []:
        args['sweep_size'] = SWEEP
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    make_options, measure = BENCHMARKS[benchmark]
    try:
        options = make_options(**args)
        results = measure(options, show_progress)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    command = shlex.join(['python', 'tools/analysis_tools/benchmark.py', *argv])
    document = as_document(benchmark, command, options, results)
    print(as_text(document))
    if out:
        write_json(Path(out), document)
        print(f'written: {out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
