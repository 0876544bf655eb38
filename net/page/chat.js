/* The conversation: its turns, the field to write in, and what can be done with the last turn. */

const turns = [];   /* what was asked, each with its answer */
let busy = null;    /* the AbortController of the answer that is coming in */
let retry = null;   /* what will be sent again: its seconds, its timer, where it says so */
let editing = false;
let draft = "";     /* what the field held before the text that is being changed */
const modeOf = () => document.querySelector("[name=mode]:checked").value;

function newTurn(mode, prompt) {
  const t = {
    mode, prompt, answer: "", shape: "",
    notice: el("div"),
    meta: el("p", { className: "meta" }),
    actions: el("div", { className: "row actions" }),
    asked: el("div", { className: "row actions" }),
  };
  const rest = [t.notice, t.meta, t.actions];
  const article = (kind, name, ...parts) =>
    el("article", { className: `turn ${kind}`, "aria-label": name }, ...parts);
  if (mode === "chat") {
    const said = el("div", { className: "text" }, el("p", { dir: "auto" }, prompt));
    t.made = el("div", { className: "text" });
    t.nodes = [article("user", "You", said, t.asked), article("model", "Model", t.made, ...rest)];
  } else {
    t.given = el("span", { className: "given" }, prompt);
    t.made = el("span");
    const text = el("div", { className: "text", dir: "auto" }, t.given, t.made);
    t.nodes = [article("complete", "Text", text, ...rest, t.asked)];
  }
  /* Only the last turn can be asked again. */
  turns.at(-1)?.notice.querySelector(".row")?.remove();
  turns.push(t);
  $("turns").append(...t.nodes);
  return t;
}

function dropLast() {
  const t = turns.pop();
  t.nodes.forEach(node => node.remove());
  return t;
}

const wholeText = t => t.mode === "chat" ? t.answer : t.prompt + t.answer;

/* Brings the buttons up to what can be done now. */
function refresh() {
  const had_focus = document.activeElement === $("stop");
  $("send").hidden = busy !== null;
  $("stop").hidden = busy === null;
  $("hello").hidden = turns.length > 0;
  $("clear").hidden = turns.length === 0;
  $("editing").hidden = !editing;
  $("send").textContent = modeOf() === "chat" ? "Send" : "Go on";
  if (had_focus && !busy) $("prompt").focus();
  turns.forEach((t, i) => {
    const idle_last = i === turns.length - 1 && !busy;
    const answered = t.answer !== "" || t.reason;
    const shape = `${idle_last} ${t.answer !== ""} ${Boolean(answered)}`;
    if (shape === t.shape) return;
    t.shape = shape;
    t.actions.replaceChildren();
    t.asked.replaceChildren();
    if (t.answer !== "" && (idle_last || i < turns.length - 1))
      t.actions.append(button("Copy", e => copy(wholeText(t), e.target), "plain"));
    if (!idle_last) return;
    if (t.mode === "complete" && t.answer !== "")
      t.actions.append(button("Continue", () => goOn(t), "plain"));
    if (answered) t.actions.append(button("Regenerate", () => again(t), "plain"));
    (t.mode === "chat" ? t.asked : t.actions).append(button("Edit", edit, "plain"));
  });
}

/* Asks once more; the settings are those of now. */
function again(t) {
  if (busy || turns.at(-1) !== t || !settingsHold()) return;
  const focus_here = t.nodes.some(node => node.contains(document.activeElement));
  dropRetry();
  generate(t);
  if (focus_here) $("stop").focus();
}

function goOn(t) {
  if (busy || !settingsHold()) return;
  t.prompt += t.answer;
  t.answer = "";
  t.given.textContent = t.prompt;
  again(t);
}

function insteadComplete(t) {
  if (busy || turns.at(-1) !== t || !settingsHold()) return;
  setMode("complete");
  dropLast();
  generate(newTurn("complete", t.prompt));
  $("prompt").focus();
}

function edit() {
  const t = turns.at(-1);
  if (busy || !t) return;
  if (editing) return $("prompt").focus();
  dropRetry();
  editing = true;
  draft = $("prompt").value;
  setMode(t.mode);
  $("prompt").value = t.prompt;
  fitPrompt();
  $("prompt").focus();
}

/* The field again holds what it held before the text that was being changed. */
function endEdit() {
  editing = false;
  $("prompt").value = draft;
  draft = "";
  fitPrompt();
}

function leaveEdit() {
  endEdit();
  refresh();
  $("prompt").focus();
}

/* False, with the first wrong setting shown, when there is one. */
function settingsHold() {
  const bad = FIELDS.find(f => problemOf(f) !== "");
  $("send_problem").hidden = !bad;
  $("send_problem").textContent = bad ? `Not sent. ${problemOf(bad)}.` : "";
  if (!bad) return true;
  setView("settings");
  $(bad.name).focus();
  return false;
}

function send() {
  const text = $("prompt").value;
  if (busy || text.trim() === "" || !settingsHold()) return;
  dropRetry();
  if (editing) dropLast();
  endEdit();
  generate(newTurn(modeOf(), modeOf() === "chat" ? text.trim() : text));
}

function fitPrompt() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${$("prompt").scrollHeight}px`;
}

const EXAMPLES = {
  chat: ["What is 27+15?", "Tell me a story about a fox.", "What is the capital of France?"],
  complete: ["Once upon a time", "27+15=", "one, two, three,"],
};
function setMode(mode) {
  document.querySelector(`[name=mode][value=${mode}]`).checked = true;
  remember("localStorage", "mode", mode);
  const chat = mode === "chat";
  $("prompt_label").textContent = chat ? "Message" : "Text to continue";
  $("prompt").placeholder = chat ? "Write a message" : "Write the beginning of a text";
  $("hello_text").textContent = (chat ? "" : "The model writes on from where your text ends. ")
    + "Enter sends, Shift+Enter begins a new line, Escape stops an answer.";
  $("examples").replaceChildren(...EXAMPLES[mode].map(text => button(text, () => {
    $("prompt").value = text;
    $("prompt").focus();
    send();
  })));
  refresh();
}

$("composer").onsubmit = event => { event.preventDefault(); send(); };
$("prompt").oninput = fitPrompt;
/* Keys of an input method, as the Enter that takes its suggestion. In Safari that Enter comes after
 * the end of the composition, with the code 229. */
const isComposing = event => event.isComposing || event.keyCode === 229;
$("prompt").onkeydown = event => {
  if (isComposing(event)) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && $("prompt").value === "" && turns.length && !editing) {
    event.preventDefault(); /* the caret stays at the text's end */
    edit();
  }
};
$("stop").onclick = () => busy?.abort();
$("edit_cancel").onclick = leaveEdit;
$("clear").onclick = () => {
  busy?.abort();
  dropRetry();
  while (turns.length) dropLast();
  if (editing) endEdit();
  refresh();
  $("prompt").focus();
  announce("The conversation is cleared");
};
for (const input of document.querySelectorAll("[name=mode]"))
  input.onchange = () => setMode(input.value);
document.addEventListener("keydown", event => {
  if (event.key !== "Escape" || isComposing(event) || $("key_dialog").open) return;
  if (busy) busy.abort();
  else if (retry) cancelRetry();
  else if (editing) leaveEdit();
});
