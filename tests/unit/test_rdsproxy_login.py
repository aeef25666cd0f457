"""Both logins of the proxy: a client's at the proxy, and the proxy's at the database."""

from __future__ import annotations

import struct
from base64 import b64encode
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scramp import ScramClient

from spillway.rdsproxy import client_login, errors, wire
from spillway.rdsproxy.client_login import MAX_PASSWORD_MESSAGE, ClientLogin, LoginRefused
from spillway.rdsproxy.database_login import MAX_MESSAGE, DatabaseLogin, DatabaseRefused
from spillway.rdsproxy.iam import TokenVerifier
from spillway.rdsproxy.settings import IamAuth, ProxySettings, Secret, Target
from spillway.rdsproxy.startup import MessageBuffer, Startup, parse_startup
from workers.runtime.iam_token import rds_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spillway.rdsproxy.errors import ProxyError

ROLE = "spillway_app"
PASSWORD = "correct horse, battery=staple"
NOW = datetime(2026, 11, 21, 12, 30, 15, tzinfo=UTC)
TARGET = Target(host="127.0.0.1", port=5432, database="shop", user="owner")
VERIFIER = TokenVerifier({"AKID": "secret"}, "eu-west-1", ["localhost"], 5432)

OK = b"R\0\0\0\x08\0\0\0\0"
READY = b"".join(
    (
        wire.parameter_status("server_version", "18.0"),
        wire.parameter_status("TimeZone", "UTC"),
        wire.message(wire.BACKEND_KEY_DATA, struct.pack("!II", 4711, 99)),
        wire.ready(),
    )
)


def authentication(method: int, data: bytes = b"") -> bytes:
    return wire.message(wire.AUTHENTICATION, struct.pack("!I", method) + data)


def password_message(body: bytes) -> bytes:
    return wire.message(wire.PASSWORD, body)


def initial(text: str, mechanism: bytes = b"SCRAM-SHA-256") -> bytes:
    return password_message(mechanism + b"\0" + struct.pack("!I", len(text)) + text.encode())


def login(
    secret: Secret | None,
    *,
    iam_auth: IamAuth = "disabled",
    require_tls: bool = False,
    tls: bool = True,
    verifier: TokenVerifier | None = VERIFIER,
) -> ClientLogin:
    settings = ProxySettings(target=TARGET, iam_auth=iam_auth, require_tls=require_tls)
    startup = Startup(ROLE, "shop")
    return ClientLogin(startup, secret=secret, settings=settings, tls=tls, token_verifier=verifier, now=lambda: NOW)


SECRET = Secret(username=ROLE, password=PASSWORD)


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = 0
    for cut in [*cuts, len(data)]:
        yield data[at : at + cut]
        at += cut
        if at >= len(data):
            return


def bytewise(data: bytes) -> Iterator[bytes]:
    return pieces(data, [1] * len(data))


def feed(machine: ClientLogin | DatabaseLogin, data: bytes, split: Callable[[bytes], Iterator[bytes]]) -> bytes:
    return b"".join([machine.feed(piece) for piece in split(data)])


def messages(data: bytes) -> list[tuple[int, bytes]]:
    buffer = MessageBuffer(10_000)
    buffer.feed(data)
    found = []
    while message := buffer.next():
        found.append(message)
    assert buffer.rest == b""
    return found


def refusal(machine: ClientLogin, data: bytes) -> ProxyError:
    with pytest.raises(LoginRefused) as caught:
        machine.feed(data)
    assert not machine.done
    # Nothing can be done to come in after all.
    for more in (b"", data, initial("n,,n=,r=nonce")):
        with pytest.raises(LoginRefused):
            machine.feed(more)
    assert not machine.done
    return caught.value.error


