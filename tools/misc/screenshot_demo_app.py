#!/usr/bin/env python
"""Take a picture of the demo page at work, in a headless Chromium.

Example, with tools/demo_app.py running:
    python tools/misc/screenshot_demo_app.py http://127.0.0.1:7860 street.jpg page.png
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from densevlm_mm.vlm.checkpoints import save_atomically

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.support.wait import WebDriverWait

SECONDS = 180  # that the page may take
FLAGS = ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--hide-scrollbars')
PICTURE = '#picture0 img'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('address', help='of the running page')
    parser.add_argument('image', type=Path, help='file to be uploaded')
    parser.add_argument('out', type=Path, help='.png to be written')
    parser.add_argument('--names', help=r'class names; "\n" begins a line (default: what the page begins with)')
    parser.add_argument('--task', default='regions', help='regions, segment, detect or similarity')
    parser.add_argument('--width', type=int, default=1280, help='px of the window')
    parser.add_argument('--height', type=int, help='px of the window (default: all of the page)')
    return parser.parse_args(argv)


def open_browser(width: int = 1280, height: int = 900) -> Chrome:
    """A headless Chromium whose page is that large.

    Raises:
        FileNotFoundError: If Chromium or its driver is not installed.
    """
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    os.environ['SE_OFFLINE'] = 'true'  # take what is installed, fetch nothing
    browser, driver = (shutil.which(name) for name in ('chromium', 'chromedriver'))
    if not (browser and driver):
        raise FileNotFoundError('chromium or chromedriver is missing: apt-get install chromium chromium-driver')
    options = ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    chrome = Chrome(options=options, service=ChromeService(driver))
    resize(chrome, width, height)
    return chrome


def resize(chrome: Chrome, width: int, height: int) -> None:
    """Give the page this size, also where windows cannot be that narrow."""
    metrics = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': False}
    chrome.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)


class Visitor:
    """Someone at the page.

    Args:
        chrome: Their browser.
        address: Of the page.
    """

    def __init__(self, chrome: Chrome, address: str) -> None:
        self.chrome = chrome
        chrome.get(address)
        self.wait(lambda _: self.find('#run'))

    def wait(self, condition: object) -> object:
        """What the condition, a function of the browser, gives once it is true."""
        return self._waiting().until(condition)

    def find(self, selector: str) -> list:
        """Elements that are there now."""
        return self.chrome.find_elements('css selector', selector)

    def message(self) -> str:
        """The page's sentence."""
        return self.chrome.execute_script("return document.querySelector('#message textarea').value")

    def table(self) -> list[list[str]]:
        """Cells of the table's rows; of long tables, the rows in view and some more."""
        script = """return [...document.querySelectorAll('#table [role=row]')].map(
            row => [...row.querySelectorAll('[role=gridcell]')].map(cell => cell.innerText.trim()))"""
        return [row for row in self.chrome.execute_script(script) if any(row)]

    def upload(self, path: Path) -> None:
        """Give a file, and wait for the page's sentence about it."""
        before = self.message()
        (field,) = self.find('#upload input[type=file]')
        field.send_keys(str(path.resolve()))
        self.wait(lambda _: self.message() not in ('', before))

    def type_names(self, text: str) -> None:
        """Replace the class names."""
        (field,) = self.find('#names textarea')
        field.clear()
        field.send_keys(text)

    def choose(self, task: str) -> None:
        """Choose a task."""
        self.chrome.execute_script(f"document.querySelector('#task input[value={task}]').click()")

    def run(self) -> None:
        """Press the button, and wait for another picture, or a sentence in its place."""
        source, message = self.source(), self.message()
        self.press_run()
        self.wait(lambda _: self.source() not in ('', source) or (self.message() != message and not self.find(PICTURE)))

    def press_run(self) -> None:
        """Press the button only."""
        self.find('#run')[0].click()

    def clear_upload(self) -> None:
        """Take the file away, and wait until the page has noticed."""
        before = self.message()
        self.find('#upload button[aria-label=Clear]')[0].click()
        self.wait(lambda _: self.find('#upload input[type=file]') and self.message() != before)

    def source(self) -> str:
        """Address of the picture; empty while it is not loaded."""
        script = f"const i = document.querySelector('{PICTURE}'); return i && i.complete && i.naturalWidth ? i.src : ''"
        return self.chrome.execute_script(script) or ''

    def full_height(self) -> int:
        """Px of the whole page."""
        return self.chrome.execute_script('return document.documentElement.scrollHeight')

    def _waiting(self) -> WebDriverWait:
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.chrome, SECONDS)


def take_picture(chrome: Chrome, args: argparse.Namespace) -> None:
    """Use the page and write what it looks like then.

    Raises:
        ValueError: If the page answers with a sentence only.
    """
    visitor = Visitor(chrome, args.address)
    visitor.upload(args.image)
    visitor.wait(lambda _: visitor.source())  # or `run` would take it for the answer
    if args.names:
        visitor.type_names(args.names.replace('\\n', '\n'))
    visitor.choose(args.task)
    visitor.run()
    if not visitor.source():
        raise ValueError(f'the page answers: {visitor.message()}')
    if args.height is None:
        resize(chrome, args.width, visitor.full_height())
    save_atomically(args.out, lambda file: file.write(chrome.get_screenshot_as_png()))


def main(argv: list[str] | None = None) -> int:
    """Run the command; 2 when something is missing or the page does not answer."""
    args = parse_args(argv)
    try:
        chrome = open_browser(args.width, args.height or 900)
    except (OSError, ModuleNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    from selenium.common.exceptions import WebDriverException

    try:
        take_picture(chrome, args)
    except (ValueError, WebDriverException) as error:
        print(f'error: {args.address} gave no picture: {error}', file=sys.stderr)
        return 2
    finally:
        chrome.quit()
    return 0


if __name__ == '__main__':
    sys.exit(main())
