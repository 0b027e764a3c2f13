"""What visitors of the demo page give: class names as text, and files that may be anything."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from densevlm_mm.datasets.image_file import BadImageError, decoding, open_image
from densevlm_mm.datasets.transforms.image import upright_rgb
from densevlm_mm.vlm import Vocabulary

EXAMPLE = 'cat, dog'
MAX_NAMES = 2000
MAX_LETTERS = 100

_KIND = re.compile(r'(things?|stuff)\s*:\s*(.*)', re.IGNORECASE)
_REASONS = {
    'empty': 'is empty',
    'truncated': 'is damaged: it ends too early',
    'value range': 'holds numbers whose range is not known; save it with 8 bits per channel',
}


class PageError(ValueError):
    """Something that a visitor can mend; the message is a sentence for the page."""


@dataclass(frozen=True)
class Limits:
    """What an image may be.

    Attributes:
        megabytes: Size of its file at most, in MiB (2^20 bytes), which is what Gradio calls Mb.
        pixels: Its pixels at most; larger ones are refused before they are decoded.
        side: Longest side in px to which larger images are shrunk.
    """

    megabytes: float = 20.0
    pixels: int = 40_000_000
    side: int = 1280

    def __post_init__(self) -> None:
        wrong = {key: value for key, value in vars(self).items() if not value > 0}
        if wrong:
            raise ValueError(f'limits of images must be above 0, got {wrong}')


def parse_names(text: str) -> Vocabulary:
    """Vocabulary of what was typed.

    >>> parse_names('cat, dog\\nstuff: grass, sky').is_thing
    (True, True, False, False)

    Names stand between commas or on lines of their own. A line ``stuff: grass, sky`` holds stuff; ``stuff:`` alone
    makes stuff of the lines below it, as far as ``things:``. All others are things. Repeated names count once.

    Raises:
        PageError: If there is no name, there are too many, or one is too long, or a thing and stuff at once.
    """
    kinds: dict[str, bool] = {}
    below = True
    for line in text.splitlines():
        match = _KIND.fullmatch(line.strip())
        is_thing = match[1].lower() != 'stuff' if match else below
        names = match[2] if match else line
        if match and not names:
            below = is_thing
        for name in filter(None, (part.strip() for part in names.split(','))):
            if kinds.setdefault(name, is_thing) is not is_thing:
                raise PageError(f'"{_shortened(name)}" is in both lists: make it a thing or stuff.')
    _check_names(kinds)
    return Vocabulary(tuple(kinds), tuple(kinds.values()))


def format_names(vocabulary: Vocabulary) -> str:
    """A vocabulary as text that `parse_names` reads: one line of things, one of stuff."""
    names = {
        kind: ', '.join(n for n, flag in zip(vocabulary.names, vocabulary.is_thing, strict=True) if flag is kind)
        for kind in (True, False)
    }
    return '\n'.join(filter(None, (names[True], names[False] and f'stuff: {names[False]}')))


def read_names(text: str, initial: Vocabulary) -> Vocabulary:
    """`parse_names`, unless the text is still that of the initial vocabulary, which may have synonyms and a split."""
    return initial if text.split() == format_names(initial).split() else parse_names(text)


def read_upload(path: str | Path | None, limits: Limits) -> Image.Image:
    """A file as an upright 8-bit RGB image, no larger than ``limits.side``.

    Raises:
        PageError: If there is none, or it is too large, damaged or no image.
    """
    if path is None:
        raise PageError('Choose an image first.')
    path = Path(path)
    try:
        size = path.stat().st_size / 2**20
        if size > limits.megabytes:
            raise PageError(f'{path.name} has {size:.1f} MB; at most {limits.megabytes:g} MB are taken.')
        image = _decode(path, limits)
    except BadImageError as error:
        raise PageError(_explain(error, path.name, limits)) from error
    except OSError as error:
        raise PageError(f'{path.name} cannot be read: choose it again.') from error
    image.thumbnail((limits.side, limits.side))
    return image


def describe_upload(path: str | Path, image: Image.Image) -> str:
    """Name and size of an accepted image, in a line."""
    with Image.open(path) as original:
        shrunk = max(original.size) > max(image.size)
    return f'{Path(path).name}: {image.width} x {image.height} px{" (shrunk)" if shrunk else ""}'


def _decode(path: Path, limits: Limits) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # the limit below is for every image
        image = open_image(str(path))
    width, height = image.size
    if width * height > limits.pixels:
        raise PageError(
            f'{path.name} has {width} x {height} pixels; at most {limits.pixels / 1e6:g} million are taken.'
        )
    with decoding(str(path)):
        image.load()
    return upright_rgb(image, str(path), exif=True)[0]


def _explain(error: BadImageError, name: str, limits: Limits) -> str:
    if error.kind == 'too large':
        return f'{name} has too many pixels; at most {limits.pixels / 1e6:g} million are taken.'
    reason = _REASONS.get(error.kind, 'is not an image, or a damaged one')
    return f'{name} {reason}. Choose another image, such as a JPEG or PNG.'


def _check_names(kinds: dict[str, bool]) -> None:
    if not kinds:
        raise PageError(f'Type at least one class name, such as: {EXAMPLE}')
    if len(kinds) > MAX_NAMES:
        raise PageError(f'These are {len(kinds)} class names; at most {MAX_NAMES} are taken.')
    long = next((name for name in kinds if len(name) > MAX_LETTERS), None)
    if long:
        raise PageError(f'"{_shortened(long)}" is too long for a class name: put commas between the names.')


def _shortened(name: str) -> str:
    return name if len(name) <= 40 else f'{name[:37]}...'
