"""The list of checks against the played server, by group."""
import collections

Check = collections.namedtuple("Check", "group fn page opens shots")
CHECKS = []


def check(group, opens=True, shots=False, **page):
    """Registers a function of (page, mock[, folder for screenshots]); `page` is what the page is like."""
    def register(fn):
        CHECKS.append(Check(group, fn, page, opens, shots))
        return fn
    return register


def ask(page, text):
    page.eval("document.querySelector('#prompt').focus()")
    page.write(text)
    page.key("Enter")


def done(page, timeout_s=15):
    """Waits for the end of the answer."""
    page.wait("busy === null && turns.length > 0", timeout_s)


def answer(page):
    return page.text(".turn:last-child .text")


def notice(page):
    return page.wait("document.querySelector('.turn .notice')?.innerText")


import checks_chat  # noqa: E402,F401  each registers its own
import checks_settings  # noqa: E402,F401
import checks_server  # noqa: E402,F401
import checks_look  # noqa: E402,F401
