"""Every command of README.md and docs/*.md is one that its tool takes.

Read are the lines of ``bash`` blocks and inline code that begins with ``python``, ``bash`` or ``torchrun``. Of the
shell there are assignments (``A=x``, ``export A=x``), ``$A``, loops over words (``for x in a b; do`` ... ``done``),
``&&``, comments and continued lines; of a synopsis, ``[--option a|b]`` is read as ``--option a``. Anything else is an
error, so that no command is passed over.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterable
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import mmengine.registry as root_registries
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry

from densevlm_mm import registry as own_registries
from densevlm_mm.vlm import load_vlm

from .conftest import PAGES, ROOT, fenced, prose, read

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

UNCHECKED = ('pip', 'cd', 'git', 'apt-get', 'docker', 'curl', 'wget', 'hf', 'huggingface-cli', 'mkdir', 'source', 'mim')
DEMOS = {'--detection': 'tools/demo_detection.py', '--segmentation': 'tools/demo_segmentation.py'}
# scripts that hand their arguments on: what the tool behind them gets
WRAPPERS: dict[str, Callable[[list[str]], list[str]]] = {
    'tools/demo.sh': lambda args: (
        [DEMOS[args[0]], *args[1:]] if args and args[0] in DEMOS else ['tools/demo.py', *args]
    ),
    'tools/dist_train.sh': lambda args: ['tools/train.py', args[0], *args[2:]],
    'tools/dist_test.sh': lambda args: ['tools/test.py', *args[:2], *args[3:]],
    'tools/slurm_train.sh': lambda args: ['tools/train.py', *args[2:]],
    'tools/slurm_test.sh': lambda args: ['tools/test.py', *args[2:]],
}
# what `RegionDistiller` takes of a student beside the arguments of `load_vlm`
OF_STUDENTS = {'compile', 'grad_checkpointing', 'trainable_blocks'}
REGISTRIES = [
    item for module in (own_registries, root_registries) for item in vars(module).values() if isinstance(item, Registry)
]


class CapturedParser(BaseException):
    """Carries a tool's parser out of the tool at the moment in which it would read its arguments."""


# the shell


def join_lines(block: str) -> list[str]:
    lines = re.sub(r'\\\n\s*', ' ', block).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith('#')]


def substitute(word: str, variables: dict[str, str]) -> str:
    return re.sub(r'\$\{?(\w+)\}?', lambda match: variables[match[1]], word)


def read_commands(block: str) -> list[list[str]]:
    """The commands of a block as lists of words, variables and loops expanded."""
    variables, commands, lines = {}, [], join_lines(block)
    while lines:
        line = lines.pop(0)
        loop = re.fullmatch(r'for (\w+) in (.+); do', line)
        if loop:
            end = lines.index('done')
            values = shlex.split(substitute(loop[2], variables))
            lines[: end + 1] = [step for value in values for step in (f'{loop[1]}={shlex.quote(value)}', *lines[:end])]
            continue
        line = re.sub(r'\[(--?\w[^\]]*)\]', r'\1', line)
        line = re.sub(r'(?<=\s)(\w+)(?:\|\w+)+', r'\1', line)
        for part in re.split(r' && ', line):
            words = [substitute(word, variables) for word in shlex.split(part, comments=True)]
            words = words[1:] if words[:1] == ['export'] else words
            while words and re.match(r'[A-Z_a-z]\w*=', words[0]):
                name, value = words.pop(0).split('=', 1)
                variables[name] = value
            commands += [words] if words else []
    return commands


def documented_commands() -> list:
    """A parameter for each block, and for each command in inline code."""
    found = []
    for page in PAGES:
        blocks = fenced(read(page), 'bash', 'sh', 'shell', 'console')
        inline = re.findall(r'`((?:python|bash|torchrun)\s[^`]+)`', prose(read(page)))
        blocks += [re.sub(r'\s+', ' ', command) for command in inline]
        found += [pytest.param(block, id=f'{page}-{i}') for i, block in enumerate(blocks)]
    return found


