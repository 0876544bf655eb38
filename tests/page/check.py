#!/usr/bin/env python3
"""Checks the page at `/` in headless Chromium; needs Python and a browser only.

    python3 tests/page/check.py --program build/moeserve_tests [GROUP...]    against a server that is played
    python3 tests/page/check.py --url http://127.0.0.1:8000 [--key KEY]      against a real one
    ... --shots DIR                                                          leaves screenshots there

Groups: chat trouble settings server access look. Ends with "N passed, M failed"; status 77 when there
is no browser.
"""
import argparse
import subprocess
import sys
import time
import traceback

import browser
import checks
import live
from mock import Mock


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


def report(name, failure, from_s):
    print(f"{'FAIL' if failure else 'ok  '} {name} ({time.monotonic() - from_s:.1f} s)", flush=True)
    if failure:
        print(failure, flush=True)
    return failure is not None


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
    failed, count = 0, 0
    chromium = browser.Browser(path)
    try:
        if args.url:
            origin = args.url.rstrip("/") + "/"
            for fn in live.CHECKS:
                page, failure, from_s = chromium.page(), None, time.monotonic()
                try:
                    page.open(origin)
                    fn(page, args.key)
                    no_harm(page, origin)
                except Exception:
                    failure = traceback.format_exc(limit=-2)
                page.close()
                failed += report(fn.__name__, failure, from_s)
                count += 1
        else:
            served = read_page(args.program)
            for check in checks.CHECKS:
                if args.groups and check.group not in args.groups:
                    continue
                from_s = time.monotonic()
                failed += report(f"{check.group}: {check.fn.__name__}", run(check, chromium, served, args.shots), from_s)
                count += 1
    finally:
        chromium.close()
    print(f"{count - failed} passed, {failed} failed")
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main())
