"use strict";

/* What all parts use: elements, storage, numbers in words, speech.
 *
 * Text of the model and of the server enters the document as text nodes only. */

const $ = id => document.getElementById(id);

/* An element. Properties that the element has are set as such, others as attributes; children are
 * nodes or strings, which become text nodes. They come first: with `dir` auto a browser looks for
 * the direction of all children at each that is added. */
function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  node.append(...children);
  for (const [name, value] of Object.entries(props))
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  return node;
}

function button(text, onclick, className = "") {
  return el("button", { type: "button", className, onclick }, text);
}

/* Storage may be forbidden; then nothing is remembered. */
function recall(storage, name) {
  try { return window[storage].getItem("moeserve." + name); } catch { return null; }
}
function remember(storage, name, value) {
  try {
    if (value === null) window[storage].removeItem("moeserve." + name);
    else window[storage].setItem("moeserve." + name, value);
  } catch { /* nothing is remembered */ }
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const share = (part, all) => percent.format(all > 0 ? part / all : 0);
const plural = (n, word) => `${whole.format(n)} ${word}${n === 1 ? "" : "s"}`;

function duration(ms) {
  if (ms < 1000) return `${short.format(ms)} ms`;
  const s = ms / 1000;
  if (s < 100) return `${s.toFixed(1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 172800) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} days`;
}

function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  for (; n >= 1000 && i < units.length - 1; i++) n /= 1000;
  return `${short.format(n)} ${units[i]}`;
}

/* Read out by screen readers when they are idle; the last few stay, so that none is skipped. */
function announce(text) {
  $("live").append(el("p", {}, text));
  while ($("live").children.length > 4) $("live").firstChild.remove();
}
