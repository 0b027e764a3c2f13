"""Files that list classes: COCO's categories, list literals in Python, and the plain lists that data sets come with."""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

INDEX_SUFFIXES = ('.txt', '.csv', '.tsv')
_NUMBERED = re.compile(r'(\d+)\s*[:\t]\s*(.*)')


def read_categories(path: str | Path) -> dict:
    """A file of categories as an object that has ``categories``, whatever it holds besides.

    Args:
        path: JSON with a list of mappings or of names, or an object with such a list under ``categories``; or
            ``FILE.py::NAME``, a list literal assigned to NAME, which is parsed and never executed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no such list.
    """
    name, _, variable = str(path).partition('::')
    try:
        text = _read_text(name)
        content = _literal(text, variable) if variable else json.loads(text)
        content = dict(content) if isinstance(content, Mapping) else {'categories': list(content)}
        categories = content['categories']
        if not isinstance(categories, (list, tuple)):
            raise TypeError(f'the categories must be a list, not {type(categories).__name__}')
    except KeyError as error:
        raise ValueError(f'{path} is not a usable vocabulary: it has no {error}') from error
    except (TypeError, SyntaxError, ValueError) as error:
        raise ValueError(f'{path} is not a usable vocabulary: {error}') from error
    if categories and all(isinstance(entry, str) for entry in categories):
        content['categories'] = [{'name': entry} for entry in categories]
    return content


def read_index(path: str | Path, separator: str | None = None) -> list[dict]:
    """Categories of a plain list of classes; see `Vocabulary.from_index`.

    Args:
        path: Lines ``name`` or ``1: name``, or a table with a column "Name" and perhaps "Stuff" and "Idx".
        separator: What stands between the synonyms of a name; None for names that are used whole.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not of this form or numbers do not rise by one, which would shift every later label.
    """
    try:
        lines = [(i, line) for i, line in enumerate(_read_text(path).splitlines(), start=1) if line.strip()]
        if not lines:
            raise ValueError('it is empty; give one class name a line')
        is_table = Path(path).suffix != '.txt' or 'name' in _cells(lines[0][1], '\t')[1:]
        return [_split(entry, separator) for entry in (_table(lines) if is_table else _plain(lines))]
    except (csv.Error, ValueError) as error:
        raise ValueError(f'{path} is not a usable list of classes: {error}') from error


def _read_text(path: str | Path) -> str:
    if not Path(path).is_file():
        raise FileNotFoundError(f'vocabulary file {path} does not exist')
    return Path(path).read_text(encoding='utf-8-sig')


def _plain(lines: Sequence[tuple[int, str]]) -> list[dict]:
    matches = [_NUMBERED.fullmatch(line.strip()) for _, line in lines]
    if not any(matches):
        return [{'name': line.strip()} for _, line in lines]
    bare = [number for (number, _), match in zip(lines, matches, strict=True) if not match]
    if bare:
        raise ValueError(f'line {bare[0]} has no number, but others have')
    _check_numbers((number, match[1]) for (number, _), match in zip(lines, matches, strict=True))
    return [{'name': match[2]} for match in matches]


def _table(lines: Sequence[tuple[int, str]]) -> list[dict]:
    delimiter = '\t' if '\t' in lines[0][1] else ','
    columns = _cells(lines[0][1], delimiter)
    if 'name' not in columns:
        raise ValueError(f"line {lines[0][0]} must name the columns, 'Name' among them; got {columns}")
    rows = list(csv.reader((line for _, line in lines[1:]), delimiter=delimiter, strict=True))
    entries = []
    for (number, _), row in zip(lines[1:], rows, strict=True):
        if len(row) != len(columns):
            raise ValueError(f'line {number} has {len(row)} cells, but there are {len(columns)} columns')
        entries.append(dict(zip(columns, (cell.strip() for cell in row), strict=True)))
    if 'idx' in columns:
        _check_numbers((number, entry['idx']) for (number, _), entry in zip(lines[1:], entries, strict=True))
    return [
        {'name': entry['name']} | ({'isthing': _is_thing(entry['stuff'], number)} if 'stuff' in columns else {})
        for (number, _), entry in zip(lines[1:], entries, strict=True)
    ]


def _cells(header: str, delimiter: str) -> list[str]:
    return [cell.strip().lower() for cell in header.split(delimiter)]


def _is_thing(stuff: str, number: int) -> int:
    if stuff not in ('0', '1'):
        raise ValueError(f"line {number} has {stuff!r} in the column 'Stuff', which must be 0 or 1")
    return 1 - int(stuff)


def _check_numbers(numbers: Iterable[tuple[int, str]]) -> None:
    previous = None
    for line, text in numbers:
        if not text.isdecimal():
            raise ValueError(f'line {line} has {text!r} instead of a number')
        if previous is not None and int(text) != previous + 1:
            raise ValueError(f'line {line} is number {text} after {previous}: list the classes in order, none left out')
        previous = int(text)


def _split(entry: Mapping, separator: str | None) -> dict:
    phrases = [part.strip() for part in entry['name'].split(separator)] if separator else [entry['name']]
    phrases = [phrase for phrase in phrases if phrase] or ['']
    return {**entry, 'name': phrases[0], 'synonyms': phrases if len(phrases) > 1 else []}


def _literal(source: str, variable: str) -> object:
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == variable for t in targets):
            return ast.literal_eval(node.value)
    raise ValueError(f'no list literal is assigned to {variable}')
