"""A new worker's name in all its spellings, and the names that would not work."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

from spillway.errors import SpillwayError

#: A Lambda function is named after its stack and its worker, in 64 characters: half of them are the stack's. It also
#: keeps each of PostgreSQL's identifiers below 63 bytes and each line of code below 120 characters.
MAX_LENGTH = 30

_NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")

#: Names that look free and are not: (name, what it is used for).
RESERVED = {
    "governor": "is kept for a function of the fleet's own",
    # apply.sql's common table expressions: PostgreSQL takes none of them for the table of the same name.
    "input": "is a word that apply.sql uses",
    "claimed": "is a word that apply.sql uses",
    "newest": "is a word that apply.sql uses",
    "written": "is a word that apply.sql uses",
}


@dataclass(frozen=True)
class Names:
    """`name` is the worker's folder, queue, table and function; `singular` is for event types, claims and classes."""

    name: str
    singular: str

    @classmethod
    def of(cls, name: str, singular: str | None = None) -> Names:
        """The names of a worker; without `singular` it is made of `name`. Raises SpillwayError for what cannot be."""
        _check(name, "name of a worker", "invoices")
        names = cls(name, singular if singular is not None else singular_of(name))
        _check(names.singular, "singular", "invoice")
        if reason := RESERVED.get(name):
            raise SpillwayError(f"{name!r} {reason}.", "Choose another name.")
        if name.endswith("_events"):
            raise SpillwayError(
                f"{name!r} ends in _events, as claims tables do: housekeeping would delete its rows.",
                f"Choose another name, such as {name.removesuffix('_events')!r}.",
            )
        if names.singular == "event":
            raise SpillwayError("'event' cannot be the singular: each row has an event_id already.", _ANOTHER_SINGULAR)
        return names

    @property
    def class_name(self) -> str:
        """`invoice_item` as InvoiceItem."""
        return camel(self.singular)

    @property
    def class_names(self) -> str:
        """`invoice_items` as InvoiceItems: how everything in template.yaml begins that belongs to the worker."""
        return camel(self.name)

    @property
    def words(self) -> str:
        """The name in a sentence."""
        return self.name.replace("_", " ")

    @property
    def word(self) -> str:
        """The singular in a sentence."""
        return self.singular.replace("_", " ")

    def fill(self, text: str, **others: str) -> str:
        """`text` with its {{placeholders}} filled in. Raises KeyError for one that has no meaning."""
        abbreviation = self.singular[:3]
        meanings = {
            "name": self.name,
            "singular": self.singular,
            "Class": self.class_name,
            "Classes": self.class_names,
            "words": self.words,
            "word": self.word,
            "abbreviation": abbreviation,
            "id": f"{abbreviation}-1001",
            "other_id": f"{abbreviation}-1002",
        } | others
        return _PLACEHOLDER.sub(lambda match: meanings[match[1]], text)


_ANOTHER_SINGULAR = "Choose another one with --singular."


def singular_of(name: str) -> str:
    """`name`, an English plural, as singular. Raises SpillwayError where it does not look like a plural."""
    for plural, singular in (
        (r"(.{2,})ies", r"\1y"),
        (r"(.+(?:ss|x|z|ch|sh))es", r"\1"),
        (r"(.*[^s])s", r"\1"),
    ):
        if match := re.fullmatch(plural, name):
            return match.expand(singular)
    raise SpillwayError(
        f"{name!r} does not look like a plural, which the name of a worker is.",
        "Name the singular with --singular: it is in the names of event types and classes.",
    )


def _check(name: str, what: str, example: str) -> None:
    if not _NAME.fullmatch(name):
        raise SpillwayError(
            f"{name!r} cannot be the {what}.",
            f"Expected lower-case letters, digits and single underscores between them, such as {example!r}.",
        )
    if len(name) > MAX_LENGTH:
        raise SpillwayError(f"The {what} has {len(name)} characters.", f"Expected {MAX_LENGTH} at most.")
    if keyword.iskeyword(name):
        raise SpillwayError(f"{name!r} cannot be the {what}: Python uses the word itself.", "Choose another one.")


def camel(name: str) -> str:
    """`invoice_items` as InvoiceItems."""
    return "".join(part.capitalize() for part in name.split("_"))
