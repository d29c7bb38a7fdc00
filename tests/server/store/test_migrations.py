"""Job stores of every earlier schema version open with all their rows."""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, func, inspect, make_url, select, text

from overpaint.cli.main import main
from overpaint.errors import StoreError
from overpaint.server.store import migrations, upgrade
from overpaint.server.store.api_keys import ApiKeys
from overpaint.server.store.database import Database
from overpaint.server.store.job_rows import NewJob
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.origins import ReplicateOrigin
from overpaint.server.store.outbox import Outbox
from overpaint.server.store.tables import SCHEMA_VERSION, about, alembic_version, schema
from overpaint.server.store.upgrade import UpgradeProgress
from overpaint.server.store.usage import UsageReader
from overpaint.system.atomic_files import lock_file
from tests.server.live import client_of
from tests.server.postgres import database as new_database
from tests.server.store.upgrading import migrate_until_killed, open_at_once

SCHEMAS = Path(__file__).parent / "schemas"
VERSIONS = sorted({int(path.name.split("_")[1]) for path in SCHEMAS.glob("version_*.sql")})
LAST_WITHOUT_ALEMBIC = 4

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, postgres: str, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    if not postgres:
        pytest.skip("no Postgres here: apt-get install postgresql")
    return new_database(postgres)


def execute(url: str, *scripts: str) -> None:
    """Run SQL as it is written, without SQLAlchemy."""
    if url.startswith("sqlite"):
        connection = sqlite3.connect(make_url(url).database or "")
        connection.execute("PRAGMA journal_mode = WAL")
        for script in scripts:
            connection.executescript(script)
        connection.close()
    else:
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            for script in scripts:
                connection.execute(script.encode())


def schema_of(version: int, url: str) -> str:
    return (SCHEMAS / f"version_{version}_{make_url(url).get_backend_name()}.sql").read_text()


def build(version: int, url: str) -> Rows:
    """Make a store as programs with this schema version did; return its rows."""
    execute(url, schema_of(version, url), (SCHEMAS / f"version_{version}_rows.sql").read_text())
    return rows_of(url)


def rows_of(url: str) -> Rows:
    """All rows of all tables, as the database returns them to plain SQL."""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = {
            table: sorted(
                (
                    dict(row)
                    for row in connection.execute(text(f'SELECT * FROM "{table}"')).mappings()
                ),
                key=repr,
            )
            for table in inspect(connection).get_table_names()
        }
    engine.dispose()
    return found


def structure_of(url: str) -> dict[str, Any]:
    """Columns with types and defaults, keys, foreign keys and indexes of all tables."""
    engine = create_engine(url)
    look = inspect(engine)
    found = {
        table: {
            "columns": [
                {name: str(value) for name, value in column.items()}
                for column in look.get_columns(table)
            ],
            "primary key": look.get_pk_constraint(table),
            "foreign keys": look.get_foreign_keys(table),
            "unique": look.get_unique_constraints(table),
            "indexes": sorted(look.get_indexes(table), key=lambda index: index["name"] or ""),
        }
        for table in look.get_table_names()
    }
    engine.dispose()
    return found


def migrated(url: str) -> list[UpgradeProgress]:
    """Open a store as a server does, and return the progress that it reported."""
    reports: list[UpgradeProgress] = []
    Database(url, upgrade=True, report=reports.append).close()
    return reports


@pytest.mark.parametrize("version", VERSIONS)
def test_upgrade_from_every_version_keeps_every_row(version: int, url: str) -> None:
    before = build(version, url)
    assert all(before.values())  # no table is empty
    reports = migrated(url)
    after = rows_of(url)
    for table, rows in before.items():
        if table == "about":
            assert after[table] == [{"version": 5}]
        elif table == "alembic_version":
            assert after[table] == [{"version_num": f"{SCHEMA_VERSION:04}"}]
        elif table == "outbox" and version == 1:
            assert after[table] == [row | {"turn": 0} for row in rows]
        else:
            assert after[table] == rows
    for table in after.keys() - before.keys() - {"alembic_version"}:
        assert after[table] == []
    assert [report.state for report in reports] == ["started", "finished"]
    assert (reports[0].from_version, reports[0].reached_version) == (version, version)
    assert (reports[1].from_version, reports[1].reached_version) == (version, SCHEMA_VERSION)
    assert migrated(url) == []  # and once is enough