class TestOrderOfChecks:
    @pytest.mark.parametrize(
        ("machine", "error"),
        [
            (login(None, require_tls=True, tls=False, iam_auth="required"), errors.TLS_REQUIRED),
            (login(None, tls=False, iam_auth="required"), errors.no_credentials(ROLE)),
            (login(SECRET, tls=False, iam_auth="required"), errors.IAM_NEEDS_TLS),
            (login(SECRET, iam_auth="required", verifier=None), errors.UNKNOWN),
            (login(None), errors.no_credentials(ROLE)),
        ],
    )
    def test_refused_before_any_question(self, machine: ClientLogin, error: ProxyError) -> None:
        with pytest.raises(LoginRefused) as caught:
            machine.start()
        assert caught.value.error == error
        assert not machine.done
        with pytest.raises(RuntimeError):
            machine.feed(password_message(b"x\0"))
        assert not machine.done

    def test_a_secret_without_password_lets_in_at_once(self) -> None:
        machine = login(Secret(username=ROLE), tls=False)
        assert machine.start() == OK
        assert machine.done
        assert machine.feed(wire.query("SELECT 1")) == b""
        assert machine.rest == wire.query("SELECT 1")

    def test_iam_is_required_even_where_the_secret_has_no_password(self) -> None:
        machine = login(Secret(username=ROLE), iam_auth="required")
        assert machine.start() == authentication(3)
        assert not machine.done


