/* Streamed answers: Server-Sent Events, each with a piece of JSON, and [DONE] at the end. */

/* Server-Sent Events: the result takes pieces of text, cut anywhere, and calls back with the data
 * of each event. Lines end with LF, CR LF or CR. */
function sseParser(onData) {
  let rest = "", after_cr = false, data = [];
  const take = line => {
    if (line === "") {
      if (data.length) onData(data.join("\n"));
      data = [];
    } else if (line === "data" || line.startsWith("data:")) {
      data.push(line.slice(line[5] === " " ? 6 : 5));
    } /* comments, ids and names of events say nothing here */
  };
  return piece => {
    if (after_cr && piece[0] === "\n") piece = piece.slice(1);
    else if (piece === "") return;
    after_cr = piece.endsWith("\r");
    const lines = (rest + piece).split(/\r\n|\n|\r/);
    rest = lines.pop();
    lines.forEach(take);
  };
}

/* Calls back with each event's JSON until [DONE]; false when the stream ended without it. */
async function readEvents(response, onEvent) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let done = false;
  const feed = sseParser(data => {
    if (done) return;
    if (data === "[DONE]") done = true;
    else onEvent(JSON.parse(data));
  });
  try {
    for (let piece; !done && !(piece = await reader.read()).done;) feed(piece.value);
  } finally {
    reader.cancel().catch(() => {});
  }
  return done;
}