@pytest.mark.parametrize("version", VERSIONS)
def test_upgraded_store_goes_on_with_its_jobs(version: int, url: str) -> None:
    build(version, url)
    database = Database(url, upgrade=True)
    jobs, outbox = Jobs(database), Outbox(database)
    (running,) = jobs.list_page(None, 10, states=["running"])
    assert [said.kind for said in jobs.list_history(running.id)][-1] == "notice"
    assert jobs.requeue_expired(owners_are_gone=True) == [running.id]  # its end was asked for
    assert (jobs.get(running.id) or running).state == "canceled"
    done = next(job for job in jobs.list_page(None, 100) if isinstance(job.origin, ReplicateOrigin))
    assert done.key
    succeeded = next(
        job for job in jobs.list_page(done.key, 100, states=["succeeded"]) if job.webhook
    )
    posted = {post.kind: post for post in outbox.list_webhooks(succeeded.id)}
    assert [attempt.status for attempt in posted["completed"].tries] == [500, None]
    assert jobs.get_by_token(succeeded.key, "a token; of the client's") == succeeded

    claimed = jobs.claim("me", 10, 60.0)
    assert len(claimed) >= 2
    for job in claimed:
        assert jobs.finish(job, "succeeded", result={"files": ["1-0.png"]})
    made = jobs.submit(NewJob("new", succeeded.key, "m", {}, 1.0, webhook="https://example.com/"))
    assert (
        len(outbox.list_webhooks(made.id)) == 4
    )  # ids of webhooks go on behind those that were there
    due = outbox.claim_due(100, 60.0)
    assert succeeded.id in {post.job for post in due}
    assert outbox.get_secret(succeeded.key).startswith("whsec_")
    totals = {total.name: total for total in UsageReader(database).sum_usage("model")}
    assert totals["miniature"].jobs >= len(claimed) + 1
    if version >= 3:
        assert [(key.name, key.revoked is None) for key in ApiKeys(database).list_keys()] == [
            ("old", False),
            ("Zoë's laptop", True),
        ]
    jobs.delete([succeeded.id])  # foreign keys are there and in force
    after = rows_of(url)
    assert succeeded.id not in {row["job"] for row in after["outbox"] + after["events"]}
    assert after["deliveries"] == []
    database.close()


@pytest.mark.parametrize("version", [0, *VERSIONS])
def test_upgraded_store_has_the_schema_of_a_new_one(version: int, url: str, tmp_path: Path) -> None:
    if version:
        build(version, url)
        migrated(url)
    else:
        migrate_from_nothing(url)
    assert differences_from_tables(url) == []
    structure = structure_of(url)
    fresh = url
    if url.startswith("sqlite"):
        fresh = f"sqlite:///{tmp_path / 'fresh.db'}"
    else:
        execute(url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public;")
    Database(fresh).close()
    assert structure_of(fresh) == structure
    assert differences_from_tables(fresh) == []
    assert rows_of(fresh)["about"] == [{"version": 5}]
    assert rows_of(fresh)["alembic_version"] == [{"version_num": f"{SCHEMA_VERSION:04}"}]


def migrate_from_nothing(url: str) -> None:
    """Run every migration, as no program does: it creates a new store at the newest version."""
    engine = create_engine(url)
    with engine.begin() as connection:
        upgrade.run_migrations(connection, 0)
    engine.dispose()


def differences_from_tables(url: str) -> list[Any]:
    """What Alembic finds that differs between a database and `tables.schema`."""
    engine = create_engine(url)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), schema)
    engine.dispose()
    return found


def test_migrations_are_one_line_up_to_the_version_of_the_tables() -> None:
    folder = Path(migrations.__file__ or "").parent
    names = [script.revision for script in ScriptDirectory(str(folder)).walk_revisions()]
    assert names == [f"{number:04}" for number in range(SCHEMA_VERSION, 0, -1)]


@pytest.mark.parametrize("version", range(1, LAST_WITHOUT_ALEMBIC))
def test_upgrade_of_a_store_that_a_later_program_refused_keeps_every_row(
    version: int, url: str
) -> None:
    # Programs up to version 4 created the tables that they missed, and refused the store then.
    before = build(version, url)
    later = schema_of(LAST_WITHOUT_ALEMBIC, url)
    for statement in later.split(";"):
        for new, old in (("CREATE TABLE", "TABLE"), ("CREATE INDEX", "INDEX")):
            if new in statement:
                name = statement.split(new)[1].split()[0]
                table = statement.split(" ON ")[1].split()[0] if old == "INDEX" else name
                if table not in before:
                    execute(url, statement)
    migrated(url)
    after = rows_of(url)
    assert after["jobs"] == before["jobs"]
    assert after["events"] == before["events"]
    assert differences_from_tables(url) == []


