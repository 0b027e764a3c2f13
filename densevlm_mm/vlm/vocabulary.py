"""Vocabularies: class names, each a thing (countable object) or stuff (amorphous region)."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

_SHIPPED = files(__package__) / 'vocabularies'


@dataclass(frozen=True)
class Vocabulary:
    """Ordered class names with their thing/stuff flags.

    Args:
        names: Class names, used whole in the prompts.
        is_thing: One flag per name.
        allow_duplicates: Accept a name that occurs twice. Two rows with the same embedding share its probability, so
            this is an error unless asked for.

    Raises:
        ValueError: If it is empty, the lengths differ, a name is blank or (unless allowed) occurs twice.
    """

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    allow_duplicates: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, 'names', tuple(self.names))
        object.__setattr__(self, 'is_thing', tuple(bool(flag) for flag in self.is_thing))
        if not self.names:
            raise ValueError('the vocabulary is empty: give at least one class name')
        if len(self.names) != len(self.is_thing):
            raise ValueError(f'{len(self.names)} class names but {len(self.is_thing)} thing/stuff flags')
        blank = [i for i, name in enumerate(self.names) if not isinstance(name, str) or not name.strip()]
        if blank:
            raise ValueError(f'class names at positions {blank} are not text')
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice and not self.allow_duplicates:
            raise ValueError(f'class names occur twice: {twice}; remove them or set allow_duplicates=True')

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_things(self) -> int:
        """Number of thing classes."""
        return sum(self.is_thing)

    @property
    def num_stuff(self) -> int:
        """Number of stuff classes."""
        return len(self) - self.num_things

    def things_first(self) -> Vocabulary:
        """The same classes with all things before all stuff, otherwise in the same order."""
        order = sorted(range(len(self)), key=lambda i: not self.is_thing[i])
        return Vocabulary(
            tuple(self.names[i] for i in order), tuple(self.is_thing[i] for i in order), self.allow_duplicates
        )

    @classmethod
    def from_categories(cls, categories: Sequence[Mapping], allow_duplicates: bool = False) -> Vocabulary:
        """From COCO-panoptic ``categories``: mappings with ``name`` and ``isthing`` (absent means stuff).

        COCO-Stuff's lists leave ``isthing`` out for stuff.
        """
        if any(not isinstance(c, Mapping) or 'name' not in c for c in categories):
            raise ValueError("every category must be a mapping with a 'name' (and 'isthing')")
        return cls(
            tuple(c['name'] for c in categories), tuple(bool(c.get('isthing', 0)) for c in categories), allow_duplicates
        )

    @classmethod
    def from_file(cls, path: str | Path, allow_duplicates: bool = False) -> Vocabulary:
        """From a file of categories.

        Args:
            path: JSON with a list of categories or an object that has ``categories`` (any COCO-panoptic annotation
                file); or ``FILE.py::NAME``, a list literal assigned to NAME, which is parsed and never executed.
            allow_duplicates: See the class.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no such list.
        """
        name, _, variable = str(path).partition('::')
        if not Path(name).is_file():
            raise FileNotFoundError(f'vocabulary file {name} does not exist')
        try:
            text = Path(name).read_text(encoding='utf-8')
            categories = _literal(text, variable) if variable else json.loads(text)
            if isinstance(categories, Mapping):
                categories = categories['categories']
            return cls.from_categories(categories, allow_duplicates)
        except (KeyError, TypeError, SyntaxError, ValueError) as error:
            raise ValueError(f'{path} is not a usable vocabulary: {error}') from error

    @classmethod
    def from_name(cls, name: str) -> Vocabulary:
        """A vocabulary that comes with the package, by name."""
        known = shipped_vocabularies()
        if name not in known:
            raise ValueError(f'unknown vocabulary {name!r}; known: {known}, or give a file or names')
        return cls.from_categories(json.loads((_SHIPPED / f'{name}.json').read_text(encoding='utf-8')))


def shipped_vocabularies() -> list[str]:
    """Names of the vocabularies that come with the package."""
    return sorted(entry.name[: -len('.json')] for entry in _SHIPPED.iterdir() if entry.name.endswith('.json'))


def build_vocabulary(config: str | Mapping | Sequence[str] | Vocabulary) -> Vocabulary:
    """Vocabulary from what a config may say.

    Args:
        config: A `Vocabulary`; a shipped name; a path (see `Vocabulary.from_file`); a mapping
            ``dict(things=[...], stuff=[...])`` or ``dict(file=..., allow_duplicates=...)``; or a plain list of names,
            all taken as things.

    Raises:
        ValueError: If it fits none of these, or describes an unusable vocabulary.
    """
    if isinstance(config, Vocabulary):
        return config
    if isinstance(config, str):
        is_path = config.endswith('.json') or '::' in config
        return Vocabulary.from_file(config) if is_path else Vocabulary.from_name(config)
    if not isinstance(config, Mapping):
        return Vocabulary(tuple(config), (True,) * len(config))
    if set(config) <= {'things', 'stuff'}:
        things, stuff = (_listed(config, key) for key in ('things', 'stuff'))
        return Vocabulary(things + stuff, (True,) * len(things) + (False,) * len(stuff))
    if 'file' in config and set(config) <= {'file', 'allow_duplicates'}:
        return Vocabulary.from_file(config['file'], config.get('allow_duplicates', False))
    raise ValueError(
        f"a vocabulary config has the keys 'things'/'stuff' or 'file'/'allow_duplicates', got {sorted(config)}"
    )


def _listed(config: Mapping, key: str) -> tuple[str, ...]:
    if isinstance(config.get(key), str):
        raise ValueError(f'{key} must be a list of names, got {config[key]!r}')
    return tuple(config.get(key, ()))


def _literal(source: str, variable: str) -> object:
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == variable for t in targets):
            return ast.literal_eval(node.value)
    raise ValueError(f'no list literal is assigned to {variable}')
