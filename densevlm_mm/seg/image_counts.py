"""What was counted of each image of a benchmark, on disk: a run that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from densevlm_mm.vlm.checkpoints import save_atomically


class ImageCounts:
    """Counts of images under one group of settings, kept in a folder of their own.

    Every process adds lines to a file that only grows; all of them are read by any number of processes afterwards. Of a
    process that is killed at most the last line is unfinished, and not read. Other settings have another folder, so
    that nothing counted under them is taken for these. Processes on several machines need a folder that they share.

    Args:
        folder: Where the folders of all settings are.
        name: What is counted, the beginning of the folder's name.
        settings: Everything that counts depend on, in what JSON knows; written along for people.
        rank: Number of this process.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], *, rank: int = 0) -> None:
        text = json.dumps(settings, indent=2, sort_keys=True)
        self.folder = folder / f'{name}-{sha256(text.encode()).hexdigest()[:12]}'
        self._file = self.folder / f'images{rank}.jsonl'
        save_atomically(self.folder / 'settings.json', lambda file: file.write(f'{text}\n'.encode()))

    def read(self) -> dict[str, Any]:
        """Counts by image, of all processes."""
        counts = {}
        for path in sorted(self.folder.glob('images*.jsonl')):
            for line in path.read_text('utf-8').splitlines():
                entry = _parsed(line)
                if entry is not None:
                    counts[entry['image']] = entry['counts']
        return counts

    def add(self, counts: Mapping[str, Any]) -> None:
        """Keep the counts of further images."""
        lines = [json.dumps({'image': image, 'counts': of_image}) for image, of_image in counts.items()]
        with self._file.open('a+b') as file:
            # after an unfinished line, the first of these would be part of it
            start = b'\n' if file.tell() and not _ends_with_newline(file) else b''
            file.write(start + ''.join(f'{line}\n' for line in lines).encode())


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b'\n'


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return None
    return entry if isinstance(entry, dict) and entry.keys() == {'image', 'counts'} else None
