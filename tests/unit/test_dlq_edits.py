"""Edits of dead letters: what a patch or a command makes of a body, and what is refused before it is sent."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.contracts import CONTRACTS
from spillway.dlq.edits import BadEdit, Command, Editor, EditRefused, MergePatch, _merged, edit_of
from spillway.histories.base import VALID
from spillway.histories.orders import generate
from spillway.packing import MAX_MESSAGE_BYTES
from workers.runtime.envelope import EventDecoder
from workers.runtime.failures import Poison

ORDERS = CONTRACTS["orders"]
BODY = next(message.body for message in generate(20, duplicates=0, poison=0).messages if message.kind == VALID)
POISON = [message.body for message in generate(2000).messages if message.kind != VALID]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, word for word."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patch(result.get(name), value)
    return result


def python(code: str) -> str:
    return f'{sys.executable} -c "{code}"'


def refusal(edit: MergePatch | Command, body: str = BODY) -> str:
    with pytest.raises(EditRefused) as refused:
        Editor(edit, ORDERS).edited(body)
    return str(refused.value)


@given(json_values, json_values)
def test_a_patch_is_merged_as_the_rfc_says(target: Any, patch: Any) -> None:
    assert json.loads(_merged(json.dumps(target).encode(), patch)) == merge_patch(target, patch)


def test_what_the_patch_does_not_mention_keeps_its_text() -> None:
    body = '{"type": "t", "data": {"exact": 12345678901234567890.120, "list": [1.0, 2e5], "gone": 1}, "z": "\\u00e9"}'
    after = MergePatch('{"data": {"gone": null, "new": {"a": null, "b": 1}}}').apply(body)
    assert (
        after == '{"type":"t","data":{"exact":12345678901234567890.120,"list":[1.0, 2e5],"new":{"b":1}},"z":"\\u00e9"}'
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{", "no JSON"),
        ("[1]", "no JSON object"),
        ("\ud800", "no JSON"),
        ("[" * 100_000, "no JSON"),
        (json.dumps({"Type": "Notification", "TopicArn": "arn:t", "Message": BODY}), "wrapped by SNS"),
        (json.dumps({"detail-type": "t", "detail": json.loads(BODY)}), "wrapped by SNS or EventBridge"),
    ],
)
def test_a_patch_is_only_for_bodies_that_are_the_event_itself(body: str, why: str) -> None:
    assert refusal(MergePatch('{"data": {"currency": "EUR"}}'), body).startswith(why)


def test_an_edited_event_that_is_good_is_taken() -> None:
    after = Editor(MergePatch('{"data": {"currency": "CHF"}}'), ORDERS).edited(BODY)
    assert json.loads(after) == merge_patch(json.loads(BODY), {"data": {"currency": "CHF"}})
    assert Editor(Command(python("print(input().replace('EUR', 'CHF'))")), ORDERS).edited(BODY)


def test_an_event_that_the_worker_would_refuse_again_is_refused_in_its_words() -> None:
    assert refusal(MergePatch('{"data": {"currency": "euro"}}')).startswith("contract: Expected")
    assert refusal(MergePatch('{"type": null}')).startswith("contract: Object missing required field `type`")


@pytest.mark.parametrize("body", POISON[:40])
def test_a_poison_body_that_the_edit_leaves_alone_is_refused_as_its_worker_did(body: str) -> None:
    class Same:
        def apply(self, body: str) -> str:
            return body

    try:
        EventDecoder(ORDERS).decode(body)
    except Poison as poison:
        with pytest.raises(EditRefused, match=f"^{poison.reason.value}: "):
            Editor(Same(), ORDERS).edited(body)
    else:
        assert Editor(Same(), ORDERS).edited(body) == body


def test_the_events_id_stays() -> None:
    other = "018f3c5e-7b1a-7e6f-9a3b-5d2c4e6f8a01"
    swap = python(f"import json; e = json.loads(input()); e['id'] = '{other}'; print(json.dumps(e))")
    assert refusal(Command(swap)).startswith("the event's id was changed")
    with pytest.raises(BadEdit, match="changes the event's id"):
        MergePatch(json.dumps({"id": other}))


def test_the_same_id_in_other_letters_is_the_same_id() -> None:
    upper = python("import json; e = json.loads(input()); e['id'] = e['id'].upper(); print(json.dumps(e))")
    assert Editor(Command(upper), ORDERS).edited(BODY)


def test_what_had_no_id_may_get_any() -> None:
    whole = python(
        f"import sys, json; sys.stdin.read(); print(json.dumps(json.loads(r'''{BODY}'''.strip())))".replace('"', '\\"')
    )
    assert json.loads(Editor(Command(whole), ORDERS).edited("not JSON at all")) == json.loads(BODY)


def test_a_command_may_repair_what_is_wrapped() -> None:
    wrapped = json.dumps({"Type": "Notification", "TopicArn": "arn:t", "Message": BODY})
    assert Editor(Command("cat"), ORDERS).edited(wrapped) == wrapped


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "import sys; print('no such customer', file=sys.stderr); sys.exit(3)",
            "the command refused it: no such customer",
        ),
        ("raise SystemExit(4)", "the command refused it: exit 4"),
        ("import os; os.kill(os.getpid(), 9)", "the command refused it: exit -9"),
        ("import sys; sys.stdout.buffer.write(b'\\xff')", "the command did not write UTF-8"),
        ("import sys; print(chr(27) + '[31mred', file=sys.stderr); sys.exit(1)", "the command refused it: [31mred"),
    ],
)
def test_a_command_that_does_not_give_a_body_refuses_the_letter(code: str, why: str) -> None:
    assert refusal(Command(python(code))) == why


def test_a_command_has_its_time() -> None:
    assert refusal(Command("sleep 60", timeout_s=0.05)) == "the command took longer than 0 s"


def test_ctrl_c_is_not_the_commands() -> None:
    said = Command(python("import os; print(os.getsid(0))")).apply("")
    assert int(said) != os.getsid(0)


def test_a_command_gets_the_body_byte_for_byte_and_no_shell() -> None:
    body = '{"é": "$HOME; `true`", "nul": "\\u0000"}\n'
    assert Command(python("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())")).apply(body + "\n") == body
    assert Command("echo $HOME;").apply("") == "$HOME;"


def test_a_body_that_grew_beyond_what_sqs_takes_is_refused() -> None:
    longer = python(f"print(' ' * {MAX_MESSAGE_BYTES} + input())")
    assert refusal(Command(longer)) == f"larger than {MAX_MESSAGE_BYTES} bytes"


def test_edits_that_can_be_meant_for_no_letter() -> None:
    with pytest.raises(BadEdit, match=r"invalid character \(byte 10\)\n  \{\"a\": nul\}\n            \^"):
        MergePatch('{"a": nul}')
    with pytest.raises(BadEdit, match=r"would replace the whole event|no JSON object"):
        MergePatch("[]")
    with pytest.raises(BadEdit, match="no program"):
        Command("no-such-program-anywhere -x")
    with pytest.raises(BadEdit, match="No closing quotation"):
        Command("sed 's/a/b")
    with pytest.raises(BadEdit, match="no program"):
        Command("")
    with pytest.raises(BadEdit, match="both"):
        edit_of("{}", "cat")
    assert edit_of(None, None) is None