# the tools


@cache
def parser_of(tool: str) -> argparse.ArgumentParser:
    """The parser of a tool, or of the module behind ``python -m``."""

    def capture(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise CapturedParser(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', capture)
        patch.setattr(sys, 'argv', [tool])
        try:
            if tool.endswith('.py'):
                patch.syspath_prepend(str((ROOT / tool).parent))
                runpy.run_path(str(ROOT / tool), run_name='__main__')
            else:
                runpy.run_module(tool, run_name='__main__', alter_sys=False)
        except CapturedParser as captured:
            return captured.args[0]
    raise AssertionError(f'{tool} reads no arguments')


def parse(parser: argparse.ArgumentParser, args: list[str]) -> argparse.Namespace:
    """The arguments as the tool gets them; an AssertionError with argparse's message if it refuses them."""
    messages = []

    def error(self: argparse.ArgumentParser, message: str) -> None:
        messages.append(message)
        raise SystemExit(2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'error', error)
        try:
            return parser.parse_args(args)
        except SystemExit as stop:
            raise AssertionError(f'{" ".join(args)}: {"; ".join(messages)}') from stop


def check_tool(tool: str, args: list[str]) -> None:
    if tool.endswith('.sh'):
        assert (ROOT / tool).is_file(), f'{tool} does not exist'
        if tool not in WRAPPERS:
            return
        tool, *args = WRAPPERS[tool](args)
    if tool.endswith('.py'):
        assert (ROOT / tool).is_file(), f'{tool} does not exist'
    parsed = parse(parser_of(tool), args)
    missing = [word for word in args if re.fullmatch(r'configs/\S+\.\w+', word) and not (ROOT / word).is_file()]
    assert not missing, f'{missing} do not exist'
    config = getattr(parsed, 'config', None)
    if config and config.startswith('configs/'):
        check_overrides(config, getattr(parsed, 'cfg_options', None) or {})


def check_module(name: str, args: list[str]) -> None:
    """``python -m name``; arguments are looked at where the module is one of this project."""
    if name == 'torch.distributed.run':
        return check_launcher(args)
    spec = importlib.util.find_spec(name)
    assert spec is not None, f'python -m {name}: no such module'
    if name.startswith('densevlm_mm') and 'argparse' in Path(spec.origin).read_text('utf-8'):
        parse(parser_of(name), args)


def check_launcher(args: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    parsed = parse(get_args_parser(), args)
    check_tool(parsed.training_script, parsed.training_script_args)


def check_command(words: list[str]) -> None:
    """Raises AssertionError, with what is wrong, unless the command can be run as it is written."""
    program, args = words[0].replace('python3', 'python'), words[1:]
    if program == 'python' and args[:1] == ['-m']:
        check_module(args[1], args[2:])
    elif program == 'torchrun':
        check_launcher(args)
    elif program in ('python', 'bash') and args and args[0].startswith('tools/'):
        check_tool(args[0], args[1:])
    else:
        inline = program == 'python' and args[:1] == ['-c']
        assert inline or program in UNCHECKED, f'{program!r}: not a command that this test knows'


# overrides of configs


@cache
def load_config(path: str) -> Config:
    return Config.fromfile(ROOT / path)


def find_class(name: str, scope: str) -> type:
    with DefaultScope.overwrite_default_scope(scope):
        found = [registry.get(name) for registry in REGISTRIES]
    assert any(found), f'no class is registered as {name}'
    return next(cls for cls in found if cls is not None)


def parameters_of(cls: Callable) -> set[str]:
    """Names that a class takes, also those that ``**kwargs`` hand to its base classes."""
    names = set()
    for base in getattr(cls, '__mro__', [cls]):
        function = base.__dict__.get('__init__') if isinstance(base, type) else base
        if function is None or base is object:
            continue
        parameters = signature(function).parameters.values()
        names |= {p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
        if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
            break
    return names - {'self'}


def step_into(node: Any, key: str) -> Any:
    return node[int(key)] if isinstance(node, (list, tuple)) else node[key]


def check_overrides(path: str, overrides: Iterable[str]) -> None:
    """Each key is in the config, or may be: an argument of the class, or of the CLIP, that its parent names."""
    cfg = load_config(path)
    for key in overrides:
        *parents, leaf = key.split('.')
        node = cfg
        for i, parent in enumerate(parents):
            try:
                node = step_into(node, parent)
            except (KeyError, IndexError, ValueError) as error:
                raise AssertionError(f'{path} has no {".".join(parents[: i + 1])}, hence no {key}') from error
        if leaf in node or (isinstance(node, (list, tuple)) and leaf.isdigit() and int(leaf) < len(node)):
            continue
        made_by = find_class(node['type'], cfg.default_scope) if 'type' in node else load_vlm
        taken = parameters_of(made_by) | (OF_STUDENTS if made_by is load_vlm else set())
        assert parents and leaf in taken, f'{path} has no {key}, and its parent takes none'


# tests


@pytest.mark.parametrize('block', documented_commands())
def test_commands_can_be_run_as_written(block):
    for words in read_commands(block):
        check_command(words)


def test_every_tool_is_on_a_page():
    text = '\n'.join(read(page) for page in PAGES)
    tools = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'tools').rglob('*.py')}
    behind_demo = {'tools/demo.py', *DEMOS.values()}
    assert sorted(tool for tool in tools - behind_demo if Path(tool).name not in text) == []


@pytest.mark.parametrize(('block', 'commands'), [
    ('A=x B=y\npython $A \\\n    ${B}/z  # why', [['python', 'x', 'y/z']]),
    ("for i in a b; do\n    bash $i.sh\ndone\nexport C=1\ncd d", [['bash', 'a.sh'], ['bash', 'b.sh'], ['cd', 'd']]),
    ("python t.py --to a|b [--c 1|2] 'a|b'", [['python', 't.py', '--to', 'a', '--c', '1', 'a|b']]),
    ('# no command\n\nA=1 python t.py && cd d', [['python', 't.py'], ['cd', 'd']]),
])  # fmt: skip
def test_reading_of_commands(block, commands):
    assert read_commands(block) == commands


TRAIN, CONFIG = 'python tools/train.py', 'configs/densevlm/densevlm_vitb16_coco.py'
EVALUATE = 'python tools/test.py configs/densevlm/eval_vitb16_coco-panoptic.py CHECKPOINT'


@pytest.mark.parametrize(('command', 'message'), [
    ('python tools/absent.py', 'does not exist'),
    ('bash tools/absent.sh', 'does not exist'),
    (f'{TRAIN} configs/densevlm/absent.py', 'absent'),
    (f'{TRAIN} {CONFIG} --resumed', '--resumed'),
    (f'bash tools/dist_train.sh {CONFIG} 4 --resumed', '--resumed'),
    (f'torchrun --nproc-per-node 2 tools/train.py {CONFIG} --resumed', '--resumed'),
    ('bash tools/demo.sh --detection --compare', '--compare'),
    ('python tools/analysis_tools/benchmark.py absent', 'absent'),
    ('python tools/analysis_tools/benchmark.py step --absent', '--absent'),
    ('python tools/train.py', 'required'),
    (f'{TRAIN} {CONFIG} --cfg-options model.absent.lr=1', 'has no model.absent'),
    (f'{TRAIN} {CONFIG} --cfg-options model.loss.absent=1', 'takes none'),
    (f'{EVALUATE} --cfg-options test_dataloader.dataset.pipeline.99.size=1', 'pipeline.99'),
    (f'{EVALUATE} --cfg-options test_evaluator.absent=1', 'takes none'),
    ('python -m densevlm_mm.absent', 'no such module'),
    ('make all', 'not a command'),
])  # fmt: skip
def test_wrong_commands_are_found(command, message):
    (words,) = read_commands(command)
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_command(words)


def test_unknown_variables_are_found():
    with pytest.raises(KeyError, match='ABSENT'):
        read_commands('python $ABSENT')
