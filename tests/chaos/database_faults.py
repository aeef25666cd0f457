"""Faults of PostgreSQL: sessions ended, restarts, crashes, a full disk, locks that nobody gives up."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import psycopg

from tests.chaos.faults import Fault, Strike, fault
from tests.chaos.histories import CLAIMS
from tests.chaos.hooks import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from spillway.stack.postgres import StopMode
    from tests.chaos.fleet import Fleet

WORKERS_ROLE = "spillway_app"
_DROP_TIMEOUT_S = 30


def _execute(fleet: Fleet, *statements: str) -> None:
    """As the owner; again if somebody else's fault gets in between."""

    def done() -> bool:
        try:
            with fleet.connect() as connection:
                for statement in statements:
                    connection.execute(statement)
        except psycopg.OperationalError:
            return False
        return True

    if not wait_until(done, _DROP_TIMEOUT_S):
        raise AssertionError("expected PostgreSQL to be there again")


class SlowWrites:
    """While it is entered, a `share` of a worker's batches take `seconds` more, in the statement or at its commit."""

    def __init__(
        self, fleet: Fleet, worker: str, seconds: float, *, at_commit: bool = False, share: float = 1.0
    ) -> None:
        self._fleet, self._worker, self._seconds, self._at_commit = fleet, worker, seconds, at_commit
        self._share = share
        self._table = f"spillway.{CLAIMS[worker]}"

    def __enter__(self) -> Self:
        # Once per transaction: a deferred trigger is fired for each row.
        once = "current_setting('chaos.slept', true) IS DISTINCT FROM pg_current_xact_id()::text"
        remember = "PERFORM set_config('chaos.slept', pg_current_xact_id()::text, true)"
        when = (
            f"CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON {self._table} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
            if self._at_commit
            else f"CREATE TRIGGER dawdle AFTER INSERT ON {self._table} FOR EACH STATEMENT"
        )
        _execute(
            self._fleet,
            "CREATE OR REPLACE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$BEGIN IF {once} THEN {remember}; IF random() < TG_ARGV[1]::float8 THEN"
            " PERFORM pg_sleep(TG_ARGV[0]::float8); END IF; END IF; RETURN NULL; END$$",
            f"DROP TRIGGER IF EXISTS dawdle ON {self._table}",
            f"{when} EXECUTE FUNCTION public.dawdle('{self._seconds}', '{self._share}')",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        _execute(self._fleet, f"DROP TRIGGER IF EXISTS dawdle ON {self._table}")

    def writing(self) -> bool:
        """Whether a batch of the worker is being held up right now."""
        try:
            with self._fleet.connect() as connection:
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE usename = %s AND wait_event = 'PgSleep' AND query LIKE %s",
                    [WORKERS_ROLE, f"%apply_{self._worker}(%"],
                ).fetchone()
        except psycopg.OperationalError:
            return False
        return row is not None and row[0] > 0


@contextmanager
def lock_claims(fleet: Fleet, worker: str) -> Iterator[None]:
    """Nobody can claim an event of this worker."""
    connection = fleet.connect()
    try:
        with connection.transaction():
            connection.execute(f"LOCK TABLE spillway.{CLAIMS[worker]} IN ACCESS EXCLUSIVE MODE")
            yield
    except psycopg.OperationalError:
        pass  # the database was restarted by somebody else's fault, and the lock is gone
    finally:
        connection.close()


@fault
class TerminateStorm(Fault):
    """Every database session of the workers' role is ended, several times in a row."""

    name = "pg_terminate_backend storm"

    def strike(self, strike: Strike) -> int:
        ended = 0
        for _ in range(strike.rng.randint(4, 8)):
            try:
                with strike.fleet.connect() as connection:
                    row = connection.execute(
                        "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
                        " WHERE usename = %s",
                        [WORKERS_ROLE],
                    ).fetchone()
            except psycopg.OperationalError:
                row = None
            ended += row[0] if row else 0
            strike.pause(strike.rng.uniform(0.1, 0.6))
        return ended


