"""Chat and completion: what is sent, shown, stopped, and said when something goes wrong."""
import json
import time

from checks import answer, ask, check, done, notice
from mock import breaks, event, last_events, refuses, says, says_bytes


@check("chat")
def an_answer_is_streamed_and_shown(page, mock):
    mock.answers.append(says("One ", "two ", "three.", delay_s=0.2))
    ask(page, "Count.")
    page.wait("document.querySelector('.turn.model .text').innerText.startsWith('One')")
    assert page.eval("busy !== null"), "nothing was shown before the answer's end"
    done(page)
    assert answer(page) == "One two three."
    path, body = mock.posts[0]
    assert path == "/v1/chat/completions", path
    assert body == {"model": "mock-moe", "stream": True, "stream_options": {"include_usage": True},
                    "messages": [{"role": "user", "content": "Count."}]}, body


@check("chat")
def figures_of_an_answer_are_those_of_the_server(page, mock):
    mock.answers.append(says("a", "b", "c", "d", "e", delay_s=0.1, reason="length"))
    ask(page, "Five letters.")
    done(page)
    meta = page.text(".meta")
    assert meta.startswith("5 tokens"), meta
    assert "prompt of 7 tokens, 3 cached" in meta and "limit of its length" in meta, meta
    rate = float(meta.split(" tok/s")[0].split()[-1])
    assert 2 < rate < 25, meta  # four gaps of 0.1 s, on a machine that may be busy


@check("chat")
def several_turns_are_sent_in_order(page, mock):
    mock.answers += [says("First."), says("Second.")]
    for text in ("one", "two"):
        ask(page, text)
        done(page)
    assert mock.posts[1][1]["messages"] == [
        {"role": "user", "content": "one"}, {"role": "assistant", "content": "First."},
        {"role": "user", "content": "two"}], mock.posts[1]
    assert answer(page) == "Second."


def endless(handler, _):
    handler.begin()
    while handler.piece(event(handler, "on ")):
        time.sleep(0.05)


@check("chat")
def stop_stops_and_the_server_sees_it(page, mock):
    mock.answers.append(endless)
    ask(page, "Go on for ever.")
    page.wait("document.querySelector('.turn.model .text').innerText.includes('on on')")
    page.click("#stop")
    assert mock.gone.wait(5), "the server did not see that the client left"
    done(page)
    assert "stopped by you" in page.text(".meta")
    assert page.eval("document.activeElement.id") == "prompt"
    ask(page, "And now?")
    done(page)
    assert answer(page) == "Hello."


@check("chat")
def escape_stops_too(page, mock):
    mock.answers.append(endless)
    ask(page, "Go on for ever.")
    page.wait("document.querySelector('.turn.model .text').innerText.includes('on')")
    page.key("Escape")
    assert mock.gone.wait(5)
    done(page)


@check("chat")
def a_stream_may_be_cut_anywhere(page, mock):
    def make(line_end):
        def stream(handler):
            text = (": a comment\n\n" + "event: x\nid: 3\n" + event(handler, "Grüße, ") + ":\n" + event(handler, "世界 ")
                    + event(handler, "\U0001f600") + ":ping\n\n" + last_events(handler, 3))
            return text.replace("\n", line_end).encode()
        return stream
    for line_end in ("\n", "\r\n", "\r"):
        for size in (1, 7, 100000):
            mock.answers.append(says_bytes(make(line_end), size))
            ask(page, "Greet.")
            done(page)
            assert answer(page) == "Grüße, 世界 \U0001f600", (line_end, size, answer(page))
            assert "complete" in page.text(".turn:last-child .meta")


