"""What every worker's history has: messages as a queue would deliver them, and the truth they must end in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from uuid import UUID

import msgspec

from spillway.histories.poison import json_of

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from psycopg import Connection

    from spillway.histories.poison import Event, Poison

VALID = "valid"
DUPLICATE = "duplicate"


class Message(NamedTuple):
    """A message. `kind`: VALID, DUPLICATE (an earlier VALID one's body) or a poison kind. `group`: its FIFO group."""

    body: str
    kind: str
    group: str = ""


class History(ABC):
    """Messages in the order in which they are sent. Each worker's subclass knows what must become of them."""

    worker: ClassVar[str]
    #: Its table of claimed event ids, in the schema spillway.
    claims: ClassVar[str]
    poison: ClassVar[Mapping[str, Poison]]

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages

    @cached_property
    def event_ids(self) -> frozenset[UUID]:
        """The ids of the valid events: each must take effect, or be rejected, exactly once."""
        return frozenset(_id_of(message.body) for message in self.messages if message.kind == VALID)

    @cached_property
    def broken(self) -> Counter[str]:
        """The bodies that must be dead-lettered, with how often each is sent."""
        return Counter(message.body for message in self.messages if message.kind not in (VALID, DUPLICATE))

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Why each broken body is dead-lettered, as its dead letter says it."""
        kinds = {message.body: message.kind for message in self.messages if message.kind not in (VALID, DUPLICATE)}
        return {body: str(self.poison[kind].reason) for body, kind in kinds.items()}

    @abstractmethod
    def violations(self, connection: Connection[Any]) -> list[str]:
        """Sentences about what does not hold in the database once every message is done; none if all is well.

        `connection` is the owner's, in autocommit mode. Only this history's own keys are looked at, so that several
        histories can share a database.
        """


class _WithId(msgspec.Struct):
    id: UUID


_decode_id = msgspec.json.Decoder(_WithId).decode


def _id_of(body: str) -> UUID:
    return _decode_id(body).id


# What the generators share.

#: How far apart, in messages, two neighbours of a standard queue may end up: about what it does under load.
SHUFFLE = 60


class Shares(NamedTuple):
    """How many messages of a history are of which kind."""

    valid: int
    repeated: int
    broken: int


def shares(events: int, duplicates: float, poison: float) -> Shares:
    """Of `events` messages, the shares `duplicates` and `poison`. Raises ValueError for what does not fit."""
    if events < 0 or duplicates < 0 or poison < 0 or duplicates + poison > 1:
        raise ValueError("Expected events >= 0 and shares of duplicates and poison that add up to at most 1")
    broken, repeated = round(events * poison), round(events * duplicates)
    valid = events - broken - repeated
    if repeated and not valid:
        raise ValueError("Expected at least one valid event to repeat")
    return Shares(valid, repeated, broken)


def deliver(
    rng: random.Random,
    valid: Iterable[Event],
    repeated: int,
    broken: Iterable[Event],
    kinds: Mapping[str, Poison],
    *,
    duplicate_gap: int,
) -> list[Message]:
    """Events as a standard queue delivers them: a bit out of order, `repeated` of them again, broken ones among them.

    A repeat comes at most `duplicate_gap` messages after the first. `broken` are valid events to be broken, in all of
    `kinds` equally often.
    """
    placed: list[tuple[float, Message]] = []
    for position, event in enumerate(valid):
        placed.append((position + rng.random() * SHUFFLE, Message(json_of(event), VALID)))
    length = len(placed)
    for first, message in pick(rng, placed, repeated):
        placed.append((first + rng.random() * duplicate_gap, Message(message.body, DUPLICATE)))
    names = sorted(kinds, key=lambda _: rng.random())
    for number, event in enumerate(broken):
        name = names[number % len(names)]
        placed.append((rng.random() * (length + SHUFFLE), Message(kinds[name].breaks(event, rng), name)))
    placed.sort(key=lambda entry: entry[0])
    return [message for _, message in placed]


def pick(rng: random.Random, placed: list[tuple[float, Message]], count: int) -> Iterator[tuple[float, Message]]:
    """`count` of `placed`, each as often as any other give or take one."""
    chosen = sorted(placed, key=lambda _: rng.random())
    return (chosen[number % len(chosen)] for number in range(count))


def stamp(moment: datetime) -> str:
    """`moment` (UTC) in RFC 3339, to the millisecond."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def event_id(rng: random.Random, moment: datetime) -> str:
    """A UUID of version 7 whose clock is `moment` and whose chance is `rng`."""
    millisecond = int(moment.timestamp() * 1000)
    bits = millisecond << 80 | 0x7 << 76 | rng.getrandbits(12) << 64 | 0b10 << 62 | rng.getrandbits(62)
    return str(UUID(int=bits))
