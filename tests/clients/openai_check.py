#!/usr/bin/env python3
"""The OpenAI-compatible API as its users' programs see it: the real openai package, curl and a
Prometheus parser against a server with the demo model.

    python3 -m venv build/venv && build/venv/bin/pip install openai jsonschema prometheus_client
    build/venv/bin/python tests/clients/openai_check.py build/moeserve [OPTION ...]
"""
import json, subprocess, sys, time
import openai
from prometheus_client.parser import text_string_to_metric_families
from served import Checks, Served

PROMPT = "27+15="


def raises(kind, status, code, f, *args, **kwargs):
    try:
        f(*args, **kwargs)
    except kind as e:
        body = e.body if isinstance(e.body, dict) else {}
        assert e.status_code == status, (e.status_code, e.body)
        assert body.get("code") == code, e.body
        assert body.get("message"), e.body
        return body
    raise AssertionError(f"no {kind.__name__}")


def curl(*args):
    return subprocess.run(["curl", "-sS", "--max-time", "30", *args], capture_output=True, text=True,
                          check=True).stdout


# ---- completions ---------------------------------------------------------------------------------

def check_models(s, c):
    models = c.models.list().data
    assert len(models) == 1 and models[0].object == "model"
    assert c.models.retrieve(models[0].id).id == models[0].id
    raises(openai.NotFoundError, 404, "model_not_found", c.models.retrieve, "nothing")


def check_a_completion(s, c):
    r = c.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, temperature=0, stop="\n")
    assert r.choices[0].text == "42", r
    assert r.choices[0].finish_reason == "stop" and r.object == "text_completion"
    assert r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens


def check_a_stream_is_the_same_text(s, c):
    args = dict(model=MODEL, prompt="Once upon a time", max_tokens=60, temperature=0.8, seed=3)
    whole = c.completions.create(**args)
    chunks = list(c.completions.create(**args, stream=True, stream_options={"include_usage": True}))
    assert "".join(x.choices[0].text for x in chunks if x.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage or (
        chunks[-1].usage.completion_tokens == whole.usage.completion_tokens)
    assert chunks[-1].choices == [] and chunks[-2].choices[0].finish_reason == "length"
    assert len({x.id for x in chunks}) == 1


def check_several_prompts_and_choices(s, c):
    r = c.completions.create(model=MODEL, prompt=["1+1=", "2+3="], n=2, max_tokens=4, temperature=0,
                             stop="\n")
    assert [x.index for x in r.choices] == [0, 1, 2, 3]
    assert [x.text for x in r.choices] == ["2", "2", "5", "5"], r.choices
    stream = list(c.completions.create(model=MODEL, prompt=["1+1=", "2+3="], n=2, max_tokens=4,
                                       temperature=0, stop="\n", stream=True))
    texts = [""] * 4
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["2", "2", "5", "5"], texts
    many = c.completions.create(model=MODEL, prompt="Once", n=4, max_tokens=12, temperature=1.2, seed=1)
    assert len({x.text for x in many.choices}) > 1, "n answers are all the same"


def check_prompts_as_tokens(s, c):
    ids = json.loads(curl(s.url + "/tokenize", "-d", json.dumps({"prompt": PROMPT})))
    assert ids["count"] == len(ids["tokens"]) and ids["max_model_len"] > 0
    r = c.completions.create(model=MODEL, prompt=ids["tokens"], max_tokens=8, temperature=0, stop="\n")
    assert r.choices[0].text == "42"
    back = json.loads(curl(s.url + "/detokenize", "-d", json.dumps({"tokens": ids["tokens"]})))
    assert PROMPT in back["prompt"]
    strs = json.loads(curl(s.url + "/tokenize", "-d", json.dumps({"prompt": PROMPT, "return_token_strs": True,
                                                                 "add_special_tokens": False})))
    assert "".join(strs["token_strs"]) == PROMPT, strs


def check_logprobs(s, c):
    r = c.completions.create(model=MODEL, prompt=PROMPT, max_tokens=3, temperature=0, logprobs=4)
    l = r.choices[0].logprobs
    assert len(l.tokens) == len(l.token_logprobs) == len(l.top_logprobs) == len(l.text_offset) == 3
    assert all(len(t) <= 5 and max(t.values()) <= 0 for t in l.top_logprobs)
    assert "".join(l.tokens).startswith(r.choices[0].text[:2])
    e = c.completions.create(model=MODEL, prompt=PROMPT, max_tokens=0, echo=True, logprobs=2)
    l = e.choices[0].logprobs
    assert e.choices[0].text == PROMPT and l.token_logprobs[0] is None and len(l.tokens) > 2
    assert e.usage.completion_tokens == 0
    d = c.completions.create(model=MODEL, prompt=PROMPT, max_tokens=60, temperature=1.5, seed=1, logprobs=0)
    l = d.choices[0].logprobs
    assert [t[x] for x, t in zip(l.tokens, l.top_logprobs)] == l.token_logprobs


def check_echo(s, c):
    r = c.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, temperature=0, stop="\n", echo=True)
    assert r.choices[0].text == PROMPT + "42"
    chunks = c.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, temperature=0, stop="\n",
                                  echo=True, stream=True)
    assert "".join(x.choices[0].text for x in chunks) == PROMPT + "42"


