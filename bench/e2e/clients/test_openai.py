"""The openai Python SDK, unmodified."""

import asyncio
import contextlib
import json
import socket
import time

import openai
import pytest
from httpx2 import Limits
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from conftest import BODY
from scripted import MODEL

HELLO = [{"role": "user", "content": "Hello."}]
LONG = {"max_tokens": 8000, "extra_body": {"ignore_eos": True}}  # takes an engine many seconds


def exactly(tokens: int) -> dict:
    """An answer of just so many tokens."""
    return {"max_tokens": tokens, "extra_body": {"ignore_eos": True}}


def client(at, **options) -> OpenAI:
    return OpenAI(base_url=at.base_url, api_key="none", **{"max_retries": 0, "timeout": 600, **options})


def async_client(at, **options) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=at.base_url, api_key="none", **{"max_retries": 0, "timeout": 600, **options})


def text_of(stream) -> str:
    return "".join(c.delta.content or "" for chunk in stream for c in chunk.choices)


# What answers look like.


def test_models(target):
    assert target.model in [m.id for m in client(target).models.list()]


def test_chat(target):
    answer = client(target).chat.completions.create(model=target.model, messages=HELLO, **exactly(16))
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == target.model
    assert answer.usage.completion_tokens == 16


def test_request_id(target):
    raw = client(target).chat.completions.with_raw_response.create(model=target.model, messages=HELLO, max_tokens=1)
    assert raw.parse()._request_id == raw.headers["x-request-id"] != ""
    given = client(target, default_headers={"X-Request-Id": "my-own-id"})
    assert given.chat.completions.create(model=target.model, messages=HELLO, max_tokens=1)._request_id == "my-own-id"


def test_completion(target):
    answer = client(target).completions.create(model=target.model, prompt="Once upon", **exactly(16))
    assert answer.choices[0].text
    assert answer.usage.completion_tokens == 16


def test_completion_stream(target):
    stream = client(target).completions.create(model=target.model, prompt="Once upon", stream=True, **exactly(16))
    chunks = [chunk for chunk in stream if chunk.choices]
    assert "".join(c.choices[0].text for c in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_chat_stream(target):
    chunks = list(client(target).chat.completions.create(model=target.model, messages=HELLO, stream=True, **exactly(500)))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert text_of(chunks)


def test_events_come_as_they_are_made(scripts, engine, key):
    text = ""
    for chunk in client(scripts).chat.completions.create(
            model=scripts.model, messages=HELLO, stream=True, extra_body={"script": {"key": key, "content": "Bit by bit.", "held": 4}}):
        text += text_of([chunk])
        if text == "Bit":
            engine.gate(key).set()  # before, the engine says no more
    assert text == "Bit by bit."


def test_stream_accumulates(scripts):
    with client(scripts).chat.completions.stream(model=scripts.model, messages=HELLO, extra_body={"script": {"content": "Hello, world."}}) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "content.delta")
    assert stream.get_final_completion().choices[0].message.content == deltas == "Hello, world."


def test_async(target, loop):
    async def run():
        async with async_client(target) as c:
            answer = await c.chat.completions.create(model=target.model, messages=HELLO, **exactly(16))
            stream = await c.chat.completions.create(model=target.model, messages=HELLO, stream=True, **exactly(16))
            return answer, [chunk async for chunk in stream]

    answer, chunks = loop.run(run())
    assert answer.usage.completion_tokens == 16
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("options, told", [({}, False), ({"stream_options": {"include_usage": False}}, False), ({"stream_options": {"include_usage": True}}, True)])
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_usage_only_when_asked(target, kind, options, told):
    c = client(target)
    if kind == "chat":
        stream = c.chat.completions.create(model=target.model, messages=HELLO, stream=True, **exactly(8), **options)
    else:
        stream = c.completions.create(model=target.model, prompt="Hello.", stream=True, **exactly(8), **options)
    chunks = list(stream)
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == ([8] if told else [])
    assert all(chunk.choices for chunk in chunks[:-1]) and bool(chunks[-1].choices) != told, "an event without choices carries usage, and comes last"


