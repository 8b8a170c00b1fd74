"""Holds `docs/guide/10-other-languages.md` to the programs in `interop/examples`.

In the page, `<!-- interop/examples/NAME -->` before a block says that the block is that file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Tuple

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "guide" / "10-other-languages.md"
_BLOCK = re.compile(
    r"^<!-- interop/examples/(\S+) -->\n```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass
class Example:
    name: str
    #: A pattern of what it prints.
    prints: str
    #: The orders that are on the bus before it runs, and what each costs in cents.
    orders: Tuple[Tuple[str, int], ...] = ()

    @property
    def path(self) -> Path:
        return HERE / "examples" / self.name


def examples() -> List[Example]:
    orders = (("o-1", 4200), ("o-2", 1700))
    followed = r"^o-1 from /shop: 4200 cents\no-2 from /shop: 1700 cents\n$"
    return [
        Example("door.sh", r'"stored":1.*"type":"order\.placed".*id: EVENTS:2'),
        Example("publish.py", r"^stored 1 as number 1\n$"),
        Example("follow.py", followed, orders),
        Example("publish.mjs", r"^stored 1 as number 1\n$"),
        Example("follow.mjs", followed, orders),
    ]


def check_page() -> Iterator[Tuple[str, str]]:
    """What is compared, and what is wrong with it. TRUNKLINE_BLESS=1 writes the blocks anew."""
    text = PAGE.read_text(encoding="utf-8")
    if "TRUNKLINE_BLESS" in os.environ:
        text = _BLOCK.sub(_block_of_file, text)
        PAGE.write_text(text, encoding="utf-8")
    shown = {name: block for name, _, block in _BLOCK.findall(text)}
    for example in examples():
        same = shown.get(example.name) == example.path.read_text(encoding="utf-8")
        fault = "" if same else f"{PAGE.name} shows something else; run this with TRUNKLINE_BLESS=1"
        yield f"the guide shows {example.name} as it is run", fault
    run = {example.name for example in examples()}
    files = {path.name for path in (HERE / "examples").iterdir() if path.is_file()}
    stray = sorted((files | set(shown)) ^ run)
    blocks = len(re.findall(r"^```\w", text, re.MULTILINE))
    fault = (
        f"not run: {stray}" if stray else "" if blocks == len(shown) else "a block is of no file"
    )
    yield "the guide shows nothing that is not run", fault


def _block_of_file(found: "re.Match[str]") -> str:
    name, language = found.group(1), found.group(2)
    source = (HERE / "examples" / name).read_text(encoding="utf-8")
    return f"<!-- interop/examples/{name} -->\n```{language}\n{source}```"