def check_seeds_reproduce(s, c):
    args = dict(model=MODEL, prompt="Once", max_tokens=20, temperature=1, extra_body={"top_k": 50})
    a, b, d = (c.completions.create(**args, seed=x).choices[0].text for x in (5, 5, 6))
    assert a == b and a != d


# ---- chat ----------------------------------------------------------------------------------------

MESSAGES = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "Hello"}]


def check_a_chat(s, c):
    r = c.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=20, temperature=0)
    assert r.choices[0].message.role == "assistant" and r.choices[0].message.content
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    p = c.chat.completions.create(model=MODEL, messages=parts, max_tokens=20, temperature=0)
    q = c.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}],
                                  max_tokens=20, temperature=0)
    assert p.choices[0].message.content == q.choices[0].message.content


def check_a_chat_streams(s, c):
    args = dict(model=MODEL, messages=MESSAGES, max_completion_tokens=20, temperature=0)
    whole = c.chat.completions.create(**args)
    chunks = list(c.chat.completions.create(**args, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(x.choices[0].delta.content or "" for x in chunks if x.choices)
    assert text == whole.choices[0].message.content, (text, whole)
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def check_chat_logprobs(s, c):
    r = c.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=5, temperature=0,
                                  logprobs=True, top_logprobs=3)
    content = r.choices[0].logprobs.content
    assert len(content) == r.usage.completion_tokens
    assert all(len(x.top_logprobs) == 3 and x.bytes is not None for x in content)
    assert all(x.logprob == x.top_logprobs[0].logprob for x in content)


def check_json_mode(s, c):
    r = c.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=400, temperature=0.7, seed=2,
                                  response_format={"type": "json_object"})
    if r.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(r.choices[0].message.content), dict)
    else:
        assert r.choices[0].message.content.lstrip().startswith("{")


def check_json_schema(s, c):
    schema = {"type": "object", "additionalProperties": False, "required": ["name", "age", "tags"],
              "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
                             "tags": {"type": "array", "maxItems": 3, "items": {"enum": ["a", "b", None]}}}}
    for seed in range(5):
        r = c.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=300, temperature=1.5, seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}})
        import jsonschema
        jsonschema.validate(json.loads(r.choices[0].message.content), schema)
        assert r.choices[0].finish_reason == "stop"


TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "The weather in a town",
    "parameters": {"type": "object", "required": ["town", "days"], "additionalProperties": False,
                   "properties": {"town": {"type": "string", "maxLength": 20},
                                  "days": {"type": "integer", "minimum": 1, "maximum": 7},
                                  "unit": {"enum": ["C", "F"]}}}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}]


def check_a_template_without_tools_refuses_them(s, c):
    body = raises(openai.BadRequestError, 400, "invalid_request", c.chat.completions.create, model=MODEL,
                  messages=MESSAGES, tools=TOOLS)
    assert "tools" in body["message"], body


