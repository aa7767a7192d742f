"""SHA-256 of what a list of mutants says, however it is spread over files: a frozen list can be checked against it.

    python scripts/mutant_digest.py tests/mutants/list_one
    git show 1efc275:tests/mutants/list_one.py > old.py && python scripts/mutant_digest.py old.py

Every definition and every entry of MUTANTS counts, as Python (3.11 here) writes its syntax tree; comments, imports,
order and files do not.
``against=old.py`` lists what differs.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


def parts(path: Path) -> dict[str, str]:
    """Definitions and entries, as Python writes them -> the name of each."""
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    return dict(part for file in files for part in _parts_of(ast.parse(file.read_text(encoding="utf-8"))))


def digest(path: Path) -> str:
    """Hexadecimal SHA-256 over the sorted parts."""
    return hashlib.sha256("\n".join(sorted(parts(path))).encode()).hexdigest()


def _parts_of(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Expr):
            continue
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MUTANTS":
            assert isinstance(node.value, ast.Dict)
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                assert key is not None
                yield f"{ast.unparse(key)}: {ast.unparse(value)}", f"entry {ast.unparse(key)}"
        else:
            name = getattr(node, "name", None) or ast.unparse(node).split("=")[0].strip()
            yield ast.unparse(node), name


def main(words: Sequence[str]) -> int:
    """Prints a digest, or differences; exit code 1 where there are any."""
    path, *rest = words
    found = parts(Path(path))
    print(f"{digest(Path(path))}  {path}: {sum(name.startswith('entry ') for name in found.values())} entries")
    if not rest:
        return 0
    other = parts(Path(rest[0].removeprefix("against=")))
    differ = sorted({found[p] for p in found.keys() - other.keys()} | {other[p] for p in other.keys() - found.keys()})
    print(f"differ: {', '.join(differ) or 'none'}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
