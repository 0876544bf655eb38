#!/usr/bin/env python3
"""Constrained decoding: generated JSON schemas at temperature 1.5. Every answer that has finished
parses and validates with the jsonschema package, formats included: those need rfc3339-validator,
rfc3986-validator, isoduration and fqdn beside it.

    build/venv/bin/python tests/clients/schema_check.py build/moeserve [NUMBER [OPTION ...]]
"""
import asyncio, json, random, sys, urllib.request
import jsonschema
from served import Checks, Served

WORDS = ["name", "age", "id", "tags", "value", "größe", "日本", "a b", "x\"y", "ok", "list", "sub", "kind"]
FORMATS = ["date", "time", "date-time", "duration", "uuid", "email", "hostname", "ipv4", "ipv6", "uri"]
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER


def number_bounds(r):
    low = r.choice([0, -1, 5, -250, 0.5, -0.25, 1.005, 0.1, 0.001])
    high = r.choice([7, 100, 1000000, 250.75, 123.456])
    return {r.choice(["minimum", "exclusiveMinimum"]): low, r.choice(["maximum", "exclusiveMaximum"]): high}


def scalar(r):
    return r.choice([
        lambda: {"type": "string", "maxLength": r.randint(0, 12)},
        lambda: {"type": "string", "minLength": 2, "maxLength": 9},
        lambda: {"type": "string", "pattern": r.choice(["^[a-z]{2,6}$", "^\\d{3}-\\d{4}$", "^(foo|bar)+$", "^[A-Z][a-z]*$"])},
        lambda: {"type": "string", "format": r.choice(FORMATS[:-1])},
        lambda: {"type": "string", "format": "uri", "maxLength": r.randint(10, 80)},
        lambda: {"type": "string", "format": "email", "maxLength": r.randint(8, 300)},
        lambda: {"type": "string", "format": "date", "pattern": "^20[0-3]"},
        lambda: {"type": "integer"},
        lambda: {"type": "integer", "minimum": r.randint(-50, 0), "maximum": r.randint(1, 5000)},
        lambda: {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
        lambda: {"type": "number"},
        lambda: {"type": "number", **number_bounds(r)},
        lambda: {"type": "integer", "multipleOf": r.randint(1, 60), **({"minimum": -99} if r.random() < 0.5 else {})},
        lambda: {"type": "boolean"},
        lambda: {"type": "null"},
        lambda: {"type": ["string", "null"], "maxLength": 6},
        lambda: {"enum": r.sample([1, 2.5, 0.1, 1e-7, 1e22, "a", "é", None, True, [1, 0.3], {"k": 2}], r.randint(1, 4))},
        lambda: {"const": r.choice(["fixed", 7, None, False])},
    ])()


def schema(r, depth):
    if depth <= 0 or r.random() < 0.3:
        return scalar(r)
    kind = r.randint(0, 7)
    if kind == 0:
        return {"type": "array", "items": schema(r, depth - 1), "minItems": r.randint(0, 2), "maxItems": r.randint(2, 4)}
    if kind == 1:
        return {"anyOf": [schema(r, depth - 1) for _ in range(r.randint(2, 3))]}
    if kind == 2:
        return {"type": "array", "prefixItems": [schema(r, depth - 1) for _ in range(r.randint(1, 3))],
                "items": schema(r, depth - 1), "maxItems": r.randint(1, 4)}
    if kind == 3:
        return {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 5}, obj(r, depth)][:r.randint(2, 3)]}
    if kind == 4:
        parts = obj(r, depth)
        del parts["additionalProperties"]
        return {"allOf": [parts, {"properties": {"all of": scalar(r)}, "required": ["all of"]}]}
    return obj(r, depth)


def obj(r, depth):
    names = r.sample(WORDS, r.randint(1, 5))
    return {"type": "object", "properties": {n: schema(r, depth - 1) for n in names},
            "required": r.sample(names, r.randint(0, len(names))),
            "additionalProperties": r.choice([False] * 7 + [{"type": "integer", "maximum": 9}])}


def recursive(r):
    return {"$ref": "#/$defs/node", "$defs": {"node": {
        "type": "object", "required": ["v", "next"], "additionalProperties": False,
        "properties": {"v": scalar(r), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}}}}


def generated(seed):
    r = random.Random(seed)
    return recursive(r) if seed % 20 == 19 else obj(r, r.randint(1, 3))


def ask(s, seed, wanted):
    body = {"messages": [{"role": "user", "content": "Tell me something"}], "max_tokens": 900, "temperature": 1.5,
            "seed": seed, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": wanted}}}
    request = urllib.request.Request(s.url + "/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["choices"][0]


async def all_of(s, n):
    gate = asyncio.Semaphore(16)

    async def one(seed):
        async with gate:
            wanted = generated(seed)
            got = await asyncio.to_thread(ask, s, seed, wanted)
            text = got["message"]["content"]
            if got["finish_reason"] == "length":
                return "cut"
            try:
                jsonschema.validate(json.loads(text), wanted, cls=jsonschema.Draft202012Validator,
                                    format_checker=CHECKER)
            except Exception as e:
                raise AssertionError(f"seed {seed}: {text!r} does not fit {json.dumps(wanted)}: {e}") from None
            return "finished"

    return await asyncio.gather(*[one(seed) for seed in range(n)])


def check_every_finished_answer_validates(s, n):
    results = asyncio.run(all_of(s, n))
    finished = results.count("finished")
    assert finished >= 0.8 * n, f"only {finished} of {n} finished within their tokens"
    return f"{finished} of {n} schemas finished, all valid"


if __name__ == "__main__":
    unknown = set(FORMATS) - set(CHECKER.checkers)
    assert not unknown, f"jsonschema cannot check {sorted(unknown)}; see above for what to install"
    served = Served(sys.argv[1], *sys.argv[3:])
    checks = Checks()
    checks.run([check_every_finished_answer_validates], served, int(sys.argv[2]) if len(sys.argv) > 2 else 200)
    served.stop()
    checks.finish()