def test_continuous_usage(target):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client(target).chat.completions.create(model=target.model, messages=HELLO, stream=True, stream_options=options, **exactly(8)))
    assert all(chunk.usage for chunk in chunks)
    assert chunks[-1].usage.completion_tokens == 8


def test_n(target):
    answer = client(target).chat.completions.create(model=target.model, messages=HELLO, n=2, **exactly(32))
    assert [c.index for c in answer.choices] == [0, 1]
    assert all(c.message.content for c in answer.choices)
    texts = ["", ""]
    for chunk in client(target).chat.completions.create(model=target.model, messages=HELLO, n=2, stream=True, **exactly(32)):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(texts)


def test_embeddings(target):
    if not target.serves("/v1/embeddings"):
        pytest.skip("the engine serves no embeddings")
    try:
        answer = client(target).embeddings.create(model=target.model, input=["one", "two"], encoding_format="float")
    except (openai.BadRequestError, openai.NotFoundError) as err:
        pytest.skip(f"the engine's model makes no embeddings: {err}")
    assert [e.index for e in answer.data] == [0, 1]
    assert all(e.embedding for e in answer.data)
    # The SDK's own default is base64, which it decodes.
    assert client(target).embeddings.create(model=target.model, input="one").data[0].embedding == pytest.approx(answer.data[0].embedding, rel=1e-2, abs=1e-3)


def test_responses(target):
    if not target.serves("/v1/responses"):
        pytest.skip("the engine serves no /v1/responses")
    c = client(target)
    answer = c.responses.create(model=target.model, input="Hello.", max_output_tokens=16)
    assert answer.output_text
    events = list(c.responses.create(model=target.model, input="Hello.", max_output_tokens=16, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta")


# What is asked reaches the engine unharmed, and so does what it says.

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather somewhere",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"enum": ["°C", "°F"]}}, "required": ["city"]},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Zürich","unit":"°C"}'}}


class Event(BaseModel):
    name: str
    guests: list[str]


def received(engine, key: str) -> list[dict]:
    return [{**r, "json": json.loads(r["body"])} for r in engine.received[key]]


def test_tools(scripts, engine, key):
    c = client(scripts)
    asked = dict(model=scripts.model, messages=HELLO, tools=[WEATHER], tool_choice="required", extra_body={"script": {"key": key, "tool_calls": [CALL]}})
    message = c.chat.completions.create(**asked).choices[0].message
    assert [t.model_dump() for t in message.tool_calls] == [CALL]

    with c.chat.completions.stream(**{**asked, "tools": [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]}) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == CALL["function"]["arguments"]
    assert final.choices[0].finish_reason == "tool_calls"

    # The answer to the call goes back, with the call.
    history = HELLO + [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": "call_1", "content": "21 °C"}]
    c.chat.completions.create(**{**asked, "messages": history})
    first, _, third = received(engine, key)
    assert first["json"]["tools"] == [WEATHER] and first["json"]["tool_choice"] == "required"
    assert third["json"]["messages"] == history


def test_tools_of_engine(target):
    """The engine's own tool calls; the mock and engines without a tool parser make none."""
    c = client(target)
    asked = dict(model=target.model, messages=HELLO, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "get_weather"}}, max_tokens=200)
    direct = OpenAI(base_url=target.engines[0] + "/v1", api_key="none", max_retries=0)
    try:
        calls = direct.chat.completions.create(**asked).choices[0].message.tool_calls
    except openai.BadRequestError as err:
        pytest.skip(f"the engine calls no tools: {err}")
    if not calls:
        pytest.skip("the engine calls no tools")
    message = c.chat.completions.create(**asked).choices[0].message
    assert message.tool_calls[0].function.name == "get_weather"
    deltas = [t for chunk in c.chat.completions.create(stream=True, **asked) for choice in chunk.choices for t in choice.delta.tool_calls or []]
    assert deltas[0].function.name == "get_weather"
    assert "".join(t.function.arguments or "" for t in deltas)


def test_structured_output(scripts, engine, key):
    content = '{"name": "Fête 🎉", "guests": ["Ana", "Bo"]}'
    answer = client(scripts).chat.completions.parse(
        model=scripts.model, messages=HELLO, response_format=Event, extra_body={"script": {"key": key, "content": content}})
    assert answer.choices[0].message.parsed == Event(name="Fête 🎉", guests=["Ana", "Bo"])
    form = received(engine, key)[0]["json"]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["schema"]["required"] == ["name", "guests"]


