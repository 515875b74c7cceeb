"""
The pages of the documentation as programs.

    python -m tests.pages docs/quick_start.md       # runs a page literally, in an empty folder, and shows what it prints

All Python blocks of a page are one program. A ``text`` block right after a Python block is what that one prints.
"""

import contextlib
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)(`{3,})([\w+{}-]*)[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
MARK = "-------- end of block "


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int  # of its first line, from 1
    language: str
    text: str
    end: int  # character after it


class Part(NamedTuple):
    """A Python block and what the page says that it prints, if it says something."""

    code: Block
    expected: str | None


def blocks(path: Path) -> list[Block]:
    """
    :param path: of a page
    :return: its fenced blocks
    """
    page = path.read_text()
    name = str(path.relative_to(ROOT))
    found = FENCE.finditer(page)
    return [Block(name, page[: m.start(4)].count("\n") + 1, m[3], m[4], m.end()) for m in found if m[3] != "{eval-rst}"]


def parts(path: Path) -> list[Part]:
    """
    :param path: of a page
    :return: its Python blocks with their outputs
    """
    page, found = path.read_text(), blocks(path)
    result = []
    for block, following in zip_longest(found, found[1:]):
        if block.language == "python":
            start = 0 if following is None else page.rfind("```text", block.end, following.end)
            is_output = following is not None and following.language == "text" and not page[block.end : start].strip()
            result.append(Part(block, following.text if following is not None and is_output else None))
    return result


def printed(path: Path, namespace: dict[str, Any]) -> Iterator[tuple[Part, str]]:
    """
    Run a page in this interpreter, block by block.

    :param path: of the page
    :param namespace: names that its blocks have; changed
    :return: every part with what it printed
    """
    for part in parts(path):
        output = io.StringIO()
        # lines of an error message are those of the page
        code = compile("\n" * (part.code.line - 1) + part.code.text, part.code.page, "exec")
        with contextlib.redirect_stdout(output):
            exec(code, namespace)
        yield part, output.getvalue()


def printed_literally(path: Path, folder: Path) -> list[tuple[Part, str]]:
    """
    Run a page as a script of its own in a folder, as a reader would.

    :param path: of the page
    :param folder: to run in
    :return: every part with what it printed
    """
    found = parts(path)
    script = "\n".join(f"{part.code.text}\nprint('{MARK}', flush=True)" for part in found)
    (folder / "page.py").write_text(script)
    done = subprocess.run([sys.executable, "page.py"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{path.name} failed after printing {done.stdout}\n{done.stderr}")
    return list(zip(found, done.stdout.split(f"{MARK}\n"), strict=False))


def same_form(one: str, other: str) -> bool:
    """Whether two outputs are the same but for their numbers."""
    return NUMBER.sub("#", one).split() == NUMBER.sub("#", other).split()


def main() -> None:
    """Command line."""
    path = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        for part, output in printed_literally(path, Path(folder)):
            said = "" if part.expected is None or part.expected == output else f"the page says:\n{part.expected}"
            print(f"-- {part.code.page}:{part.code.line}\n{output}{said}")
        print("left behind:", *sorted(str(p.relative_to(folder)) for p in Path(folder).iterdir()))


if __name__ == "__main__":
    main()
