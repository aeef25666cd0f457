"""The rules of docs/pinning.md, from the table that the classifier and the linter use.

`python -m spillway.pins.document` writes them anew; a unit test holds the document to them.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from spillway.rdsproxy.rules import RULES, UNTRACKED, Rule

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/pinning.md"
#: Everything below this line of the document is generated.
MARK = "<!-- Below: generated from spillway/rdsproxy/rules.py by python -m spillway.pins.document -->\n"

_GROUPS = {
    "pin": (
        "What pins",
        "Seen by the proxy: the emulator pins by these rules and the linter finds them. Where nothing else is said, "
        f'the proxy\'s log gives as the reason: "{UNTRACKED} Digest: ..."',
    ),
    "leak": (
        "What leaks",
        "Inside a function body or a DO block the proxy sees nothing, so nothing is pinned: the connection goes back "
        "with the state on it. Only the linter finds these. In a DO block they are reported as unsettled, for its "
        "body is in the text that the proxy gets.",
    ),
    "advice": ("What the linter adds", "By themselves these do not pin."),
}


def rules_section() -> str:
    """The generated part of the document."""
    parts = []
    for kind, (title, introduction) in _GROUPS.items():
        parts.append(f"## {title}\n\n{_wrapped(introduction)}\n")
        parts += [_rule(rule) for rule in RULES.values() if rule.kind == kind]
    return "\n".join(parts)


def _rule(rule: Rule) -> str:
    fence = rule.language if rule.language != "prose" else "text"
    instead = {"prose": "instead: ", "python": "# instead:\n", "sql": "-- instead:\n"}[rule.language]
    certainty = f"*{rule.certainty}* ([source]({rule.source})). " if rule.source else ""
    log = f' In the proxy\'s log: "{rule.log}"' if rule.log not in {"", UNTRACKED} else ""
    return (
        f"### `{rule.id}`: {rule.title}\n\n{_wrapped(certainty + rule.why)}\n\n"
        f"```{fence}\n{rule.pins}\n{instead}{rule.free}\n```\n\n{_wrapped(rule.fix + log)}\n"
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write the generated part of the document anew."""
    written, _, _ = DOCUMENT.read_text().partition(MARK)
    DOCUMENT.write_text(f"{written}{MARK}\n{rules_section()}")


if __name__ == "__main__":
    main()
