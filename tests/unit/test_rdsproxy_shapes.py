"""A text's shape pins if and only if the text does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spillway.rdsproxy.pinning import MAX_RECENT, Classifier
from spillway.rdsproxy.shapes import shape

# Pieces that an adversary would put beside each other: quotes of every kind, comments, and what pins.
PIECES = st.sampled_from(
    [
        "select", " ", " 1 ", "42", "x1", "'", "''", "'a'", "'set x = 1'", '"', '"it\'s"', "--", "\n", "/*", "*/", "$$",
        "$1", "$t$", "\\", "E'\\''", "U&'d!0061' uescape '!'",
        ";", ",", "(", ")", "set x = 5", "listen a", "nextval('s')",
        "set_config('a','b',true)", "pg_advisory_lock(7)", "pg_advisory_xact_lock(7)", "from t", "where a = ", "1.5",
        "1e5", "é7", "::float(3)", "interval '1' day", "limit 10", "B'10'", "X'1F'", "1_000", "0x1F",
    ]
)  # fmt: skip


@settings(max_examples=2_000, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_a_shape_pins_as_its_text_does(sql: str) -> None:
    text = sql.encode()
    shaped = shape(text)
    if shaped is not None:
        for strict in (True, False):
            # By way of the shape, and by the text alone.
            ours, theirs = Classifier(strict=strict).verdict(text), Classifier(strict=strict)._classify(text)
            assert (ours and ours.rule) == (theirs and theirs.rule), (text, shaped)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b"select 1", b"select 999"),
        (b"select * from t where a = 'x' and b = 5", b"select * from t where a = 'set b = 1' and b = 7"),
        (b"insert into t values ('it''s', 1.5)", b"insert into t values ('', 2.25)"),
    ],
)
def test_texts_that_differ_in_values_have_one_shape(one: bytes, other: bytes) -> None:
    assert shape(one) == shape(other) is not None


def test_a_parameter_is_no_value() -> None:
    assert shape(b"select $1, $22") == b"select $1, $22"


@pytest.mark.parametrize("text", [b"select x1", b"select 1 from t2", b"set a1 = b"])
def test_digits_in_names_stay(text: bytes) -> None:
    shaped = shape(text)
    assert shaped is not None
    assert shaped.split()[-1] == text.split()[-1]


@pytest.mark.parametrize(
    "text",
    [
        b"select 1 -- it's\n; set x = 'a'",
        b"select 1 /* it's */; set x = 'a'",
        b"select \"it's\"; set x = 'a'",
        b"select E'\\'; set x = 1 --'",
        b"select $$it's$$; set x = 'a'",
        b"select 'open",
    ],
)
def test_where_a_quote_may_not_be_a_quote_there_is_no_shape(text: bytes) -> None:
    assert shape(text) is None


def test_values_do_not_fill_the_classifier() -> None:
    classifier = Classifier()
    for number in range(3_000):
        assert classifier.verdict(b"select * from t where a = %d and b = '%d'" % (number, number)) is None
    assert len(classifier.known) == 1
    assert len(classifier._recent) <= MAX_RECENT
