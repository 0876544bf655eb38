/* Polling /stats: once a second while the page is seen, one request at a time, rarer while it
 * fails. */

async function pollStats() {
  if (poll.running || document.hidden || poll.needs_key) return;
  poll.running = true;
  let wait_s = 1;
  try {
    const response = await api("/stats", { signal: AbortSignal.timeout(10000) });
    showStats(await response.json());
    poll.failures = 0;
  } catch (e) {
    poll.failures++;
    wait_s = e.retry_s ?? Math.min(30, 2 ** poll.failures);
    keepSample(null);
    showTrouble(e instanceof ApiError ? e : new ApiError(0, e.message, "unreadable", null));
  }
  poll.running = false;
  clearTimeout(poll.timer);
  poll.timer = setTimeout(pollStats, 1000 * wait_s);
}

/* The text stays the same from one failure to the next, so that it is read out once. */
function showTrouble(e) {
  const locked = e.status === 401;
  poll.needs_key = locked;
  const states = { 0: "Not reachable", 401: "Key needed", 503: "Not ready" };
  showPill(states[e.status] ?? "No figures", "bad");
  const text = explain(e) + (locked ? "" : " This page keeps trying.");
  if ($("trouble_text").textContent !== text || $("trouble").hidden)
    $("trouble_text").textContent = text;
  $("trouble_try").textContent = locked ? "Enter a key" : "Try now";
  $("trouble").hidden = false;
  if (locked) askKey();
}

/* Asks now, whatever was planned. */
function wakeStats() {
  poll.needs_key = false;
  clearTimeout(poll.timer);
  pollStats();
}

$("trouble_try").onclick = () => poll.needs_key ? askKey() : wakeStats();
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(poll.timer);
    keepSample(null);
  } else if (!poll.needs_key) {
    wakeStats();
  }
});
