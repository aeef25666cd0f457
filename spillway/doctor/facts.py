"""What the doctor knows of a fleet. Each member is fetched when a check first asks for it, and once.

A member's loader has its own module, `facts_<what>.py`, and returns plain frozen dataclasses. What it raises, every
check that asks for the member gets: so members are as small as the permissions they need.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from spillway.doctor.facts_alarms import Alarm
    from spillway.doctor.facts_database import Database
    from spillway.doctor.facts_functions import Account, EventSource, Function
    from spillway.doctor.facts_instance import Instance, Maintenance
    from spillway.doctor.facts_load import Load
    from spillway.doctor.facts_login import Login
    from spillway.doctor.facts_network import Network
    from spillway.doctor.facts_proxy import Proxy
    from spillway.doctor.facts_queues import Queue
    from spillway.doctor.facts_secrets import Secret
    from spillway.doctor.facts_stack import Stack
    from spillway.fleet.fleet import Fleet

T = TypeVar("T")


class fact(Generic[T]):  # noqa: N801  (a decorator, as property is)
    """A property that is computed once, by whichever thread is first; an error is kept and raised again."""

    def __init__(self, load: Callable[[Any], T]) -> None:
        self._load = load
        self.__doc__ = load.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, facts: None, owner: type) -> Self: ...
    @overload
    def __get__(self, facts: Facts, owner: type) -> T: ...
    def __get__(self, facts: Facts | None, owner: type) -> Self | T:
        if facts is None:
            return self
        with facts.lock_of(self._name):
            if self._name not in facts.known:
                try:
                    facts.known[self._name] = (self._load(facts), None)
                except Exception as error:  # the next check that asks must hear it, too, and AWS not be asked again
                    facts.known[self._name] = (None, error)
            value, failed = facts.known[self._name]
        if failed is not None:
            raise failed
        result: T = value
        return result


class Facts:
    """A fleet, and what is known of it. `dsn` is the database as an administrator sees it, None where nobody said.

    Tests give facts by name: `Facts(fleet, known={"queues": {...}})`. Members may be asked for by several threads.
    """

    def __init__(
        self,
        fleet: Fleet,
        dsn: str | None = None,
        *,
        now: datetime | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        self.fleet = fleet
        self.dsn = dsn if dsn is not None or fleet.local is None else fleet.local.dsn
        self.now = now or datetime.now(UTC)
        self.known: dict[str, tuple[Any, Exception | None]] = {
            name: (value, None) for name, value in (known or {}).items()
        }
        self._guard = threading.Lock()
        self._locks: dict[str, threading.RLock] = {}

    def lock_of(self, name: str) -> threading.RLock:
        with self._guard:
            return self._locks.setdefault(name, threading.RLock())

    @fact
    def stack(self) -> Stack:
        """The template as it was deployed, and its parameters."""
        from spillway.doctor import facts_stack  # noqa: PLC0415

        return facts_stack.load(self.fleet)

    @fact
    def queues(self) -> dict[str, Queue]:
        """Queues and dead-letter queues by name, as SQS describes them."""
        from spillway.doctor import facts_queues  # noqa: PLC0415

        return facts_queues.load(self.fleet)

    @fact
    def functions(self) -> dict[str, Function]:
        """The fleet's functions by name, workers or not."""
        from spillway.doctor import facts_functions  # noqa: PLC0415

        return facts_functions.load_functions(self)

    @fact
    def mappings(self) -> dict[str, EventSource]:
        """The event source mappings by worker."""
        from spillway.doctor import facts_functions  # noqa: PLC0415

        return facts_functions.load_mappings(self)

    @fact
    def account(self) -> Account:
        """The account's Lambda limits."""
        from spillway.doctor import facts_functions  # noqa: PLC0415

        return facts_functions.load_account(self)

    @fact
    def database(self) -> Database:
        """The database, as `dsn` sees it."""
        from spillway.doctor import facts_database  # noqa: PLC0415

        return facts_database.load(self)

    @fact
    def login(self) -> Login:
        """What became of logging in as the workers do, and as nobody should be able to."""
        from spillway.doctor import facts_login  # noqa: PLC0415

        return facts_login.load(self)

    @fact
    def proxy(self) -> Proxy | None:
        """The RDS Proxy's settings and targets; AWS only."""
        from spillway.doctor import facts_proxy  # noqa: PLC0415

        return facts_proxy.load(self)

    @fact
    def proxy_load(self) -> Load | None:
        """What the proxy, or its emulator, has had to do."""
        from spillway.doctor import facts_load  # noqa: PLC0415

        return facts_load.load(self)

    @fact
    def network(self) -> Network:
        """Security groups, endpoints and subnets; AWS only."""
        from spillway.doctor import facts_network  # noqa: PLC0415

        return facts_network.load(self)

    @fact
    def instance(self) -> Instance | None:
        """The database as RDS describes it; AWS only."""
        from spillway.doctor import facts_instance  # noqa: PLC0415

        return facts_instance.load(self)

    @fact
    def authorities(self) -> dict[str, datetime]:
        """When RDS's certificate authorities expire; AWS only."""
        from spillway.doctor import facts_instance  # noqa: PLC0415

        return facts_instance.load_authorities(self)

    @fact
    def maintenance(self) -> tuple[Maintenance, ...]:
        """What is pending on the database; AWS only."""
        from spillway.doctor import facts_instance  # noqa: PLC0415

        return facts_instance.load_maintenance(self)

    @fact
    def application_secret(self) -> Secret | None:
        """The secret that the proxy logs in with, without its value; AWS only."""
        from spillway.doctor import facts_secrets  # noqa: PLC0415

        return facts_secrets.load_application(self)

    @fact
    def master_secret(self) -> Secret | None:
        """The secret of the database's master user, without its value; AWS only."""
        from spillway.doctor import facts_secrets  # noqa: PLC0415

        return facts_secrets.load_master(self)

    @fact
    def alarms(self) -> tuple[Alarm, ...]:
        """The stack's alarms; AWS only."""
        from spillway.doctor import facts_alarms  # noqa: PLC0415

        return facts_alarms.load(self)
