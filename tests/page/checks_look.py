"""Look and access: keyboard, names of controls, contrast, widths, themes, motion."""
import os
import re
import time

from browser import SHIFT
from checks import answer, ask, check, done
from mock import refuses, says

LONG = ("Here is a **plan** with `inline code` and averyveryverylongwordthatdoesnotendbeforetheedgeofaphone" + "x" * 80 +
        "\n\n- one\n- two\n\n```python\ndef total(xs):\n    return sum(x * 2 for x in xs)  # " + "a long comment " * 10 + "\n```\nDone.")


def focus_name(page):
    return page.eval("(n => n.id || n.innerText || n.name || n.localName)(document.activeElement)")


def tab_to(page, wanted, modifiers=0):
    for _ in range(60):
        if focus_name(page) == wanted:
            return
        page.key("Tab", modifiers)
    raise AssertionError(f"Tab does not reach {wanted}")


@check("access")
def everything_works_by_keyboard(page, mock):
    assert focus_name(page) == "prompt"
    tab_to(page, "Skip to the message field", SHIFT)
    page.key("Enter")
    assert focus_name(page) == "prompt"
    page.write("line one")
    page.key("Enter", SHIFT)
    page.write("line two")
    page.key("Enter")
    done(page)
    assert mock.posts[0][1]["messages"][0]["content"] == "line one\nline two", mock.posts
    tab_to(page, "Regenerate", SHIFT)
    page.key("Enter")
    page.wait("turns[0].answer === 'Hello.' && busy === null")
    assert len(mock.posts) == 2 and focus_name(page) == "prompt"
    tab_to(page, "Settings", SHIFT)
    page.key("Enter")
    tab_to(page, "temperature")
    page.write("0.5")
    tab_to(page, "Server", SHIFT)
    page.key("Enter")
    tab_to(page, "layer")
    page.key("ArrowDown")
    assert page.eval("$('layer').value") == "1"
    page.key("Tab")
    page.key("Tab")
    assert page.eval("document.activeElement.role") == "gridcell"
    page.key("ArrowRight")
    assert page.text("#heat_text").startswith("Expert 1: 110 tokens"), page.text("#heat_text")
    tab_to(page, "theme", SHIFT)
    page.key("Enter")
    assert page.eval("document.documentElement.dataset.theme") == "light"
    tab_to(page, "prompt")
    tab_to(page, "mode")
    page.key("ArrowRight")
    assert page.eval("modeOf()") == "complete"


@check("access")
def focus_is_seen_everywhere(page, mock):
    page.wait("model !== null")
    seen = set()
    page.eval("document.activeElement.blur(); window.border = () => getComputedStyle(document.querySelector('.card')).borderColor;"
              "window.unfocused = border(); 0")
    for _ in range(40):
        page.key("Tab")
        name, ok = page.eval("""(() => {
          const n = document.activeElement, s = getComputedStyle(n.localName === 'input' && n.type === 'radio' ? n.parentElement : n);
          const card = n.id === 'prompt' && border() !== unfocused;
          return [n.id || n.innerText || n.ariaLabel || n.localName, n === document.body || s.outlineStyle !== 'none' || card] })()""")
        assert ok, f"no outline, no other border: {name}"
        seen.add(name)
    assert len(seen) > 10 and "prompt" in seen, seen


@check("access")
def every_control_has_a_name(page, mock):
    mock.answers.append(says(LONG))
    ask(page, "x")
    done(page)
    for view in ("server", "settings"):
        page.eval(f"setView('{view}')")
        nameless = [role for role, name in page.controls() if not name and role not in ("ScrollArea", "generic", "group")]
        assert not nameless, nameless
    page.eval("askKey(), 0")
    nameless = [role for role, name in page.controls() if not name and role != "generic"]
    assert not nameless, nameless
    names = [name for _, name in page.controls()]
    assert "API key" in names and "Use this key" in names, names


