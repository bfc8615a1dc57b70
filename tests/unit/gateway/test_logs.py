"""Log lines, and the id of a request: in the answer, on each line, with the job, and on its way to the server."""

import json
import logging

import pytest

from deepfake_client.transport.request_id import REQUEST_ID
from deepfake_gateway.logs import logs_in_use, set_up_logs

SENT = "4f1c-a.b_2"


@pytest.fixture(autouse=True)
def others():
    """Leave what other tests log as it was."""
    loggers = [logging.getLogger(name) for name in (None, "alembic", "dbos")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, state in zip(loggers, before, strict=True):
        logger.handlers, level, logger.propagate = state
        logger.setLevel(level)


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_each_line_of_a_request_and_of_its_job_has_its_id(gateway, clip, capsys):
    set_up_logs("json", "info")
    answer = gateway.post("/v1/analyses", content=clip, headers={"X-Request-ID": SENT, "Prefer": "wait=60"})
    assert answer.headers["x-request-id"] == SENT
    gateway.queue.close()
    mine = [line for line in lines(capsys) if line["logger"].startswith("deepfake_gateway")]
    assert [line["request_id"] for line in mine] == [SENT] * 2
    job, request = sorted(mine, key=lambda line: "status" in line and line["status"] != "done")
    assert (job["analysis"], job["status"]) == (answer.json()["id"], "done")
    assert (request["method"], request["path"], request["status"]) == ("POST", "/v1/analyses", 200)
    assert gateway.desk.find(answer.json()["id"]).request_id == SENT


@pytest.mark.parametrize("given", [None, "", "a b", "x\ty", "é", "a" * 65, "<b>", '"'])
def test_an_id_that_could_do_harm_is_replaced(gateway, given):
    headers = {} if given is None else {"X-Request-ID": given.encode("latin-1")}
    ids = {gateway.get("/v1/health/live", headers=headers).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(len(made) == 16 and made.isalnum() and made != given for made in ids)


def test_a_database_that_is_away_is_one_short_line(capsys):
    set_up_logs("json", "info")
    logger = logging.getLogger("dbos")
    for queue in ("analyze", "explain", "watch"):
        logger.warning("Exception in %s: (psycopg.OperationalError) refused\n\tIs it there?", queue)
    try:
        raise RuntimeError("(sqlite3.OperationalError) disk I/O error")
    except RuntimeError:
        logger.warning("it failed", exc_info=True)
    logger.error("something else")
    first, other = lines(capsys)
    assert first["message"].startswith("the queue's database is away (Exception in analyze")
    assert "\n" not in first["message"]
    assert other["message"] == "something else"


def test_lines_hold_what_went_wrong_and_nothing_breaks_them(capsys):
    set_up_logs("json", "info")
    REQUEST_ID.set("")
    try:
        raise RuntimeError("two\nlines")
    except RuntimeError:
        logging.getLogger("a").exception("it failed: %s", "\n{", extra={"analysis": "x", "object": object()})
    (line,) = lines(capsys)
    assert (line["level"], line["message"], line["analysis"], line["request_id"]) == (
        "error",
        "it failed: \n{",
        "x",
        None,
    )
    assert "RuntimeError: two" in line["exception"]
    assert logs_in_use() == ("json", "info")


def test_lines_for_people(capsys):
    set_up_logs("plain", "warning")
    REQUEST_ID.set("abc")
    logging.getLogger("a").info("unseen")
    logging.getLogger("a").warning("seen")
    REQUEST_ID.set("")
    assert capsys.readouterr().err.endswith(" warning [abc] seen\n")
    assert logs_in_use() == ("plain", "warning")
