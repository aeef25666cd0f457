"""`spillway new worker`: which names it takes, its part of template.yaml, and that it writes all or nothing."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from samcli.yamlhelper import yaml_parse
from typer.testing import CliRunner

from spillway.cli import program
from spillway.errors import SpillwayError
from spillway.scaffold import worker
from spillway.scaffold.fleet import MAX_WIDTH, with_worker
from spillway.scaffold.names import MAX_LENGTH, Names, singular_of
from spillway.stack.template import REPOSITORY, TEMPLATE

#: A worker that nobody has: these tests must pass in a checkout that has got more workers, too.
TOYS = Names.of("toy_boats")
TEXT = TEMPLATE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("invoices", "invoice"),
        ("purchase_orders", "purchase_order"),
        ("categories", "category"),
        ("boxes", "box"),
        ("addresses", "address"),
        ("batches", "batch"),
        ("ties", "tie"),
        ("a1s", "a1"),
    ],
)
def test_the_singular_is_made_of_the_plural(plural: str, singular: str) -> None:
    assert singular_of(plural) == singular
    assert Names.of(plural).singular == singular


@pytest.mark.parametrize("name", ["sheep", "glass", "s"])
def test_what_is_no_plural_needs_a_singular(name: str) -> None:
    with pytest.raises(SpillwayError, match="--singular"):
        Names.of(name)
    assert Names.of(name, "lamb").singular == "lamb"


@pytest.mark.parametrize(
    ("name", "singular", "complaint"),
    [
        ("Invoices", None, "lower-case letters"),
        ("1nvoices", None, "lower-case letters"),
        ("invoice-items", None, "lower-case letters"),
        ("invoice__items", None, "lower-case letters"),
        ("_invoices", None, "lower-case letters"),
        ("invoices_", None, "lower-case letters"),
        ("facturés", None, "lower-case letters"),
        ("invoices\n", None, "lower-case letters"),
        ("../invoices", None, "lower-case letters"),
        ("", None, "lower-case letters"),
        ("invoices", "", "lower-case letters"),
        ("invoices", "Invoice", "lower-case letters"),
        ("i" * MAX_LENGTH + "s", None, f"Expected {MAX_LENGTH} at most"),
        ("invoices", "i" * (MAX_LENGTH + 1), f"Expected {MAX_LENGTH} at most"),
        ("class", "lesson", "Python uses the word"),
        ("invoices", "class", "Python uses the word"),
        ("governor", "governor", "kept for a function"),
        ("written", "text", "apply.sql uses"),
        ("click_events", None, "housekeeping would delete its rows"),
        ("events", None, "event_id already"),
    ],
)
def test_names_that_would_not_work_are_refused_with_the_fix(name: str, singular: str | None, complaint: str) -> None:
    with pytest.raises(SpillwayError, match=complaint) as raised:
        Names.of(name, singular)
    assert raised.value.hint


def test_the_names_that_apply_sql_uses_are_reserved() -> None:
    """A table called as a common table expression: PostgreSQL refuses to write to it."""
    text = (worker.TEMPLATES / "upsert/apply.sql.in").read_text()
    used = set(re.findall(r"(\w+) AS (?:MATERIALIZED )?\(\n", text))
    assert used
    for name in used:
        with pytest.raises(SpillwayError, match=r"apply\.sql uses"):
            Names.of(name, "thing")


@pytest.mark.parametrize(
    ("name", "singular", "complaint"),
    [
        ("orders", None, r"workers/orders exists already: .*apply\.sql"),
        ("runtime", "run", "workers/runtime exists already"),
        ("migrate", "move", "workers/migrate exists already"),
        ("records", None, r"spillway/samples/records\.py exists already"),
        ("poison", "drop", r"spillway/histories/poison\.py exists already"),
        ("migrations", None, r"database has a spillway\.migrations"),
        ("outcome", "result", r"database has a spillway\.outcome"),
        ("sales", "order", r"database has a spillway\.order_events"),
        ("orders_dead_letter", "letter", r"template\.yaml has a OrdersDeadLetterQueue"),
        ("cloud", "cloud_event", r"contract\.py would have two meanings of CloudEvent"),
        ("words", "meta", r"contract\.py would have two meanings of Meta"),
        ("words", "value_error", r"contract\.py would have two meanings of ValueError"),
        ("window", "pane", "SQL uses the word"),
        ("left", "right", "SQL uses the word"),
    ],
)
def test_names_in_use_are_refused(name: str, singular: str | None, complaint: str) -> None:
    names = Names.of(name, singular)

    with pytest.raises(SpillwayError, match=complaint) as raised:
        in_use(names)
    assert raised.value.hint


def in_use(names: Names) -> None:
    """What `spillway new worker` asks before it makes anything."""
    worker._require_free(names, worker._rendered(names, "upsert", REPOSITORY), REPOSITORY)
    with_worker(TEXT, names)


@pytest.mark.parametrize("name", ["toy_boats", "windows", "left_toys", "inputs", "a1s"])
def test_names_that_only_look_like_trouble_are_taken(name: str) -> None:
    in_use(Names.of(name))


def test_event_types_of_another_worker_are_refused(tmp_path: Path) -> None:
    """Those whose claims table is called otherwise: the schemas would share a file."""
    (tmp_path / "events/schemas").mkdir(parents=True)
    (tmp_path / "events/schemas/toy_boat.created.json").touch()
    (tmp_path / "workers/migrate").mkdir(parents=True)
    (tmp_path / "workers/migrate/runner.py").touch()
    with pytest.raises(SpillwayError, match=r"events/schemas/toy_boat\.created\.json exists already"):
        worker._require_free(TOYS, {}, tmp_path)


def test_the_next_free_number_is_the_migrations(tmp_path: Path) -> None:
    versions = tmp_path / worker.VERSIONS
    versions.mkdir(parents=True)
    assert f"{worker.VERSIONS}/0001_toy_boats.sql" in worker._rendered(TOYS, "upsert", tmp_path)
    for name in ("0001_schema.sql", "0041_later.sql", "0007_gap.sql", "README.md"):
        (versions / name).touch()
    files = worker._rendered(TOYS, "upsert", tmp_path)
    assert f"{worker.VERSIONS}/0042_toy_boats.sql" in files
    assert "0042_toy_boats.sql" in files["workers/toy_boats/README.md"]


@pytest.mark.parametrize("template", sorted((worker.TEMPLATES / "upsert").glob("*.in")), ids=lambda path: path.name)
def test_nothing_of_a_template_is_left_over(template: Path) -> None:
    text = TOYS.fill(template.read_text(encoding="utf-8"), number="0042")
    assert "{{" not in text
    assert "toy_boat" in text
    assert not re.search(r"(?i:invoice)|\border_|\bOrder|\bord-", text)


def test_an_unknown_placeholder_is_noticed() -> None:
    with pytest.raises(KeyError, match="surname"):
        TOYS.fill("{{surname}}")


# ── template.yaml ────────────────────────────────────────────────────────────────────────────────────────────────────


def sections(text: str) -> dict[str, str]:
    banners = [*re.finditer(r"^  # ── (\w+).*$", text, re.MULTILINE)]
    ends = [*(banner.start() for banner in banners[1:]), text.index("\nOutputs:")]
    return {banner[1]: text[banner.start() : end] for banner, end in zip(banners, ends, strict=True)}


def test_a_section_is_that_of_orders_with_other_names() -> None:
    text = with_worker(TEXT, TOYS)
    before, after = sections(TEXT), sections(text)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"governor"}, "it lists the workers; the others are as they were"
    added = after["toy_boats"]
    assert "rder" not in added
    same = added.replace("ToyBoats", "Orders").replace("toy_boats", "orders").replace("toy boat", "order")
    assert same.split("\n")[1:] == before["orders"].split("\n")[1:]
    banner, model = added.split("\n")[0], before["orders"].split("\n")[0]
    assert banner.startswith("  # ── toy_boats ──")
    assert len(banner) == len(model)
    # Beside the other workers', before what follows them.
    names = list(after)
    assert names.index("orders") < names.index("toy_boats") < names.index("network")


def test_parameters_and_outputs_come_along() -> None:
    before: dict[str, Any] = yaml_parse(TEXT)
    after: dict[str, Any] = yaml_parse(with_worker(TEXT, TOYS))
    for part in ("Parameters", "Resources", "Outputs"):
        new = after[part].keys() - before[part].keys()
        assert (
            new == {name.replace("Orders", "ToyBoats") for name in before[part] if name.startswith("Orders")} != set()
        )
        lists = {"GovernorFunction"} if part == "Resources" else set()
        assert {name: after[part][name] for name in before[part].keys() - lists} == {
            name: before[part][name] for name in before[part].keys() - lists
        }
        # Each behind another worker's, not behind something else of that worker.
        order = list(after[part])
        if part != "Resources":
            suffixes = [name.removeprefix("Orders") for name in before[part] if name.startswith("Orders")]
            assert order[min(order.index(name) for name in new) - 1].endswith(suffixes[-1])
    assert after["Outputs"]["ToyBoatsQueueUrl"]["Description"] == "Where producers send toy boat events."
    interface = "AWS::CloudFormation::Interface"
    parameters = [
        parameter for group in after["Metadata"][interface]["ParameterGroups"] for parameter in group["Parameters"]
    ]
    assert "ToyBoatsMaximumConcurrency" in parameters
    assert sorted(parameters) == sorted(after["Parameters"])


def test_the_governor_watches_the_new_worker_too() -> None:
    def listed(text: str) -> list[str]:
        governor = yaml_parse(text)["Resources"]["GovernorFunction"]["Properties"]
        (separator, mappings) = governor["Environment"]["Variables"]["MAPPINGS"]["Fn::Join"]
        assert separator == " "
        return [mapping["Fn::Sub"] for mapping in mappings]

    new = "toy_boats=${ToyBoatsConsumerToyBoats}:${ToyBoatsMaximumConcurrency}"
    assert listed(with_worker(TEXT, TOYS)) == [*listed(TEXT), new]
    assert listed(TEXT)[0] == "orders=${OrdersConsumerOrders}:${OrdersMaximumConcurrency}"
    governor = yaml_parse(with_worker(TEXT, TOYS))["Resources"]["GovernorFunction"]["Properties"]
    policies = [one["Resource"] for one in governor["Policies"][0]["Statement"] if "ToyBoats" in str(one)]
    assert [str(policy).count("ToyBoatsConsumerToyBoats") for policy in policies] == [1, 1]


def test_many_workers_one_after_the_other() -> None:
    text = TEXT
    words = [f"{a}{b}" for a, b in itertools.product(("red", "green", "blue"), ("apples", "pears"))]
    for word in words:
        text = with_worker(text, Names.of(word))
    document: dict[str, Any] = yaml_parse(text)
    queues = [name for name in document["Resources"] if name.endswith("sQueue")]
    assert [name.removesuffix("Queue").lower() for name in queues][-len(words) :] == words
    groups = text[: text.index("\nParameters:")]
    assert all(len(line) <= MAX_WIDTH for line in groups.splitlines()), "the list was broken when it got too long"
    assert all(f"{word.capitalize()}MaximumConcurrency" in groups for word in words)


@pytest.mark.parametrize(
    ("there", "gone"),
    [
        ("# ── orders ─", "# ── others ─"),
        ("  OrdersMaximumConcurrency:", "  MaximumConcurrency:"),
        ("Outputs:", "Others:"),
    ],
)
def test_without_a_model_the_error_says_what_is_missing(there: str, gone: str) -> None:
    assert there in TEXT
    with pytest.raises(SpillwayError, match=r"^template\.yaml has no ") as raised:
        with_worker(TEXT.replace(there, gone), TOYS)
    assert "copy of what orders has" in raised.value.hint


def test_the_same_worker_twice_is_refused() -> None:
    with pytest.raises(SpillwayError, match=r"template\.yaml has a ToyBoats\w+ already"):
        with_worker(with_worker(TEXT, TOYS), TOYS)


# ── all or nothing ───────────────────────────────────────────────────────────────────────────────────────────────────

FILES = {"new/folder/one.py": "1\n", "template.yaml": "after\n", "new/two.py": "2\n"}


def contents(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "template.yaml").write_text("before\n")
    (tmp_path / "template.yaml").chmod(0o640)
    return tmp_path


def test_everything_is_written(checkout: Path) -> None:
    worker.write(FILES, checkout)
    written = {path: content.decode() for path, content in contents(checkout).items() if content is not None}
    assert written == FILES
    assert (checkout / "template.yaml").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("method", ["write_text", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk-full", "ctrl-c"])
@pytest.mark.parametrize("last", range(len(FILES)))
def test_or_nothing(
    checkout: Path, method: str, error: BaseException, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, and wherever: the checkout is as it was."""
    before = contents(checkout)
    real, calls = getattr(Path, method), itertools.count()

    def fails(path: Path, *args: Any, **options: Any) -> Any:
        if next(calls) == last:
            raise error
        return real(path, *args, **options)

    monkeypatch.setattr(Path, method, fails)
    with pytest.raises(type(error)):
        worker.write(FILES, checkout)
    monkeypatch.undo()
    assert contents(checkout) == before


def test_outside_a_checkout_it_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(program(), ["new", "worker", "toy_boats", "--root", str(tmp_path)])
    assert isinstance(result.exception, SpillwayError)
    assert "is not a checkout of Spillway" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_its_help_says_what_there_is_no_template_for() -> None:
    text = " ".join(CliRunner().invoke(program(), ["new", "worker", "--help"]).output.split())
    for folder in re.findall(r"workers/\w+", text):
        assert (REPOSITORY / folder).is_dir(), folder
    assert "FIFO" in text