class TestIam:
    @pytest.fixture
    def token(self, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKID")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "x" * 1500)
        return rds_token("localhost", 5432, ROLE, "eu-west-1", now=NOW)

    @pytest.mark.parametrize("split", [bytewise, lambda data: iter([data])])
    def test_right(self, token: str, split: Callable[[bytes], Iterator[bytes]]) -> None:
        machine = login(SECRET, iam_auth="required")
        assert machine.start() == authentication(3)
        assert feed(machine, password_message(wire.cstring(token)) + wire.SYNC_MESSAGE, split) == OK
        assert machine.done
        assert machine.rest == wire.SYNC_MESSAGE

    @pytest.mark.parametrize("password", [b"\0", PASSWORD.encode() + b"\0", b"\xff\0"])
    def test_wrong(self, password: bytes) -> None:
        machine = login(SECRET, iam_auth="required")
        machine.start()
        assert refusal(machine, password_message(password)) == errors.iam_failed(ROLE)

    def test_why_is_for_the_log_only(self, token: str) -> None:
        machine = login(SECRET, iam_auth="required")
        machine.start()
        with pytest.raises(LoginRefused) as caught:
            machine.feed(password_message(wire.cstring(token + "0")))
        assert caught.value.error == errors.iam_failed(ROLE)
        assert "signature does not match" in caught.value.reason

    def test_a_crash_lets_nobody_in(self) -> None:
        machine = login(SECRET, iam_auth="required")
        machine.start()
        with mock.patch.object(VERIFIER, "verify", side_effect=ZeroDivisionError), pytest.raises(ZeroDivisionError):
            machine.feed(password_message(b"token\0"))
        with pytest.raises(RuntimeError):
            machine.feed(password_message(b"token\0"))
        assert not machine.done

    @pytest.mark.parametrize("body", [b"", b"token", b"token\0more\0"])
    def test_no_password_message(self, body: bytes) -> None:
        machine = login(SECRET, iam_auth="required")
        machine.start()
        assert refusal(machine, password_message(body)).sqlstate == "08P01"


def scram(machine: ClientLogin, password: str, split: Callable[[bytes], Iterator[bytes]] = bytewise) -> None:
    """What a client does, with scramp; raises LoginRefused."""
    assert machine.start() == authentication(10, b"SCRAM-SHA-256\0\0")
    client = ScramClient(["SCRAM-SHA-256"], "ignored", password)
    ((kind, body),) = messages(feed(machine, initial(client.get_client_first()), split))
    assert (kind, body[:4]) == (wire.AUTHENTICATION, struct.pack("!I", 11))
    client.set_server_first(body[4:].decode())
    final = password_message(client.get_client_final().encode())
    (_, body), ok = messages(feed(machine, final + wire.SYNC_MESSAGE, split))
    assert body[:4] == struct.pack("!I", 12)
    client.set_server_final(body[4:].decode())
    assert ok == (wire.AUTHENTICATION, bytes(4))


class TestScram:
    @given(password=st.text(st.characters(min_codepoint=33, max_codepoint=0x24F), max_size=30), cuts=st.data())
    def test_right(self, password: str, cuts: st.DataObject) -> None:
        def split(data: bytes) -> Iterator[bytes]:
            return pieces(data, cuts.draw(st.lists(st.integers(0, 60), max_size=5)))

        try:
            ScramClient(["SCRAM-SHA-256"], "x", password)
        except Exception:
            return  # a password that SASLprep forbids; PostgreSQL takes it as it is, scramp's client does not
        machine = login(Secret(username=ROLE, password=password))
        scram(machine, password, split)
        assert machine.done
        assert machine.rest == wire.SYNC_MESSAGE

    def test_byte_by_byte(self) -> None:
        machine = login(SECRET)
        scram(machine, PASSWORD)
        assert machine.rest == wire.SYNC_MESSAGE

    @pytest.mark.parametrize("password", ["wrong", PASSWORD + " ", PASSWORD.upper(), ""])
    def test_wrong(self, password: str) -> None:
        machine = login(SECRET)
        with pytest.raises(LoginRefused) as caught:
            scram(machine, password)
        assert caught.value.error == errors.wrong_password(ROLE)
        assert not machine.done
        assert refusal(machine, b"") == errors.wrong_password(ROLE)

    def test_passwords_are_prepared_as_postgresql_does(self) -> None:
        # A no-break space is a space and a soft hyphen nothing (RFC 4013).
        machine = login(Secret(username=ROLE, password="a\u00a0b\u00adc"))
        scram(machine, "a bc")
        assert machine.done

    def test_keys_are_computed_once(self) -> None:
        secret = Secret(username=ROLE, password="once")
        with mock.patch.object(client_login.hashlib, "pbkdf2_hmac", wraps=client_login.hashlib.pbkdf2_hmac) as rounds:
            for _ in range(5):
                login(secret).start()
        assert rounds.call_count == 1

    def test_each_login_has_its_own_nonce(self) -> None:
        answers = set()
        for _ in range(5):
            machine = login(SECRET)
            machine.start()
            answers.add(machine.feed(initial("n,,n=,r=nonce")))
        assert len(answers) == 5

    def test_a_recorded_login_is_worth_nothing(self) -> None:
        recorded: list[bytes] = []
        first = login(SECRET)

        def record(data: bytes) -> Iterator[bytes]:
            recorded.append(data)
            return iter([data])

        scram(first, PASSWORD, record)
        second = login(SECRET)
        second.start()
        second.feed(recorded[0])
        assert refusal(second, recorded[1]).sqlstate == "08P01"

    def test_libpq_sends_no_name(self) -> None:
        machine = login(SECRET)
        machine.start()
        for flag in ("n", "y"):
            machine = login(SECRET)
            machine.start()
            assert messages(machine.feed(initial(f"{flag},,n=,r=nonce")))[0][1][4:].startswith(b"r=nonce")

    @pytest.mark.parametrize(
        ("message", "sqlstate"),
        [
            (password_message(PASSWORD.encode() + b"\0"), "28000"),
            (password_message(b"md5" + b"0" * 32 + b"\0"), "28000"),
            (initial("p=tls-server-end-point,,n=,r=x", b"SCRAM-SHA-256-PLUS"), "28000"),
            (initial("n,,n=,r=x", b"PLAIN"), "28000"),
            (initial("p=tls-unique,,n=,r=x"), "08P01"),
            (initial("n,a=other,n=,r=x"), "08P01"),
            (initial("n,,n=,r="), "08P01"),
            (initial("n,,n="), "08P01"),
            (initial("n,,r=x,n="), "08P01"),
            (initial("n,,n=,r=\x01"), "08P01"),
            (initial("n,,m=ext,n=,r=x"), "08P01"),
            (initial(""), "08P01"),
            (password_message(b"SCRAM-SHA-256\0\xff\xff\xff\xff"), "08P01"),
            (password_message(b"SCRAM-SHA-256\0\0\0\0\x09n,,n=,r="), "08P01"),
            (password_message(b"SCRAM-SHA-256\0\0\0\0\x01\xff"), "08P01"),
            (wire.query("SELECT 1"), "08P01"),
            (wire.TERMINATE_MESSAGE, "08P01"),
            (wire.startup_message({"user": ROLE}), "08P01"),
            (struct.pack("!BI", wire.PASSWORD, MAX_PASSWORD_MESSAGE + 1), "08P01"),
            (struct.pack("!BI", wire.PASSWORD, 3), "08P01"),
        ],
    )
    def test_what_no_client_may_begin_with(self, message: bytes, sqlstate: str) -> None:
        machine = login(SECRET)
        machine.start()
        assert refusal(machine, message).sqlstate == sqlstate

    @pytest.mark.parametrize(
        "final",
        [
            "",
            "c=biws,r={nonce}",
            "c=biws,r=other,p={proof}",
            "c=eSws,r={nonce},p={proof}",
            "c=biws,r={nonce}x,p={proof}",
            "c=biws,r={nonce},p=",
            "c=biws,r={nonce},p=%%%",
            "c=biws,r={nonce},p=AAAA",
            "c=biws,r={nonce},p={proof}AAAA",
        ],
    )
    def test_malformed_ends(self, final: str) -> None:
        machine = login(SECRET)
        machine.start()
        server_first = messages(machine.feed(initial("n,,n=,r=nonce")))[0][1][4:].decode()
        nonce = server_first.split(",")[0][2:]
        text = final.format(nonce=nonce, proof=b64encode(bytes(32)).decode())
        assert refusal(machine, password_message(text.encode())).sqlstate == "08P01"

    @pytest.mark.parametrize("proof", [bytes(32), b"\xff" * 32])
    def test_a_guessed_proof(self, proof: bytes) -> None:
        machine = login(SECRET)
        machine.start()
        server_first = messages(machine.feed(initial("n,,n=,r=nonce")))[0][1][4:].decode()
        nonce = server_first.split(",")[0][2:]
        text = f"c=biws,r={nonce},p={b64encode(proof).decode()}"
        assert refusal(machine, password_message(text.encode())) == errors.wrong_password(ROLE)

    @given(st.binary(max_size=200))
    def test_noise(self, noise: bytes) -> None:
        machine = login(SECRET)
        machine.start()
        try:
            machine.feed(noise)
            machine.feed(password_message(noise))
        except LoginRefused:
            pass
        assert not machine.done


class TestDatabaseLogin:
    def new(self, password: str | None = PASSWORD) -> DatabaseLogin:
        return DatabaseLogin(ROLE, password, "shop", {"application_name": "proxy"})

    def refused(self, machine: DatabaseLogin, data: bytes) -> DatabaseRefused:
        with pytest.raises(DatabaseRefused) as caught:
            feed(machine, data, bytewise)
        assert not machine.done
        return caught.value

    def test_starts(self) -> None:
        startup = parse_startup(self.new().start())
        assert startup == Startup(ROLE, "shop", {"application_name": "proxy"})

    @pytest.mark.parametrize("password", [None, PASSWORD])
    @pytest.mark.parametrize("split", [bytewise, lambda data: iter([data])])
    def test_trust(self, password: str | None, split: Callable[[bytes], Iterator[bytes]]) -> None:
        machine = self.new(password)
        notice = wire.error_response("WARNING", "01000", "collation").replace(b"E", b"N", 1)
        negotiate = wire.message(wire.NEGOTIATE_PROTOCOL_VERSION, struct.pack("!II", 0, 0))
        assert feed(machine, negotiate + OK + notice + READY + wire.query("rest"), split) == b""
        assert machine.done
        assert machine.parameter_status == {"server_version": "18.0", "TimeZone": "UTC"}
        assert machine.backend_pid == 4711
        assert machine.rest == wire.query("rest")

    def test_clear_text(self) -> None:
        machine = self.new()
        assert feed(machine, authentication(3), bytewise) == password_message(PASSWORD.encode() + b"\0")
        assert feed(machine, OK + READY, bytewise) == b""
        assert machine.done

    def test_md5(self) -> None:
        # By hand: md5(md5("pu") + salt), each in hexadecimal.
        machine = DatabaseLogin("u", "p", "shop", {})
        answer = machine.feed(authentication(5, b"\1\2\3\4"))
        assert answer == password_message(b"md5facdc455923b0a58efea84a6d9ee0e76\0")

    @given(cuts=st.lists(st.integers(0, 60), max_size=8), password=st.sampled_from([PASSWORD, "pä\u00a0ss", "x"]))
    def test_scram_against_the_proxys_own_server(self, cuts: list[int], password: str) -> None:
        machine, server = self.new(password), login(Secret(username=ROLE, password=password))
        to_client = server.start()
        for _ in range(2):
            to_server = feed(machine, to_client, lambda data: pieces(data, cuts))
            to_client = feed(server, to_server, lambda data: pieces(data, cuts))
        assert server.done
        assert feed(machine, to_client + READY, lambda data: pieces(data, cuts)) == b""
        assert machine.done

    def test_a_server_must_prove_that_it_knows_the_password(self) -> None:
        for lie in (OK, authentication(12, b"v=" + b64encode(bytes(32))) + OK):
            machine, server = self.new(), login(SECRET)
            server.feed(b"")
            answer = server.feed(machine.feed(server.start()))
            machine.feed(answer)
            assert self.refused(machine, lie).sqlstate == "08P01"

    def test_the_databases_words(self) -> None:
        refused = self.refused(self.new(), wire.error_response("FATAL", "3D000", 'database "shop" does not exist'))
        assert (refused.sqlstate, refused.message) == ("3D000", 'database "shop" does not exist')

    def test_an_error_after_authentication(self) -> None:
        refused = self.refused(self.new(), OK + wire.error_response("FATAL", "53300", "too many clients already"))
        assert refused.sqlstate == "53300"

    def test_an_error_without_words(self) -> None:
        assert self.refused(self.new(), wire.message(wire.ERROR, b"\0")).sqlstate == "XX000"

    @pytest.mark.parametrize(
        "question", [authentication(3), authentication(5, b"salt"), authentication(10, b"SCRAM-SHA-256\0\0")]
    )
    def test_a_password_is_needed(self, question: bytes) -> None:
        refused = self.refused(self.new(None), question)
        assert refused.sqlstate == "28P01"
        assert "the proxy has none for user spillway_app" in refused.message

    @pytest.mark.parametrize(
        ("answer", "sqlstate"),
        [
            (authentication(7), "0A000"),  # GSSAPI
            (authentication(10, b"SCRAM-SHA-256-PLUS\0\0"), "0A000"),
            (authentication(10, b"\0"), "0A000"),
            (authentication(5, b"sal"), "08P01"),
            (authentication(11, b"r=x"), "08P01"),
            (authentication(12, b"v=x"), "08P01"),
            (authentication(10, b"SCRAM-SHA-256\0\0") + authentication(11, b"\xff"), "08P01"),
            (authentication(10, b"SCRAM-SHA-256\0\0") + authentication(11, b"r=no,s=c2FsdA==,i=1"), "08P01"),
            (authentication(10, b"SCRAM-SHA-256\0\0") * 2, "08P01"),
            (wire.message(wire.AUTHENTICATION, b"\0"), "08P01"),
            (wire.ready(), "08P01"),
            (wire.parameter_status("a", "b"), "08P01"),
            (OK + OK, "08P01"),
            (OK + wire.message(wire.PARAMETER_STATUS, b"a"), "08P01"),
            (OK + wire.message(wire.BACKEND_KEY_DATA, b"a"), "08P01"),
            (OK + wire.message(ord("T"), b""), "08P01"),
            (b"HTTP/1.1 400 Bad Request\r\n", "08P01"),
            (b"SSH-2.0-OpenSSH_9.6\r\n", "08P01"),
            (struct.pack("!BI", wire.NOTICE, MAX_MESSAGE + 1), "08P01"),
        ],
    )
    def test_what_is_no_login(self, answer: bytes, sqlstate: str) -> None:
        refused = self.refused(self.new(), answer)
        assert refused.sqlstate == sqlstate
        assert PASSWORD not in str(refused)
