#!/usr/bin/env python3
"""Writes tests/data/tokenizers/chat_cases.json: conversations as transformers renders them through
the published chat templates in tests/data/tokenizers/templates.

  conversations  messages and tools; arguments of calls and parameters of tools are JSON as text,
                 which the templates get parsed, as servers do it
  templates      name, bos, eos, and the prompt of each conversation; null: refused

Needs transformers 4.57. Usage: make_chat_cases.py [--out DIR]
"""

import argparse
import copy
import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

# ---- conversations -------------------------------------------------------------------------------

PLAIN = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "Hello")],
    [("user", "Hello"), ("assistant", "Hi there"), ("user", "Who are you?")],
    [("system", "You are a helpful assistant"), ("user", "  padded \n"),
     ("assistant", "   I am an assistant   "), ("user", "\n\nAnother\u3000question\x1f ")],
    [("user", ""), ("assistant", ""), ("user", "")],
    [("user", "q"), ("assistant", "<think>\nlong thought\n</think>\n\nanswer"), ("user", "next")],
    [("user", "q"), ("assistant", "no start</think>a</think>\n\n\nb\n"), ("user", "<think>x</think>")],
    [("user", "多语言 😀 e\u0301 <|im_end|> </s> [/INST] <|eot_id|>")],
    [("system", "only a system message")],
    [("user", "one"), ("user", "two")],
    [("assistant", "first"), ("user", "second")],
    [("user", "a"), ("system", "late"), ("user", "b")],
    [("tool", "result")],
]

# Parameters as clients write them: spaces, escapes and numbers that Python spells its own way.
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.\nSays \"sunny\" or so \\ 多云 😀 </tools> <|im_end|>",
    "parameters": """{ "type":"object","properties":{"city":{"type":"string",
        "description":"a \\"city\\", M\\u00fcnchen \\/ \\ud83d\\ude00 \\t \\b\\f\\u0001\\u007f"},
        "days":{"type":"integer","minimum":1,"maximum":12345678901234567890123,"default":-0},"unit":{"enum":["C","F",null,true,false]}},
        "required":[ "city" ],"additionalProperties":false, "examples" : [ {} , [ ], [[]], {"a":[1,{}]} ]}""",
}
TIME = {"name": "time.now-2", "parameters": "{}"}
BARE = {"name": "quit"}
NUMBERS = {
    "name": "numbers", "description": "",
    "parameters": """{"x":[1.0,1.50,-0.0,1e5,1E16,1e15,123456789012345678.0,0.0001,0.00001,1e-7,5e-324,
        1.7976931348623157e308,0.1,3.141592653589793,100,-12,2.5E+3,1e22,1e21,9007199254740993.0]}""",
}


def call(name, arguments, call_id="call_0123456789abcdefABCDEFGH"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*tool_calls, content=None):
    return {"role": "assistant", "content": content, "tool_calls": list(tool_calls)}


def result(content, call_id="call_0123456789abcdefABCDEFGH"):
    return {"role": "tool", "content": content, "tool_call_id": call_id}


CITY = '{"city":"M\\u00fcnchen \\ud83d\\ude00","days" : 2.50}'
WITH_TOOLS = [  # messages, tools
    (["user:What is it like in Paris?"], [WEATHER]),
    (["system:Be brief.", "user: padded "], [WEATHER, TIME, BARE]),
    (["user:numbers"], [NUMBERS]),
    (["user:q", calls(call("get_weather", CITY)), result("21 \"degrees\"\n\t多 \x7f\x01")], [WEATHER]),
    (["user:q", calls(call("get_weather", CITY), content="Let me see."), result("21")], [WEATHER]),
    (["system:s", "user:q", calls(call("get_weather", CITY)), result(""), "assistant: It is fine. ",
      "user:and now?"], [WEATHER]),
    (["user:q", calls(call("get_weather", CITY, "call_aaaaaaaaaaaaaaaaaaaaaaa1"),
                      call("time.now-2", " { } ", "abcdefgh2"), content="two\n"),
      result("1", "call_aaaaaaaaaaaaaaaaaaaaaaa1"), result("2", "abcdefgh2")], [WEATHER, TIME]),
    (["user:q", calls(call("get_weather", CITY), content="<think>\nhm\n</think>\n\n"), result("21"),
      calls(call("time.now-2", "{}"), content="<think>\nhm\n</think>\n\nnow"), result("12:00")],
     [WEATHER, TIME]),
    (["user:q", calls(call("get_weather", CITY), content="<think>a</think>b"), result("21"),
      "assistant:<think>c</think>d", "user:next", calls(call("quit", "{}"))], [BARE]),
    (["user:same", "assistant:a", "user:same"], [BARE]),
    (["user:q", calls(call("quit", "")), result("a")], [BARE]),
    (["user:q", calls(call("quit", "{}"), call("quit", "{}")), result("a"), result("b")], [BARE]),
    (["user:q", calls(call("quit", "{}")), result("done"), "user:next"], None),
    (["user:q", calls(call('odd "name', '{"a":[]}'))], [BARE]),
    (["user:q", "assistant:a"], [BARE]),
    (["assistant:a", "user:q"], [BARE]),
    (["system:s"], [BARE]),
    (["user:q", calls(call("quit", "{}", None)), result("done", None)], [BARE]),
    (["user:q", result("1"), result("2"), "user:<tool_response>x</tool_response>"], [BARE]),
]


