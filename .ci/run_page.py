"""
Run the Python blocks of a page, in order, as one program; trainings are shortened. What a newcomer copies has to work.

    python .ci/run_page.py README.md
"""

import pathlib
import re
import sys

#: Steps that a training gets, where the page says more.
STEPS = 200


def program(page: str) -> str:
    """
    Put the Python blocks of a page together.

    :param page: Markdown
    :return: program; the lines are at their places in the page
    """
    parts, line = [], 1
    for block in re.finditer(r"^```python\n(.*?)^```$", page, re.S | re.M):
        first = page.count("\n", 0, block.start(1)) + 1
        parts.append("\n" * (first - line) + block.group(1))
        line = first + block.group(1).count("\n")
    return re.sub(r"learn\(([\d_]+)\)", lambda call: f"learn({min(int(call.group(1)), STEPS)})", "".join(parts))


if __name__ == "__main__":
    code = program(pathlib.Path(sys.argv[1]).read_text())
    assert code.strip(), f"{sys.argv[1]} has no Python block"
    # As the main module, where what is pickled is found again.
    exec(compile(code, sys.argv[1], "exec"))
