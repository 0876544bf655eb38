/* The heat map: a cell for each expert of a layer, coloured by its tokens. */

let heat = [];      /* what is shown: tokens of each expert of the chosen layer */
let heat_at = null; /* the expert that is pointed at */

/* Counts of the chosen layer, since the start or of late. */
function layerCounts(counts) {
  const layer = Number($("layer").value), now = counts[layer] ?? [];
  if ($("since").value === "start") return now;
  const from = samples.find(p => p && p.ms >= latest.ms - 10500) ?? latest;
  const old = from.stats.experts?.counts?.[layer] ?? [];
  return now.map((n, e) => Math.max(0, n - (old[e] ?? 0)));
}

/* Shows the latest sample, however long ago it came. */
function showExperts() {
  const experts = latest.stats.experts;
  const counts = experts?.enabled ? experts.counts ?? [] : [];
  $("experts_box").hidden = latest.stats.model?.num_experts === 0;
  $("experts_off").hidden = Boolean(experts?.enabled);
  $("experts_on").hidden = counts.length === 0;
  if (counts.length === 0) return;
  if ($("layer").length !== counts.length)
    $("layer").replaceChildren(...counts.map((_, i) => el("option", {}, String(i))));
  heat = layerCounts(counts);
  if ($("heat").querySelectorAll("[role=gridcell]").length !== heat.length) makeHeat(heat.length);
  const most = Math.max(...heat, 0), all = heat.reduce((a, b) => a + b, 0);
  $("heat").querySelectorAll("[role=gridcell]").forEach((cell, e) => {
    cell.style.setProperty("--heat", most > 0 ? heat[e] / most : 0);
    cell.setAttribute("aria-label", expertText(e, all));
  });
  $("heat_max").textContent = whole.format(most);
  const since = $("since").selectedOptions[0].text;
  $("heat_caption").textContent = `Layer ${$("layer").value}, ${since}`;
  showHeatText();
  if ($("heat_details").open) showHeatTable(all);
}

const expertText = (e, all) => `Expert ${e}: ${plural(heat[e], "token")}, ${share(heat[e], all)}`;

function showHeatText() {
  const all = heat.reduce((a, b) => a + b, 0), most = Math.max(...heat, 0);
  let text = "No tokens yet.";
  if (heat_at !== null && heat_at < heat.length) text = expertText(heat_at, all);
  else if (all > 0)
    text = `Busiest: ${expertText(heat.indexOf(most), all)}; ` +
           `${short.format(most * heat.length / all)} times the mean.`;
  $("heat_text").textContent = text;
}

function showHeatTable(all) {
  $("heat_rows").replaceChildren(...heat.map((n, e) =>
    el("tr", {}, el("th", { scope: "row" }, String(e)), el("td", {}, whole.format(n)),
       el("td", {}, share(n, all)))));
}

const heatColumns = count => count <= 16 ? 8 : count <= 160 ? 16 : 32;

function makeHeat(count) {
  const columns = heatColumns(count), rows = [];
  for (let e = 0; e < count; e++) {
    if (e % columns === 0) rows.push(el("div", { role: "row" }));
    const cell = el("div", { role: "gridcell", tabIndex: e === 0 ? 0 : -1 });
    cell.onfocus = cell.onpointerenter = () => { heat_at = e; showHeatText(); };
    cell.onblur = cell.onpointerleave = () => { heat_at = null; showHeatText(); };
    rows.at(-1).append(cell);
  }
  $("heat").style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  $("heat").replaceChildren(...rows);
}

$("heat").onkeydown = event => {
  const cells = [...$("heat").querySelectorAll("[role=gridcell]")];
  const at = cells.indexOf(document.activeElement), columns = heatColumns(cells.length);
  const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns,
                  ArrowDown: at + columns, Home: 0, End: cells.length - 1 };
  const to = cells[moves[event.key]];
  if (event.key in moves) event.preventDefault();
  if (!to) return;
  cells[at].tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
};
$("layer").onchange = $("since").onchange = $("heat_details").ontoggle = showExperts;
