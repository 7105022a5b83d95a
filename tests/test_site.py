"""The site: built without a warning, every public name on it, and as a reader sees it in a browser."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import chromium, drive
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


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = [path.read_text() for path in site.rglob("*.html")]
    assert len(pages) > 25
    assert not any(re.search(r"<(script|img|link)[^>]+(src|href)=\"(https?:)?//", page) for page in pages)


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


#: Opens pages in a frame of a given width, as a telephone or a desk shows them.
FRAME = """
const frame = document.createElement("iframe");
frame.style.cssText = "border: 0; height: 800px";
document.body.append(frame);
const open = (path, width) => new Promise(resolve => {
  frame.onload = () => setTimeout(() => resolve(frame.contentDocument), 50);
  frame.style.width = width + "px";
  frame.src = path;
});
const until = async condition => {
  for (let i = 0; i < 200 && !condition(); i++) await new Promise(resolve => setTimeout(resolve, 50));
  return condition();
};
const light = color => color.match(/\\d+/g).slice(0, 3).reduce((sum, x) => sum + Number(x), 0) / 765;
"""


def test_search_finds_a_name_and_leads_to_it(site, tmp_path):
    script = """
const page = await open("search.html?q=log_partition", 1200);
const links = () => [...page.querySelectorAll("#search-results li a")].map(link => link.getAttribute("href"));
await until(() => links().some(link => link.startsWith("options.html")));
return links();
"""
    found, console = drive(site, FRAME + script, tmp_path / "profile")
    assert console == []
    assert found[0] == "api/relabel.html#module-hipi_sb3.relabel.log_partition"
    assert any(link.startswith("options.html") for link in found)


def test_every_page_can_be_read_on_a_telephone_without_scrolling_sideways_and_no_script_fails(site, tmp_path):
    pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if "_static" not in path.parts)
    assert len(pages) > 25 and "index.html" in pages
    script = f"""
// How far what the article stands in can be scrolled sideways, or is cut off; tables and code scroll in themselves.
const bounds = part => frame.contentWindow.getComputedStyle(part).overflowX !== "visible";
const excess = page => {{
  let part = page.querySelector("article") || page.body, most = 0;
  for (; part; part = part.parentElement) if (bounds(part)) most = Math.max(most, part.scrollWidth - part.clientWidth);
  return most;
}};
const seen = {{}};
for (const path of {pages}) {{
  const page = await open(path, 400);
  const widths = [...page.querySelectorAll("article img:not(.toggler)")].map(image => image.getBoundingClientRect().width);
  seen[path] = [excess(page), page.documentElement.clientWidth, page.title, Math.min(400, ...widths)];
}}
const wide = document.createElement("div");
wide.style.cssText = "width: 500px; height: 10px";
frame.contentDocument.querySelector("article").append(wide);
return [seen, excess(frame.contentDocument)];
"""
    (seen, with_something_wide), console = drive(site, FRAME + script, tmp_path / "profile")
    assert console == []
    # The bar for scrolling up and down takes a little of the 400 pixels.
    assert set(seen) == set(pages) and all(380 <= width <= 400 and "hipi_sb3" in title for _, width, title, _ in seen.values())
    assert {path: entry[3] for path, entry in seen.items() if entry[3] < 150} == {}  # the smallest picture
    assert with_something_wide > 50
    assert {path: entry for path, entry in seen.items() if entry[0] > 0} == {}


def test_the_site_is_dark_or_light_as_the_reader_wants_it(site, tmp_path):
    script = """
const seen = {};
for (const theme of ["light", "dark"]) {
  localStorage.setItem("theme", theme);
  const page = await open("method.html", 1200);
  const style = frame.contentWindow.getComputedStyle(page.body);
  seen[theme] = [light(style.backgroundColor), light(style.color)];
}
return seen;
"""
    seen, console = drive(site, FRAME + script, tmp_path / "profile")
    assert console == []
    assert seen["light"][0] > 0.9 and seen["light"][1] < 0.3, seen
    assert seen["dark"][0] < 0.2 and seen["dark"][1] > 0.7, seen


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_without_a_browser_the_tests_of_pages_say_what_to_do_and_in_ci_they_fail(ci, outcome, monkeypatch, tmp_path):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(outcome, match="apt-get install chromium"):
        chromium()