def calls_of(c, **kwargs):
    """Whole and streamed, which must say the same."""
    args = dict(model=MODEL, messages=MESSAGES, tools=TOOLS, max_tokens=200, temperature=1.2, seed=4, **kwargs)
    whole = c.chat.completions.create(**args).choices[0]
    calls = {}
    for chunk in c.chat.completions.create(**args, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            one = calls.setdefault(call.index, {"name": "", "arguments": ""})
            one["name"] += call.function.name or ""
            one["arguments"] += call.function.arguments or ""
        reason = chunk.choices[0].finish_reason or None
    assert reason == whole.finish_reason, (reason, whole)
    assert [(x.function.name, x.function.arguments) for x in whole.message.tool_calls or []] == [
        (x["name"], x["arguments"]) for x in calls.values()], (whole, calls)
    return whole


def check_tools(s, c):
    import jsonschema
    with_tools = Served(*sys.argv[1:], "--chat-template", "qwen2.5")
    c = openai.OpenAI(base_url=with_tools.url + "/v1", api_key="none", max_retries=0, timeout=120)
    schema = TOOLS[0]["function"]["parameters"]
    named = calls_of(c, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    call = named.message.tool_calls[0]
    assert call.function.name == "get_weather" and named.finish_reason == "tool_calls" and call.id
    jsonschema.validate(json.loads(call.function.arguments), schema)
    ids = {c.chat.completions.create(model=MODEL, messages=MESSAGES, tools=TOOLS, tool_choice="required", max_tokens=200,
                                     extra_headers={"x-request-id": "one"}).choices[0].message.tool_calls[0].id
           for _ in range(2)}
    assert len(ids) == 2, ids
    required = calls_of(c, tool_choice="required").message.tool_calls[0]
    assert required.function.name in ("get_weather", "now")
    if required.function.name == "get_weather":
        jsonschema.validate(json.loads(required.function.arguments), schema)
    assert calls_of(c, tool_choice="none").message.tool_calls is None
    calls_of(c)  # auto
    history = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
               {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    assert c.chat.completions.create(model=MODEL, messages=history, tools=TOOLS, max_tokens=8).choices
    assert with_tools.stop() == 0


# ---- errors --------------------------------------------------------------------------------------

def check_errors(s, c):
    create = c.completions.create
    bad = openai.BadRequestError
    assert raises(bad, 400, "invalid_request", create, model=MODEL, prompt=PROMPT, temperature=-1)["param"] == "temperature"
    assert raises(bad, 400, "invalid_request", create, model=MODEL, prompt=PROMPT,
                  extra_body={"temprature": 1})["param"] == "temprature"
    raises(openai.NotFoundError, 404, "model_not_found", create, model="gpt-17", prompt=PROMPT)
    raises(bad, 400, "context_length_exceeded", create, model=MODEL, prompt="a b c " * 20000)
    raises(bad, 400, "invalid_request", create, model=MODEL, prompt=PROMPT, stream=True, max_tokens=-1)
    r = json.loads(curl(s.url + "/v1/completions", "-d", "{"))
    assert r["error"]["code"] == "invalid_json", r
    status = curl("-o", "/dev/null", "-w", "%{http_code}", s.url + "/v1/nothing")
    assert status == "404", status
    assert curl("-o", "/dev/null", "-w", "%{http_code}", s.url + "/v1/completions") == "405"


def check_a_client_that_leaves_frees_its_request(s, c):
    stream = c.completions.create(model=MODEL, prompt="Once", max_tokens=4000, stream=True,
                                  extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 5
    while json.loads(curl(s.url + "/stats"))["running"] > 0:
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.02)


# ---- the rest ------------------------------------------------------------------------------------

def check_health_version_and_metrics(s, c):
    assert curl("-o", "/dev/null", "-w", "%{http_code}", s.url + "/health") == "200"
    assert json.loads(curl(s.url + "/version"))["version"]
    text = curl(s.url + "/metrics")
    families = {f.name: f for f in text_string_to_metric_families(text)}
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc",
                 "time_to_first_token_seconds", "inter_token_latency_seconds",
                 "e2e_request_latency_seconds", "generation_tokens", "prompt_tokens"):
        assert "moeserve_" + name in families, name
    buckets = [x for x in families["moeserve_time_to_first_token_seconds"].samples
               if x.name.endswith("_bucket")]
    counts = [x.value for x in buckets]
    assert counts == sorted(counts) and counts[-1] > 0


def check_curl(s, c):
    body = json.dumps({"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "stop": "\n"})
    assert json.loads(curl(s.url + "/v1/completions", "-d", body))["choices"][0]["text"] == "42"
    chunked = curl(s.url + "/v1/completions", "-H", "Transfer-Encoding: chunked", "-d", body)
    assert json.loads(chunked)["choices"][0]["text"] == "42"
    expect = curl(s.url + "/v1/completions", "-H", "Expect: 100-continue", "-d", body)
    assert json.loads(expect)["choices"][0]["text"] == "42"
    stream = curl("-N", s.url + "/v1/completions", "-d", json.dumps({**json.loads(body), "stream": True}))
    assert stream.endswith("data: [DONE]\n\n"), stream[-100:]
    head = curl("-I", s.url + "/v1/models")
    assert head.startswith("HTTP/1.1 200") and "Content-Length" in head, head


if __name__ == "__main__":
    served = Served(*sys.argv[1:])
    client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=120)
    MODEL = client.models.list().data[0].id
    checks = Checks()
    checks.run([f for n, f in list(globals().items()) if n.startswith("check_")], served, client)

    def check_the_server_ends_well():
        assert served.stop() == 0
    checks.run([check_the_server_ends_well])
    checks.finish()
