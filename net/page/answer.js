/* One answer: its request, its events, what is shown and read out of it, and what can go wrong. */

function requestOf(t) {
  const common = {
    ...(model !== null && { model }),
    stream: true,
    stream_options: { include_usage: true },
    ...requestFields(t.mode),
  };
  if (t.mode === "complete") return ["/v1/completions", { ...common, prompt: t.prompt }];
  const messages = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const past of turns) {
    if (past.mode !== "chat" || (past !== t && past.answer === "")) continue;
    messages.push({ role: "user", content: past.prompt });
    if (past === t) break;
    messages.push({ role: "assistant", content: past.answer });
  }
  return ["/v1/chat/completions", { ...common, messages }];
}

/* One event of a stream: text, the end's reason, the usage, or an error. */
function takeEvent(t, event) {
  if (event.error)
    throw new ApiError(-1, event.error.message ?? String(event.error), event.error.code, null);
  if (event.usage) t.usage = event.usage;
  const choice = event.choices?.[0];
  if (!choice) return;
  const text = (t.mode === "chat" ? choice.delta?.content : choice.text) ?? "";
  if (choice.finish_reason) t.reason = choice.finish_reason;
  if (text === "") return;
  t.last_ms = performance.now();
  t.first_ms ??= t.last_ms;
  t.pieces++;
  t.answer += text;
  scheduleShow(t);
}

const REASONS = {
  stop: "complete",
  length: "ended by the limit of its length",
  stopped: "stopped by you",
  cancelled: "cancelled",
};

function metaOf(t) {
  const parts = [], count = t.usage?.completion_tokens ?? t.pieces;
  if (count > 0) parts.push(plural(count, "token"));
  const seconds = (t.last_ms - t.first_ms) / 1000;
  /* (What came at once says nothing of the speed at which it was made.) */
  if (count > 1 && seconds >= 0.05) parts.push(`${short.format((count - 1) / seconds)} tok/s`);
  if (t.first_ms) parts.push(`first after ${duration(t.first_ms - t.sent_ms)}`);
  if (t.usage) {
    const cached = t.usage.prompt_tokens_details?.cached_tokens;
    parts.push(`prompt of ${plural(t.usage.prompt_tokens, "token")}` +
               (cached ? `, ${whole.format(cached)} cached` : ""));
  }
  if (t.reason) parts.push(REASONS[t.reason] ?? t.reason);
  return parts.join(" \u00b7 ");
}

/* Changes the conversation, and keeps to its end if the reader was there. */
function keepingToTheEnd(change) {
  const log = $("log"), at_end = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (at_end) log.scrollTop = log.scrollHeight;
}

/* Shows the answer as it stands. */
function show(t) {
  if (t.mode === "chat") showMarkdown(t.made, t.answer);
  else t.made.textContent = t.answer;
  t.meta.textContent = metaOf(t);
}

/* Many tokens are shown at once where showing them takes long. */
function scheduleShow(t) {
  if (t.timer) return;
  t.timer = setTimeout(() => {
    const from = performance.now();
    t.timer = 0;
    keepingToTheEnd(() => show(t));
    t.cost_ms = performance.now() - from;
    tell(t);
  }, Math.max(16, 4 * t.cost_ms));
}

/* Reads out what has come since the last time, up to the end of a sentence, every few seconds at
 * most. */
function tell(t) {
  if (performance.now() - t.told_ms < 4000) return;
  const fresh = t.answer.slice(t.told);
  const end = Math.max(...[". ", "? ", "! ", "\n"].map(s => fresh.lastIndexOf(s))) + 1;
  if (end === 0) return;
  announce(fresh.slice(0, end));
  t.told += end;
  t.told_ms = performance.now();
}

/* What an answer is before any of it has come. */
const NOTHING = { answer: "", usage: null, reason: null, pieces: 0, sent_ms: 0, first_ms: null,
                  last_ms: 0, told: 0 };

/* Asks, and takes what comes; the error where something went wrong, or null. */
async function receive(t, signal) {
  try {
    await learnModel(signal);
    const [path, body] = requestOf(t);
    const response = await api(path, { body, signal });
    const done = await readEvents(response, event => takeEvent(t, event));
    return done || t.reason ? null : new ApiError(0, "", "cut", null);
  } catch (e) {
    if (e instanceof ApiError) return e;
    if (e.name !== "AbortError")
      return new ApiError(0, e.message, e instanceof SyntaxError ? "unreadable" : "cut", null);
    t.reason = "stopped";
    return null;
  }
}