@check("chat")
def events_are_the_same_however_their_text_is_cut(page, mock):
    stream = ":ping\n\ndata: a\ndata:  b\nid: 1\ndata\n\nevent: x\n\ndata:c:d\n\n\ndatabase: e\n\ndata: not ended\n"
    parse = """(pieces => { const got = [], feed = sseParser(d => got.push(d)); pieces.forEach(feed); return got })"""
    for line_end in ("\n", "\r\n", "\r"):
        text = stream.replace("\n", line_end)
        cuts = [[text[:i], "", text[i:]] for i in range(len(text) + 1)] + [list(text)]
        got = page.eval(f"{json.dumps(cuts)}.map({parse})")
        for pieces, events in zip(cuts, got):
            assert events == ["a\n b\n", "c:d"], (pieces, events)


@check("chat")
def events_of_several_data_lines_are_joined(page, mock):
    for line_end in ("\n", "\r\n", "\r"):
        stream = 'data: {"choices":\ndata: [{"delta":{"content":"joined"}}]}\n\ndata:[DONE]\n\nnot an event\n\n'
        for size in (1, 5):
            mock.answers.append(says_bytes(lambda h, data=stream.replace("\n", line_end): data, size))
            ask(page, "Join.")
            done(page)
            assert answer(page) == "joined", (line_end, size)
            assert "connection" not in page.text(".turn:last-child")


@check("chat")
def an_answer_can_be_made_again_and_the_last_message_changed(page, mock):
    mock.answers += [says("Bad."), says("Better."), says("Other.")]
    ask(page, "one")
    done(page)
    page.click_text("Regenerate")
    page.wait("document.querySelector('.turn.model .text').innerText === 'Better.'")
    assert mock.posts[0] == mock.posts[1]
    done(page)
    page.click_text("Edit")
    assert page.eval("$('prompt').value") == "one" and page.eval("!$('editing').hidden")
    page.key("Escape")
    assert page.eval("$('prompt').value === '' && $('editing').hidden && turns.length === 1")
    page.key("ArrowUp")
    page.wait("$('prompt').value === 'one'")
    page.write(", changed")
    page.key("Enter")
    page.wait("document.querySelector('.turn.model .text').innerText === 'Other.'")
    assert mock.posts[2][1]["messages"] == [{"role": "user", "content": "one, changed"}], mock.posts[2]
    assert page.eval("document.querySelectorAll('.turn').length") == 2
    page.click_text("Clear")
    assert page.eval("document.querySelectorAll('.turn').length") == 0
    assert page.eval("document.activeElement.id") == "prompt"


@check("chat")
def a_draft_is_there_again_after_a_change_to_the_last_message(page, mock):
    ask(page, "one")
    done(page)
    page.write("a long draft")
    page.click_text("Edit")
    assert page.eval("$('prompt').value") == "one"
    page.write(", changed")
    page.click_text("Edit")
    assert page.eval("$('prompt').value") == "one, changed", "the change is lost"
    page.key("Escape")
    assert page.eval("$('prompt').value") == "a long draft"
    page.click_text("Edit")
    page.write(" anew")
    page.key("Enter")
    done(page)
    assert mock.posts[-1][1]["messages"] == [{"role": "user", "content": "one anew"}], mock.posts[-1]
    assert page.eval("$('prompt').value") == "a long draft" and page.eval("$('editing').hidden")
    page.click_text("Clear")
    assert page.eval("$('prompt').value") == "a long draft"


@check("chat")
def keys_of_an_input_method_send_and_leave_nothing(page, mock):
    ask(page, "one")
    done(page)
    page.click_text("Edit")
    page.eval("$('prompt').value = 'ni'")
    for key in ("Enter", "Escape"):
        for state in ({"isComposing": True}, {"keyCode": 229}):
            page.eval(f"""$('prompt').dispatchEvent(new KeyboardEvent('keydown',
              {{key: '{key}', bubbles: true, cancelable: true, ...{json.dumps(state)}}}))""")
            assert page.eval("editing && busy === null && $('prompt').value") == "ni", (key, state)
    assert len(mock.posts) == 1


