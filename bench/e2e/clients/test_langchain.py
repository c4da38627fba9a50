"""LangChain's ChatOpenAI, which is the Python SDK with habits of its own: it asks for usage, batches in threads, and streams tool calls."""

import asyncio

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from test_openai import CALL, LONG, exactly, received


def chat(at, **options) -> ChatOpenAI:
    return ChatOpenAI(base_url=at.base_url, api_key="none", model=at.model, **{"max_retries": 0, "timeout": 600, **options})


def scripted(at, script: dict, **options) -> ChatOpenAI:
    return chat(at, extra_body={"script": script}, **options)


@tool
def get_weather(city: str, unit: str = "°C") -> str:
    """The weather somewhere."""
    return f"21 {unit} in {city}"


class Event(BaseModel):
    """Something to invite people to."""

    name: str
    guests: list[str]


def test_invoke(target):
    answer = chat(target, **exactly(16)).invoke([SystemMessage("Be brief."), HumanMessage("Hello.")])
    assert answer.content
    assert answer.usage_metadata["output_tokens"] == 16
    assert answer.response_metadata["finish_reason"] == "length"


def test_stream(target):
    whole = AIMessageChunk("")
    chunks = 0
    for chunk in chat(target, stream_usage=True, **exactly(64)).stream("Hello."):
        whole, chunks = whole + chunk, chunks + 1
    assert whole.content and chunks > 4
    assert whole.usage_metadata["output_tokens"] == 64


def test_stream_without_usage(target):
    chunks = list(chat(target, stream_usage=False, **exactly(16)).stream("Hello."))
    assert not any(chunk.usage_metadata for chunk in chunks)


def test_ainvoke_and_astream(target, loop):
    async def run():
        model = chat(target, **exactly(16))
        return await model.ainvoke("Hello."), [chunk async for chunk in model.astream("Hello.")]

    answer, chunks = loop.run(run())
    assert answer.content
    assert "".join(chunk.content for chunk in chunks)


def test_astream_left(target, loop):
    """A consumer that has enough after two chunks. LangChain closes what is behind its generator only while the loop runs on."""
    async def run():
        stream = chat(target, **LONG).astream("Hello.")
        await anext(stream), await anext(stream)
        await stream.aclose()
        await asyncio.to_thread(target.idle)

    target.drops(lambda: loop.run(run()))


def test_batch(target):
    answers = chat(target, **exactly(8)).batch([f"Question {i}" for i in range(20)], config={"max_concurrency": 10})
    assert len(answers) == 20 and all(answer.content for answer in answers)


def test_abatch(target, loop):
    answers = loop.run(chat(target, **exactly(8)).abatch([f"Question {i}" for i in range(20)]))
    assert len(answers) == 20 and all(answer.content for answer in answers)


def test_bind_tools(scripts, engine, key):
    model = scripted(scripts, {"key": key, "tool_calls": [CALL]}).bind_tools([get_weather], tool_choice="any")
    answer = model.invoke("How is the weather?")
    assert [(c["name"], c["args"]) for c in answer.tool_calls] == [("get_weather", {"city": "Zürich", "unit": "°C"})]

    whole = None
    for chunk in model.stream("How is the weather?"):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls == answer.tool_calls

    result = get_weather.invoke(answer.tool_calls[0])
    assert isinstance(result, ToolMessage)
    model.invoke([HumanMessage("How is the weather?"), answer, result])

    first, _, third = (r["json"] for r in received(engine, key))
    assert first["tools"][0]["function"]["name"] == "get_weather" and first["tool_choice"] == "required"
    assert [m["role"] for m in third["messages"]] == ["user", "assistant", "tool"]
    assert third["messages"][2]["content"] == "21 °C in Zürich"


def test_bound_tools_reach_engine(target):
    """Whatever the engine makes of them: tool_choice "auto" needs a flag of vLLM's, "none" does not."""
    assert chat(target, **exactly(8)).bind_tools([get_weather], tool_choice="none").invoke("How is the weather?").content


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_structured_output(scripts, engine, key, method):
    event = '{"name": "Fête 🎉", "guests": ["Ana"]}'
    script = {"key": key, "content": event}
    if method == "function_calling":
        script = {"key": key, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "Event", "arguments": event}}]}
    model = scripted(scripts, script).with_structured_output(Event, method=method)
    assert model.invoke("An event, as JSON.") == Event(name="Fête 🎉", guests=["Ana"])
    asked = received(engine, key)[0]["json"]
    assert ("tools" in asked) if method == "function_calling" else asked["response_format"]["type"] == {"json_mode": "json_object"}.get(method, method)


def test_errors(target):
    with pytest.raises(openai.NotFoundError):
        chat(target).invoke("Hello.", model="nobody")
    with pytest.raises(openai.BadRequestError):
        chat(target).invoke("Hello.", max_tokens=-1)


def test_retries(scripts, engine, key):
    answer = scripted(scripts, {"key": key, "refusals": 1, "status": 429, "retry_after": 1}, max_retries=2).invoke("Hello.")
    assert answer.content == "Fine."
    first, second = engine.received[key]
    assert second["at"] - first["at"] >= 1, "Retry-After was not honoured"
    with pytest.raises(openai.RateLimitError):
        scripted(scripts, {"key": key + "-always", "refusals": 9, "status": 429}).invoke("Hello.")
