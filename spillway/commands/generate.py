"""`spillway generate`: what is derived from the contracts, written or checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spillway import samples, schemas
from spillway.errors import SpillwayError

#: Folders that hold generated files of these kinds only: another one there is a leftover.
OWNED = {samples.FOLDER: "*.json", schemas.FOLDER: "*.json"}


def generate(
    *,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a file is out of step.")] = False,
    root: Annotated[Path, typer.Option(help="The repository.")] = Path(),
) -> None:
    """Write events/schemas, events/asyncapi.yaml and events/samples from the contracts."""
    if not (root / "workers").is_dir():
        raise SpillwayError(f"{root.absolute()} is not a checkout of Spillway.", "Run this in its top folder.")
    stale = out_of_step(root)
    if check and stale:
        raise SpillwayError(f"Out of step with the contracts: {', '.join(stale)}.", "Run `spillway generate`.")
    write(root, stale)
    typer.echo("\n".join(f"wrote {path}" for path in stale) or "All generated files are in step.")


def render() -> dict[str, str]:
    """The text of every generated file, by its path in the repository."""
    return schemas.render() | samples.render()


def out_of_step(root: Path) -> list[str]:
    """The paths, relative to `root`, of files that are missing, differ, or are left over."""
    rendered = render()
    differ = [path for path, text in rendered.items() if _read(root / path) != text.encode()]
    there = {
        path.relative_to(root).as_posix() for folder, pattern in OWNED.items() for path in (root / folder).glob(pattern)
    }
    return sorted({*differ, *(there - rendered.keys())})


def write(root: Path, paths: list[str]) -> None:
    """Bring `paths` into step; a left-over file is removed."""
    rendered = render()
    for path in paths:
        file = root / path
        if path in rendered:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(rendered[path].encode())
        else:
            file.unlink()


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
