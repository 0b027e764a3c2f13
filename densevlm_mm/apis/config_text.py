"""A config as the short text that turns another one into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from keyword import iskeyword
from typing import Any

LINE_LENGTH = 120
DELETE = '_delete_'


def overrides(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that a config which inherits from ``old`` has to name to become ``new``.

    Dicts are merged key by key, as mmengine does, unless the new one says ``_delete_=True``; lists are named whole.
    """
    named = {}
    for key, value in new.items():
        previous = old.get(key)
        if isinstance(value, Mapping) and isinstance(previous, Mapping) and not value.get(DELETE):
            below = overrides(previous, value)
            if below:
                named[key] = below
        elif key not in old or value != previous:
            named[key] = value
    return named


def leaves(named: Mapping[str, Any], old: Any, path: str = '') -> Iterator[tuple[str, Any, Any]]:
    """What overrides change, as ``(key, old value or None, new value)`` with keys such as 'model.neck.in_channels'."""
    for key, value in named.items():
        here = f'{path}.{key}'.lstrip('.')
        previous = old.get(key) if isinstance(old, Mapping) else None
        yield from _leaves_of(value, previous, here)


def _leaves_of(value: Any, previous: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(value, Mapping) and not value.get(DELETE):
        yield from leaves(value, previous, path)
    elif _is_list_of_dicts(value) and isinstance(previous, Sequence) and len(previous) == len(value):
        changed = ((i, overrides(p, v), p) for i, (v, p) in enumerate(zip(value, previous, strict=True)))
        for index, named, part in changed:
            yield from leaves(named, part, f'{path}.{index}')
    else:
        yield path, previous, value


def _is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def as_assignments(config: Mapping[str, Any]) -> str:
    """Python text ``key = value`` of a config of plain values, dicts, lists and tuples."""
    return '\n'.join(f'{key} = {as_code(value, room=LINE_LENGTH - len(key) - 3)}\n' for key, value in config.items())


def as_code(value: Any, *, indent: int = 0, room: int = LINE_LENGTH) -> str:
    """Python code of a value: on one line if ``room`` allows it, else one item per line, indented one step deeper."""
    if not isinstance(value, (Mapping, list, tuple)) or not value:
        return repr(value)
    if isinstance(value, Mapping):
        is_call = all(isinstance(key, str) and key.isidentifier() and not iskeyword(key) for key in value)
        opening, closing = ('dict(', ')') if is_call else ('{', '}')
        items = [(f'{key}=' if is_call else f'{key!r}: ', item) for key, item in value.items()]
    else:
        opening, closing = '()' if isinstance(value, tuple) else '[]'
        items = [('', item) for item in value]
    # of one item, a tuple needs its comma
    comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    flat = opening + ', '.join(name + as_code(item, room=10**6) for name, item in items) + comma + closing
    if len(flat) <= room:
        return flat
    inner = indent + 4
    lines = (
        f'{" " * inner}{name}{as_code(item, indent=inner, room=LINE_LENGTH - inner - len(name) - 1)},\n'
        for name, item in items
    )
    return f'{opening}\n{"".join(lines)}{" " * indent}{closing}'
