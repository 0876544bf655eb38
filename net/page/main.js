/* The frame: which part is seen, the theme, and the start. */

const narrow = matchMedia("(max-width: 900px)");
const TABS = document.querySelectorAll("nav button");
function setView(view) {
  if (view === "chat" && !narrow.matches) view = "server";
  document.body.dataset.view = view;
  document.querySelector("aside").scrollTop = 0;
  $("settings").hidden = view !== "settings";
  $("server").hidden = view === "settings";
  for (const tab of TABS) tab.setAttribute("aria-current", String(tab.dataset.view === view));
}
for (const tab of TABS) tab.onclick = () => setView(tab.dataset.view);
narrow.onchange = () => setView(narrow.matches ? "chat" : "server");
document.querySelector(".skip").onclick = event => {
  event.preventDefault();
  setView("chat");
  $("prompt").focus();
};

const THEMES = { auto: "automatic", light: "light", dark: "dark" };
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  remember("localStorage", "theme", theme);
  $("theme").title = `Theme: ${THEMES[theme]}`;
  $("theme").setAttribute("aria-label", $("theme").title);
}
$("theme").onclick = () => {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
};

makeTile("generated", "Generated", "spark");
makeTile("read", "Prompts read", "spark");
makeTile("requests", "Requests", "spark");
makeTile("kv", "KV cache", "bar");
makeTile("prefix", "Prefix hits");
makeTile("step", "Last step");
makeSettings();
setKey(key, key !== null);
setTheme(recall("localStorage", "theme") in THEMES ? recall("localStorage", "theme") : "auto");
setMode(recall("localStorage", "mode") === "complete" ? "complete" : "chat");
setView("chat");
pollStats();
if (!narrow.matches) $("prompt").focus();
