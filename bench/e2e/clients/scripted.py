"""An engine that answers what the request's field "script" says, and remembers what reached it: for what no engine does on demand.

script: {key, status, refusals, retry_after, content, tool_calls, held, cut, gzip}. The first `refusals` requests of a key get `status` (with
Retry-After, when given); those that follow get a chat completion of `content` or `tool_calls`, as a stream if asked. After `held`
events of the stream it says no more until it is told to; `cut` breaks the connection after so many; `gzip` compresses an answer in one piece.

GET /received/KEY tells the requests of a key: [{at, headers, body}], at in seconds. GET /release/KEY lets its streams that are held go on.
"""

import gzip
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "scripted"


class Engine(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.received: dict[str, list[dict]] = {}
        self.released: dict[str, threading.Event] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *args):
        if not isinstance(sys.exception(), ConnectionError):  # that is a client that has gone
            super().handle_error(*args)

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def remember(self, key: str, headers: dict, body: str) -> int:
        """Returns how many requests of key came before."""
        with self.lock:
            earlier = self.received.setdefault(key, [])
            earlier.append({"at": time.monotonic(), "headers": headers, "body": body})
            return len(earlier) - 1

    def gate(self, key: str) -> threading.Event:
        """Is set when the key's streams may go on."""
        with self.lock:
            return self.released.setdefault(key, threading.Event())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/health":
            return self.answer(200, b"")
        if self.path == "/v1/models":
            return self.answer(200, encode({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "vllm"}]}))
        if self.path.startswith("/received/"):
            with self.server.lock:
                return self.answer(200, encode(self.server.received.get(self.path.removeprefix("/received/"), [])))
        if self.path.startswith("/release/"):
            self.server.gate(self.path.removeprefix("/release/")).set()
            return self.answer(200, b"")
        self.answer(404, b'{"detail":"Not Found"}')

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        request = json.loads(body)
        script = request.get("script", {})
        earlier = self.server.remember(script.get("key", ""), {k.lower(): v for k, v in self.headers.items()}, body)
        if earlier < script.get("refusals", 0):
            return self.refuse(script)
        message = {"role": "assistant", "content": script.get("content", "Fine.")}
        if calls := script.get("tool_calls"):
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        finish = "tool_calls" if calls else "stop"
        if request.get("stream"):
            return self.stream(request, message, finish)
        answer = encode({**head("chat.completion"), "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}], "usage": USAGE})
        if script.get("gzip"):
            return self.answer(200, gzip.compress(answer), {"Content-Encoding": "gzip"})
        self.answer(200, answer)

    def refuse(self, script: dict):
        status = script["status"]
        error = {"message": f"Refused with {status}, as asked.", "type": "ScriptedError", "param": "script", "code": status}
        self.answer(status, encode({"error": error}), {"Retry-After": str(script["retry_after"])} if "retry_after" in script else {})

    def answer(self, status: int, body: bytes, fields: dict = {}):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, request: dict, message: dict, finish: str):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        deltas = [{"role": "assistant", "content": ""}]
        if "tool_calls" in message:
            deltas += tool_deltas(message["tool_calls"])
        else:
            deltas += [{"content": character} for character in message["content"]]
        events = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if (request.get("stream_options") or {}).get("include_usage"):
            events.append({"choices": [], "usage": USAGE})
        script = request["script"]
        for i, event in enumerate(events[: script.get("cut")]):
            if i == script.get("held"):
                self.server.gate(script["key"]).wait()
            self.event(encode({**head("chat.completion.chunk"), **event}))
        if "cut" in script:
            self.close_connection = True
            return
        self.event(b"[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: bytes):
        event = b"data: " + data + b"\n\n"
        # An event in two chunks, cut inside a character where there is a long one: a relay has no right to expect whole ones.
        half = len(event) // 2
        for piece in (event[:half], event[half:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))


USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 3}}


def head(kind: str) -> dict:
    return {"id": "chatcmpl-scripted", "object": kind, "created": 1, "model": MODEL}


def encode(value) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def tool_deltas(calls: list[dict]):
    """As an engine streams them: the name first, then the arguments piece by piece."""
    for i, call in enumerate(calls):
        function = call["function"]
        yield {"tool_calls": [{"index": i, "id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": ""}}]}
        for start in range(0, len(function["arguments"]), 4):
            yield {"tool_calls": [{"index": i, "function": {"arguments": function["arguments"][start : start + 4]}}]}
