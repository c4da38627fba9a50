"""Fixtures: the fleet under test, and the last line that counts the cases.

Every test that takes `target` runs against mock engines, and again against real ones: those that FAIRWAY_E2E_TARGET names (their URLs
separated by commas, serving one model), or two started with the vLLM and the tiny model in FAIRWAY_E2E_VLLM, a directory.
"""

import asyncio
import json
import os
import signal
import time
import uuid
from pathlib import Path

import pytest

import scripted
from fleet import Fleet, Target, get

REAL = [url.rstrip("/").removesuffix("/v1") for url in os.environ.get("FAIRWAY_E2E_TARGET", "").split(",") if url.strip()]
VLLM = os.environ.get("FAIRWAY_E2E_VLLM")
BODY, BUFFERS = 65_536, 163_840  # the cramped Fairway's limits, in bytes

started = time.monotonic()


def pytest_sessionstart(session):
    """SIGTERM ends the suite as Ctrl-C does: fixtures are closed, and with them the processes."""

    def stop(*_):
        session.shouldstop = "SIGTERM"  # after this test at the latest: an exception is lost in some places, such as weakref's callbacks
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


@pytest.fixture(scope="session")
def fleet(tmp_path_factory):
    fleet = Fleet(tmp_path_factory.mktemp("logs"))
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(scope="session")
def mock(fleet) -> Target:
    """Two mock engines behind Fairway."""
    engines = [fleet.mock("mock"), fleet.mock("mock")]
    return Target("mock", fleet.fairway(engines), "mock", engines)


@pytest.fixture(scope="session")
def real(fleet) -> Target:
    """Real engines behind Fairway."""
    engines = REAL or fleet.vllm(Path(VLLM, "bin", "vllm"), Path(VLLM, "models", "tiny"), engines=2)
    model = json.loads(get(engines[0] + "/v1/models"))["data"][0]["id"]
    return Target("engine", fleet.fairway(engines), model, engines)


@pytest.fixture(scope="session", params=["mock", "engine"] if REAL or VLLM else ["mock"])
def target(request) -> Target:
    return request.getfixturevalue("mock" if request.param == "mock" else "real")


@pytest.fixture(scope="session")
def engine():
    """The scripted engine itself, which tells what reached it."""
    engine = scripted.Engine()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def scripts(fleet, engine) -> Target:
    """The scripted engine behind Fairway."""
    return Target("scripted", fleet.fairway([engine.url]), scripted.MODEL, [engine.url])


@pytest.fixture(scope="session")
def cramped(fleet, engine) -> Target:
    """A Fairway with little room for bodies."""
    limits = {"body": BODY, "buffers": BUFFERS}
    return Target("scripted", fleet.fairway([engine.url], limits=limits), scripted.MODEL, [engine.url])


@pytest.fixture(scope="session")
def deserted(fleet) -> Target:
    """A Fairway whose only engine is not there."""
    gone = scripted.Engine()
    gone.close()
    return Target("scripted", fleet.fairway([gone.url]), scripted.MODEL, [gone.url])


@pytest.fixture(scope="session")
def loop():
    """One event loop for all: clients keep connections, which belong to the loop that opened them."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def key() -> str:
    """Names the requests of one test."""
    return uuid.uuid4().hex


def pytest_terminal_summary(terminalreporter):
    def count(*outcomes: str) -> int:
        return sum(len(terminalreporter.stats.get(outcome, [])) for outcome in outcomes)

    passed, failed, skipped = count("passed", "subtests passed"), count("failed", "error", "subtests failed"), count("skipped", "subtests skipped")
    terminalreporter.write_line(f"took {(time.monotonic() - started) / 60:.1f} min")
    terminalreporter.config.stash[counts] = f"{passed} passed, {failed} failed, {skipped} skipped"


counts = pytest.StashKey[str]()


def pytest_unconfigure(config):
    """Prints the count after everything pytest prints itself."""
    if line := config.stash.get(counts, ""):
        print(line, flush=True)