@pytest.mark.parametrize("version", [1, 2, 3])
def test_upgrade_that_fails_leaves_the_store_as_it_was(version: int, url: str) -> None:
    build(version, url)
    # The step to version 4 fails, after others: a view has no index.
    execute(url, "CREATE VIEW usage AS SELECT id FROM jobs")
    before, structure = rows_of(url), structure_of(url)
    for _ in range(2):
        with pytest.raises(
            StoreError, match=f"from schema version {version} to {SCHEMA_VERSION}: .*version 3"
        ):
            migrated(url)
        assert rows_of(url) == before
        assert structure_of(url) == structure
    execute(url, "DROP VIEW usage")
    migrated(url)
    assert rows_of(url)["jobs"] == before["jobs"]


def test_upgrade_that_breaks_a_reference_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    build(1, url)
    execute(url, "PRAGMA foreign_keys = OFF; UPDATE deliveries SET post = 99 WHERE id = 2;")
    before = rows_of(url)
    with pytest.raises(StoreError, match="Row 2 of deliveries refers to no row of outbox"):
        migrated(url)
    assert rows_of(url) == before


def test_upgrade_whose_process_is_killed_leaves_the_store_as_it_was(url: str) -> None:
    before = build(1, url)
    structure = structure_of(url)
    process = multiprocessing.get_context("spawn").Process(target=migrate_until_killed, args=[url])
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert rows_of(url) == before
    assert structure_of(url) == structure
    assert len(migrated(url)) == 2


def test_newer_store_is_refused_and_left_alone(url: str) -> None:
    Database(url).close()
    execute(url, "UPDATE alembic_version SET version_num = '0099'")
    before = rows_of(url)
    for may in (False, True):
        with pytest.raises(StoreError) as refusal:
            Database(url, upgrade=may)
        assert "has schema version 99" in str(refusal.value)
        assert f"only knows versions up to {SCHEMA_VERSION}" in str(refusal.value)
        assert "Install the version of Overpaint that last used this store" in str(refusal.value)
    assert rows_of(url) == before


def test_newer_store_of_a_program_without_alembic_is_refused(url: str) -> None:
    build(4, url)
    execute(url, "UPDATE about SET version = 99")
    before = rows_of(url)
    with pytest.raises(StoreError, match="has schema version 99"):
        Database(url, upgrade=True)
    assert rows_of(url) == before


def test_database_of_another_program_is_refused_and_left_alone(url: str) -> None:
    execute(
        url,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL);"
        "INSERT INTO alembic_version VALUES ('ae1027a6acf');",
    )
    before = rows_of(url)
    with pytest.raises(StoreError, match="belongs to another program"):
        Database(url, upgrade=True)
    assert rows_of(url) == before


def test_older_store_is_refused_by_a_program_that_is_no_server(url: str) -> None:
    before = build(2, url)
    with pytest.raises(StoreError, match="Start the server with `overpaint serve`"):
        Database(url)
    assert rows_of(url) == before


def test_older_program_refuses_an_upgraded_store(url: str) -> None:
    build(4, url)
    migrated(url)
    engine = create_engine(url)
    with engine.connect() as connection:  # what programs up to schema version 4 looked at
        assert connection.execute(about.select()).scalar() == LAST_WITHOUT_ALEMBIC + 1
        assert connection.execute(select(func.count()).select_from(alembic_version)).scalar() == 1
    engine.dispose()