@check("chat")
def copy_gives_the_text_as_it_came(page, mock):
    text = "**bold**\n\n```\ncode <b>\n```"
    mock.answers.append(says(text))
    page.eval("window.copied = []; navigator.clipboard.writeText = async t => { copied.push(t) }")
    ask(page, "Markdown.")
    done(page)
    page.click(".code button")
    page.click(".model .actions button")
    assert page.wait("copied.length === 2 && copied") == ["code <b>", text]


@check("chat")
def text_is_continued_without_a_template(page, mock):
    mock.answers += [says(", there was", " a fox."), says(" It ran.")]
    page.click("[value=complete] + span")
    ask(page, "Once upon a time ")
    done(page)
    path, body = mock.posts[0]
    assert path == "/v1/completions" and body["prompt"] == "Once upon a time " and "messages" not in body, body
    assert page.text(".turn.complete .text") == "Once upon a time , there was a fox."
    page.click_text("Continue")
    page.wait("document.querySelector('.turn.complete .text').innerText.endsWith('It ran.')")
    assert mock.posts[1][1]["prompt"] == "Once upon a time , there was a fox."


@check("trouble")
def a_model_without_a_template_is_offered_the_other_way(page, mock):
    mock.answers += [refuses(400, "messages: this model has no chat template; one can be chosen with --chat-template"),
                     says(" 42")]
    ask(page, "27+15=")
    assert "no chat template" in notice(page)
    page.click_text("Continue this text instead")
    page.wait("document.querySelector('.turn.complete .text')?.innerText === '27+15= 42'")
    assert mock.posts[1][0] == "/v1/completions"
    assert page.eval("modeOf()") == "complete"


@check("trouble")
def only_the_last_turn_can_be_asked_again(page, mock):
    refusal = refuses(400, "messages: this model has no chat template; one can be chosen with --chat-template")
    mock.answers += [refusal, says("Hi there."), refuses(500, "oops"), endless]
    ask(page, "first")
    notice(page)
    page.eval("window.old = document.querySelector('.turn .notice button')")
    for text in ("second", "third"):
        ask(page, text)
        done(page)
    assert page.eval("[...document.querySelectorAll('.notice button')].map(b => b.textContent)") == ["Try again", "Try now"]
    page.eval("old.click()")
    assert page.eval("turns.map(t => `${t.mode} ${t.prompt}`)") == ["chat first", "chat second", "chat third"]
    ask(page, "fourth")
    page.wait("busy !== null && turns.at(-1).answer !== ''")
    page.eval("window.stream = busy; old.click(); insteadComplete(turns.at(-1))")
    assert page.eval("busy === stream && turns.length === 4"), "a second request was begun"
    page.click("#stop")
    assert mock.gone.wait(5)
    assert len(mock.posts) == 4 and "no chat template" in page.text("#turns")


@check("trouble")
def a_failed_regeneration_keeps_the_answer_of_before(page, mock):
    mock.answers += [says("A long good answer."), refuses(500, "oops"), lambda h, _: time.sleep(5)]
    ask(page, "one")
    done(page)
    meta = page.text(".meta")
    page.click_text("Regenerate")
    assert "The answer of before is kept" in notice(page)
    assert answer(page).startswith("A long good answer.") and page.text(".meta") == meta
    page.click_text("Regenerate")
    page.wait("busy !== null")
    page.key("Escape")
    done(page)
    assert page.eval("turns[0].answer") == answer(page) == "A long good answer.", answer(page)
    mock.answers.append(breaks("So far", "cut"))
    page.click_text("Regenerate")
    page.wait("Boolean(document.querySelector('.turn .notice'))")
    assert answer(page) == "So far" and "of before" not in page.text(".notice")
    page.click("[value=complete] + span")
    mock.answers += [says(" b"), refuses(500, "oops"), says(" c")]
    ask(page, "a")
    done(page)
    page.click_text("Continue")
    page.wait("Boolean(document.querySelector('.turn.complete .notice'))")
    assert answer(page) == "a b", answer(page)
    page.click_text("Try again")
    page.wait("document.querySelector('.turn.complete .text').innerText === 'a b c'")