@check("access")
def answers_are_read_out_in_pieces(page, mock):
    page.eval("""window.told = []; new MutationObserver(list => list.forEach(m =>
      m.addedNodes.forEach(n => told.push(n.textContent)))).observe($('live'), {childList: true})""")
    sentences = [f"This is sentence {i}. " for i in range(60)]
    mock.answers.append(says(*[w for s in sentences for w in re.findall(r"\S+ ", s)], delay_s=0.02))
    ask(page, "Sixty.")
    done(page, 30)
    told = page.eval("told")
    assert 2 <= len(told) <= 4, told
    assert "".join(told).startswith("".join(sentences)[:300]) and told[-1].endswith("Answer complete."), told
    assert page.eval("$('log').ariaLive") is None


def palette():
    """The colours of style.css: {name: (light, dark)}."""
    path = os.path.join(os.path.dirname(__file__), "../../net/page/style.css")
    with open(path, encoding="utf-8") as f:
        return {n: (a, b) for n, a, b in re.findall(r"--([a-z-]+): light-dark\(#(\w{6}), #(\w{6})\)", f.read())}


def luminance(colour):
    parts = [int(colour[i:i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@check("access", opens=False)
def contrasts_are_those_of_wcag_aa(page, mock):
    colours = palette()
    assert len(colours) == 12, colours
    grounds = ("bg", "surface", "sunken", "tint")
    pairs = [(fg, bg, 4.5) for fg in ("text", "muted") for bg in grounds]
    pairs += [("accent", bg, 4.5) for bg in grounds] + [("danger", bg, 4.5) for bg in ("bg", "surface", "danger-tint")]
    pairs += [("on-accent", "accent", 4.5), ("text", "danger-tint", 4.5), ("muted", "danger-tint", 4.5)]
    pairs += [("edge", bg, 3) for bg in ("bg", "surface")] + [("accent", bg, 3) for bg in grounds]
    for fg, bg, least in pairs:
        for theme in (0, 1):
            ratio = contrast(colours[fg][theme], colours[bg][theme])
            assert ratio >= least, f"{fg} on {bg}, {('light', 'dark')[theme]}: {ratio:.2f}, expected {least}"


# The text elements that are seen, each with its colour and what is below it as [r, g, b]; of fields
# with a placeholder, that. The canvas knows every notation of a colour.
TEXTS = """(() => {
  const pen = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
  const paint = colours => {
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1) }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3) };
  const grounds = n => n ? [...grounds(n.parentElement), getComputedStyle(n).backgroundColor] : ['white'];
  const opacity = n => n ? getComputedStyle(n).opacity * opacity(n.parentElement) : 1;
  return [...document.querySelectorAll('body *')].flatMap(n => {
    const asks = n.placeholder && !n.value;
    const text = asks ? n.placeholder : n.value && n.localName !== 'button' ? n.value
      : [...n.childNodes].filter(c => c.nodeType === 3).map(c => c.data.trim()).join('');
    if (!text || !n.checkVisibility() || n.closest('.vh, .skip, option, svg, [type=radio], [type=checkbox]')) return [];
    const style = getComputedStyle(n, asks ? '::placeholder' : null), below = grounds(n), name = n.id || n.className || n.localName;
    if (opacity(n) * style.opacity !== 1) return [[`${name}: not opaque`, [0, 0, 0], [0, 0, 0]]];
    return [[`${name}: ${text.slice(0, 30)}`, paint([...below, style.color]), paint(below)]] }) })()"""


def least_contrast(page):
    """Every text that is seen now must have 4.5:1; the names of what was looked at."""
    found = page.eval(TEXTS)
    for name, ink, ground in found:
        ratio = contrast(*("".join(f"{c:02x}" for c in colour) for colour in (ink, ground)))
        assert ratio >= 4.5, f"{name}: {ink} on {ground}, {ratio:.2f}"
    return [name for name, _, _ in found]


def texts_have_contrast(page, mock):
    page.wait("!$('experts_on').hidden")
    names = least_contrast(page)
    mock.answers += [says(LONG), says(" text."), refuses(500, "oops")]
    ask(page, "x")
    done(page)
    page.eval("setMode('complete')")
    for text in ("A", "y"):
        ask(page, text)
        done(page)
    page.click_text("Edit")
    page.eval("$('heat_details').open = true")
    page.eval("$('prompt').value = ''")
    names += least_contrast(page)
    page.eval("setView('settings'); $('temperature').value = 'hot'; $('temperature').oninput(); settingsHold()")
    names += least_contrast(page)
    mock.stats_status = 500
    page.wait("!$('trouble').hidden")
    page.eval("setView('server')")
    names += least_contrast(page)
    page.eval("askKey(), 0")
    page.key("Enter")
    names += least_contrast(page)
    for part in ("prompt: Write", "given: A", "max_tokens: default", "temperature: hot", "send_problem: Not sent", "notice: The server",
                 "trouble_text: ", "key_problem: Enter", "edit_cancel", "inline code", "pill: No figures", "th: ", "small: tok/s"):
        assert any(part in name for name in names), f"{part} was not seen"


for dark in (False, True):
    def of_this_theme(page, mock):
        texts_have_contrast(page, mock)
    of_this_theme.__name__ = f"texts_have_contrast_{'dark' if dark else 'light'}"
    check("access", dark=dark)(of_this_theme)


@check("access")
def nothing_is_lost_in_colours_of_the_users_choosing(page, mock):
    page.wait("!$('experts_on').hidden")
    page.eval("document.activeElement.blur()")
    for theme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", {"features": [{"name": "forced-colors", "value": "active"},
                                                              {"name": "prefers-color-scheme", "value": theme}]})
        grounds = page.eval("""(() => { const ground = (s, pseudo) => getComputedStyle(document.querySelector(s), pseudo).backgroundColor;
          return { cells: [...document.querySelectorAll('#heat [role=gridcell]')].map(c => getComputedStyle(c).backgroundColor),
            page: ground('body'), bar: ground('#ranks .bar i'), empty: ground('#ranks .bar'), dot: ground('#pill', '::before'),
            tab: ground('nav [aria-current=true]'), tabs: ground('nav [aria-current=false][data-view=settings]'),
            mode: ground('.switch label:has(:checked)'), modes: ground('.switch label:not(:has(:checked))'),
            legend: getComputedStyle(document.querySelector('.legend i')).backgroundImage } })()""")
        assert len(set(grounds["cells"])) == 8, grounds
        assert grounds["bar"] != grounds["empty"] and grounds["dot"] != grounds["page"] and "gradient" in grounds["legend"], grounds
        assert grounds["tab"] != grounds["tabs"] and grounds["mode"] != grounds["modes"], grounds
        ring = "getComputedStyle(document.querySelector('.card')).outlineStyle"
        assert page.eval(ring) == "none"
        page.eval("$('prompt').focus()")
        assert page.eval(ring) == "solid", "focus is not seen"
        page.eval("$('prompt').blur()")


