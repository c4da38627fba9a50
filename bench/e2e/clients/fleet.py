"""The processes under test: mock engines and Fairway, each on free ports, each stopped by whoever started it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(os.environ["FAIRWAY_E2E_BIN"])


@dataclass
class Target:
    """A Fairway and the engines behind it."""

    kind: str  # "mock" or "engine": a real one
    url: str  # Fairway's, without /v1
    model: str
    engines: list[str] = field(default_factory=list)  # their URLs, without /v1

    @property
    def base_url(self) -> str:
        return self.url + "/v1"

    def serves(self, path: str) -> bool:
        """Whether the engines know a path, whatever they say to an empty request."""
        request = urllib.request.Request(self.engines[0] + path, b"{}", {"Content-Type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=300).close()
        except urllib.error.HTTPError as err:
            with err:
                return not (err.code == 404 and err.read() == b'{"detail":"Not Found"}')
        return True

    def sum(self, pattern: str) -> float:
        """Adds up a metric over the engines."""
        pages = (get(engine + "/metrics").decode() for engine in self.engines)
        return sum(float(line.rsplit(" ", 1)[1]) for page in pages for line in page.splitlines() if re.match(pattern, line))

    def running(self) -> float:
        """How many requests the engines say they run or have waiting."""
        return self.sum(r"vllm:num_requests_(running|waiting)\{")

    def idle(self) -> None:
        """Waits until the engines run nothing."""
        while self.running():
            time.sleep(0.02)

    def drops(self, leave) -> None:
        """Has leave ask for long answers and leave them, and wants the engines to drop them.

        An engine that computes may be deaf for seconds, and the answer be whole before it hears that nobody waits: then it is tried again.
        """
        finished = r'vllm:request_success_total\{.*finished_reason="length"'
        for _ in range(5):
            self.idle()
            before = self.sum(finished)
            leave()
            self.idle()
            if self.sum(finished) == before:
                return
        raise AssertionError("the engines finish answers that nobody waits for")


class Fleet:
    """Starts processes; close stops those that it started."""

    def __init__(self, logs: Path):
        self.logs = logs
        self.processes: list[tuple[str, subprocess.Popen]] = []

    def mock(self, model: str) -> str:
        """Starts a mock engine and returns its URL."""
        # 1 MB of prompt has to fit; twice an H100's pace keeps the suite short, and streams long enough to be left.
        process = self._start("mockvllm", "--listen", "127.0.0.1:0", "--json", "--model", model, "--speed", "2",
                              "--max-model-len", "400000", stdout=subprocess.PIPE)
        line = process.stdout.readline()
        assert line, f"mockvllm did not start:\n{self.output()}"
        return "http://" + json.loads(line)["listen"]

    def fairway(self, engines: list[str], **config) -> str:
        """Starts Fairway in front of engines, config being further keys of fairway.yaml, and returns its URL."""
        for attempt in range(3):  # another process may take a port between its being found and its being used
            http, metrics = free_port(), free_port()
            path = self.logs / f"fairway-{http}.yaml"
            # JSON is YAML.
            path.write_text(json.dumps({"pools": [{"name": "engines", "endpoints": engines}], **config}))
            process = self._start("fairway", "serve", "--config", str(path), "--listen", f"127.0.0.1:{http}", "--metrics", f"127.0.0.1:{metrics}",
                                  "--admin", "127.0.0.1:0")
            if self._ready(process, f"http://127.0.0.1:{metrics}/healthz/ready"):
                return f"http://127.0.0.1:{http}"
        raise AssertionError(f"fairway did not start:\n{self.output()}")

    def vllm(self, program: Path, model: Path, engines: int) -> list[str]:
        """Starts real engines, which takes a minute, and returns their URLs."""
        env = {
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",  # a tiny model gets slower with more threads
            "VLLM_HOST_IP": "127.0.0.1", "VLLM_LOOPBACK_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
        }
        started = []
        for port in [free_port() for _ in range(engines)]:
            process = self._start(str(program), "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", model.name,
                                  "--dtype", "bfloat16", "--max-model-len", "8192", "--enforce-eager", "--block-size", "32", "--enable-prefix-caching",
                                  "--enable-prompt-tokens-details", env={**os.environ, **env})
            started.append((process, f"http://127.0.0.1:{port}"))
        for process, url in started:
            assert self._ready(process, url + "/health", within=900), f"vLLM did not start:\n{self.output()}"
        return [url for _, url in started]

    def _start(self, program: str, *args: str, stdout=None, env=None) -> subprocess.Popen:
        """Starts a program, one of Fairway's if it is a name without a path, in a process group of its own."""
        with open(self.logs / f"{len(self.processes):02d}-{Path(program).name}.log", "wb") as log:
            process = subprocess.Popen([BIN / program, *args], stdin=subprocess.DEVNULL, stdout=stdout or log, stderr=log, env=env, start_new_session=True)
        self.processes.append((log.name, process))
        return process

    def _ready(self, process: subprocess.Popen, url: str, within: float = 120) -> bool:
        deadline = time.monotonic() + within
        while process.poll() is None and time.monotonic() < deadline:
            try:
                get(url)
                return True
            except OSError:
                time.sleep(0.02)
        return False

    def output(self) -> str:
        """The end of what each process has logged."""
        return "\n".join(f"--- {name}\n{Path(name).read_text(errors='replace')[-2000:]}" for name, _ in self.processes)

    def close(self) -> None:
        for _, process in self.processes:
            if process.poll() is None:
                process.terminate()
        for _, process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started
            process.wait()
            if process.stdout:
                process.stdout.close()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=300) as response:
        return response.read()