@check("trouble")
def too_much_to_do_is_counted_down_and_sent_again(page, mock):
    mock.answers += [refuses(429, "512 requests are waiting", "overloaded", Retry_After="2"), says("At last.")]
    ask(page, "Now?")
    text = notice(page)
    assert "too much to do" in text and "512 requests are waiting" in text and "sent again in 2 seconds." in text, text
    page.wait("document.querySelector('.notice').innerText.includes('in 1 second.')")
    page.wait("document.querySelector('.turn.model .text').innerText === 'At last.'")
    assert len(mock.posts) == 2 and not page.eval("!!document.querySelector('.turn .notice')")


@check("trouble")
def nothing_is_sent_again_with_a_wrong_setting(page, mock):
    mock.answers.append(refuses(429, "busy", Retry_After="1"))
    ask(page, "Now?")
    notice(page)
    page.eval("$('temperature').value = 'hot'; settingChanged(FIELDS.find(f => f.name === 'temperature'))")
    page.wait("document.querySelector('.notice').innerText.includes('will not be sent again')")
    page.wait("document.activeElement.id === 'temperature'")
    page.eval("$('prompt').focus()")
    time.sleep(1.5)
    assert page.eval("document.activeElement.id") == "prompt" and len(mock.posts) == 1


@check("trouble")
def the_countdown_can_be_left(page, mock):
    mock.answers.append(refuses(503, "loading", Retry_After="2"))
    ask(page, "Now?")
    notice(page)
    page.key("Escape")
    page.wait("document.querySelector('.notice').innerText.includes('will not be sent again')")
    time.sleep(2.5)
    assert len(mock.posts) == 1


@check("trouble")
def failures_in_mid_stream_keep_what_had_come(page, mock):
    for how, words in (("error", "a rank was lost"), ("cut", "connection was lost"), ("end", "connection was lost")):
        mock.answers.append(breaks("So far", how))
        ask(page, how)
        page.wait(f"document.querySelector('.turn:last-child .notice')?.innerText.includes({json.dumps(words)})")
        assert answer(page) == "So far", (how, answer(page))
        mock.answers.append(says("Whole."))
        page.click_text("Try again")
        page.wait("document.querySelector('.turn:last-child .text').innerText === 'Whole.'")
        done(page)


@check("trouble")
def refusals_are_said_in_words(page, mock):
    cases = [(400, "temperature: expected a number", None, "refused the request"),
             (400, "3000 tokens, 2048 fit", "context_length_exceeded", "more than the model can read"),
             (413, "body of 9 MB", None, "too long for the server"), (500, "oops", None, "failed with status 500")]
    for status, message, code, words in cases:
        mock.answers.append(refuses(status, message, code))
        ask(page, "x")
        page.wait(f"document.querySelector('.turn:last-child .notice')?.innerText.includes({json.dumps(words)})")
        assert message in page.text(".turn:last-child .notice")
    mock.answers.append(lambda h, _: h.whole(502, b"<html><script>alert(1)</script>", {"Content-Type": "text/html"}))
    ask(page, "x")
    page.wait("document.querySelector('.turn:last-child .notice')?.innerText.includes('<script>alert(1)')")
    mock.answers.append(says_bytes(lambda h: "data: {not json\n\n", 4))
    ask(page, "x")
    page.wait("document.querySelector('.turn:last-child .notice')?.innerText.includes('cannot be understood')")


@check("trouble")
def a_server_that_is_gone_is_noticed_and_found_again(page, mock):
    page.wait("$('pill').innerText === 'Idle'")
    mock.stop()
    page.wait("$('pill').innerText === 'Not reachable'")
    ask(page, "Anyone?")
    assert "does not answer" in notice(page)
    mock.start()
    page.eval("$('trouble_try').click()")
    page.wait("$('pill').innerText === 'Idle' && $('trouble').hidden")
    page.click_text("Try again")
    page.wait("document.querySelector('.turn.model .text').innerText === 'Hello.'")