@check("access", reduced_motion=True)
def nothing_moves_where_that_is_wanted(page, mock):
    mock.answers.append(says("a", "b", delay_s=1))
    ask(page, "x")
    page.wait("Boolean(document.querySelector('.waiting'))")
    assert page.eval("getComputedStyle(document.querySelector('.waiting'), '::after').animationName") == "none"
    done(page)


@check("access", opens=False, dark=True)
def the_theme_follows_the_system_and_the_switch(page, mock):
    page.open(mock.url)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.eval(ground)
    page.click("#theme")
    light = page.eval(ground)
    assert dark == "rgb(21, 23, 27)" and light == "rgb(250, 249, 246)", (dark, light)
    page.open(mock.url)
    assert page.eval(ground) == light, "the theme is not kept"
    page.click("#theme")
    assert page.eval(ground) == dark and page.eval("$('theme').ariaLabel") == "Theme: dark"
    page.click("#theme")
    assert page.eval("document.documentElement.dataset.theme") == "auto"


@check("access", width=360, height=740, mobile=True)
def targets_are_large_enough_on_a_phone(page, mock):
    mock.answers.append(says(LONG))
    page.click_text("What is 27+15?")
    done(page)
    for view in ("chat", "server", "settings"):
        page.click_text(view.capitalize())
        small = page.eval("""[...document.querySelectorAll('button, select, input, textarea, summary, label:has(input)')]
          .filter(n => n.offsetParent && n.type !== 'radio' && n.type !== 'checkbox')
          .map(n => [n.id || n.innerText, n.getBoundingClientRect()])
          .filter(([, r]) => r.height < 44 || r.width < 44).map(([name, r]) => `${name} ${r.width} x ${r.height}`)""")
        assert not small, small