@pytest.mark.parametrize("form", [
    {"type": "text"},
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}},
], ids=lambda form: form["type"])
def test_response_format_of_engine(target, form):
    answer = client(target).chat.completions.create(model=target.model, messages=HELLO, response_format=form, max_tokens=32)
    assert answer.choices[0].finish_reason in ("length", "stop")


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}},
                                     {"stream": True, "stream_options": {"include_usage": False}}], ids=str)
def test_bodies_arrive_as_sent(scripts, engine, key, options):
    raw = client(scripts).chat.completions.with_raw_response.create(
        model=scripts.model, messages=[{"role": "user", "content": "Grüße 👩‍👩‍👧 \u2028 \ud7ff \\ \" </script>"}], temperature=0.10, seed=2**53 + 1,
        logit_bias={"5": -1}, extra_body={"script": {"key": key, "content": "Ja."}, "chat_template_kwargs": {"a": None}}, **options)
    if options:
        assert text_of(raw.parse()) == "Ja."
    sent, (arrived,) = raw.http_request.content.decode(), received(engine, key)
    if options == {"stream": True}:
        assert arrived["json"].pop("stream_options") == {"include_usage": True}
        assert arrived["json"] == json.loads(sent)
    else:
        assert arrived["body"] == sent
    assert arrived["headers"]["authorization"] == "Bearer none"
    assert arrived["headers"]["user-agent"].startswith("OpenAI/Python")


TEXTS = {"emoji": "👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 日本語", "control": "\u0000\u0001\n\r\t\x7f\u2028", "json": '"}\n\ndata: [DONE]\n\n{"', "empty": ""}


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS)
def test_unicode(scripts, content):
    c, script = client(scripts), {"script": {"content": content}}
    assert c.chat.completions.create(model=scripts.model, messages=HELLO, extra_body=script).choices[0].message.content == content
    assert text_of(c.chat.completions.create(model=scripts.model, messages=HELLO, stream=True, extra_body=script)) == content


def test_unicode_prompt(target):
    for content in ("👩‍👩‍👧‍👦 日本語 " * 20, [{"type": "text", "text": "🏳️‍🌈"}, {"type": "text", "text": "Wer?"}]):
        answer = client(target).chat.completions.create(model=target.model, messages=[{"role": "user", "content": content}], **exactly(4))
        assert answer.usage.completion_tokens == 4


def test_compressed_answer(scripts):
    answer = client(scripts).chat.completions.with_raw_response.create(
        model=scripts.model, messages=HELLO, extra_body={"script": {"content": "Zip. " * 500, "gzip": True}})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.parse().choices[0].message.content == "Zip. " * 500


def test_large_prompt(target):
    """1 MB of prompt: the mock takes it, a small engine says itself that it is too long."""
    ask = dict(model=target.model, messages=[{"role": "user", "content": "word " * 200_000}], max_tokens=2)
    if target.kind == "mock":
        assert client(target).chat.completions.create(**ask).usage.prompt_tokens > 100_000
        assert text_of(client(target).chat.completions.create(stream=True, **ask))
        return
    with pytest.raises(openai.BadRequestError, match="context length|too long|maximum"):
        client(target).chat.completions.create(**ask)


# Clients that leave.


def test_abort_stream(target):
    def leave():
        c = client(target)
        streams = [c.chat.completions.create(model=target.model, messages=HELLO, stream=True, **LONG) for _ in range(4)]
        for stream in streams:
            next(stream), next(stream)
        for stream in streams:
            stream.close()

    target.drops(leave)


def test_abort_async(target, loop):
    async def run():
        async with async_client(target) as c:
            async def read():
                async for _ in await c.chat.completions.create(model=target.model, messages=HELLO, stream=True, **LONG):
                    begun.set()

            begun = asyncio.Event()
            task = asyncio.create_task(read())
            await begun.wait()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    target.drops(lambda: loop.run(run()))