@check("trouble", opens=False)
def a_key_is_asked_for_and_kept_as_the_user_wants(page, mock):
    mock.key = "sesame"
    page.open(mock.url)
    page.wait("$('key_dialog').open")
    page.write("wrong")
    page.key("Enter")
    page.wait("$('key_dialog').open && $('key_text').innerText.includes('did not accept')")
    page.write("sesame")
    page.key("Enter")
    page.wait("!$('key_dialog').open && $('pill').innerText === 'Idle'")
    assert page.eval("JSON.stringify([{...localStorage}, {...sessionStorage}]).includes('sesame')") is False
    ask(page, "Hi")
    done(page)
    assert answer(page) == "Hello."
    page.eval("setView('settings')")
    page.click_text("Change it")
    page.write("sesame")
    page.click("#key_keep")
    page.click_text("Use this key")
    assert page.eval("sessionStorage.getItem('moeserve.key')") == "sesame"
    page.open(mock.url)
    page.wait("$('pill').innerText === 'Idle'")
    page.eval("setView('settings')")
    page.click_text("Forget it")
    assert page.eval("key === null && sessionStorage.getItem('moeserve.key') === null")
    mock.key = "other"
    ask(page, "Hi")
    page.wait("$('key_dialog').open")
    page.key("Escape")
    page.wait("document.querySelector('.notice')?.innerText.includes('asks for a key')")


@check("trouble", opens=False)
def what_can_be_no_key_is_said_in_the_dialog(page, mock):
    mock.key = "sesame"
    page.open(mock.url)
    page.wait("$('key_dialog').open")
    for text, words in (("", "Enter a key"), ("   ", "Enter a key"), ("ключ", "unaccented"), ("a b", "without spaces")):
        page.eval("$('key').value = ''; $('key').focus()")
        page.write(text)
        page.key("Enter")
        assert words in page.text("#key_problem"), (text, page.text("#key_problem"))
        assert page.eval("$('key_dialog').open && key === null && document.activeElement.id") == "key", text
    page.eval("$('key').value = ''")
    page.write(" sesame ")
    page.key("Enter")
    page.wait("!$('key_dialog').open && $('pill').innerText === 'Idle'")
    page.eval("askKey(), 0")
    assert page.text("#key_problem") == "" and page.eval("$('key').getAttribute('aria-invalid')") == "false"


HOSTILE = """<script>window.hit = 1</script><img src=x onerror="window.hit = 1"> <svg onload=alert(1)>
[a](javascript:alert(1)) **<b>bold</b>** `<i>code</i>` &lt;entity&gt; {{x}} ${x}
- <a href="https://example.com">item</a>
```html"><script>window.hit = 1</script>
</pre></div><script>window.hit = 1</script><iframe src="https://example.com">
```
# <style>*{display:none}</style>"""


@check("chat")
def markup_in_answers_and_names_is_text(page, mock):
    name = '<img src=x onerror="window.hit=1">"\'&'
    mock.stats["model"]["name"] = name
    page.wait("$('facts').innerText.includes('<img')")
    assert page.text("#facts").count(name) == 1
    for cut in (3, len(HOSTILE)):
        mock.answers.append(says(*[HOSTILE[i:i + cut] for i in range(0, len(HOSTILE), cut)]))
        ask(page, HOSTILE)
        done(page)
    mock.answers.append(refuses(400, HOSTILE))
    ask(page, "x")
    assert "<script>" in notice(page)
    time.sleep(0.3)
    assert page.eval("window.hit") is None
    inside = page.eval("[...new Set([...document.querySelectorAll('#turns *, #facts *, header *')].map(n => n.localName))]")
    assert not set(inside) & {"script", "img", "iframe", "svg", "a", "style", "b", "i"} - {"i"}, inside
    shown = page.eval("document.querySelectorAll('.turn.model .text')[1].innerText")
    for part in ("<script>window.hit = 1</script>", "[a](javascript:alert(1))", "<b>bold</b>", "&lt;entity&gt;",
                 "</pre></div>", '<a href="https://example.com">item</a>', "<style>*{display:none}</style>"):
        assert part in shown, (part, shown)


