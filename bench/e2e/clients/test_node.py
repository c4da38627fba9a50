"""The npm openai SDK: its tests are sdk.test.cjs, each of which counts as one here."""

import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_sdk(target, scripts, cramped, deserted, tmp_path, subtests):
    report = tmp_path / "report.xml"
    done = subprocess.run(
        ["node", "--test", "--test-timeout=600000", "--test-reporter=junit", f"--test-reporter-destination={report}", HERE / "sdk.test.cjs"],
        env={**os.environ,
             "E2E_KIND": target.kind, "E2E_URL": target.url, "E2E_MODEL": target.model, "E2E_ENGINES": ",".join(target.engines),
             "E2E_SCRIPTS_URL": scripts.url, "E2E_SCRIPTS_ENGINE": scripts.engines[0],
             "E2E_CRAMPED_URL": cramped.url, "E2E_DESERTED_URL": deserted.url},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500)
    cases = ElementTree.parse(report).getroot().iter("testcase")
    for case in cases:
        with subtests.test(case.get("name")):
            if (skipped := case.find("skipped")) is not None:
                pytest.skip(skipped.get("message") or "skipped")
            failure = case.find("failure")
            assert failure is None, failure.text or failure.get("message")
    assert report.stat().st_size and (done.returncode == 0 or "<failure" in report.read_text()), done.stdout