/* Makes the answer of a turn. One that it has already is gone only when a new one begins to come. */
async function generate(t) {
  const control = busy = new AbortController();
  const old = Object.fromEntries(Object.keys(NOTHING).map(name => [name, t[name]]));
  const now = performance.now();
  Object.assign(t, NOTHING, { sent_ms: now, timer: 0, cost_ms: 0, told_ms: now });
  t.notice.replaceChildren();
  t.made.classList.add("waiting");
  show(t);
  refresh();
  $("log").scrollTop = $("log").scrollHeight;
  const failure = await receive(t, control.signal);
  clearTimeout(t.timer);
  busy = null;
  const keeps = t.answer === "" && old.answer !== "" && (failure || t.reason === "stopped");
  if (keeps) Object.assign(t, old);
  keepingToTheEnd(() => {
    t.made.classList.remove("waiting");
    show(t);
    refresh();
  });
  if (failure?.status === 401 && await askKey()) return again(t);
  if (failure) return showFailure(t, failure, keeps);
  announce(keeps ? "Stopped. The answer of before is kept."
                 : `${t.answer.slice(t.told)} Answer ${REASONS[t.reason] ?? "complete"}.`);
}

/* What went wrong, in words, and what to do about it. */
function explain(e) {
  const said = e.message ? ` It says: \u201c${e.message}\u201d.` : "";
  if (e.code === "cut") return "The connection was lost before the answer was complete.";
  if (e.code === "unreadable") return `What the server sent cannot be understood.${said}`;
  if (e.status === 0)
    return "The server does not answer. It may have been stopped, or the network is down.";
  if (e.status === -1) return `The server broke the answer off.${said}`;
  if (e.code === "context_length_exceeded")
    return `This is more than the model can read. Clear the conversation or shorten it.${said}`;
  if (e.status === 400) return `The server refused the request.${said}`;
  if (e.status === 401) return "This server asks for a key.";
  if (e.status === 413) return `The text is too long for the server.${said}`;
  if (e.status === 429) return `The server has too much to do.${said}`;
  if (e.status === 503) return `The server cannot answer now.${said}`;
  return `The server failed with status ${e.status}.${said}`;
}

function showFailure(t, e, keeps) {
  const row = el("div", { className: "row" });
  let text = explain(e) + (keeps ? " The answer of before is kept." : "");
  if (e.status === 400 && t.mode === "chat" && /chat template/i.test(e.message)) {
    text = "This model has no chat template, so it cannot chat. It can continue a text.";
    row.append(button("Continue this text instead", () => insteadComplete(t), "primary"));
  } else if (e.retry_s !== null && (e.status === 429 || e.status === 503)) {
    const left = el("span", { "aria-hidden": "true" });
    row.append(el("span", {}, "It will be sent again ", left), button("Send now", () => again(t)),
               button("Do not send again", cancelRetry));
    startRetry(t, e.retry_s, row, left);
  } else {
    row.append(button(e.status === 401 ? "Enter a key" : "Try again",
                      async () => { if (e.status !== 401 || await askKey()) again(t); }));
  }
  const notice = el("div", { className: "notice", role: "alert" }, text, row);
  keepingToTheEnd(() => t.notice.replaceChildren(notice));
  if (e.status === 0) wakeStats();
}

/* The seconds are shown, but not read out one by one. */
function startRetry(t, seconds, row, left) {
  const tick = () => {
    if (retry.seconds === 0) {
      dropRetry();
      return again(t);
    }
    left.textContent = `in ${plural(retry.seconds, "second")}.`;
    retry.seconds--;
  };
  retry = { seconds, row, timer: setInterval(tick, 1000) };
  tick();
}

function dropRetry() {
  if (!retry) return;
  clearInterval(retry.timer);
  retry.row.replaceChildren("It will not be sent again.");
  retry = null;
}

/* The user does not want to wait. */
function cancelRetry() {
  dropRetry();
  $("prompt").focus();
}
