"""curl: HTTP as people type it, and the corners of the protocol that SDKs stay out of."""

import json
import subprocess

import pytest

from conftest import BODY

CHAT = "/v1/chat/completions"


def curl(*args, stdin: bytes = b"", check: bool = True, within: float = 300) -> subprocess.CompletedProcess:
    """Runs curl; its standard output is the body, its standard error the talk."""
    done = subprocess.run(["curl", "-sS", "-v", "--max-time", str(within), *args], input=stdin, capture_output=True, timeout=within + 30)
    assert not check or done.returncode == 0, f"curl exited with {done.returncode}: {done.stderr.decode()}"
    return done


def talk(done) -> tuple[list[int], list[str]]:
    """The statuses of all answers, interim ones too, and the lines of all their heads in lower case."""
    lines = [line[2:].strip().lower() for line in done.stderr.decode(errors="replace").splitlines() if line.startswith("< ")]
    return [int(line.split()[1]) for line in lines if line.startswith("http/")], lines


def post(at, body, *args, path: str = CHAT, **options):
    """Posts body, an object or bytes, by way of standard input."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return curl(at.url + path, "-H", "Content-Type: application/json", "--data-binary", "@-", *args, stdin=data, **options)


def ask(at, content: str = "Hello.", **options) -> dict:
    return {"model": at.model, "messages": [{"role": "user", "content": content}], "max_tokens": 8, "ignore_eos": True, **options}


def events(done) -> list[str]:
    """The data of a stream's events."""
    blocks = done.stdout.decode().split("\n\n")
    assert blocks.pop() == "", "the stream ends inside an event"
    assert all(block.startswith("data: ") for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def test_answer(target):
    done = post(target, ask(target))
    assert talk(done)[0] == [200]
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 8


def test_models(target):
    assert target.model in [m["id"] for m in json.loads(curl(target.url + "/v1/models").stdout)["data"]]


def test_stream(target):
    done = post(target, ask(target, stream=True), "-N")
    got = events(done)
    assert got[-1] == "[DONE]"
    assert all(json.loads(data)["choices"] for data in got[:-1]), "an event without choices, which nobody asked for"
    assert any(line.startswith("content-type: text/event-stream") for line in talk(done)[1])


def test_stream_left(target):
    body = json.dumps(ask(target, stream=True, max_tokens=8000))

    def leave():
        with subprocess.Popen(["curl", "-sSN", "-H", "Content-Type: application/json", "-d", body, target.url + CHAT], stdout=subprocess.PIPE) as curl:
            assert curl.stdout.readline().startswith(b"data: ")
            curl.kill()

    target.drops(leave)


@pytest.mark.parametrize("stream", [False, True])
def test_http10(target, stream):
    """An HTTP/1.0 client knows no chunks: the answer ends with the connection, or has a length."""
    done = post(target, ask(target, stream=stream), "--http1.0")
    statuses, head = talk(done)
    assert statuses == [200]
    assert not any(line.startswith("transfer-encoding:") for line in head)
    if stream:
        assert events(done)[-1] == "[DONE]"
    else:
        assert json.loads(done.stdout)["usage"]["completion_tokens"] == 8


def test_http10_keep_alive(target):
    done = curl("--http1.0", "-H", "Connection: keep-alive", target.url + "/v1/models", target.url + "/v1/models")
    assert talk(done)[0] == [200, 200]


def test_expect_continue(target):
    """2 MB that wait for leave to be sent; without it curl would wait longer than it may take."""
    done = post(target, ask(target, "x" * 2_000_000, max_tokens="many"), "-H", "Expect: 100-continue", "--expect100-timeout", "1000")
    assert talk(done)[0] == [100, 400]
    assert json.loads(done.stdout)["error"]["code"] == 400


def test_expect_continue_refused(cramped):
    """A body that is too large is refused before it is sent."""
    done = post(cramped, b"x" * (2 * BODY), "-H", "Expect: 100-continue", "--expect100-timeout", "1000", "-w", "%{stderr}sent=%{size_upload}\n")
    assert talk(done)[0] == [413]
    assert b"sent=0" in done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "fairway_body_too_large"


def test_expect_something_else(target):
    done = post(target, ask(target), "-H", "Expect: miracles")
    assert talk(done)[0] == [417]


@pytest.mark.parametrize("size", [10, 200_000], ids=["small", "200 kB"])
def test_chunked_upload(scripts, engine, key, size):
    sent = json.dumps(ask(scripts, "x" * size, script={"key": key}))
    done = post(scripts, sent.encode(), "-H", "Transfer-Encoding: chunked")
    assert talk(done)[0][-1] == 200
    assert engine.received[key][0]["body"] == sent


def test_chunked_upload_to_engine(target):
    done = post(target, ask(target), "-H", "Transfer-Encoding: chunked")
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 8


def test_chunked_too_large(cramped):
    done = post(cramped, b"x" * (2 * BODY), "-H", "Transfer-Encoding: chunked", "-H", "Expect:", check=False)
    assert talk(done)[0] == [413], f"curl exited with {done.returncode}"


def test_head(target):
    """HEAD is the engine's to answer; no body may follow, or the next answer on the connection is garbled."""
    done = curl("-I", target.url + "/health", "--next", "-sS", "-v", target.url + "/v1/models")
    statuses, _ = talk(done)
    assert len(statuses) == 2 and statuses[1] == 200
    assert b"Re-using existing connection" in done.stderr
    assert b'"object":"list"' in done.stdout


def test_options(target):
    assert len(talk(curl("-X", "OPTIONS", target.url + CHAT))[0]) == 1


def test_connection_is_kept(target):
    done = post(target, ask(target), "--next", "-sS", "-v", "-N", "-H", "Content-Type: application/json", "-d", json.dumps(ask(target, stream=True)), target.url + CHAT,
                "--next", "-sS", "-v", target.url + "/v1/models")
    assert talk(done)[0] == [200, 200, 200]
    assert done.stderr.count(b"Re-using existing connection") == 2


def test_compressed(scripts):
    done = post(scripts, ask(scripts, script={"content": "Zip. " * 500, "gzip": True}), "--compressed")
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "Zip. " * 500


def test_errors(target):
    for body, status in (({"model": "nobody", "messages": []}, 404), (b'{"model": ', 400), (b"", 400), (b"[]", 400)):
        done = post(target, body)
        assert talk(done)[0] == [status], body
        assert json.loads(done.stdout)["error"]["code"] == status
    assert talk(curl(target.url + "/no/such/path"))[0] == [404]
    assert talk(curl(target.url + CHAT))[0] == [405]


def test_retry(scripts, engine, key):
    """curl --retry waits as long as Retry-After says, too."""
    done = post(scripts, ask(scripts, script={"key": key, "refusals": 1, "status": 503, "retry_after": 2}), "--retry", "2")
    assert talk(done)[0] == [503, 200]
    first, second = engine.received[key]
    assert second["at"] - first["at"] >= 2


def test_explained(target):
    _, head = talk(post(target, ask(target), "-H", "X-Fairway-Explain: 1"))
    assert any(line.startswith("x-fairway-endpoint: ") for line in head)
    _, head = talk(post(target, ask(target)))
    assert not any(line.startswith("x-fairway-") for line in head)