@pytest.mark.parametrize("version", [0, 1])
def test_four_servers_that_start_at_once_migrate_once(version: int, url: str) -> None:
    before = build(version, url) if version else {}
    context = multiprocessing.get_context("spawn")
    barrier, reports = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=open_at_once, args=[url, barrier, reports]) for _ in range(4)
    ]
    for process in processes:
        process.start()
    said = [reports.get(timeout=300) for _ in range(6 if version else 4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(said) == sorted([*["open"] * 4, *(["started", "finished"] if version else [])])
    after = rows_of(url)
    assert after["about"] == [{"version": 5}]
    assert len(after["alembic_version"]) == 1
    assert after["jobs"] == before.get("jobs", [])


def test_stores_upgraded_at_once_in_one_process_are_all_upgraded(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path / name}.db" for name in "abcd"]
    for url in urls:
        build(1, url)
    threads = [threading.Thread(target=migrated, args=[url]) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for url in urls:
        assert differences_from_tables(url) == []


def test_upgrade_that_takes_long_reports_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    build(1, url)
    reports: list[UpgradeProgress] = []
    running = threading.Event()

    def report(progress: UpgradeProgress) -> None:
        reports.append(progress)
        if progress.state == "running":
            running.set()

    run: Callable[..., None] = upgrade.run_migrations

    def slow(*given: Any) -> None:
        run(*given)
        assert running.wait(300)

    monkeypatch.setattr(upgrade, "run_migrations", slow)
    Database(url, upgrade=True, report=report).close()
    assert [report.state for report in reports[:2]] == ["started", "running"]
    assert reports[-1].state == "finished"
    assert reports[1].seconds >= upgrade.PROGRESS_INTERVAL_S
    version = SCHEMA_VERSION
    assert replace(reports[1], seconds=0.0) == UpgradeProgress("running", 1, version, version, 0.0)


def overpaint(*arguments: str) -> int:
    """Run a command and return its exit code. A server takes any free port."""
    if arguments[0] == "serve":
        arguments = (*arguments, "--port", "0")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Settings that `overpaint serve` would have run a server with."""
    found: list[Any] = []

    def run(settings: Any, *_: Any, **__: Any) -> None:
        found.append(settings)

    monkeypatch.setattr("overpaint.server.app.run", run)
    return found


def test_serve_upgrades_an_older_store_and_logs_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], served: list[Any]
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    before = build(1, url)
    assert overpaint("serve", "--data", str(tmp_path)) == 0
    assert len(served) == 1
    assert rows_of(url)["jobs"] == before["jobs"]
    lines = capfd.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"\S+ info    store upgrade started from_version=1 to_version={SCHEMA_VERSION}", lines[0]
    )
    assert re.fullmatch(
        rf"\S+ info    store upgraded from_version=1 to_version={SCHEMA_VERSION} seconds=[\d.]+",
        lines[1],
    )
    assert lines[2].startswith("http://")
    assert overpaint("serve", "--data", str(tmp_path)) == 0  # and then has nothing to upgrade
    assert [line[:7] for line in capfd.readouterr().err.splitlines()] == ["http://"]


def test_serve_refuses_a_newer_store_with_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], served: list[Any]
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    Database(url).close()
    execute(url, "UPDATE alembic_version SET version_num = '0099'")
    assert overpaint("serve", "--data", str(tmp_path)) == StoreError.exit_code
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("overpaint: The job store sqlite:///")
    assert "has schema version 99" in line
    assert served == []


def test_serve_leaves_the_store_of_a_running_server_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], served: list[Any]
) -> None:
    before = build(1, url := f"sqlite:///{tmp_path / 'jobs.db'}")
    with closing(lock_file(tmp_path / "server.lock")):
        assert overpaint("serve", "--data", str(tmp_path)) == StoreError.exit_code
    assert "Another server" in capfd.readouterr().err
    assert rows_of(url) == before
    assert served == []


def test_serve_on_a_public_address_counts_the_keys_of_an_older_store(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], served: list[Any]
) -> None:
    (tmp_path / "keyless").mkdir()
    build(2, f"sqlite:///{tmp_path / 'keyless' / 'jobs.db'}")
    build(3, f"sqlite:///{tmp_path / 'jobs.db'}")
    public = ("serve", "--host", "0.0.0.0", "--data")
    assert overpaint(*public, str(tmp_path / "keyless")) != 0
    assert "--key" in capfd.readouterr().err
    assert served == []
    assert overpaint(*public, str(tmp_path)) == 0
    assert len(served) == 1


@pytest.mark.parametrize(
    "command", [["keys", "list"], ["keys", "create"], ["keys", "revoke", "old"], ["usage"]]
)
def test_commands_that_are_no_server_refuse_an_older_store(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    before = build(4, url)
    assert overpaint(*command, "--data", str(tmp_path)) == StoreError.exit_code
    said = capfd.readouterr()
    assert "has schema version 4" in said.err
    assert "`overpaint serve`" in said.err
    assert said.out == ""
    assert rows_of(url) == before


@pytest.mark.parametrize("version", VERSIONS)
def test_jobs_of_older_stores_are_shown_by_every_dialect(version: int, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    rows = build(version, url)["jobs"]
    image = (Path(__file__).parents[3] / "examples" / "house.png").read_bytes()
    for row in rows:
        for name in json.loads(row["result"] or "{}").get("files", ()):
            path = tmp_path / "results" / row["id"] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
    own = [row for row in rows if row["key"]]
    with client_of(tmp_path, api_keys=("op_test",), keep_days=1e7) as client:
        client.headers["Authorization"] = "Bearer op_test"
        for row in own:
            shown = client.get(f"/api/jobs/{row['id']}").raise_for_status().json()
            assert shown["created"] == row["created"]
            assert shown["request"] == json.loads(row["request"])
            for made in shown["results"]:
                assert client.get(made["url"]).raise_for_status().content == image
            assert client.get(f"/v1/predictions/{row['id']}").raise_for_status().json()["urls"]
            if json.loads(row["origin"]).get("wire") == "fal":
                fal = f"/fal/queue/fal-ai/fast-sdxl/requests/{row['id']}"
                assert client.get(fal).raise_for_status().json()["prompt"] == "a house"
        assert len(client.get("/v1/predictions").raise_for_status().json()["results"]) == len(own)
