"""The site: built without a warning, every public name on it, and as a reader sees it in a browser."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import require
from test_docs import load

import hipi_sb3

require("furo")
require("myst_parser")

from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as ``make docs`` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(ROOT / "docs"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_link_that_stays_on_the_site_leads_somewhere(site):
    assert load(ROOT / "docs" / "check_links.py").broken_links(site) == []


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here"></a><a href="b.html#there"></a><img src="no.png"><a href="#x"></a>'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="https://example.org/no"></a>')
    broken = load(ROOT / "docs" / "check_links.py").broken_links(tmp_path)
    assert broken == ["a.html: #x", "a.html: b.html#there", "a.html: no.png"]


def test_every_public_name_is_in_the_reference(site):
    with open(site / "objects.inv", "rb") as file:
        inventory = InventoryFile.load(file, "", os.path.join)
    documented = {name for kind in inventory.values() for name in kind}
    public = {name: getattr(hipi_sb3, name) for name in hipi_sb3.__all__ if not name.startswith("__")}
    assert len(public) > 20
    missing = [name for name, item in public.items() if f"{item.__module__}.{item.__name__}" not in documented]
    assert missing == []
