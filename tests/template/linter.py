"""cfn-lint as a library: its command takes twice as long for many templates, and loads its rules for every call."""

from __future__ import annotations

import multiprocessing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfnlint.config import ConfigMixIn
from cfnlint.decode import decode
from cfnlint.runner import Runner
from cfnlint.runner.template import run_template_by_data

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

REGION = "us-east-1"


@cache
def _rules(ignore: tuple[str, ...]) -> tuple[ConfigMixIn, Any]:
    config = ConfigMixIn(ignore_checks=list(ignore), regions=[REGION])
    return config, Runner(config).rules


def _lint(name: str, template: Path | dict[str, Any], ignore: tuple[str, ...]) -> list[str]:
    config, rules = _rules(ignore)
    matches = []
    if isinstance(template, Path):
        template, matches = decode(str(template))
    if template is not None:
        matches = [*matches, *run_template_by_data(template, config, rules)]
    return [f"{name}: {match.rule.id} {match.message} (at {getattr(match, 'path', None)})" for match in matches]


class Linter:
    """A few processes that lint; a context manager."""

    def __init__(self, processes: int = 2) -> None:
        # Not forked: pytest's process has threads.
        self._pool = multiprocessing.get_context("spawn").Pool(processes)

    def __enter__(self) -> Linter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.terminate()
        self._pool.join()

    def lint(self, templates: Mapping[str, Path | dict[str, Any]], ignore: Iterable[str] = ()) -> list[str]:
        """What cfn-lint finds in each template (a file, or its contents), warnings included: one line each."""
        jobs = [(name, template, tuple(ignore)) for name, template in templates.items()]
        return sorted(line for lines in self._pool.starmap(_lint, jobs, chunksize=1) for line in lines)
