"""A database connection between two borrowers."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from spillway.rdsproxy import wire
from spillway.rdsproxy.database import DatabaseConnection
from spillway.rdsproxy.database_state import Preparation
from spillway.rdsproxy.pool import Identity

NOTICE = wire.message(wire.NOTICE, b"SNOTICE\0Mhm\0\0")
ANSWER = wire.message(ord("C"), b"SET\0") + wire.ready()


@pytest.mark.parametrize(
    ("behind", "fit"),
    [
        (b"", True),
        (NOTICE, True),
        (NOTICE[:-1], False),
        (b"N", False),
        (wire.error_response("FATAL", "57P01", "shutting down"), False),
    ],
    ids=["nothing", "a notice", "part of a notice", "part of a header", "a farewell"],
)
def test_what_comes_behind_a_private_exchange_never_reaches_the_client(behind: bytes, fit: bool) -> None:
    """What is left of it would be taken for the beginning of the client's first answer."""
    lost, prepared = Mock(), Mock()
    connection = DatabaseConnection(Identity("app", "shop"), 1, lost)
    connection.connection_made(Mock())
    connection.establish()
    connection.client = client = Mock()
    connection._start_preparation(Preparation([(wire.query("SET a.b = 1"), None)]), prepared)
    connection.data_received(ANSWER + behind)
    assert prepared.called == fit
    assert lost.called != fit
    assert client.database_lost.called != fit
