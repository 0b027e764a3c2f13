"""Links and paths on the pages lead somewhere, and every page is found from README.md."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from .conftest import PAGES, ROOT, prose, read

LINK = re.compile(r'!?\[[^\]]*\]\(([^)\s]+)\)')
# in prose and blocks alike; what a command makes lies in other folders
MENTIONED = re.compile(r'(?<![\w./:-])((?:configs|tools|densevlm_mm|tests|docs)/[\w./{},*-]*[\w}*])')


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).lower()
    return re.sub(r'[^\w\- ]', '', text).strip().replace(' ', '-')


def anchors(text: str) -> set[str]:
    return {slug(heading) for heading in re.findall(r'^#+ (.+)$', prose(text), re.MULTILINE)}


def links(page: str) -> list[str]:
    """Targets within this repository."""
    text = re.sub(r'`[^`\n]*`', '', prose(read(page)))
    return [target for target in LINK.findall(text) if not re.match(r'https?://|mailto:', target)]


def broken(page: str, target: str) -> str | None:
    """What is wrong with a link, if anything."""
    path, _, anchor = target.partition('#')
    found = (PAGES[page].parent / path).resolve() if path else PAGES[page]
    if not found.exists() or not found.is_relative_to(ROOT):
        return f'{target}: no such file'
    if anchor and anchor not in anchors(found.read_text('utf-8')):
        return f'{target}: no such heading'
    return None


def linked_pages(page: str) -> set[str]:
    found = ((PAGES[page].parent / target.partition('#')[0]).resolve() for target in links(page))
    return {path.relative_to(ROOT).as_posix() for path in found if path.is_relative_to(ROOT)} & PAGES.keys()


def expand(pattern: str) -> list[str]:
    """``a_{b,c}.py`` -> two patterns; a single name in braces stands for anything."""
    pattern = re.sub(r'\{\w*\}', '*', pattern)
    parts = re.split(r'\{([^{}]*)\}', pattern)
    choices = [part.split(',') if i % 2 else [part] for i, part in enumerate(parts)]
    return [''.join(choice).replace(' ', '') for choice in product(*choices)]


def exists(path: str) -> bool:
    return any(ROOT.glob(path)) if '*' in path else (ROOT / path).exists()


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    assert [found for target in links(page) if (found := broken(page, target))] == []


@pytest.mark.parametrize('page', PAGES)
def test_mentioned_files_exist(page):
    mentioned = {path for pattern in MENTIONED.findall(read(page)) for path in expand(pattern)}
    assert sorted(path for path in mentioned if not exists(path)) == []


def test_the_index_lists_every_page():
    assert linked_pages('docs/README.md') | {'docs/README.md', 'README.md'} == set(PAGES)


def test_every_page_is_reached_from_the_readme():
    reached, todo = set(), {'README.md'}
    while todo:
        page = todo.pop()
        reached.add(page)
        todo |= linked_pages(page) - reached
    assert reached == set(PAGES)


@pytest.mark.parametrize(('target', 'message'), [
    ('docs/absent.md', 'no such file'),
    ('docs/towers.md#absent', 'no such heading'),
    ('#absent', 'no such heading'),
    ('../../outside', 'no such file'),
    ('docs/miniworld.md#what-comes-out', None),
    ('docs/images/miniworld.png', None),
])  # fmt: skip
def test_broken_links_are_found(target, message):
    found = broken('README.md', target)
    assert found is None if message is None else found.endswith(message)


def test_headings_and_patterns():
    assert slug('`load_vlm`, a *name*: [F-ViT](x.md) & more') == 'load_vlm-a-name-f-vit--more'
    assert expand('a/{b,c}_{name}.py') == ['a/b_*.py', 'a/c_*.py']
    assert exists('configs/densevlm/eval_*.py') and not exists('configs/densevlm/absent_*.py')
    assert MENTIONED.findall('`tools/a.py`, see docs/b.md. https://c.d/docs/e') == ['tools/a.py', 'docs/b.md']
    assert Path(ROOT / 'README.md').is_file()
