/* The live view: figures of GET /stats, and lines of the last minute. */

const KEPT = 61;     /* samples: a minute of them, one a second */
const samples = [];  /* {ms, stats}; null where nothing came for a while */
let latest = null;   /* the last sample that came */
const poll = { timer: 0, running: false, failures: 0, needs_key: false };

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/* A tile: a name, a figure, a line of the last minute or a bar, a note. */
function makeTile(id, label, graph) {
  const spark = svg("svg", { class: "spark", viewBox: "0 0 60 28", preserveAspectRatio: "none",
                             "aria-hidden": "true" });
  spark.append(svg("path", { id: id + "_path" }));
  const graphs = {
    spark: [el("dd", {}, spark)],
    bar: [el("dd", {}, el("div", { className: "bar", id: id + "_bar", "aria-hidden": "true" },
                          el("i"), el("i")))],
  };
  $("tiles").append(el("div", {}, el("dt", {}, label),
    el("dd", { className: "figure", id }, "\u2013"), ...(graphs[graph] ?? []),
    el("dd", { className: "muted", id: id + "_note" })));
}

function figure(id, text, unit = "", note = "") {
  $(id).replaceChildren(text, ...(unit ? [" ", el("small", {}, unit)] : []));
  $(id + "_note").textContent = note;
}

/* Values of the last minute, the newest at the right; null leaves a gap. */
function drawSpark(id, values) {
  const top = Math.max(1, ...values.filter(v => v !== null));
  let d = "", pen = "M";
  values.forEach((v, i) => {
    if (v !== null) d += `${pen}${60 - (values.length - 1 - i)} ${(27 - 26 * v / top).toFixed(2)}`;
    pen = v === null ? "M" : "L";
  });
  $(id + "_path").setAttribute("d", d);
}

/* By how much a counter grew per second, between neighbouring samples; null where that is not
 * known. */
function rates(field) {
  return samples.slice(1).map((now, i) => {
    const before = samples[i];
    if (!now || !before || now.stats[field] < before.stats[field]) return null;
    return (now.stats[field] - before.stats[field]) / ((now.ms - before.ms) / 1000);
  });
}

function showRate(id, field, note) {
  const all = rates(field), now = all.at(-1) ?? null;
  let text = "\u2013";
  if (now !== null) text = now < 10 ? now.toFixed(1) : whole.format(now);
  figure(id, text, "tok/s", note);
  drawSpark(id, all);
}

function showFacts(s) {
  const m = s.model ?? {};
  const facts = [
    ["Model", m.name ?? ""],
    ["Context", plural(m.max_model_len ?? 0, "token")],
    ["Layers", whole.format(m.num_layers ?? 0)],
    ["Experts in a layer", whole.format(m.num_experts ?? 0)],
    ["Up for", duration(1000 * (s.uptime_s ?? 0))],
    ["Connections", whole.format(s.connections ?? 0)],
    ["Steps", whole.format(s.steps_total ?? 0)],
    ["Preempted", whole.format(s.preemptions_total ?? 0)],
  ];
  $("facts").replaceChildren(...facts.flatMap(([name, value]) =>
    [el("dt", {}, name), el("dd", {}, String(value))]));
}

function showStep(s) {
  const age_ms = s.last_step_age_ms ?? null;
  let note = s.running ? "working" : "idle";
  if (!s.healthy) note = "stalled: there is work and no progress";
  if (age_ms === null) figure("step", "none yet", "", note);
  else figure("step", age_ms < 1 ? "<1 ms" : duration(age_ms), "", `ago, ${note}`);
}

function showTiles(s) {
  const all = n => `${whole.format(n)} in all`;
  showRate("generated", "completion_tokens_total", all(s.completion_tokens_total));
  showRate("read", "prompt_tokens_total", all(s.prompt_tokens_total));
  figure("requests", whole.format(s.running), "running", `${whole.format(s.waiting)} waiting`);
  drawSpark("requests", samples.slice(1).map(p => p && p.stats.running + p.stats.waiting));
  const blocks_total = s.kv_blocks_total || 1;
  const parts = [s.kv_blocks_used - s.kv_blocks_cached, s.kv_blocks_cached];
  figure("kv", share(s.kv_blocks_used, blocks_total), "used",
         `${whole.format(parts[0])} held, ${whole.format(parts[1])} cached of ` +
         plural(s.kv_blocks_total, "block"));
  parts.forEach((n, i) => {
    $("kv_bar").children[i].style.width = `${100 * n / blocks_total}%`;
  });
  figure("prefix", share(s.prefix_hit_tokens_total, s.prompt_tokens_total), "", "of prompt tokens");
  showStep(s);
}

function replicaItem(r, i) {
  const state = `${whole.format(r.running)} running, ${whole.format(r.waiting)} waiting` +
                (r.healthy === false ? ", stalled" : "");
  return el("li", { className: "row spread" }, el("span", {}, `Replica ${i}`),
            el("span", {}, state));
}

/* A cell of a table: how much, and a bar of this part of the whole. What is not known is a dash. */
function barCell(part, all, text) {
  if (!Number.isFinite(part)) return el("td", {}, "\u2013");
  const i = el("i");
  i.style.width = `${all > 0 ? 100 * part / all : 0}%`;
  return el("td", {}, text, el("div", { className: "bar", "aria-hidden": "true" }, i));
}

function showGroups(s) {
  const ranks = s.ranks ?? [], replicas = s.replicas ?? [];
  const tokens = ranks.reduce((sum, r) => sum + (r.expert_tokens ?? 0), 0);
  const most_bytes = Math.max(0, ...ranks.map(r => r.bytes ?? 0));
  $("replicas_box").hidden = replicas.length < 2;
  $("replicas").replaceChildren(...replicas.map(replicaItem));
  $("ranks_box").hidden = ranks.length === 0;
  $("ranks").replaceChildren(...ranks.map(r => el("tr", {},
    el("th", { scope: "row" },
       replicas.length > 1 ? `${r.rank} of replica ${r.replica}` : `${r.rank}`),
    barCell(r.expert_tokens, tokens, share(r.expert_tokens, tokens)),
    barCell(r.bytes, most_bytes, bytes(r.bytes ?? 0)))));
}

function showPill(text, kind) {
  $("pill").textContent = text;
  $("pill").className = `pill ${kind}`;
}

function keepSample(sample) {
  samples.push(sample);
  while (samples.length > KEPT) samples.shift();
}

function showStats(s) {
  latest = { ms: performance.now(), stats: s };
  keepSample(latest);
  setModel(s.model?.name);
  $("trouble").hidden = true;
  const work = ["running", "waiting"].filter(name => s[name] > 0)
    .map(name => `${whole.format(s[name])} ${name}`).join(", ");
  showPill(s.healthy ? work || "Idle" : "Stalled", s.healthy ? "ok" : "bad");
  showTiles(s);
  showFacts(s);
  showGroups(s);
  showExperts();
}

function setModel(name) {
  if (typeof name !== "string") return;
  model = name;
  $("model").textContent = $("model").title = model;
  document.title = `${model} \u2013 moeserve`;
}
