#!/usr/bin/env python3
"""Checks the page at `/` in headless Chromium; needs Python and a browser only.

    python3 tests/page/check.py --program build/moeserve_tests [GROUP...]    against a server that is played
    python3 tests/page/check.py --url http://127.0.0.1:8000 [--key KEY]      against a real one
    ... --shots DIR                                                          leaves screenshots there

Groups: chat trouble settings server access look. Ends with "N passed, M failed"; status 77 when there
is no browser.
"""
import argparse
import concurrent.futures
import subprocess
import sys
import time
import traceback

import browser
import checks
import live
from mock import Mock

AT_ONCE = 4


def read_page(program):
    """Headers and body of the page, from the test program (tests/test_page.c)."""
    out = subprocess.run([program, "--program=page"], capture_output=True, check=True).stdout
    head, body = out.split(b"\n\n", 1)
    return [line.split(": ", 1) for line in head.decode().split("\n")], body


def no_harm(page, origin):
    """What no check may leave behind: complaints in the console, requests to elsewhere."""
    assert not page.complaints, f"the console says: {page.complaints}"
    others = [u for u in page.requests if not u.startswith((origin, "data:"))]
    assert not others, f"requests to elsewhere: {others}"


def run(check, chromium, served, shots):
    """One check with a page and a server of its own; the failure's text, or None."""
    mock = Mock(served)
    page = chromium.page(**check.page)
    try:
        if check.opens:
            page.open(mock.url)
        check.fn(page, mock, shots) if check.shots else check.fn(page, mock)
        no_harm(page, mock.url)
        return None
    except Exception:  # whatever went wrong is the check's failure
        return traceback.format_exc(limit=-2) + (f"console: {page.complaints}\n" if page.complaints else "")
    finally:
        page.close()
        mock.stop()


def run_live(fn, chromium, url, key):
    """One check against a real server."""
    page = chromium.page()
    try:
        page.open(url)
        fn(page, key)
        no_harm(page, url)
        return None
    except Exception:
        return traceback.format_exc(limit=-2) + f"{page.complaints or ''}"
    finally:
        page.close()


def timed(name, fn, *args):
    """Runs a check and reports it; whether it passed."""
    from_s = time.monotonic()
    failure = fn(*args)
    print(f"{'FAIL' if failure else 'ok  '} {name} ({time.monotonic() - from_s:.1f} s)\n{failure or ''}", end="", flush=True)
    return failure is None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", help="the test program, which holds the page")
    parser.add_argument("--url", help="a running server")
    parser.add_argument("--key", help="its key")
    parser.add_argument("--shots", help="a folder for screenshots")
    parser.add_argument("groups", nargs="*")
    args = parser.parse_args()
    path = browser.find()
    if not path:
        print("no browser: install chromium-headless-shell (scripts/deps.sh browser), or name one in PAGE_BROWSER")
        return 77
    chromium = browser.Browser(path)
    try:
        if args.url:
            url = args.url.rstrip("/") + "/"
            passed = [timed(fn.__name__, run_live, fn, chromium, url, args.key) for fn in live.CHECKS]
        else:
            served = read_page(args.program)
            # They mostly wait, so several run at once.
            with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
                runs = [pool.submit(timed, f"{c.group}: {c.fn.__name__}", run, c, chromium, served, args.shots)
                        for c in checks.CHECKS if not args.groups or c.group in args.groups]
                passed = [r.result() for r in runs]
    finally:
        chromium.close()
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    return 0 if passed and all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
