/* Requests to the API of this server, and what may come back in their place. */

let model = null;                          /* the name that requests carry */

/* An answer that is not 2xx, or (status 0) none at all. */
class ApiError extends Error {
  constructor(status, message, code, retry_s) {
    super(message);
    Object.assign(this, { status, code, retry_s });
  }
}

/* Asks for the model's name where it is not known yet. */
async function learnModel(signal) {
  if (model === null) setModel((await (await api("/v1/models", { signal })).json()).data?.[0]?.id);
}

/* Seconds of a Retry-After header, a number or a date; null without one. */
function retryAfter(header) {
  if (!header) return null;
  const s = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(s) ? Math.min(Math.max(Math.ceil(s), 1), 3600) : null;
}

async function api(path, { body, signal } = {}) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = "Bearer " + key;
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body),
      cache: "no-store", credentials: "omit", redirect: "error",
    });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new ApiError(0, e.message, e.name, null);
  }
  if (response.ok) return response;
  const text = await response.text().catch(() => "");
  let error = {};
  try { error = JSON.parse(text).error ?? {}; } catch { /* not in the envelope */ }
  const retry_s = retryAfter(response.headers.get("Retry-After"));
  throw new ApiError(response.status, error.message ?? text.slice(0, 500), error.code, retry_s);
}
