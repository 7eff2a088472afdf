"""The manual as a site: built without a warning, whole, and without a request to anywhere."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path.relative_to(DOCS).with_suffix(".html")
    for ending in ("*.md", "*.ipynb")
    for path in DOCS.rglob(ending)
    if "_build" not in path.parts
)
# What a browser fetches by itself; a link is followed only if it is clicked.
FETCHED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
NEEDED = ("sphinx", "myst_nb", "furo")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return built(tmp_path_factory.mktemp("site"))


def built(folder: Path, **environment: str) -> Path:
    """The site, made in a folder; its notebooks are executed if the environment names a run and a sweep."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f'the site needs {missing[0]}: pip install "mmrl[docs]"')
    options = ["-W", "--keep-going", "-n", "-q", "-d", str(folder / "trees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "docs", str(folder / "html")],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert not done.returncode, done.stderr
    return folder / "html"


@pytest.mark.exhaustive
def test_every_page_is_in_it_and_in_its_contents(site):
    contents = (site / "index.html").read_text()
    listed = set(re.findall(r'class="reference internal" href="([^"#]+)', contents)) | {"index.html"}
    assert [str(page) for page in PAGES if not (site / page).is_file()] == []
    assert {str(page) for page in PAGES} - listed == set()


@pytest.mark.exhaustive
def test_links_between_pages_lead_to_headings_that_exist(site):
    broken = []
    for page in PAGES:
        for link in re.findall(r'class="reference internal" href="([^"]+)"', (site / page).read_text()):
            path, _, heading = link.partition("#")
            target = (site / page).parent / path if path else site / page
            if not target.is_file() or (heading and f'id="{heading}"' not in target.read_text()):
                broken.append(f"{page}: {link}")
    assert broken == []


@pytest.mark.exhaustive
def test_functions_are_in_it(site):
    text = (site / "api" / "algorithms.html").read_text()
    assert 'id="mmrl.algorithms.recipes.grpo"' in text
    assert "Shao et al. 2024" in text


@pytest.mark.exhaustive
def test_nothing_is_fetched_from_elsewhere(site):
    pages = [found for path in site.rglob("*.html") for found in FETCHED.findall(path.read_text())]
    styles = [
        found
        for path in site.rglob("*.css")
        for found in re.findall(r"(?:@import\s|url\()\s*[\"']?(?:https?:)?//", path.read_text())
    ]
    assert pages + styles == []


@pytest.mark.exhaustive
def test_notebooks_have_their_pictures(tmp_path, smoke_run, sweep_folder):
    site = built(tmp_path, MMRL_RUN=str(smoke_run), MMRL_SWEEP=str(sweep_folder))
    shown = {
        path.stem: len(re.findall(r'<img [^>]*src="[^"]*_images/', path.read_text()))
        for path in (site / "notebooks").glob("*.html")
    }
    assert shown == {"what_papo_changes": 5, "ablation_table": 3, "where_it_looks": 4}
