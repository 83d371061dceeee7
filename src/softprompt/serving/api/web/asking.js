/* Requests to this server: knows the key, errors in words and server-sent events; nothing of the page. */

const STORE = "softprompt.key";

let secret = kept();

/** A request that was not answered, in a sentence for the reader; `status` is 0 where there was no reply. */
export class Refusal extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The key that is sent, or "". */
export function key() {
  return secret;
}

/** Send this key from now on; "" sends none. It is kept in this tab's storage, or, where that is shut, in memory. */
export function useKey(text) {
  const given = text.trim();
  if (!/^[\x21-\x7e]*$/.test(given)) throw new Refusal("A key has no spaces and no accented letters; paste it again.", 401);
  secret = given;
  try {
    if (given) sessionStorage.setItem(STORE, given);
    else sessionStorage.removeItem(STORE);
  } catch { /* storage is shut: memory will do */ }
}

function kept() {
  try {
    return sessionStorage.getItem(STORE) || "";
  } catch {
    return "";
  }
}

/** The JSON answer to a GET, or to a POST where there is a body. */
export async function asked(path, body, signal) {
  const answer = await sent(path, body, signal);
  try {
    return await answer.json();
  } catch (error) {
    throw signal?.aborted ? error : new Refusal("The server's answer could not be read.", answer.status);
  }
}

/** The events of a streamed answer, parsed, up to the last. */
export async function* events(path, body, signal) {
  const answer = await sent(path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Refusal("The connection ended before the answer did.");
      held += value;
      for (let end = held.indexOf("\n\n"); end >= 0; end = held.indexOf("\n\n")) {
        const data = held.slice(0, end).replace(/^data: ?/, "");
        held = held.slice(end + 2);
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Refusal(words(event), 500);
        yield event;
      }
    }
  } catch (error) {
    if (signal?.aborted || error instanceof Refusal) throw error;
    throw new Refusal("The connection broke before the answer was whole.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function sent(path, body, signal) {
  const headers = secret ? { authorization: `Bearer ${secret}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    throw signal?.aborted ? error : new Refusal("The server cannot be reached; see whether it still runs.");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  throw new Refusal(words(said) || `The server refused with status ${answer.status}.`, answer.status);
}

function words(body) {
  const message = body?.error?.message;
  return typeof message === "string" ? message : "";
}