@pytest.mark.parametrize("stream", [False, True])
def test_timeout(target, stream):
    """A client that gives up waiting, whether or not the answer has begun."""
    ask = dict(model=target.model, messages=HELLO, **LONG)

    def leave():
        if not stream:
            with pytest.raises(openai.APITimeoutError):
                client(target, timeout=0.5).chat.completions.create(**ask)
        else:
            answer = client(target).chat.completions.create(stream=True, **ask)
            next(answer)
            answer.response.close()

    target.drops(leave)


# Errors are the SDK's typed exceptions.


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model(target, stream):
    with pytest.raises(openai.NotFoundError) as caught:
        client(target).chat.completions.create(model="nobody", messages=HELLO, stream=stream)
    assert caught.value.param == "model"
    assert "nobody" in caught.value.message
    assert caught.value.request_id


@pytest.mark.parametrize("wrong", [{"max_tokens": -1}, {"max_tokens": "many"}, {"messages": "Hello."}, {"n": "two"}], ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_value(target, wrong, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        client(target).chat.completions.create(**{"model": target.model, "messages": HELLO, "stream": stream, **wrong})
    assert caught.value.status_code == 400 and caught.value.message


@pytest.mark.parametrize("status, kind", [
    (400, openai.BadRequestError), (401, openai.AuthenticationError), (403, openai.PermissionDeniedError), (404, openai.NotFoundError),
    (409, openai.ConflictError), (413, openai.APIStatusError), (422, openai.UnprocessableEntityError), (429, openai.RateLimitError),
    (500, openai.InternalServerError), (503, openai.InternalServerError),
])
@pytest.mark.parametrize("stream", [False, True])
def test_status(scripts, status, kind, stream):
    with pytest.raises(kind) as caught:
        client(scripts).chat.completions.create(
            model=scripts.model, messages=HELLO, stream=stream, extra_body={"script": {"key": f"{status}-{stream}", "refusals": 9, "status": status}})
    assert (caught.value.status_code, caught.value.code, caught.value.type, caught.value.param) == (status, str(status), "ScriptedError", "script")


def test_broken_stream(scripts):
    """An engine that breaks off in mid-stream: the SDK has to hear of it."""
    stream = client(scripts).chat.completions.create(
        model=scripts.model, messages=HELLO, stream=True, extra_body={"script": {"content": "Never said in full.", "cut": 4}})
    text = ""
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == "Nev"
    assert caught.value.type == "fairway_upstream_failed"


def test_too_large(cramped):
    with pytest.raises(openai.APIStatusError) as caught:
        client(cramped).chat.completions.create(model=cramped.model, messages=[{"role": "user", "content": "x" * BODY}])
    assert (caught.value.status_code, caught.value.type) == (413, "fairway_body_too_large")


def test_no_engine(deserted):
    for _ in range(3):
        with pytest.raises(openai.InternalServerError) as caught:
            client(deserted).chat.completions.create(model=deserted.model, messages=HELLO)
        assert caught.value.status_code in (502, 503)
        assert caught.value.type in ("fairway_upstream_failed", "fairway_no_endpoint")


# Retries are the SDK's, after as long as Retry-After says.


def script_of(engine, key):
    arrivals = [r["at"] for r in engine.received[key]]
    counts = [r["headers"].get("x-stainless-retry-count") for r in engine.received[key]]
    return counts, [later - earlier for earlier, later in zip(arrivals, arrivals[1:])]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("stream", [False, True])
def test_retry_succeeds(scripts, engine, key, status, stream):
    answer = client(scripts, max_retries=3).chat.completions.create(
        model=scripts.model, messages=HELLO, stream=stream,
        extra_body={"script": {"key": key, "refusals": 1, "status": status, "retry_after": 2, "content": "At last."}})
    assert (text_of(answer) if stream else answer.choices[0].message.content) == "At last."
    counts, gaps = script_of(engine, key)
    assert counts == ["0", "1"], "Fairway must not retry what the engine refused"
    assert gaps[0] >= 2, "Retry-After was not honoured"


def test_retry_gives_up(scripts, engine, key):
    with pytest.raises(openai.RateLimitError) as caught:
        client(scripts, max_retries=2).chat.completions.create(
            model=scripts.model, messages=HELLO, extra_body={"script": {"key": key, "refusals": 9, "status": 429, "retry_after": 1}})
    assert caught.value.response.headers["retry-after"] == "1"
    counts, gaps = script_of(engine, key)
    assert counts == ["0", "1", "2"]
    assert all(gap >= 1 for gap in gaps)


def test_retry_async(scripts, engine, loop, key):
    async def run():
        async with async_client(scripts, max_retries=3) as c:
            return await c.chat.completions.create(
                model=scripts.model, messages=HELLO, extra_body={"script": {"key": key, "refusals": 2, "status": 503, "retry_after": 1}})

    assert loop.run(run()).choices[0].message.content == "Fine."
    assert script_of(engine, key)[0] == ["0", "1", "2"]


@contextlib.contextmanager
def occupied(cramped):
    """Uploads that lack their last byte hold the cramped Fairway's buffers, until the context ends or release is called."""
    body = b" " * 4000
    with client(cramped) as prober, contextlib.ExitStack() as uploads:
        tries = 0
        while post_more(prober) != 503:
            upload = uploads.enter_context(socket.create_connection(cramped.url.removeprefix("http://").split(":")))
            upload.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body[1:]))
            assert (tries := tries + 1) < 500, "uploads do not count against limits.buffers"
        yield uploads.close