@check("chat")
def markdown_is_shown_as_such(page, mock):
    text = ("# Title\nA *short* **bold `x`** line\nand 2*3*4\n\n1. one\n   - nested\n2. two\n\n"
            "```c\nint **p; // *not* `md`\n\n\nreturn;\n```\n"
            "   - deep\n- shallow\n  more of it\n     ```\n     in a list\n       deeper\n     ```\n\n"
            "```` \n``` inside\n````\nאחרי")
    mock.answers.append(says(*text))
    ask(page, "Markdown.")
    done(page)
    html = page.eval("document.querySelector('.turn.model .text').innerHTML")
    for part in ("<h3 dir=\"auto\">Title</h3>", "<em>short</em>", "<strong>bold <code dir=\"ltr\">x</code></strong>",
                 "and 2*3*4", "<ol", "<li dir=\"auto\"><span>one</span><ul>", "int **p; // *not* `md`\n\n\nreturn;</pre>", "<span>deep</span>", "<span>shallow\nmore of it</span>",
                 ">in a list\n  deeper</pre>", ">``` inside</pre>"):
        assert part in html, (part, html)
    assert page.eval("getComputedStyle(document.querySelector('.turn.model .text p:last-child')).direction") == "rtl"
    assert page.eval("getComputedStyle(document.querySelector('.turn.model .text p')).direction") == "ltr"


@check("chat")
def fences_are_those_of_markdown(page, mock):
    cases = [("```py", ["py", "x"]), ("``` py title", ["py", "x"]), ("~~~ a`b", ["a`b", "x"]), ("```\r", ["code", "x"]),
             ("  ````c", ["c", "x"]), ("```a`b", None), ("``", None), ("~~", None)]
    for first, shown in cases:
        text = first + "\nx" + ("\n" + first.strip()[0] * 4 if shown else "")
        got = page.eval(f"""(() => {{ const box = el('div'); showMarkdown(box, {json.dumps(text)});
          const code = box.querySelector('.code');
          return code && [code.querySelector('header').firstChild.textContent, code.querySelector('pre').textContent] }})()""")
        assert got == shown, (first, got)


@check("chat")
def no_text_takes_long_to_cut_into_its_parts(page, mock):
    for piece, count, end in (("~", 5000, "`"), ("`", 5000, "~"), (" ", 50000, "`"), ("``` ", 5000, "`"), ("#", 50000, ""),
                              ("1", 50000, ""), ("- ", 20000, ""), ("*", 50000, ""), ("**a ", 20000, ""), ("*a", 20000, " "),
                              ("*a*b", 20000, ""), ("`a``b```c ", 5000, ""), ("`a` ", 10000, ""), ("````", 10000, "a`"),
                              ("a\n", 5000, "")):
        took_ms = page.eval(f"""(() => {{ const text = {json.dumps(piece)}.repeat({count}) + {json.dumps(end)};
          const from = performance.now(); showMarkdown(el('div'), text); return performance.now() - from }})()""")
        assert took_ms < 1500, (piece, count, end, took_ms)


@check("chat")
def a_long_answer_stays_fast_and_at_its_end(page, mock):
    words = [f"word{i} " + ("\n\n" if i % 40 == 39 else "") for i in range(4000)]
    mock.answers.append(says(*words))
    ask(page, "A long one.")
    done(page, 60)
    assert page.eval("turns[0].answer.length") == sum(map(len, words))
    assert page.eval("$('log').scrollHeight - $('log').scrollTop - $('log').clientHeight") < 60
    assert page.eval("$('live').children.length") <= 4
