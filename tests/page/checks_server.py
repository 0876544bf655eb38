"""The live view: its figures, the heat map, and when it asks for them."""
import time

from checks import check


@check("server")
def figures_are_those_of_stats(page, mock):
    s = mock.stats
    s.update(running=3, waiting=12345, last_step_age_ms=2500)
    s["replicas"] = [{"running": 1, "waiting": 2, "healthy": True}, {"running": 2, "waiting": 3, "healthy": False}]
    page.wait("$('requests').innerText.startsWith('3')")
    for selector, words in (("#requests_note", "12,345 waiting"), ("#kv", "30%"),
                            ("#kv_note", "200 held, 100 cached of 1,000 blocks"), ("#prefix", "25%"), ("#step", "2.5 s"),
                            ("#pill", "3 running, 12,345 waiting"), ("#replicas", "1 running, 2 waiting"),
                            ("#replicas", "3 waiting, stalled"), ("#ranks tr td", "75%"), ("#ranks", "24.1 GB"),
                            ("#facts", "1 h 2 min"), ("#facts", "2,048 tokens"), ("#model", "mock-moe")):
        assert words in page.text(selector), (selector, words, page.text(selector))
    widths = page.eval("[...document.querySelectorAll('#kv_bar i, #ranks .bar i')].map(i => i.style.width)")
    assert widths == ["20%", "10%", "75%", "100%", "25%", widths[-1]] and widths[-1].startswith("49.8"), widths
    s["healthy"] = False
    page.wait("$('pill').innerText === 'Stalled' && $('pill').className.includes('bad')")


@check("server")
def rates_are_differences_over_time(page, mock):
    page.wait("samples.length >= 2")
    end = time.monotonic() + 4
    while time.monotonic() < end:  # 200 tokens a second, in small steps
        mock.stats["completion_tokens_total"] += 10
        time.sleep(0.05)
    rate = float(page.text("#generated").split()[0])
    assert 120 < rate < 210, rate  # the sleeps are not exact
    assert page.eval("$('generated_path').getAttribute('d').split('L').length") >= 3
    assert page.text("#read").startswith("0.0")
    mock.stats["completion_tokens_total"] = 5  # it was started anew
    page.wait("$('generated').innerText.startsWith('\u2013')")
    page.wait("$('generated').innerText.startsWith('0.0')")


@check("server")
def the_heat_map_has_the_numbers(page, mock):
    page.wait("document.querySelectorAll('#heat [role=gridcell]').length === 8")
    assert page.eval("$('layer').length") == 3
    page.eval("$('layer').value = '2'; $('layer').onchange()")
    counts = mock.stats["experts"]["counts"][2]
    all_tokens = sum(counts)
    cells = page.eval("[...document.querySelectorAll('#heat [role=gridcell]')].map(c => [c.ariaLabel, c.style.getPropertyValue('--heat')])")
    for e, (label, heat) in enumerate(cells):
        want = f"{100 * counts[e] / all_tokens:.1f}".rstrip("0").rstrip(".")
        assert label == f"Expert {e}: {counts[e]} tokens, {want}%", label
        assert abs(float(heat) - counts[e] / max(counts)) < 1e-6, (e, heat)
    colours = page.eval("[...document.querySelectorAll('#heat [role=gridcell]')].map(c => getComputedStyle(c).backgroundColor)")
    assert len(set(colours)) == 8, colours
    assert page.text("#heat_max") == "270"
    assert "Expert 7: 270 tokens" in page.text("#heat_text") and "1.15 times the mean" in page.text("#heat_text")
    page.click("#heat [role=gridcell]:nth-child(3)")
    assert page.text("#heat_text").startswith("Expert 2: 220 tokens"), page.text("#heat_text")
    page.key("ArrowRight")
    assert page.text("#heat_text").startswith("Expert 3: 230 tokens")
    page.key("End")
    assert page.text("#heat_text").startswith("Expert 7"), "the pointer, not the focus, is shown"
    page.click("#heat_details summary")
    page.wait("document.querySelectorAll('#heat_rows tr').length === 8")
    assert page.eval("$('heat_rows').children[5].innerText.split(/\\s+/).join(' ')").startswith("5 250 13.3%")


