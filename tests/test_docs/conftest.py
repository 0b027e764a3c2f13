"""Reading of the pages: README.md and docs/*.md."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md')))}
FENCE = re.compile(r'^(\s*)```(\w*)[^\n]*\n(.*?)^\s*```\s*$', re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
    return PAGES[page].read_text('utf-8')


def fenced(text: str, *languages: str) -> list[str]:
    """The contents of fenced blocks in one of the languages."""
    return [block for _, language, block in FENCE.findall(text) if language in languages]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub('', text)
