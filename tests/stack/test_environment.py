"""The real runtime client under AWS's emulator: each way an invocation can go, and what comes after it."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spillway.stack import ports, rie
from spillway.stack.environment import ExecutionEnvironment, classify
from spillway.stack.errors import StackError
from spillway.stack.processes import Processes

FUNCTIONS = Path(__file__).parent / "functions"


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes() as owner:
        yield owner


@pytest.fixture
def output() -> list[str]:
    return []


@pytest.fixture
def start(processes: Processes, output: list[str]) -> Iterator[Callable[..., ExecutionEnvironment]]:
    started: list[ExecutionEnvironment] = []

    def start_one(
        handler: str, *, timeout_s: int = 5, env: dict[str, str] | None = None, code_dir: Path = FUNCTIONS
    ) -> ExecutionEnvironment:
        environment = ExecutionEnvironment(
            processes,
            name="orders",
            handler=handler if "." in handler else f"handlers.{handler}",
            code_dir=code_dir,
            timeout_s=timeout_s,
            memory_mb=256,
            env=env or {},
            on_output=output.append,
        )
        started.append(environment)
        return environment

    yield start_one
    for environment in started:
        environment.close()


Start = Callable[..., ExecutionEnvironment]


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> bool:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("event", [{}, {"Records": [{"body": "é\u0000"}]}, [], None, "text", 5], ids=repr)
def test_a_response_comes_back_as_the_handler_gave_it(start: Start, event: object) -> None:
    invocation = start("echo").invoke(json.dumps(event).encode())
    assert invocation.kind == "response"
    assert json.loads(invocation.body) == event


def test_only_the_first_invocation_is_cold(start: Start) -> None:
    environment = start("environment")
    first, second = environment.invoke(b"{}"), environment.invoke(b"{}")
    assert (first.cold, second.cold) == (True, False)
    assert json.loads(first.body)["pid"] == json.loads(second.body)["pid"]
    environment.recycle()
    third = environment.invoke(b"{}")
    assert third.cold
    assert json.loads(third.body)["pid"] != json.loads(first.body)["pid"]


def test_a_forgotten_return_is_null(start: Start) -> None:
    invocation = start("nothing").invoke(b"{}")
    assert (invocation.kind, invocation.body) == ("response", b"null")


def test_an_exception_is_an_error_and_keeps_the_environment(start: Start, output: list[str]) -> None:
    environment = start("fail")
    invocation = environment.invoke(b"{}")
    assert invocation.kind == "error"
    error = json.loads(invocation.body)
    assert (error["errorType"], error["errorMessage"]) == ("LookupError", "no such order")
    assert not environment.invoke(b"{}").cold
    assert wait_until(lambda: any("[ERROR] LookupError: no such order" in line for line in output))
    assert not any("\r" in line or "\n" in line for line in output)


def test_a_timeout_kills_the_function_and_the_next_is_cold(start: Start) -> None:
    environment = start("sleep", timeout_s=1)
    assert environment.invoke(b'{"seconds": 0}').kind == "response"
    invocation = environment.invoke(b'{"seconds": 30}')
    assert invocation.kind == "timeout"
    assert 0.95 < invocation.duration_s < 3
    after = environment.invoke(b'{"seconds": 0}')
    assert (after.kind, after.cold) == ("response", True)


def test_a_process_that_exits_is_a_crash_and_the_next_is_cold(start: Start) -> None:
    environment = start("exit_hard")
    for _ in range(2):
        invocation = environment.invoke(b"{}")
        assert (invocation.kind, invocation.cold) == ("crash", True)


def test_too_large_a_response_is_an_error_and_the_next_is_cold(start: Start) -> None:
    environment = start("big")
    assert len(environment.invoke(b'{"bytes": 6000000}').body) == 6_000_002
    invocation = environment.invoke(b'{"bytes": 7000000}')
    assert invocation.kind == "error"
    assert json.loads(invocation.body)["errorType"] == "Function.ResponseSizeTooLarge"
    assert environment.invoke(b'{"bytes": 1}').cold


def test_a_full_event_of_6_mb_arrives(start: Start) -> None:
    event = json.dumps("x" * 5_900_000).encode()
    assert start("echo").invoke(event).body == event


def test_a_killed_function_is_a_crash_while_it_runs_and_no_harm_while_it_does_not(start: Start, tmp_path: Path) -> None:
    environment = start("sleep")
    flag = tmp_path / "running"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(environment.invoke, json.dumps({"seconds": 4, "flag": str(flag)}).encode())
        assert wait_until(flag.exists)
        environment.kill()
        assert running.result(timeout=3).kind == "crash"
    after = environment.invoke(b'{"seconds": 0}')
    assert (after.kind, after.cold) == ("response", True)
    environment.kill()
    after = environment.invoke(b'{"seconds": 0}')
    assert (after.kind, after.cold) == ("response", True)


def test_a_lost_emulator_is_a_crash_and_is_replaced(start: Start, tmp_path: Path) -> None:
    environment = start("sleep")
    flag = tmp_path / "running"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(environment.invoke, json.dumps({"seconds": 4, "flag": str(flag)}).encode())
        assert wait_until(flag.exists)
        assert environment._emulator is not None
        environment._emulator.stop()
        assert running.result(timeout=3).kind == "crash"
    after = environment.invoke(b'{"seconds": 0}')
    assert (after.kind, after.cold) == ("response", True)


def test_an_emulator_that_does_not_answer_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spillway.stack.environment.ANSWER_GRACE_S", -0.8)
    environment = start("sleep", timeout_s=1)
    assert environment.invoke(b'{"seconds": 0.9}').kind == "crash"
    after = environment.invoke(b'{"seconds": 0}')
    assert (after.kind, after.cold) == ("response", True)


@pytest.mark.parametrize("handler", ["looks_like_a_timeout", "looks_like_an_error"])
def test_a_response_that_looks_like_a_failure_is_a_response(start: Start, handler: str) -> None:
    assert start(handler).invoke(b"{}").kind == "response"


@pytest.mark.parametrize(
    ("handler", "env", "kind", "text"),
    [
        ("unimportable.handler", {}, "error", "missing setting"),
        ("unimportable.handler", {"HOW": "7"}, "crash", ""),
        ("nowhere.handler", {}, "error", "No module named 'nowhere'"),
        ("handlers.nowhere", {}, "error", "Handler 'nowhere' missing"),
    ],
)
def test_what_cannot_be_initialised_says_so_each_time(
    start: Start, handler: str, env: dict[str, str], kind: str, text: str
) -> None:
    environment = start(handler, env=env)
    for _ in range(2):
        invocation = environment.invoke(b"{}")
        assert invocation.kind == kind
        assert text in invocation.body.decode()
        assert invocation.cold


def test_the_function_sees_its_own_variables_and_nobody_elses(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the developer's")
    monkeypatch.setenv("AWS_PROFILE", "the developer's")
    monkeypatch.setenv("PGPASSWORD", "the developer's")
    answer = json.loads(start("environment", env={"DATABASE_HOST": "db", "AWS_REGION": "eu-west-1"}).invoke(b"{}").body)
    env = answer["env"]
    assert env["DATABASE_HOST"] == "db"
    assert env["AWS_REGION"] == "eu-west-1"
    assert env["AWS_LAMBDA_FUNCTION_NAME"] == answer["name"] == "orders"
    assert env["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "256"
    assert env["LAMBDA_TASK_ROOT"] == answer["cwd"] == str(FUNCTIONS)
    assert "the developer's" not in env.values()
    assert not env["HOME"].startswith(str(Path.home()))


def test_the_deadline_counts_down(start: Start) -> None:
    environment = start("deadline", timeout_s=3)
    environment.invoke(b"{}")
    first, second = json.loads(environment.invoke(b"{}").body)
    assert 2500 < first <= 3000
    assert 90 <= first - second < 400


def test_output_arrives_line_by_line_without_the_emulators_own(start: Start, output: list[str]) -> None:
    environment = start("talk")
    environment.invoke(b"{}")
    environment.close()
    assert sorted(output) == ["to stderr", "to stdout", "é " + "x" * 100_000]


def test_a_callback_that_raises_does_not_block_the_function(
    processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(line: str) -> None:
        raise ValueError(line[:10])

    environment = ExecutionEnvironment(
        processes, name="f", handler="handlers.talk", code_dir=FUNCTIONS, timeout_s=5, memory_mb=128, env={},
        on_output=refuse,
    )  # fmt: skip
    assert [environment.invoke(b"{}").kind for _ in range(3)] == ["response"] * 3
    environment.close()
    assert "output_callback_failed" in caplog.text


def test_concurrent_callers_take_turns(start: Start) -> None:
    environment = start("echo")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: environment.invoke(str(n).encode()), range(100)))
    assert [answer.body for answer in answers] == [str(n).encode() for n in range(100)]
    assert sum(answer.cold for answer in answers) == 1


def test_many_environments_start_at_once(start: Start) -> None:
    environments = [start("echo") for _ in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert {i.kind for i in pool.map(lambda e: e.invoke(b"{}"), environments)} == {"response"}


@pytest.mark.parametrize("taken", [0, 1], ids=["emulator", "runtime API"])
def test_a_port_taken_at_the_last_moment_is_tried_anew(
    start: Start, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    with socket.create_server((ports.HOST, 0)) as other:
        given = [ports.free_port() for _ in range(4)]
        given[taken] = other.getsockname()[1]
        left = iter(given)
        monkeypatch.setattr(rie.ports, "free_port", lambda: next(left))
        assert start("echo").invoke(b"1").body == b"1"
        assert list(left) == []


def test_close_ends_a_running_invocation_and_refuses_the_next(start: Start, tmp_path: Path) -> None:
    environment = start("sleep")
    flag = tmp_path / "running"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(environment.invoke, json.dumps({"seconds": 4, "flag": str(flag)}).encode())
        assert wait_until(flag.exists)
        environment.close()
        assert running.result(timeout=3).kind == "crash"
    with pytest.raises(StackError, match="closed"):
        environment.invoke(b"{}")
    environment.close()


def test_a_read_only_code_directory_works(start: Start, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "fn.py").write_text("def handler(event, context):\n    return 1\n")
    code.chmod(0o555)
    assert start("fn.handler", code_dir=code).invoke(b"{}").body == b"1"


def test_an_emulator_that_cannot_start_tells_why(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((ports.HOST, 0)) as other:
        monkeypatch.setattr(rie.ports, "free_port", lambda: other.getsockname()[1])
        with pytest.raises(StackError, match=r"did not start for orders[\s\S]*address already in use") as caught:
            start("echo").invoke(b"{}")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("platform", "machine"), [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64")])
def test_other_platforms_are_refused_clearly(monkeypatch: pytest.MonkeyPatch, platform: str, machine: str) -> None:
    monkeypatch.setattr(rie.sys, "platform", platform)
    monkeypatch.setattr(rie.platform, "machine", lambda: machine)
    with pytest.raises(StackError, match="emulator does not run on"):
        rie.find_emulator()


def test_a_missing_sam_cli_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rie.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StackError, match=r"not installed.*aws-sam-cli"):
        rie.find_emulator()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"{}", "response"),
        (200, b"", "response"),
        (200, b"Task timed out after 3.00 seconds", "timeout"),
        (200, b'"Task timed out after 3.00 seconds"', "response"),
        (200, b'{"errorMessage": "m", "errorType": "T", "requestId": "1", "stackTrace": []}', "error"),
        (200, b'{"errorMessage": "m", "errorType": "T"}', "response"),
        (502, b'{"errorType":"Runtime.ExitError","errorMessage":"m"}', "crash"),
        (502, b'{"errorMessage": "m", "errorType": "Runtime.ImportModuleError"}', "error"),
        (502, b"", "crash"),
        (502, b"[]", "crash"),
        (500, b"oops", "crash"),
    ],
)
def test_what_an_answer_means(status: int, body: bytes, kind: str) -> None:
    assert classify(status, body) == kind


def test_no_thread_is_left(start: Start) -> None:
    before = set(threading.enumerate())
    environment = start("echo")
    environment.invoke(b"{}")
    environment.close()
    assert set(threading.enumerate()) <= before


def test_descriptors_do_not_leak(start: Start) -> None:
    environment = start("echo")
    environment.invoke(b"{}")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(5):
        environment.recycle()
        environment.invoke(b"{}")
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
