"""The database: its tables are made step by step, on SQLite and on a real Postgres, whoever starts at once."""

import dataclasses
import json
import threading

import postgres
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from deepfake_client.cli.main import main
from deepfake_gateway.settings import Settings
from deepfake_gateway.store.analysis import Analysis, Filters, Status
from deepfake_gateway.store.batches import Batch, Batches, BatchItem
from deepfake_gateway.store.counters import amounts
from deepfake_gateway.store.migrations.upgrade import VERSION_TABLE
from deepfake_gateway.store.places import next_cursor, place_of
from deepfake_gateway.store.records import Store
from deepfake_gateway.store.schema import ANALYSES, BATCH_ITEMS, COUNTERS, METADATA, open_engine
from deepfake_gateway.store.usage import Usage, today
from deepfake_gateway.store.webhooks import Webhooks
from deepfake_preprocess.errors import OptionError


@pytest.fixture(scope="module")
def server():
    with postgres.postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.debian("postgresql"))])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'gateway.db'}"
    return postgres.database(request.getfixturevalue("server"), f"test_{tmp_path.name[-20:].strip('_').lower()}")


def analysis(number, **values):
    return Analysis(
        id=f"{number:032x}", created_at=float(number), status=Status.QUEUED, priority=1, file_name="clip.mp4",
        media_type="video/mp4", size_bytes=3 * 2**31, sha256="ab" * 32, options={"threshold": 0.5}, **values,
    )  # fmt: skip


def test_the_steps_make_the_tables_of_the_code_also_when_all_start_at_once(url):
    engines, barrier = [], threading.Barrier(4)

    def start():
        barrier.wait()
        engines.append(open_engine(url))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engines) == 4
    with engines[0].connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []
    for engine in engines:
        engine.dispose()


def test_deliveries_that_were_there_go_with_their_analysis_after_the_step(url, monkeypatch):
    with monkeypatch.context() as before:
        whole = command.upgrade
        before.setattr(command, "upgrade", lambda config, _: whole(config, "0006"))
        engine = open_engine(url)
    rows = [
        {"id": f"delivery{number}", "body": json.dumps({"data": {"id": f"{number:032x}"}})} for number in (1, 2, 3)
    ]
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO webhooks VALUES ('hook', '', 'https://example.org', 'secret', 1)"))
        made = "INSERT INTO deliveries VALUES (:id, 'hook', 1, :body, 0, NULL, NULL, NULL)"
        connection.execute(sa.text(made), rows)
        known = {column.name for column in ANALYSES.columns}
        values = {name: value for name, value in dataclasses.asdict(analysis(1)).items() if name in known}
        for number in (1, 2):
            row = {**values, "id": f"{number:032x}", "options": "{}", "status": "done"}
            connection.execute(ANALYSES.insert().values(row))
    engine.dispose()
    store = Store(url)
    assert [entry.id for entry in Webhooks(store.engine).deliveries("hook")] == ["delivery1", "delivery2"]
    store.delete(f"{1:032x}")
    assert [entry.id for entry in Webhooks(store.engine).deliveries("hook")] == ["delivery2"]
    store.engine.dispose()


def test_a_database_of_a_later_release_is_refused(url):
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(OptionError, match="made by a later release"):
        open_engine(url)


