"""An ASGI application that writes down every request it is given, one JSON object a line, before it answers.

The file is named by the environment variable RECORD. The answer names the request: "METHOD TARGET\n".
"""

import json
import os

record = open(os.environ["RECORD"], "a", buffering=1, encoding="ascii")


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    target = scope["raw_path"].decode("latin-1")
    if scope["query_string"]:
        target += "?" + scope["query_string"].decode("latin-1")
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    # Behind CGI and WSGI, an underscore in a name is a hyphen.
    forbidden = [f"{name}={value}" for name, value in fields if name.replace("_", "-") == "x-forbidden"]
    found = lambda wanted: [value for name, value in fields if name == wanted]
    record.write(
        json.dumps(
            {
                "id": ", ".join(found("x-request-id")),
                "method": scope["method"],
                "target": target,
                "path": scope["path"],
                "forbidden": ", ".join(forbidden),
                "host": ", ".join(found("host")),
                "length": ", ".join(found("content-length")),
                "coding": ", ".join(found("transfer-encoding")),
                "body": body.decode("latin-1"),
            }
        )
        + "\n"
    )
    answer = f"{scope['method']} {target}\n".encode("latin-1")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(answer)).encode())]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer})
