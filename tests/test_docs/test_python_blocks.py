"""Python blocks of the pages compile, import what exists, and use names and arguments that the package has."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from inspect import Parameter, signature

import pytest

from densevlm_mm import registry

from .conftest import PAGES, fenced, read

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

BLOCKS = [
    pytest.param(block, id=f'{page}-{i}')
    for page in PAGES
    for i, block in enumerate(fenced(read(page), 'python', 'py'))
]
REGISTRIES = [item for item in vars(registry).values() if isinstance(item, registry.OnDemandRegistry)]
OURS = 'densevlm_mm.'


def parse(block: str) -> ast.Module:
    """A block as syntax tree; lines of ``...,`` stand for arguments left out."""
    return ast.parse(re.sub(r'^\s*\.\.\.,\n', '', block, flags=re.MULTILINE))


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """Pairs of a module and, for ``from`` imports, a name in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def dotted(node: ast.expr) -> str:
    """``load_vlm`` or ``Vocabulary.from_file``; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    return f'{dotted(node.value)}.{node.attr}' if isinstance(node, ast.Attribute) and dotted(node.value) else ''


def find_class(name: str) -> type:
    found = [item.get(name) for item in REGISTRIES]
    assert any(found), f'{name} is not registered'
    return next(cls for cls in found if cls is not None)


def keywords_of(function: Callable) -> set[str] | None:
    """Arguments by keyword, also those that ``**kwargs`` hand to base classes; None if there is no telling."""
    names = set()
    for base in function.__mro__[:-1] if isinstance(function, type) else [function]:
        if isinstance(base, type) and '__init__' not in base.__dict__:
            continue
        parameters = signature(base.__init__ if isinstance(base, type) else base).parameters.values()
        names |= {p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
        if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
            return names
    return None if not isinstance(function, type) else names


def check_call(call: ast.Call, imported: dict[str, object]) -> None:
    """Keywords of a call of an imported function, or of a ``dict`` that names one of our types."""
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    name = dotted(call.func)
    kind = given.get('type')
    if name == 'dict' and isinstance(kind, ast.Constant) and str(kind.value).startswith(OURS):
        called, given = find_class(kind.value), given.keys() - {'type', '_delete_', '_scope_'}
    elif name.split('.')[0] in imported:
        called = imported[name.split('.')[0]]
        for attribute in name.split('.')[1:]:
            called = getattr(called, attribute)
    else:
        return
    known = keywords_of(called)
    assert known is None or set(given) <= known, f'{kind.value if kind else name} takes no {sorted(set(given) - known)}'


def check_block(block: str) -> None:
    """Raises SyntaxError, ImportError or AssertionError, with what is wrong."""
    tree, imported = parse(block), {}
    for module, name in imports(tree):
        found = importlib.import_module(module)
        if name is not None:
            assert hasattr(found, name), f'{module} has no {name}'
            if module.startswith(OURS):
                imported[name] = getattr(found, name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            check_call(node, imported)


@pytest.mark.parametrize('block', BLOCKS)
def test_python_blocks(block):
    check_block(block)


@pytest.mark.parametrize('page', PAGES)
def test_types_in_the_text_are_registered(page):
    names = re.findall(r'\bdensevlm_mm\.([A-Z]\w+)', read(page))
    assert [name for name in names if not any(item.get(f'{OURS}{name}') for item in REGISTRIES)] == []


@pytest.mark.parametrize(('block', 'error', 'message'), [
    ('f(', SyntaxError, 'never closed'),
    ('import densevlm_mm.absent', ImportError, 'absent'),
    ('from densevlm_mm.vlm import absent', AssertionError, 'has no absent'),
    ('from densevlm_mm.vlm import load_vlm\nload_vlm("ViT-B-16", absent=1)', AssertionError, 'takes no'),
    ('from densevlm_mm.vlm import Vocabulary\nVocabulary.from_file("a.json", absent=1)', AssertionError, 'takes no'),
    ('from densevlm_mm.vlm import Vocabulary\nVocabulary.absent()', AttributeError, 'absent'),
    ('x = dict(type="densevlm_mm.Absent")', AssertionError, 'not registered'),
    ('x = dict(type="densevlm_mm.DecoupledAlignmentLoss", absent=1)', AssertionError, 'takes no'),
    ('x = dict(type="densevlm_mm.ImageDataset", absent=1)', AssertionError, 'takes no'),
])  # fmt: skip
def test_wrong_blocks_are_found(block, error, message):
    with pytest.raises(error, match=message):
        check_block(block)