@check("server")
def the_heat_map_can_show_the_last_seconds(page, mock):
    page.wait("samples.length >= 2")
    page.eval("$('since').value = 'recent'; $('since').onchange()")
    page.wait("$('heat_text').innerText.includes('No tokens yet')")
    mock.stats["experts"]["counts"][0][3] += 40
    page.wait("$('heat_text').innerText.includes('Expert 3: 40 tokens, 100%')")


@check("server")
def the_heat_map_stays_while_figures_fail(page, mock):
    page.wait("!$('experts_on').hidden")
    mock.stats_status = 500
    page.wait("!$('trouble').hidden")
    page.eval("$('layer').focus(); $('layer').value = '1'; $('layer').onchange()")
    assert page.eval("!$('experts_on').hidden && $('experts_off').hidden && document.activeElement.id") == "layer"
    assert "Expert 7: 170 tokens" in page.text("#heat_text"), page.text("#heat_text")
    page.eval("for (let i = 0; i < KEPT; i++) keepSample(null); $('since').value = 'recent'; $('since').onchange()")
    assert page.text("#heat_text") == "No tokens yet."


@check("server", opens=False)
def nothing_is_said_of_experts_before_it_is_known(page, mock):
    mock.stats_status = 503
    page.open(mock.url)
    page.wait("!$('trouble').hidden")
    assert page.eval("$('experts_box').offsetParent === null")
    mock.stats_status = 200
    page.click_text("Try now")
    page.wait("$('experts_on').offsetParent !== null")


@check("server")
def models_of_any_shape_are_shown(page, mock):
    m, experts = mock.stats["model"], mock.stats["experts"]
    for count in (1, 16, 60, 128, 512):
        m["num_experts"], experts["counts"] = count, [[1] * count]
        page.wait(f"document.querySelectorAll('#heat [role=gridcell]').length === {count}")
        assert page.eval("document.documentElement.scrollWidth <= innerWidth")
        assert page.eval("$('layer').length") == 1
    experts.update(enabled=False, counts=[])
    page.wait("$('experts_on').hidden && !$('experts_off').hidden")
    assert "--expert-metrics" in page.text("#experts_off")
    m["num_experts"] = 0
    page.wait("$('experts_box').hidden")
    mock.stats["replicas"].append({"running": 0, "waiting": 0, "healthy": True})
    mock.stats["ranks"] = [{"replica": 1, "rank": 0, "expert_tokens": None, "bytes": None}]
    page.wait("$('ranks').innerText.split(/\\s+/).join(' ').trim() === '0 of replica 1 \u2013 \u2013'")
    mock.stats.update(ranks=[], replicas=[], last_step_age_ms=None)
    page.wait("$('ranks_box').hidden && $('step').innerText.includes('none yet')")


@check("server")
def polls_never_overlap_and_stop_while_hidden(page, mock):
    page.wait("samples.length >= 3")
    gaps = [b - a for a, b in zip(mock.stats_times, mock.stats_times[1:])]
    assert min(gaps) > 0.9, gaps
    mock.stats_delay_s = 2.5
    time.sleep(4)
    page.eval("for (let i = 0; i < 5; i++) document.dispatchEvent(new Event('visibilitychange'))")
    time.sleep(1)
    assert mock.stats_most_at_once == 1, mock.stats_most_at_once
    mock.stats_delay_s = 0
    page.eval("Object.defineProperty(document, 'hidden', {get: () => window.away, configurable: true});"
              "window.away = true; document.dispatchEvent(new Event('visibilitychange'))")
    time.sleep(3)  # one may still be under way
    seen = len(mock.stats_times)
    time.sleep(2.5)
    assert len(mock.stats_times) == seen, "it asks while hidden"
    page.eval("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    time.sleep(0.5)
    assert len(mock.stats_times) == seen + 1, "it does not ask when seen again"


@check("server")
def failing_figures_are_asked_for_less_and_less(page, mock):
    page.wait("samples.length >= 1")
    mock.stats_status = 500
    page.wait("$('pill').innerText === 'No figures' && !$('trouble').hidden")
    assert "no figures today" in page.text("#trouble")
    page.wait("poll.failures === 3", 20)
    gaps = [b - a for a, b in zip(mock.stats_times, mock.stats_times[1:])][-2:]
    assert gaps[0] > 1.9 and gaps[1] > 3.9, gaps
    mock.stats_status = 200
    page.click_text("Try now")
    page.wait("$('trouble').hidden && $('pill').innerText === 'Idle'")
