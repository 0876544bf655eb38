/* The API key: in memory, or in sessionStorage where the user wants that, and nowhere else. */

let key = recall("sessionStorage", "key"); /* null: none */

/* Asks the user for a key; true when there is a new one. Calls share one dialog. */
let asking = null;
function askKey() {
  asking ??= new Promise(resolve => {
    $("key_text").textContent = key
      ? "It did not accept the last one. Keys are given out by whoever runs the server."
      : "Keys are given out by whoever runs the server. It goes to this server only.";
    $("key").value = "";
    showKeyProblem("");
    $("key_keep").checked = recall("sessionStorage", "key") !== null;
    $("key_dialog").returnValue = "";
    $("key_dialog").showModal();
    $("key_dialog").onclose = () => resolve($("key_dialog").returnValue === "use");
  }).finally(() => { asking = null; });
  return asking;
}

/* What is wrong with a key, or "". */
function keyProblem(text) {
  if (text === "") return "Enter a key, or choose Cancel.";
  return /^[!-~]+$/.test(text) ? ""
    : "A key is of unaccented letters, digits and signs, without spaces.";
}

function showKeyProblem(problem) {
  $("key").setAttribute("aria-invalid", String(problem !== ""));
  $("key_problem").textContent = problem;
}

function setKey(value, keep) {
  key = value;
  remember("sessionStorage", "key", keep ? value : null);
  let state = "None is set. It is needed only where the server asks for one.";
  if (key) state = keep ? "Set, and kept until this tab is closed."
                        : "Set, and forgotten when the page is reloaded.";
  $("key_state").textContent = state;
  $("key_change").textContent = key ? "Change it" : "Enter a key";
  $("key_forget").hidden = !key;
}

$("key_form").onsubmit = event => {
  event.preventDefault();
  const text = $("key").value.trim(), problem = keyProblem(text);
  showKeyProblem(problem);
  if (problem) return $("key").focus();
  setKey(text, $("key_keep").checked);
  $("key_dialog").close("use");
  wakeStats();
};
$("key_cancel").onclick = () => $("key_dialog").close("");
$("key_change").onclick = askKey;
$("key_forget").onclick = () => { setKey(null, false); $("key_change").focus(); };