class _Restart(Fault):
    mode: ClassVar[StopMode]

    def strike(self, strike: Strike) -> int:
        strike.fleet.stack.postgres.restart(self.mode)
        return 1


@fault
class FastRestart(_Restart):
    name = "PostgreSQL restarts (fast)"
    mode = "fast"


@fault
class ImmediateRestart(_Restart):
    """A crash: the server recovers from its log."""

    name = "PostgreSQL crashes (immediate)"
    mode = "immediate"


@fault
class DiskFull(Fault):
    """A trigger says what a full disk would: mounting one that is really small takes privileges."""

    name = "disk full (53100)"
    TEXT = "could not extend file: no space left (chaos)"

    def strike(self, strike: Strike) -> int:
        fleet = strike.fleet
        before = fleet.server_log_count(f"ERROR:  {self.TEXT}")
        create = (
            "CREATE TRIGGER full_disk BEFORE INSERT ON spillway.{}"
            " FOR EACH STATEMENT EXECUTE FUNCTION public.full_disk()"
        )
        _execute(
            fleet,
            "CREATE OR REPLACE FUNCTION public.full_disk() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$BEGIN RAISE EXCEPTION '{self.TEXT}' USING ERRCODE = 'disk_full'; END$$",
            *(create.format(CLAIMS[name]) for name in fleet.names),
        )
        strike.pause(strike.seconds(2, 5))
        strike.wait(lambda: fleet.server_log_count(f"ERROR:  {self.TEXT}") > before)
        return fleet.server_log_count(f"ERROR:  {self.TEXT}") - before

    def heal(self, strike: Strike) -> None:
        names = strike.fleet.names
        _execute(strike.fleet, *(f"DROP TRIGGER IF EXISTS full_disk ON spillway.{CLAIMS[name]}" for name in names))


@fault
class LockedTable(Fault):
    """Statements wait for a lock until their own limit ends them."""

    name = "a table locked for seconds"

    def strike(self, strike: Strike) -> int:
        text = "ERROR:  canceling statement due to"
        before = strike.fleet.server_log_count(text)
        with lock_claims(strike.fleet, strike.worker):
            strike.pause(strike.seconds(2, 4))
            strike.wait(lambda: strike.fleet.server_log_count(text) > before)
        return strike.fleet.server_log_count(text) - before


@fault
class SlowCommits(Fault):
    """Commits are slow, so locks are held while others want them; a quarter of a second is less than lock_timeout."""

    name = "slow commits"
    takes = "slow writes"
    burst = 40

    def strike(self, strike: Strike) -> int:
        seen = 0
        with SlowWrites(strike.fleet, strike.worker, 0.25, at_commit=True) as slow:
            ends_in = strike.seconds(6, 9)
            while ends_in > 0 or (not seen and ends_in > -strike.PATIENCE_S):
                seen += slow.writing()
                strike.pause(0.2)
                ends_in -= 0.2
        return seen

    def heal(self, strike: Strike) -> None:
        SlowWrites(strike.fleet, strike.worker, 0).remove()


@fault
class SlowStatements(Fault):
    """Every third statement is ended by its timeout, so batches are cut and parts of them fail."""

    name = "statements that run into their timeout"
    takes = "slow writes"

    def strike(self, strike: Strike) -> int:
        text = "ERROR:  canceling statement due to statement timeout"
        before = strike.fleet.server_log_count(text)
        with SlowWrites(strike.fleet, strike.worker, 1.5, share=0.35):
            strike.pause(strike.seconds(6, 9))
            strike.wait(lambda: strike.fleet.server_log_count(text) > before)
        return strike.fleet.server_log_count(text) - before

    def heal(self, strike: Strike) -> None:
        SlowWrites(strike.fleet, strike.worker, 0).remove()
