"""Checks against a real server, whatever its model."""
import urllib.request


def give_key(page, key):
    if key:
        page.wait("$('key_dialog').open")
        page.write(key)
        page.key("Enter")
    page.wait("samples.length >= 2 && samples.at(-1)")


def first_answer(page, text):
    page.eval("$('prompt').focus()")
    page.write(text)
    page.key("Enter")
    page.wait("busy === null && turns.length > 0", 60)
    if page.eval("Boolean(document.querySelector('.turn .notice')?.innerText.includes('chat template'))"):
        page.click_text("Continue this text instead")
        page.wait("busy === null && turns.at(-1).mode === 'complete'", 60)


def the_page_and_its_headers(page, key):
    with urllib.request.urlopen(page.eval("location.href")) as r:
        policy = r.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy, policy
        assert r.headers["X-Content-Type-Options"] == "nosniff"
        assert r.headers["Referrer-Policy"] == "no-referrer"
        assert r.headers["Content-Type"] == "text/html; charset=utf-8"
    give_key(page, key)


def an_answer_comes(page, key):
    give_key(page, key)
    before = page.eval("samples.at(-1).stats.completion_tokens_total")
    page.eval("$('max_tokens').value = '24'; settingChanged(FIELDS.find(f => f.name === 'max_tokens'))")
    first_answer(page, "What is 27+15?")
    assert page.eval("turns.at(-1).answer.length") > 0, page.text("#turns")
    assert page.eval("turns.at(-1).usage.completion_tokens") > 0
    assert page.eval("['stop', 'length'].includes(turns.at(-1).reason)"), page.eval("turns.at(-1).reason")
    page.wait(f"samples.at(-1)?.stats.completion_tokens_total > {before}")


def text_is_continued(page, key):
    give_key(page, key)
    page.click("[value=complete] + span")
    page.eval("$('max_tokens').value = '16'; settingChanged(FIELDS.find(f => f.name === 'max_tokens'))")
    first_answer(page, "Once upon a time")
    assert page.eval("turns.at(-1).answer.length") > 0, page.text("#turns")
    page.click_text("Continue")
    page.wait("busy === null && turns.at(-1).prompt.length > 16", 60)


def stop_frees_the_server(page, key):
    give_key(page, key)
    page.eval("setMode('complete'); window.saved = requestFields;"
              "requestFields = mode => ({...saved(mode), max_tokens: 1500, ignore_eos: true})")
    page.eval("$('prompt').focus()")
    page.write("Once upon a time")
    page.key("Enter")
    page.wait("turns[0]?.answer.length > 0", 60)
    page.key("Escape")
    page.wait("busy === null && turns[0].reason === 'stopped'")
    page.wait("samples.at(-1)?.stats.running === 0 && samples.at(-1).ms > turns[0].last_ms + 1000")


def every_setting_is_taken(page, key):
    give_key(page, key)
    values = {"temperature": "0.7", "max_tokens": "8", "top_p": "0.9", "top_k": "20", "min_p": "0.01",
              "repetition_penalty": "1.05", "presence_penalty": "0.1", "frequency_penalty": "0.1", "seed": "7",
              "stop_text": "zzz\\n", "system": "Be brief."}
    for name, value in values.items():
        page.eval(f"$({name!r}).value = {value!r}; settingChanged(FIELDS.find(f => f.name === {name!r}))")
    first_answer(page, "What is 2+3?")
    assert page.eval("turns.at(-1).usage !== null"), page.text("#turns")


CHECKS = [the_page_and_its_headers, an_answer_comes, text_is_continued, stop_frees_the_server, every_setting_is_taken]
