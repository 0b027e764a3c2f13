"""CHANGELOG.md and CITATION.cff are well formed and speak of the version that there is."""

from __future__ import annotations

import re

import yaml

import densevlm_mm

from .conftest import ROOT

KINDS = {'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security'}
CITATION = yaml.safe_load((ROOT / 'CITATION.cff').read_text('utf-8'))
CHANGELOG = (ROOT / 'CHANGELOG.md').read_text('utf-8')


def test_citation_has_what_its_format_requires():
    assert {'cff-version', 'message', 'title', 'authors'} <= CITATION.keys()
    assert CITATION['cff-version'] == '1.2.0' and CITATION['type'] == 'software'
    assert all({'type', 'title', 'authors'} <= reference.keys() for reference in CITATION['references'])


def test_citation_names_version_licence_and_paper():
    assert str(CITATION['version']) == densevlm_mm.__version__
    assert f"license='{CITATION['license']}'" in (ROOT / 'setup.py').read_text('utf-8')
    (paper,) = CITATION['references']
    assert f'[{paper["title"]}]({paper["url"]})' in (ROOT / 'README.md').read_text('utf-8').replace('\n', ' ')


def test_changelog_is_in_its_format():
    headings = re.findall(r'^## (.+)$', CHANGELOG, re.MULTILINE)
    assert headings[0] == '[Unreleased]'
    assert all(re.fullmatch(r'\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}', heading) for heading in headings[1:])
    assert set(re.findall(r'^### (.+)$', CHANGELOG, re.MULTILINE)) <= KINDS
    assert re.search(r'^- ', CHANGELOG, re.MULTILINE)


def test_changelog_knows_the_version():
    assert re.search(rf'(^## \[|next version is ){re.escape(densevlm_mm.__version__)}\b', CHANGELOG, re.MULTILINE)