MORE = [{"role": "user", "content": "x" * 4000}]


def post_more(c: OpenAI) -> int:
    try:
        c.chat.completions.create(model=MODEL, messages=MORE)
    except openai.APIStatusError as err:
        return err.status_code
    return 200


def test_retry_of_own_refusal(cramped, engine, key):
    """Fairway's own 503 asks for a retry too, which succeeds when there is room."""
    seen = []

    def on_response(response):
        seen.append((response.status_code, response.headers.get("retry-after"), time.monotonic()))
        release()

    with occupied(cramped) as release:
        with openai.DefaultHttpxClient(event_hooks={"response": [on_response]}) as http:
            answer = client(cramped, max_retries=2, http_client=http).chat.completions.create(
                model=cramped.model, messages=MORE, extra_body={"script": {"key": key}})
    assert answer.choices[0].message.content == "Fine."
    assert [(status, after) for status, after, _ in seen] == [(503, "1"), (200, None)]
    assert seen[1][2] - seen[0][2] >= 1
    assert len(engine.received[key]) == 1


def test_own_refusal_gives_up(cramped):
    with occupied(cramped):
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            client(cramped, max_retries=1).chat.completions.create(model=cramped.model, messages=MORE)
    assert (caught.value.status_code, caught.value.type) == (503, "fairway_buffers_spent")
    assert time.monotonic() - began >= 1


# Connections.


def test_50_streams(target, loop):
    async def run():
        async with async_client(target) as c:
            async def one(i):
                stream = await c.chat.completions.create(
                    model=target.model, messages=[{"role": "user", "content": f"Stream {i}"}], stream=True, stream_options={"include_usage": True}, **exactly(40))
                return [chunk async for chunk in stream]

            return await asyncio.gather(*(one(i) for i in range(50)))

    answers = loop.run(run())
    assert len({chunks[0].id for chunks in answers}) == 50
    for chunks in answers:
        assert len({chunk.id for chunk in chunks}) == 1, "events of one stream got into another"
        assert chunks[-1].usage.completion_tokens == 40


def test_pauses(target):
    """Pauses around the 5 s after which an engine closes a connection, which Fairway's client must not notice."""
    ports = []

    def on_response(response):
        ports.append(response.extensions["network_stream"].get_extra_info("client_addr")[1])

    with openai.DefaultHttpxClient(event_hooks={"response": [on_response]}, limits=Limits(keepalive_expiry=60)) as http:
        pausing, streaming = client(target, http_client=http), client(target)
        for pause in (0, 0.5, 4.9, 5.0, 5.1, 6):
            time.sleep(pause)
            assert pausing.chat.completions.create(model=target.model, messages=HELLO, max_tokens=1).choices
            assert text_of(streaming.chat.completions.create(model=target.model, messages=HELLO, stream=True, **exactly(4)))
    # Streams do not count here: the SDK leaves at [DONE], before the end of the answer, and closes the connection itself.
    assert len(ports) == 6 and len(set(ports)) == 1, "Fairway did not keep the client's connection"
