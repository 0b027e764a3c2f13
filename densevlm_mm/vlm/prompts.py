"""Prompt templates and how a class name enters one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

_BOTH = ('{article}', 'the')


def _for_each(determiners: Sequence[str], *patterns: str) -> list[str]:
    return [pattern.replace('*', determiner) for pattern in patterns for determiner in determiners]


# ViLD's ensemble of 63 (Gu et al., arXiv:2104.13921), the usual one of open-vocabulary detection. `*` stands for the
# determiners that a pattern is used with.
_PHRASES = (
    *_for_each(_BOTH, 'There is * {} in the scene.', 'a photo of * {} in the scene.'),
    'a photo of one {} in the scene.',
    *_for_each(('{article}', 'my', 'the'), 'itap of * {}.', 'a photo of * {}.'),
    'a photo of one {}.',
    'a photo of many {}.',
    *_for_each(_BOTH, 'a good photo of * {}.', 'a bad photo of * {}.'),
    *_for_each(
        ('a', 'the'),
        *(f'a photo of * {look} {{}}.' for look in ('nice', 'cool', 'weird', 'small', 'large', 'clean', 'dirty')),
    ),
    *_for_each(_BOTH, 'a bright photo of * {}.', 'a dark photo of * {}.'),
    *_for_each(('a', 'the'), 'a photo of * hard to see {}.'),
    *_for_each(
        _BOTH,
        'a low resolution photo of * {}.',
        'a cropped photo of * {}.',
        'a close-up photo of * {}.',
        'a jpeg corrupted photo of * {}.',
        'a blurry photo of * {}.',
        'a pixelated photo of * {}.',
        'a black and white photo of * {}.',
    ),
    *_for_each(('a', 'the'), '* plastic {}.', '* toy {}.', '* plushie {}.', '* cartoon {}.'),
    *_for_each(('an', 'the'), '* embroidered {}.'),
    *_for_each(('a', 'the'), 'a painting of * {}.'),
)

# A bare noun phrase becomes a sentence.
VILD = tuple(f'This is {phrase}' if phrase.startswith(('a', 'the')) else phrase for phrase in _PHRASES)

TEMPLATES: dict[str, tuple[str, ...]] = {
    'vild': VILD,
    'openai': tuple(fill('{}') for fill in OPENAI_IMAGENET_TEMPLATES),
    'openai_simple': tuple(fill('{}') for fill in SIMPLE_IMAGENET_TEMPLATES),
    'photo': ('a photo of {article} {}.',),
    'none': ('{}',),
}


def get_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Templates by name, from a file, or as given.

    Each holds ``{}`` for the class name and may hold ``{article}`` for "a" or "an".

    Args:
        templates: 'vild' (63), 'openai' (CLIP's 80 for ImageNet), 'openai_simple' (the 7 best of them), 'photo' (one),
            'none' (the bare name); the path of a text file (.txt) with one a line; or a list.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For an unknown name, an empty list, a template without ``{}`` or with other braces.
    """
    if isinstance(templates, str) and templates.endswith('.txt'):
        return _checked(_read_lines(Path(templates)), f'prompt templates in {templates}')
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            known = sorted(TEMPLATES)
            raise ValueError(f'unknown prompt templates {templates!r}; known: {known}, or give a list or a .txt file')
        return TEMPLATES[templates]
    return _checked(templates, 'prompt templates')


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f'file of prompt templates {path} does not exist')
    return [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines() if line.strip()]


def _checked(templates: Sequence[str], what: str) -> tuple[str, ...]:
    without_name = [t for t in templates if not isinstance(t, str) or '{}' not in t]
    if not templates or without_name:
        raise ValueError(f'{what} must hold {{}} for the class name, got {without_name or templates}')
    strange = [t for t in templates if set('{}') & set(t.replace('{}', '').replace('{article}', ''))]
    if strange:
        raise ValueError(f'{what} may hold {{}} and {{article}}, but no other braces, got {strange}')
    return tuple(templates)


def fill_template(template: str, name: str) -> str:
    """One prompt: the class name cleaned, its article chosen.

    >>> fill_template('a photo of {article} {}.', 'Aeroplane_wing')
    'a photo of a aeroplane wing.'

    The article goes by the name's first letter *as written*, as in ViLD's tool, whose embeddings the published models
    were trained with.
    """
    article = 'an' if name[:1] in 'aeiou' and name else 'a'
    clean = name.replace('_', ' ').replace('/', ' or ').lower().strip().rstrip('.')
    return template.replace('{article}', article).replace('{}', clean)