def conversations():
    for turns in PLAIN:
        yield {"messages": [{"role": r, "content": c} for r, c in turns]}
    for messages, tools in WITH_TOOLS:
        whole = []
        for m in messages:
            if isinstance(m, str):
                role, content = m.split(":", 1)
                m = {"role": role, "content": content}
            whole.append(m)
        yield {"messages": whole, **({"tools": tools} if tools else {})}


# ---- templates -----------------------------------------------------------------------------------

TOKENS = {  # bos, eos
    "chatml": ("", "<|im_end|>"), "qwen1.5": ("", "<|im_end|>"), "qwen2": ("", "<|im_end|>"),
    "qwen2.5": ("", "<|im_end|>"), "qwen3": ("", "<|im_end|>"),
    "qwen3-2507": ("", "<|im_end|>"), "llama2": ("<s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"), "llama3.1": ("<|begin_of_text|>", "<|eot_id|>"),
    "mistral": ("<s>", "</s>"), "mistral-v1": ("<s>", "</s>"), "mistral-v3": ("<s>", "</s>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "olmoe": ("<|endoftext|>", "<|endoftext|>"),
}
ALTERNATE = ("llama2", "mistral", "mistral-v1")
HAVE_TOOLS = ("qwen2.5", "qwen3", "qwen3-2507", "llama3.1", "mistral-v3")


def alternate(turns):
    return len(turns) % 2 == 1 and all(
        role == ("assistant" if i % 2 else "user") for i, role in enumerate(turns))


def accepted(name, conversation):
    """Does the server take this conversation, where the template leaves messages out, puts one in
    another's place, or leaves no place for an answer?"""
    messages, tools = conversation["messages"], conversation.get("tools")
    roles = [m["role"] for m in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if name not in HAVE_TOOLS and (tools or "tool" in roles or any("tool_calls" in m for m in messages)):
        return False
    if name in ALTERNATE and not alternate(turns):
        return False
    if name == "mistral-v3" and (not turns or turns[-1] == "assistant"):
        return False
    if name == "llama3.1" and tools and (not turns or turns[0] != "user"):
        return False
    return True


def as_servers_do(name, messages):
    """Arguments parsed, none and no content as empty ones, and ids as short as Mistral wants them.
    Its template compares messages to find the last question, of which there is only one."""
    for i, m in enumerate(copy.deepcopy(messages)):
        if name == "mistral-v3":
            m["place"] = i
        m["content"] = m["content"] or ""
        for c in m.get("tool_calls", []):
            c["function"]["arguments"] = json.loads(c["function"]["arguments"] or "{}")
            if name == "mistral-v3" and c["id"]:
                c["id"] = c["id"][-9:]
        if name == "mistral-v3" and m.get("tool_call_id"):
            m["tool_call_id"] = m["tool_call_id"][-9:]
        yield m


def as_schema(tool):
    function = dict(tool)
    if "parameters" in tool:
        function["parameters"] = json.loads(tool["parameters"])
    return {"type": "function", "function": function}


def render(name, template, bos, eos, conversation):
    t = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token=eos)
    t.bos_token = bos or None
    if not accepted(name, conversation):
        return None
    tools = [as_schema(tool) for tool in conversation.get("tools", [])] or None
    try:
        return t.apply_chat_template(list(as_servers_do(name, conversation["messages"])), tools=tools,
                                     chat_template=template, tokenize=False,
                                     add_generation_prompt=True)
    except Exception:  # the template refuses these messages
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path,
                        default=Path(__file__).resolve().parent.parent / "tests/data/tokenizers")
    args = parser.parse_args()
    cases = {"conversations": list(conversations()), "templates": []}
    for name, (bos, eos) in TOKENS.items():
        template = (args.out / "templates" / f"{name}.jinja").read_text()
        prompts = [render(name, template, bos, eos, c) for c in cases["conversations"]]
        cases["templates"].append({"name": name, "bos": bos, "eos": eos, "prompts": prompts})
    text = json.dumps(cases, ensure_ascii=False, separators=(",", ":"))
    (args.out / "chat_cases.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