@pytest.mark.parametrize("role", ["all", "web", "worker"])
def test_the_command_refuses_a_database_of_a_later_release_in_a_sentence(url, tmp_path, capsys, role):
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(SystemExit) as ended:
        main(["gateway", "--role", role, "--database", url, "--data-dir", str(tmp_path / "data"), "--port", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the database was made by a later release (its tables are at '9999'); run that release, or name "
        "another `database` or `data_dir`"
    )


def test_states_are_won_once_and_lists_go_on_where_they_ended(url):
    store = Store(url)
    for number in range(5):
        store.add(analysis(number), lambda _: None)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(store.fail(analysis(1).id, "Error", "one"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.error_detail for result in results if result is not None] == ["one"]
    assert [event.data["status"] for event in store.events(analysis(1).id)] == ["queued", "failed"]
    newest = store.page(Filters(), limit=2)
    assert [item.created_at for item in newest] == [4, 3]
    store.delete(newest[-1].id)  # where it was, the list goes on
    after = place_of(next_cursor([*newest, analysis(2)], 2))
    assert [item.created_at for item in store.page(Filters(name="CLIP"), after=after)] == [2, 1, 0]
    with pytest.raises(RuntimeError):  # recorded and queued, both or neither
        store.add(analysis(7), lambda _: (_ for _ in ()).throw(RuntimeError))
    assert store.get(analysis(7).id) is None
    assert store.get(analysis(2).id).size_bytes == 3 * 2**31
    store.delete(analysis(1).id)
    assert store.events(analysis(1).id) == []
    store.close()


def test_names_are_found_however_they_are_written(url):
    store = Store(url)
    store.add(dataclasses.replace(analysis(1), file_name="Überwachung 100%.jpg"), lambda _: None)
    store.add(dataclasses.replace(analysis(2), file_name="clip.mp4"), lambda _: None)
    for name in ("überwachung", "ÜBERWACHUNG", "U\u0308berwachung", "100%"):  # the third as macOS writes it
        assert [one.created_at for one in store.page(Filters(name=name))] == [1], name
    store.close()


def test_who_waits_is_told_of_every_change_and_of_nothing_else(url):
    store, other = Store(url), Store(url)
    with store.changes() as has_changed:
        if has_changed is None:
            assert store.engine.dialect.name == "postgresql"
        else:
            assert has_changed()
            assert not has_changed()
            for change in (
                lambda: other.add(analysis(20), lambda _: None),
                lambda: other.start(analysis(20).id),
                lambda: other.add_progress(analysis(20).id, {"frames_done": 1}),
                lambda: other.cancel(analysis(20).id),
            ):
                change()
                assert has_changed()
                assert len(store.events(analysis(20).id)) == len(other.events(analysis(20).id))
                assert not has_changed()
    store.close()
    other.close()


def test_nothing_ends_before_it_began_however_long_the_database_took(url, monkeypatch):
    store = Store(url)
    for number, end in enumerate((store.cancel, lambda found: store.fail(found, "InternalError", "")), 30):
        store.add(analysis(number), lambda _: None)
        with monkeypatch.context() as patch:
            patch.setattr("deepfake_gateway.store.records.time.time", lambda: 200.0)
            store.start(analysis(number).id)
            patch.setattr("deepfake_gateway.store.records.time.time", lambda: 199.0)  # it waited for the start
            end(analysis(number).id)
        assert (store.get(analysis(number).id).started_at, store.get(analysis(number).id).finished_at) == (200, 200)
        store.add(analysis(number + 10), lambda _: None)
        end(analysis(number + 10).id)
        assert store.get(analysis(number + 10).id).finished_at > 1e9, "what never began ends, too"
    store.close()


def test_seconds_of_a_key_are_added_up_whoever_is_the_first_of_a_day(url):
    store = Store(url)
    numbers = range(10, 16)
    for number in numbers:
        store.add(analysis(number, key_id="12345678"), lambda _: None)
    verdict = {
        "label": "REAL", "fake_probability": 0.1, "reason": None, "frames": [{"pts_seconds": 2.5, "faces": []}],
        "model": {"name": "m", "version": 1, "checkpoint_sha256": None},
        "timing_s": {"decode": 0.5, "detect": 0.2, "crop": 0.3, "infer": 0.4, "aggregate": 0.5, "total": 0.6},
    }  # fmt: skip
    threads = [threading.Thread(target=store.finish, args=(analysis(number).id, verdict)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.get(analysis(number).id).status for number in numbers] == [Status.DONE] * 6
    used = Usage(store.engine)
    assert used.seconds_today("12345678") == 15
    (day,) = used.between(today(), today())
    assert (day.key_id, day.name, day.sent, day.done, day.size_bytes) == ("12345678", None, 6, 6, 18 * 2**31)
    with store.engine.connect() as connection:
        counted = {(name, *labels.values()): amount for name, labels, amount in amounts(connection)}
    assert counted["ended", "REAL", "done"] == 6
    assert counted["stage_seconds", "decode"] == 3
    assert counted["score", "", "0.1"] == 6
    store.close()


@pytest.mark.debian("postgresql")
def test_a_postgres_that_is_cut_off_is_not_waited_for_longer_than_its_address_says(server):
    """The kernel itself waits for a quarter of an hour, or two hours."""

    def asked_of_libpq(url):
        engine = open_engine(Settings.of(database=url).database_url)
        with engine.connect() as connection:
            given = connection.connection.dbapi_connection.info.get_parameters()
        engine.dispose()
        return given

    given = asked_of_libpq(server)
    assert (given["connect_timeout"], given["tcp_user_timeout"], given["keepalives_idle"]) == ("10", "15000", "15")
    assert asked_of_libpq(f"{server}?tcp_user_timeout=60000")["tcp_user_timeout"] == "60000"


def test_many_are_canceled_and_deleted_as_one_is(url):
    store = Store(url)
    for number, key_id in enumerate(("aaaaaaaa", "bbbbbbbb", "bbbbbbbb", None), 50):
        store.add(analysis(number, key_id=key_id), lambda _: None)
    store.fail(analysis(50).id, "InternalError", "")
    store.start(analysis(51).id)
    store.add_progress(analysis(51).id, {"frames_done": 1})
    ids = [analysis(number).id for number in (53, 50, 52, 51)]
    assert store.of_tenant("another").cancel(*ids) is False
    assert store.cancel(*ids)
    assert not store.cancel(*ids), "none is unfinished"
    statuses = [[event.data["status"] for event in store.events(analysis_id)] for analysis_id in ids]
    assert statuses == [
        ["queued", "canceled"], ["queued", "failed"], ["queued", "canceled"], ["queued", "running", "canceled"],
    ]  # fmt: skip
    used = {day.key_id: (day.failed, day.canceled) for day in Usage(store.engine).between(today(), today())}
    assert used == {"aaaaaaaa": (1, 0), "bbbbbbbb": (0, 2), None: (0, 1)}
    with store.engine.connect() as connection:
        ended = dict(
            connection.execute(
                sa.select(COUNTERS.c.labels, COUNTERS.c.amount).where(COUNTERS.c.name == "ended")
            ).all()
        )
    assert ended == {'{"label":"","status":"canceled"}': 3, '{"label":"","status":"failed"}': 1}
    store.of_tenant("another").delete(*ids)
    store.delete(*ids[:3])
    assert [store.get(analysis_id) is None for analysis_id in ids] == [True, True, True, False]
    store.close()


def test_a_batch_is_over_once_nothing_of_it_is_awaited_or_analyzed(url):
    store = Store(url)
    batches = Batches(store.engine)
    store.add(analysis(40), lambda _: None)

    def batch(number, *items):
        batches.add(Batch(id=f"{number:032x}", created_at=float(number), name="", items=items), lambda *_: None)
        return f"{number:032x}"

    analyzed = batch(41, BatchItem("clip.mp4", analysis(40)), BatchItem("b.mp4", refusal="it is empty"))
    awaited = batch(
        42, BatchItem("a", url="http://a/"), BatchItem("b", url="http://b/"), BatchItem("c", url="http://c/")
    )
    refused = batch(43, BatchItem("c.mp4", refusal="it is empty"))
    assert batches.over_before(44.0) == [refused]
    assert batches.over_before(42.5) == []
    assert batches.settle(awaited, 0, None, "the address answers 404")
    assert batches.settle(awaited, 1, analysis(40), None)
    assert batches.settle(awaited, 1, analysis(40), None), "it may be said twice"
    batches.await_no_more(awaited)
    assert not batches.settle(awaited, 2, analysis(40), None), "nobody waits for it any more"
    assert not batches.settle(awaited, 2, None, "the address answers 404")
    assert [item.file_name for item in batches.get(awaited).items] == ["a", "clip.mp4", ""]
    assert batches.over_before(44.0) == [refused]
    store.delete(analysis(40).id)
    assert [item.file_name for item in batches.get(awaited).items] == ["a", "", ""]
    assert batches.over_before(44.0) == [analyzed, awaited, refused]
    batches.delete(awaited)
    assert batches.get(awaited) is None
    with store.engine.connect() as connection:
        names = (
            connection.execute(sa.select(BATCH_ITEMS.c.file_name).order_by(BATCH_ITEMS.c.batch_id)).scalars().all()
        )
    assert sorted(names) == ["", "b.mp4", "c.mp4"]
    store.close()
