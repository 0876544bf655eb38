/* The settings: what requests say beside the text. What is left empty is not said, so that the
 * server's defaults hold. */

const number = (name, label, min, max, hint, integer = false) =>
  ({ kind: "number", name, label, min, max, hint, integer });
const LAST_SEED = Number.MAX_SAFE_INTEGER;
const FIELDS = [
  { kind: "text", name: "system", label: "System prompt",
    hint: "What the model is told before a chat." },
  number("temperature", "Temperature", 0, 100, "0: the likeliest only"),
  number("max_tokens", "Longest answer", 1, 2147483647, "in tokens", true),
  number("top_p", "Top p", 0, 1, "above 0, up to 1"),
  number("top_k", "Top k", -1, 2147483647, "0: all tokens", true),
  number("min_p", "Min p", 0, 1, "0 to 1, 0: off"),
  number("repetition_penalty", "Repetition penalty", 0.01, 100, "1: none"),
  number("presence_penalty", "Presence penalty", -2, 2, "-2 to 2"),
  number("frequency_penalty", "Frequency penalty", -2, 2, "-2 to 2"),
  number("seed", "Seed", -LAST_SEED, LAST_SEED, "same seed, same answer", true),
  { kind: "choice", name: "format", label: "Answer as", hint: "in a chat",
    options: [["", "text"], ["json_object", "JSON"], ["json_schema", "JSON by a schema"]] },
  { kind: "text", name: "schema", label: "JSON schema", hint: "" },
  { kind: "text", name: "stop_text", label: "Stop before",
    hint: "A text a line, up to 16; \\n is a new line." },
];
const settings = Object.fromEntries(FIELDS.map(f => [f.name, ""]));

/* The number in a field, or NaN. A comma is a decimal point, in whole numbers it stands between
 * thousands. */
function numberOf(f) {
  const text = settings[f.name].trim();
  if (!f.integer) return Number(text.replace(",", "."));
  return /^[-+]?(\d+|\d{1,3}(,\d{3})+)$/.test(text) ? Number(text.replaceAll(",", "")) : NaN;
}

function numberProblem(f) {
  const value = numberOf(f);
  if (!Number.isFinite(value))
    return `${f.label}: expected a ${f.integer ? "whole number, such as 40 or 1,000" : "number"}`;
  if (f.name === "top_p" && (value <= 0 || value > 1))
    return `${f.label}: expected more than 0, up to 1`;
  if (value < f.min || value > f.max) return `${f.label}: expected ${f.min} to ${f.max}`;
  return "";
}

/* What is wrong with a setting, or "". */
function problemOf(f) {
  const text = settings[f.name].trim();
  if (f.kind === "number") return text ? numberProblem(f) : "";
  if (f.name === "stop_text" && stops().length > 16) return "Stop before: at most 16 texts";
  if (f.name !== "schema" || settings.format !== "json_schema") return "";
  try {
    const schema = JSON.parse(text);
    const is_object = schema !== null && typeof schema === "object" && !Array.isArray(schema);
    return is_object ? "" : "JSON schema: expected an object";
  } catch (e) {
    return `JSON schema: not valid JSON (${e.message})`;
  }
}

const ESCAPES = { n: "\n", r: "\r", t: "\t" };
const stops = () => settings.stop_text.split("\n").filter(line => line !== "")
  .map(line => line.replace(/\\(.)/g, (_, c) => ESCAPES[c] ?? c));

/* The fields of a request; what is left empty is not in it. */
function requestFields(mode) {
  const body = {};
  for (const f of FIELDS)
    if (f.kind === "number" && settings[f.name].trim()) body[f.name] = numberOf(f);
  if (stops().length) body.stop = stops();
  if (mode === "chat" && settings.format) body.response_format = { type: settings.format };
  if (mode === "chat" && settings.format === "json_schema")
    body.response_format.json_schema =
      { name: "answer", strict: true, schema: JSON.parse(settings.schema) };
  return body;
}

function showProblem(f) {
  const problem = problemOf(f);
  $(f.name).setAttribute("aria-invalid", String(problem !== ""));
  $(f.name + "_problem").textContent = problem;
}

function settingChanged(f) {
  settings[f.name] = $(f.name).value;
  remember("localStorage", "settings", JSON.stringify(settings));
  $("schema").parentElement.hidden = settings.format !== "json_schema";
  showProblem(f);
  if (f.name === "format") showProblem(FIELDS.find(other => other.name === "schema"));
}

function settingInput(f) {
  const common = { id: f.name, "aria-describedby": `${f.name}_hint ${f.name}_problem` };
  if (f.kind === "choice")
    return el("select", common, ...f.options.map(([value, text]) => el("option", { value }, text)));
  if (f.kind === "text")
    return el("textarea", { ...common, rows: f.name === "schema" ? 6 : 2, dir: "auto",
                            spellcheck: false });
  return el("input", { ...common, type: "text", placeholder: "default",
                       inputMode: f.integer && f.min >= 0 ? "numeric" : "text" });
}

function makeSettings() {
  let saved = {};
  try {
    saved = JSON.parse(recall("localStorage", "settings")) ?? {};
  } catch { /* as if there were none */ }
  for (const f of FIELDS) {
    const input = settingInput(f);
    input.oninput = () => settingChanged(f);
    $("fields").append(el("div", { className: f.kind === "text" ? "field wide" : "field" },
      el("label", { htmlFor: f.name }, f.label), input,
      el("p", { className: "muted", id: f.name + "_hint" }, f.hint),
      el("p", { className: "problem", id: f.name + "_problem" })));
    input.value = settings[f.name] = typeof saved[f.name] === "string" ? saved[f.name] : "";
  }
  FIELDS.forEach(settingChanged);
}

$("fields").onsubmit = event => event.preventDefault();
$("reset").onclick = () => {
  for (const f of FIELDS) $(f.name).value = "";
  FIELDS.forEach(settingChanged);
  announce("All settings are the server's defaults");
};
