#!/usr/bin/env python3
"""The server under load: many idle and many active connections with flat memory, then thousands of
short requests of which none is lost and none is answered twice.

    python3 tests/clients/load_check.py build/moeserve [SECONDS [IDLE [ACTIVE [REQUESTS]]]]

Standard library only. Prints the figures of docs/RELIABILITY.md.
"""
import asyncio, json, re, resource, sys, time
from served import Checks, Served

SECONDS, IDLE, ACTIVE, REQUESTS = (int(a) for a in (sys.argv[2:] + ["120", "2000", "500", "10000"][len(sys.argv[2:]):])[:4])


def request(s, body, keep=True):
    data = json.dumps(body).encode()
    return (f"POST /v1/completions HTTP/1.1\r\nHost: {s.http}\r\nContent-Length: {len(data)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n").encode() + data


async def connect(s):
    host, port = s.http.rsplit(":", 1)
    while True:
        try:
            return await asyncio.open_connection(host, int(port))
        except OSError:
            await asyncio.sleep(0.05)


async def answer(reader):
    """Status, headers and body of one answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status = int(head.split(" ", 2)[1])
    length = re.search(r"(?i)content-length: (\d+)", head)
    return status, head, await reader.readexactly(int(length.group(1)))


async def idle(s, held):
    held.append(await connect(s))


async def active(s, number, until, counts):
    reader, writer = await connect(s)
    n = 0
    while time.monotonic() < until:
        body = {"prompt": f"{number}+{n}=", "max_tokens": 8, "temperature": 0, "stop": "\n"}
        writer.write(request(s, body))
        status, head, text = await answer(reader)
        counts[status] = counts.get(status, 0) + 1
        assert status in (200, 429), (status, text)
        if status == 429:
            wait = re.search(r"(?i)retry-after: (\d+)", head)
            assert wait and int(wait.group(1)) >= 1, head
            await asyncio.sleep(min(int(wait.group(1)), 2))
        n += 1
    writer.close()


async def memory(s, until, samples):
    while time.monotonic() < until:
        samples.append(s.rss_kb())
        await asyncio.sleep(1)


async def run_connections(s, counts, samples):
    held = []
    await asyncio.gather(*[idle(s, held) for _ in range(IDLE)])
    until = time.monotonic() + SECONDS
    await asyncio.gather(memory(s, until, samples), *[active(s, i, until, counts) for i in range(ACTIVE)])
    for _, writer in held:
        writer.close()


def check_idle_and_active_connections(s):
    counts, samples = {}, []
    asyncio.run(run_connections(s, counts, samples))
    third = len(samples) // 3
    first, last = max(samples[third:2 * third]), max(samples[2 * third:])
    assert last <= first * 1.02 + 1024, f"memory grows: {first} kB, then {last} kB"
    return (f"{IDLE} idle, {ACTIVE} active for {SECONDS} s: {counts}, resident {samples[0]} kB at first, "
            f"{first} kB in the middle third, {last} kB in the last")


async def one_short(s, number, gate, seen):
    async with gate:
        a, b = number // 100, number % 100
        while True:
            reader, writer = await connect(s)
            writer.write(request(s, {"prompt": f"{a}+{b}=", "max_tokens": 6, "temperature": 0, "stop": "\n"}, False))
            status, head, text = await answer(reader)
            assert await reader.read() == b"", "bytes behind the answer"
            writer.close()
            if status == 200:
                seen[number] = seen.get(number, 0) + 1
                return json.loads(text)["id"]
            assert status == 429, (status, text)
            seen["refused"] = seen.get("refused", 0) + 1
            await asyncio.sleep(0.2)


async def run_short(s, seen):
    gate = asyncio.Semaphore(700)
    return await asyncio.gather(*[one_short(s, i, gate, seen) for i in range(REQUESTS)])


def check_short_requests(s):
    asyncio.run(run_short(s, {}))  # warm-up
    before, seen, start = s.rss_kb(), {}, time.monotonic()
    ids = asyncio.run(run_short(s, seen))
    seconds = time.monotonic() - start
    refused = seen.pop("refused", 0)
    assert len(seen) == REQUESTS and set(seen.values()) == {1}, "lost or doubled"
    assert len(set(ids)) == REQUESTS, "ids are not unique"
    time.sleep(2)
    after = s.rss_kb()
    assert after <= before * 1.02, f"{before} kB before, {after} kB after"
    return (f"{REQUESTS} answered once each in {seconds:.0f} s, {refused} refused with 429 and asked again, "
            f"resident {before} kB before, {after} kB after")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    # A KV cache that is in use as a whole after a thousand requests: from then on memory is flat.
    served = Served(sys.argv[1], "--num-kv-blocks", "1024")
    checks = Checks()
    checks.run([check_idle_and_active_connections, check_short_requests], served)
    assert served.stop() == 0
    checks.finish()
