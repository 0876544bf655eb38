/* The live view: figures of GET /stats, and lines of the last minute. */

const KEPT = 61;     /* samples: a minute of them, one a second */
const samples = [];  /* {ms, stats}; null where nothing came for a while */
const poll = { timer: 0, running: false, failures: 0, needs_key: false };

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/* A tile: a name, a figure, a line of the last minute or a bar, a note. */
function makeTile(id, label, graph) {
  const spark = svg("svg", { class: "spark", viewBox: "0 0 60 28", preserveAspectRatio: "none", "aria-hidden": "true" });
  spark.append(svg("path", { id: id + "_path" }));
  const bar = el("div", { className: "bar", id: id + "_bar", "aria-hidden": "true" }, el("i"), el("i"));
  $("tiles").append(el("div", {}, el("dt", {}, label), el("dd", { className: "figure", id }, "\u2013"),
    ...(graph === "spark" ? [el("dd", {}, spark)] : graph === "bar" ? [el("dd", {}, bar)] : []),
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

/* By how much a counter grew per second, between neighbouring samples; null where that is not known. */
function rates(field) {
  return samples.slice(1).map((now, i) => {
    const before = samples[i];
    if (!now || !before || now.stats[field] < before.stats[field]) return null;
    return (now.stats[field] - before.stats[field]) / ((now.ms - before.ms) / 1000);
  });
}

function showRate(id, field, note) {
  const all = rates(field), now = all.at(-1) ?? null;
  figure(id, now === null ? "\u2013" : now < 10 ? now.toFixed(1) : whole.format(now), "tok/s", note);
  drawSpark(id, all);
}

function showFacts(s) {
  const facts = [["Model", s.model?.name], ["Context", plural(s.model?.max_model_len ?? 0, "token")],
    ["Layers", whole.format(s.model?.num_layers ?? 0)],
    ["Experts in a layer", whole.format(s.model?.num_experts ?? 0)], ["Up for", duration(1000 * (s.uptime_s ?? 0))],
    ["Connections", whole.format(s.connections ?? 0)], ["Steps", whole.format(s.steps_total ?? 0)],
    ["Preempted", whole.format(s.preemptions_total ?? 0)]];
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
}

function showTiles(s) {
  showRate("generated", "completion_tokens_total", `${whole.format(s.completion_tokens_total)} in all`);
  showRate("read", "prompt_tokens_total", `${whole.format(s.prompt_tokens_total)} in all`);
  figure("requests", whole.format(s.running), "running", `${whole.format(s.waiting)} waiting`);
  drawSpark("requests", samples.slice(1).map(p => p && p.stats.running + p.stats.waiting));
  const total = s.kv_blocks_total || 1, held = s.kv_blocks_used - s.kv_blocks_cached;
  figure("kv", share(s.kv_blocks_used, total), "used",
         `${whole.format(held)} held, ${whole.format(s.kv_blocks_cached)} cached of ${plural(s.kv_blocks_total, "block")}`);
  [held, s.kv_blocks_cached].forEach((n, i) => { $("kv_bar").children[i].style.width = `${100 * n / total}%`; });
  figure("prefix", share(s.prefix_hit_tokens_total, s.prompt_tokens_total), "", "of prompt tokens");
  const age = s.last_step_age_ms;
  figure("step", age === null || age === undefined ? "none yet" : duration(age), age ? "ago" : "",
         !s.healthy ? "Stalled: there is work and no progress" : s.running ? "working" : "idle");
}

const bar = (part, all) => {
  const i = el("i");
  i.style.width = `${all > 0 ? 100 * part / all : 0}%`;
  return el("div", { className: "bar", "aria-hidden": "true" }, i);
};

function showGroups(s) {
  const ranks = s.ranks ?? [], replicas = s.replicas ?? [];
  const tokens = ranks.reduce((sum, r) => sum + r.expert_tokens, 0), most = Math.max(0, ...ranks.map(r => r.bytes));
  $("replicas_box").hidden = replicas.length < 2;
  $("replicas").replaceChildren(...replicas.map((r, i) => el("li", { className: "row spread" }, el("span", {}, `Replica ${i}`),
    el("span", {}, `${whole.format(r.running)} running, ${whole.format(r.waiting)} waiting${r.healthy === false ? ", stalled" : ""}`))));
  $("ranks_box").hidden = ranks.length === 0;
  $("ranks").replaceChildren(...ranks.map(r => el("li", {},
    el("div", { className: "row spread" }, el("span", {}, `Rank ${r.rank}`),
      el("span", {}, `${share(r.expert_tokens, tokens)} of expert tokens`)), bar(r.expert_tokens, tokens),
    el("div", { className: "row spread muted" }, el("span", {}, "Memory"), el("span", {}, bytes(r.bytes))), bar(r.bytes, most))));
}

function showPill(text, kind) {
  $("pill").textContent = text;
  $("pill").className = `pill ${kind}`;
}

function showStats(s) {
  samples.push({ ms: performance.now(), stats: s });
  while (samples.length > KEPT) samples.shift();
  setModel(s.model?.name);
  $("trouble").hidden = true;
  const work = [s.running && `${whole.format(s.running)} running`, s.waiting && `${whole.format(s.waiting)} waiting`];
  showPill(!s.healthy ? "Stalled" : work.filter(Boolean).join(", ") || "Idle", s.healthy ? "ok" : "bad");
  showTiles(s);
  showFacts(s);
  showGroups(s);
  showExperts(s.experts);
}

function setModel(name) {
  if (typeof name !== "string") return;
  model = name;
  $("model").textContent = $("model").title = model;
  document.title = `${model} \u2013 moeserve`;
}
