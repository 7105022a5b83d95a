"""The code in the documents runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page, n_blocks", [("contributing.md", 6), ("coming_from_her.md", 1)])
def test_what_readers_are_shown_runs(page: str, n_blocks: int, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    assert len(blocks) == n_blocks
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_files_that_documents_name_exist() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text()
    named = re.findall(r"`((?:tasks|relabel|experience|examples|tests)/[\w/]*\.py)`", page)
    assert len(named) >= 5
    assert all((ROOT / "hipi_sb3" / name).is_file() or (ROOT / name).is_file() for name in named)
