"""Vocabularies: class names, each a thing (countable object) or stuff (amorphous region)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path

from .checkpoints import save_atomically
from .vocabulary_files import INDEX_SUFFIXES, read_categories, read_index

_SHIPPED = files(__package__) / 'vocabularies'
_SPLITS = ('base', 'novel', None)
# How others write it: LVIS by the number of training images, mmdet's OV-COCO converter by what training has seen.
_SPLIT_OF = {'seen': 'base', 'unseen': 'novel', 'f': 'base', 'c': 'base', 'r': 'novel'}
BACKGROUND = 'background'


@dataclass(frozen=True)
class Vocabulary:
    """Ordered class names and what belongs to them.

    >>> vocabulary = Vocabulary(('sky', 'car', 'sand'), (False, True, False))
    >>> vocabulary.things_first().names
    ('car', 'sky', 'sand')
    >>> vocabulary.things_first().indices
    (1, 0, 2)
    >>> vocabulary.things_first().select(['sand', 'sky']).indices
    (2, 0)

    Args:
        names: Class names, used whole in the prompts.
        is_thing: One flag per name.
        allow_duplicates: Accept a name that occurs twice, or a synonym of two classes. Two rows with the same embedding
            share its probability, so this is an error unless asked for.
        synonyms: Per class, the phrases that stand for it in prompts; None or an empty entry means the name itself. The
            name is one of them only if it is listed.
        split: Per class 'base', 'novel', or None for one that a benchmark leaves out. None: no class has a split.
        background: What the class named "background" is. None: a class like the others; 'threshold': wherever no other
            class is probable; or words that stand for it, any of which may win. Data for those who segment.
        indices: Per class its position in the vocabulary that all were first taken from, through any number of steps;
            never compared. None: 0, 1, 2, ...

    Raises:
        ValueError: If it is empty, the lengths differ, a name is blank or (unless allowed) occurs twice, a synonym
            belongs to two classes, or a split or the background rule is not one of the above.
    """

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    allow_duplicates: bool = False
    synonyms: tuple[tuple[str, ...], ...] | None = field(default=None, kw_only=True)
    split: tuple[str | None, ...] | None = field(default=None, kw_only=True)
    background: str | tuple[str, ...] | None = field(default=None, kw_only=True)
    indices: tuple[int, ...] | None = field(default=None, kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        names = tuple(self.names)
        if not names:
            raise ValueError('the vocabulary is empty: give at least one class name')
        if len(names) != len(self.is_thing):
            raise ValueError(f'{len(names)} class names but {len(self.is_thing)} thing/stuff flags')
        blank = [i for i, name in enumerate(names) if not _is_text(name)]
        if blank:
            raise ValueError(f'class names at positions {blank} are not text')
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice and not self.allow_duplicates:
            raise ValueError(f'class names occur twice: {twice}; remove them or set allow_duplicates=True')
        values = {
            'names': names,
            'is_thing': tuple(bool(flag) for flag in self.is_thing),
            'synonyms': _checked_synonyms(names, self.synonyms),
            'split': _checked_split(names, self.split),
            'background': _checked_background(names, self.background),
            'indices': _per_class(names, 'indices', self.indices, range(len(names))),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if not self.allow_duplicates:
            _check_phrases(names, self.expanded())

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
        return self._take(sorted(range(len(self)), key=lambda i: not self.is_thing[i]))

    def base(self) -> Vocabulary:
        """The base classes, in the same order; ``indices`` as in the class.

        Raises:
            ValueError: If there are none.
        """
        return self._part('base')

    def novel(self) -> Vocabulary:
        """The novel classes, in the same order; ``indices`` as in the class.

        Raises:
            ValueError: If there are none.
        """
        return self._part('novel')

    def select(self, names: Collection[str]) -> Vocabulary:
        """The classes of these names, in the order given. A background rule stays with its class.

        Raises:
            ValueError: If a name is unknown.
        """
        return self._take(self._positions(names))

    def expanded(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Every phrase to be put into prompts, and the class that it stands for.

        The words of a background rule take the place of that class's own.

        Returns:
            P phrases in the order of the classes, and P class indices, each of 0..K-1 at least once.
        """
        phrases = list(self.synonyms)
        if isinstance(self.background, tuple):
            phrases[self.names.index(BACKGROUND)] = self.background
        pairs = [(phrase, i) for i, of_class in enumerate(phrases) for phrase in of_class]
        return tuple(phrase for phrase, _ in pairs), tuple(i for _, i in pairs)

    def with_synonyms(self, synonyms: Mapping[str, Sequence[str]]) -> Vocabulary:
        """The same classes, those named with other phrases for the prompts.

        Raises:
            ValueError: If a name is unknown, or see the class.
        """
        new = list(self.synonyms)
        for i, phrases in zip(self._positions(synonyms), synonyms.values(), strict=True):
            new[i] = phrases
        return replace(self, synonyms=tuple(new))

    def with_split(self, *, base: Collection[str] = (), novel: Collection[str] = ()) -> Vocabulary:
        """The same classes, those named base and novel, all others neither.

        Raises:
            ValueError: If a name is unknown or in both.
        """
        both = sorted(set(base) & set(novel))
        if both:
            raise ValueError(f'classes cannot be base and novel: {both}')
        parts = {**dict.fromkeys(self._positions(base), 'base'), **dict.fromkeys(self._positions(novel), 'novel')}
        return replace(self, split=tuple(parts.get(i) for i in range(len(self))))

    def to_json(self) -> str:
        """Text of a file that `from_file` reads: a list of categories, one a line, within an object if need be."""
        lines = ',\n'.join(f' {json.dumps(entry, ensure_ascii=False)}' for entry in self._categories())
        rest = {'background': self.background, 'allow_duplicates': self.allow_duplicates}
        head = json.dumps({key: value for key, value in rest.items() if value}, ensure_ascii=False)
        return f'[\n{lines}\n]\n' if head == '{}' else f'{head[:-1]}, "categories": [\n{lines}\n]}}\n'

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file, whole or not at all."""
        save_atomically(Path(path), lambda file: file.write(self.to_json().encode('utf-8')))

    @classmethod
    def from_categories(cls, categories: Sequence[Mapping], allow_duplicates: bool = False) -> Vocabulary:
        """From COCO's ``categories``: mappings with ``name`` and ``isthing``.

        COCO-Stuff's lists leave ``isthing`` out for stuff. Where no category has it, as in files for detection, all are
        things. ``synonyms`` are taken over, and the split from ``split`` or LVIS's ``frequency`` (rare means novel).
        """
        if any(not isinstance(c, Mapping) or 'name' not in c for c in categories):
            raise ValueError("every category must be a mapping with a 'name' (and 'isthing')")
        absent = not any('isthing' in c for c in categories)
        splits = tuple(c.get('split', c.get('frequency')) for c in categories)
        return cls(
            tuple(c['name'] for c in categories),
            tuple(bool(c.get('isthing', absent)) for c in categories),
            allow_duplicates,
            synonyms=tuple(c.get('synonyms', ()) for c in categories),
            split=tuple(_SPLIT_OF.get(split, split) for split in splits),
        )

    @classmethod
    def from_file(cls, path: str | Path, allow_duplicates: bool = False) -> Vocabulary:
        """From a file of categories.

        Args:
            path: JSON with a list of categories, of names, or an object that has ``categories`` (any COCO annotation
                file, or what `save` wrote); ``FILE.py::NAME``, a list literal assigned to NAME, which is parsed and
                never executed; or a plain list (.txt, .csv, .tsv), see `from_index`.
            allow_duplicates: See the class.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no such list.
        """
        if str(path).endswith(INDEX_SUFFIXES):
            return cls.from_index(path, allow_duplicates=allow_duplicates)
        content = read_categories(path)
        try:
            allowed = bool(allow_duplicates or content.get('allow_duplicates', False))
            vocabulary = cls.from_categories(content['categories'], allowed)
            return replace(vocabulary, background=content.get('background'))
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path} is not a usable vocabulary: {error}') from error

    @classmethod
    def from_index(
        cls, path: str | Path, *, separator: str | None = None, allow_duplicates: bool = False
    ) -> Vocabulary:
        """From a plain list of classes, such as a data set's own index.

        Args:
            path: Text with a line ``name`` or ``1: name`` per class, or a table with a column "Name" (.csv with commas,
                .tsv or .txt with tabs). A column "Stuff" of 0 and 1 gives the flags; without one all are things.
            separator: What stands between the synonyms of a name, such as ';'. The first becomes the name. None: names
                are used whole.
            allow_duplicates: See the class.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no such list; the message names the line.
        """
        categories = read_index(path, separator)
        try:
            return cls.from_categories(categories, allow_duplicates)
        except ValueError as error:
            raise ValueError(f'{path} is not a usable vocabulary: {error}') from error

    @classmethod
    def from_name(cls, name: str) -> Vocabulary:
        """A vocabulary that comes with the package, by name."""
        known = shipped_vocabularies()
        if name not in known:
            raise ValueError(f'unknown vocabulary {name!r}; known: {known}, or give a file or names')
        return cls.from_categories(json.loads((_SHIPPED / f'{name}.json').read_text(encoding='utf-8')))

    def _take(self, positions: Sequence[int]) -> Vocabulary:
        per_class = ('names', 'is_thing', 'synonyms', 'split', 'indices')
        taken = {key: tuple(getattr(self, key)[i] for i in positions) for key in per_class}
        return replace(self, **taken, background=self.background if BACKGROUND in taken['names'] else None)

    def _part(self, split: str) -> Vocabulary:
        if split not in self.split:
            raise ValueError(f'the vocabulary has no {split} classes; name them by {split}=[...]')
        return self._take([i for i, part in enumerate(self.split) if part == split])

    def _positions(self, names: Collection[str]) -> list[int]:
        if isinstance(names, str):
            raise ValueError(f'give a list of class names, not the text {names!r}')
        first = {name: i for i, name in reversed(list(enumerate(self.names)))}
        unknown = [name for name in names if name not in first]
        if unknown:
            raise ValueError(f'the vocabulary has no classes named {unknown}')
        return [first[name] for name in names]

    def _categories(self) -> list[dict]:
        rows = zip(self.names, self.is_thing, self.synonyms, self.split, strict=True)
        return [
            {'name': name, 'isthing': int(flag)}
            | ({} if phrases == (name,) else {'synonyms': list(phrases)})
            | ({} if split is None else {'split': split})
            for name, flag, phrases, split in rows
        ]


def shipped_vocabularies() -> list[str]:
    """Names of the vocabularies that come with the package."""
    return sorted(entry.name[: -len('.json')] for entry in _SHIPPED.iterdir() if entry.name.endswith('.json'))


def build_vocabulary(config: str | Mapping | Sequence[str] | Vocabulary) -> Vocabulary:
    """Vocabulary from what a config may say.

    >>> vocabulary = build_vocabulary({'things': ['car', 'sofa'], 'stuff': ['sky'], 'synonyms': {'sofa': ['couch']}})
    >>> vocabulary.names, vocabulary.num_things
    (('car', 'sofa', 'sky'), 2)
    >>> vocabulary.expanded()
    (('car', 'couch', 'sky'), (0, 1, 2))
    >>> build_vocabulary('ov_coco').novel().names[:3]
    ('airplane', 'bus', 'cat')

    Args:
        config: A `Vocabulary`; a shipped name; a path (see `Vocabulary.from_file`); a plain list of names, all taken as
            things; or a mapping with either ``things`` and ``stuff`` (lists, or text files of names), ``file`` (and
            ``allow_duplicates``) or ``name`` (a shipped one), and optionally ``synonyms`` (class name -> phrases),
            ``base``, ``novel`` (lists of names) and ``background`` (see `Vocabulary`).

    Raises:
        ValueError: If it fits none of these, or describes an unusable vocabulary.
    """
    if isinstance(config, Vocabulary):
        return config
    if isinstance(config, str):
        is_path = config.endswith(('.json', *INDEX_SUFFIXES)) or '::' in config
        return Vocabulary.from_file(config) if is_path else Vocabulary.from_name(config)
    if not isinstance(config, Mapping):
        return Vocabulary(tuple(config), (True,) * len(config))
    options = {key: config[key] for key in ('synonyms', 'base', 'novel', 'background') if key in config}
    vocabulary = _from_source({key: value for key, value in config.items() if key not in options})
    if 'synonyms' in options:
        vocabulary = vocabulary.with_synonyms(options['synonyms'])
    if 'base' in options or 'novel' in options:
        vocabulary = vocabulary.with_split(base=options.get('base', ()), novel=options.get('novel', ()))
    return replace(vocabulary, background=options['background']) if 'background' in options else vocabulary


def first_difference(names: Sequence[str], expected: Sequence[str]) -> str | None:
    """Where two lists of names differ first, in words; None if they are equal."""
    pairs = enumerate(zip_longest(names, expected))
    return next((f'position {i} is {name!r}, not {other!r}' for i, (name, other) in pairs if name != other), None)


def _from_source(source: Mapping) -> Vocabulary:
    keys = set(source)
    if keys <= {'things', 'stuff'}:
        things, stuff = (_listed(source, key) for key in ('things', 'stuff'))
        return Vocabulary(things + stuff, (True,) * len(things) + (False,) * len(stuff))
    if 'file' in keys and keys <= {'file', 'allow_duplicates'}:
        return Vocabulary.from_file(source['file'], source.get('allow_duplicates', False))
    if keys == {'name'}:
        return Vocabulary.from_name(source['name'])
    raise ValueError(
        "a vocabulary config has the keys 'things'/'stuff', 'file'/'allow_duplicates' or 'name', and may have "
        f"'synonyms', 'base', 'novel' and 'background', got {sorted(keys)}"
    )


def _listed(source: Mapping, key: str) -> tuple[str, ...]:
    names = source.get(key, ())
    if isinstance(names, str) and names.endswith(INDEX_SUFFIXES):
        return tuple(category['name'] for category in read_index(names))
    if isinstance(names, str):
        raise ValueError(f'{key} must be a list of names or a text file of them, got {names!r}')
    return tuple(names)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _per_class(names: Sequence[str], what: str, values: Collection | None, default: Collection) -> tuple:
    values = default if values is None else values
    if len(values) != len(names):
        raise ValueError(f'{len(names)} class names but {len(values)} {what}')
    return tuple(values)


def _checked_synonyms(names: Sequence[str], synonyms: Collection | None) -> tuple[tuple[str, ...], ...]:
    checked = []
    for name, phrases in zip(names, _per_class(names, 'synonyms', synonyms, [()] * len(names)), strict=True):
        if isinstance(phrases, str) or not all(_is_text(phrase) for phrase in phrases):
            raise ValueError(f'synonyms of {name!r} must be a list of texts, got {phrases!r}')
        checked.append(tuple(dict.fromkeys(phrases)) or (name,))
    return tuple(checked)


def _checked_split(names: Sequence[str], split: Collection | None) -> tuple[str | None, ...]:
    checked = _per_class(names, 'splits', split, [None] * len(names))
    wrong = {name: part for name, part in zip(names, checked, strict=True) if part not in _SPLITS}
    if wrong:
        raise ValueError(f"the split of a class is 'base', 'novel' or None, got {wrong}")
    return checked


def _checked_background(names: Sequence[str], rule: str | Collection[str] | None) -> str | tuple[str, ...] | None:
    if rule is None:
        return None
    if BACKGROUND not in names:
        raise ValueError(f'a background rule needs a class named {BACKGROUND!r}')
    if rule == 'threshold':
        return rule
    if isinstance(rule, str) or not rule or not all(_is_text(word) for word in rule):
        raise ValueError(f"background must be None, 'threshold' or a list of words, got {rule!r}")
    return tuple(dict.fromkeys(rule))


def _check_phrases(names: Sequence[str], expanded: tuple[tuple[str, ...], tuple[int, ...]]) -> None:
    owner = {name: i for i, name in enumerate(names)}
    for phrase, i in zip(*expanded, strict=True):
        other = owner.setdefault(phrase, i)
        if other != i:
            raise ValueError(
                f'{phrase!r} stands for two classes, {names[other]!r} and {names[i]!r}; '
                'remove it from one or set allow_duplicates=True'
            )
