"""Settings: what reaches the request, what is kept, what is refused."""
import json

from checks import ask, check, done

NUMBERS = {"temperature": "0,5", "max_tokens": "40", "top_p": "0.9", "top_k": "-1", "min_p": "0.05",
           "repetition_penalty": "1.1", "presence_penalty": "-0.5", "frequency_penalty": "0.25", "seed": "-7"}


def fill(page, name, text):
    page.eval(f"$('{name}').value = ''; $('{name}').focus()")
    page.write(text) if text else page.eval(f"$('{name}').dispatchEvent(new Event('input'))")


def choose(page, name, value):
    page.eval(f"$('{name}').value = '{value}'; $('{name}').dispatchEvent(new Event('input'))")


@check("settings")
def every_setting_is_in_the_request_and_survives_a_reload(page, mock):
    page.click_text("Settings")
    for name, text in NUMBERS.items():
        fill(page, name, text)
    fill(page, "system", "Be brief.")
    fill(page, "stop_text", "END\n\\n\\tx\\\\")
    choose(page, "format", "json_object")
    for _ in range(2):
        ask(page, "Hi")
        done(page)
        body = mock.posts[-1][1]
        for name, text in NUMBERS.items():
            assert body[name] == float(text.replace(",", ".")), (name, body)
        assert isinstance(body["max_tokens"], int) and isinstance(body["seed"], int)
        assert body["stop"] == ["END", "\n\tx\\"], body["stop"]
        assert body["response_format"] == {"type": "json_object"}
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        page.open(mock.url)
        page.wait("model !== null")
    page.click_text("Settings")
    page.click_text("Use the server's defaults")
    ask(page, "Hi")
    done(page)
    assert set(mock.posts[-1][1]) == {"model", "messages", "stream", "stream_options"}, mock.posts[-1]


@check("settings")
def commas_are_understood(page, mock):
    page.click_text("Settings")
    fill(page, "max_tokens", "1,000")
    fill(page, "seed", "-1,234,567")
    fill(page, "temperature", "0,7")
    ask(page, "Hi")
    done(page)
    body = mock.posts[0][1]
    assert (body["max_tokens"], body["seed"], body["temperature"]) == (1000, -1234567, 0.7), body
    for text in ("1.000", "1,5", "1,00", "1,0000", ",100", "1e3", "0x10", "4 0"):
        fill(page, "max_tokens", text)
        assert "expected a whole number" in page.text("#max_tokens_problem"), text
    fill(page, "temperature", "0,7,1")
    assert "expected a number" in page.text("#temperature_problem")


@check("settings")
def a_schema_is_sent_as_the_api_wants_it(page, mock):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    page.click_text("Settings")
    choose(page, "format", "json_schema")
    fill(page, "schema", json.dumps(schema))
    ask(page, "A number.")
    done(page)
    assert mock.posts[0][1]["response_format"] == {
        "type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    page.click("[value=complete] + span")
    ask(page, "A number.")
    done(page)
    assert "response_format" not in mock.posts[1][1]


@check("settings")
def wrong_values_are_named_and_nothing_is_sent(page, mock):
    cases = [("temperature", "hot"), ("temperature", "-1"), ("top_p", "0"), ("top_p", "1.5"), ("top_k", "1.5"),
             ("max_tokens", "0"), ("seed", "1e30"), ("frequency_penalty", "3"), ("stop_text", "x\n" * 17)]
    for name, text in cases:
        page.eval("setView('settings')")
        fill(page, name, text)
        assert page.eval(f"$('{name}').getAttribute('aria-invalid')") == "true", (name, text)
        ask(page, "Hi")
        assert page.wait("document.activeElement.id") == name
        assert "Not sent" in page.text("#send_problem")
        fill(page, name, "")
    choose(page, "format", "json_schema")
    for text in ("", "{", "[1]", "null"):
        fill(page, "schema", text)
        ask(page, "Hi")
        assert page.wait("document.activeElement.id") == "schema", text
    assert not mock.posts
    choose(page, "format", "")
    page.eval("$('prompt').value = ''")
    ask(page, "Hi")
    done(page)
    assert len(mock.posts) == 1 and page.eval("$('send_problem').hidden")


@check("settings", opens=False)
def broken_or_forbidden_storage_does_no_harm(page, mock):
    page.open(mock.url)
    for kept in ("{", "null", "7", '{"temperature":7,"top_p":null}'):
        page.eval(f"localStorage.setItem('moeserve.settings', {json.dumps(kept)});"
                  "localStorage.setItem('moeserve.theme', 'x'); localStorage.setItem('moeserve.mode', 'x')")
        page.open(mock.url)
        ask(page, "Hi")
        done(page)
        assert set(mock.posts[-1][1]) <= {"model", "messages", "stream", "stream_options"}, mock.posts[-1]
    page.call("Page.addScriptToEvaluateOnNewDocument", {"source": """
        for (const name of ['localStorage', 'sessionStorage'])
          Object.defineProperty(window, name, {get() { throw new Error('forbidden') }});"""})
    page.open(mock.url)
    ask(page, "Hi")
    done(page)
    assert page.text(".turn.model .text") == "Hello."