def overflow(page):
    return page.eval("""[...document.querySelectorAll('body *')].filter(n => n.offsetParent && !n.closest('pre, .vh, .skip') &&
      n.getBoundingClientRect().right > innerWidth + 0.5).map(n => n.className || n.id || n.localName)""")


def walk(page, mock, folder, name):
    """Every view, filled; each must fit in the width."""
    def look(view):
        assert page.eval("document.documentElement.scrollWidth <= innerWidth"), view
        assert page.eval("document.documentElement.scrollHeight <= innerHeight"), view
        assert not overflow(page), (view, overflow(page))
        if folder:
            time.sleep(0.2)
            page.shot(os.path.join(folder, f"{name}-{view}.png"))
    look("hello")
    mock.answers.append(says(*[LONG[i:i + 5] for i in range(0, len(LONG), 5)]))
    ask(page, "How do I add up a file of numbers? " + "w" * 100)
    for i in range(3):
        mock.stats["completion_tokens_total"] += 30 + 10 * i
        time.sleep(1)
    done(page)
    look("chat")
    for view in ("server", "settings"):
        page.eval(f"setView('{view}')")
        look(view)
        page.eval("document.querySelector('aside').scrollTop = 1e6")
        look(view + "-end")
    assert answer(page).endswith("Done.")
    page.eval("askKey(), 0")
    look("key")


for width, height, mobile in ((1280, 800, False), (900, 700, False), (360, 740, True)):
    for dark in (False, True):
        def fits(page, mock, folder, name=f"{width}-{'dark' if dark else 'light'}"):
            walk(page, mock, folder, name)
        fits.__name__ = f"it_fits_in_{width}_px_{'dark' if dark else 'light'}"
        check("look", shots=True, width=width, height=height, mobile=mobile, dark=dark)(fits)


@check("look", width=320, height=480, mobile=True)
def it_fits_in_320_px_with_large_counts(page, mock):
    mock.stats.update(running=1234, waiting=99999, kv_blocks_total=12345678, prompt_tokens_total=10**15)
    mock.stats["model"]["name"] = "a-model-with-a-rather-long-name-" * 4
    page.wait("$('pill').innerText.includes('99,999')")
    page.eval("setView('server')")
    assert page.eval("document.documentElement.scrollWidth <= innerWidth") and not overflow(page), overflow(page)
    assert page.eval("document.title").startswith("a-model")


@check("look", width=320, height=480, mobile=True)
def one_line_has_the_views_and_one_the_buttons_in_320_px(page, mock):
    for mode in ("chat", "complete"):
        page.eval(f"setMode('{mode}')")
        ask(page, "x")
        done(page)
        tops = page.eval("['clear', 'send'].map(id => $(id).getBoundingClientRect().top)")
        assert tops[0] == tops[1], (mode, tops)
    for view in ("chat", "server", "settings"):
        page.click_text(view.capitalize())
        boxes = page.eval("[...document.querySelectorAll('nav button')].map(b => [b.offsetHeight, b.scrollWidth - b.clientWidth])")
        assert boxes == [[44, 0]] * 3, (view, boxes)
