// The official CloudEvents SDK for JavaScript: its events go through the door and come back equal,
// and valid by its strict rules.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import path from "node:path";
import { CloudEvent, HTTP } from "cloudevents";
import { BUS, Checks } from "./checks.mjs";

const EVENTS = `${BUS}/v1/events`;
const TEXT = 'größe "日本語" 100% 😀 \\ é';
const NOON = "2026-01-31T14:00:00.123+02:00";
const VECTORS = path.join(process.env.INTEROP, "..", "crates", "trunkline-core", "testdata");

const DATA = {
  "an object": [
    { größe: [1, 2.5, true, null, { "😀": "" }], big: Number.MAX_SAFE_INTEGER },
    "application/json",
  ],
  "an array": [["a", 1], "application/json"],
  "an object with a type of its own": [{ a: 1 }, "application/vnd.shop.order+json"],
  text: [`${TEXT}\nand a second line\u2028`, "text/plain"],
  "text with a charset": [TEXT, "text/plain; charset=utf-8"],
  bytes: [Uint8Array.from({ length: 256 }, (_, at) => at), "application/octet-stream"],
  "bytes that look like JSON": [new TextEncoder().encode('{"a":1}'), "application/octet-stream"],
};

const ATTRIBUTES = {
  dataschema: "https://example.com/order.json",
  correlationid: "c-1",
  causationid: "c-0",
  traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
  tracestate: "a=b,c=d",
};
/** What only structured mode of the SDK can carry. */
const UNICODE = { subject: TEXT, partitionkey: TEXT, tenant: TEXT };

function event(type, id, more = {}) {
  return new CloudEvent({ id: `${type} ${id}`, source: "/sdk/javascript", type, time: NOON, ...more });
}

async function send({ headers, body }, status = 200) {
  const answer = await fetch(EVENTS, { method: "POST", headers, body });
  const text = await answer.text();
  assert.equal(answer.status, status, text);
  return JSON.parse(text);
}

async function lines(type) {
  const answer = await fetch(`${EVENTS}?filter=${encodeURIComponent(type)}`);
  assert.equal(answer.status, 200);
  return (await answer.text()).split("\n").filter(Boolean);
}

/** What a follower gets. */
async function followed(type, count) {
  const source = new EventSource(`${EVENTS}?filter=${encodeURIComponent(type)}&from=first`);
  const got = [];
  try {
    await new Promise((resolve) => {
      source.onmessage = ({ data }) => got.push(data) === count && resolve();
    });
    return got;
  } finally {
    source.close();
  }
}

/** Read by the SDK, which throws at what is not valid. */
const strict = (line) => new CloudEvent(JSON.parse(line), true);

function same(got, sent) {
  const plain = ({ time, data_base64, ...rest }) => ({ ...rest, time: Date.parse(time) });
  assert.deepEqual(plain(got), plain(sent));
}

async function bothWays(mode, what) {
  const type = `js.${mode}.${what.replaceAll(" ", "-")}`;
  const [data, datacontenttype] = DATA[what];
  const sent = event(type, "1", { data, datacontenttype });
  await send(HTTP[mode](sent));
  for (const line of [...(await lines(type)), ...(await followed(type, 1))]) {
    same(strict(line), sent);
  }
}

async function everyAttribute(mode, attributes) {
  const type = `js.attributes.${mode}`;
  const sent = event(type, "1", { data: { a: 1 }, datacontenttype: "application/json", ...attributes });
  await send(HTTP[mode](sent));
  const [line] = await lines(type);
  same(strict(line), sent);
  const message = { headers: { "content-type": "application/cloudevents+json" }, body: line };
  assert.ok(HTTP.isEvent(message));
  same(HTTP.toEvent(message), sent);
}

async function noData(mode) {
  const type = `js.nothing.${mode}`;
  await send(HTTP[mode](event(type, "1")));
  const [line] = await lines(type);
  assert.equal(strict(line).data, undefined);
}

async function typedExtensions() {
  const own = { count: 2147483647, low: -2147483648, yes: true, no: false, empty: "" };
  const sent = event("js.extensions", "1", own);
  await send(HTTP.structured(sent));
  same(strict((await lines("js.extensions"))[0]), sent);
}

async function jsonValues() {
  const values = [[1, "a"], "text", 0, 1.5, false, ""];
  for (const [at, data] of values.entries()) {
    await send(HTTP.structured(event("js.values", at, { data, datacontenttype: "application/json" })));
  }
  assert.deepEqual(
    (await lines("js.values")).map((line) => strict(line).data),
    values,
  );
}

async function batch() {
  const sent = Array.from({ length: 20 }, (_, at) => event("js.batch", at, { data: { at }, ...UNICODE }));
  const headers = { "content-type": "application/cloudevents-batch+json" };
  await send({ headers, body: JSON.stringify(sent) });
  const got = await lines("js.batch");
  got.forEach((line, at) => same(strict(line), sent[at]));
  // The SDK reads batches, and what the door stores joins to one.
  const read = HTTP.toEvent({ headers, body: `[${got.join(",")}]` });
  read.forEach((each, at) => same(each, sent[at]));
}

/** Vectors that the SDK does not read as they are, and why; each has a check of its own. */
const EXCEPTIONS = ["text is escaped as JSON asks and else stays UTF-8", "no bytes at all"];

const rows = JSON.parse(readFileSync(path.join(VECTORS, "structured-write.json"), "utf8"));
const vector = (named) => rows.find(({ name }) => name === named).output;

async function vectors() {
  const wrong = [];
  for (const { name, output } of rows.filter(({ name }) => !EXCEPTIONS.includes(name))) {
    try {
      const { data, data_base64, ...attributes } = JSON.parse(output);
      const got = strict(output);
      for (const [attribute, value] of Object.entries(attributes)) {
        assert.equal(got[attribute], value, attribute);
      }
      const bytes =
        data_base64 === undefined ? undefined : new Uint8Array(Buffer.from(data_base64, "base64"));
      assert.deepEqual(got.data, bytes ?? data);
    } catch (error) {
      wrong.push(`${name}: ${error.message}`);
    }
  }
  assert.deepEqual(wrong, []);
}

/** The bus passes on a `source` as its producer wrote it; whether it is a URI reference is between
 * the producer and those who look. */
async function sourceAsItCame() {
  const output = vector(EXCEPTIONS[0]);
  assert.throws(() => strict(output), /uri-reference/);
  assert.equal(new CloudEvent(JSON.parse(output), false).source, "/größe/😀");
}

// --- where the SDK departs from the specifications ----------------------------------------------

async function timeIsInvented() {
  assert.ok(strict('{"specversion":"1.0","id":"1","source":"/s","type":"t"}').time);
}

async function timeIsCut() {
  const sent = event("js.time", "1", { time: "2026-01-31T12:00:00.123456789Z" });
  assert.equal(JSON.parse(HTTP.structured(sent).body).time, "2026-01-31T12:00:00.123Z");
  assert.equal(HTTP.binary(sent).headers["ce-time"], "2026-01-31T12:00:00.123Z");
}

async function unicodeHeader() {
  const message = HTTP.binary(event("js.unicode", "1", UNICODE));
  assert.equal(message.headers["ce-subject"], TEXT);
  await assert.rejects(send(message), TypeError);
}

async function percentHeader() {
  await send(HTTP.binary(event("js.percent", "1", { subject: "50%25" })));
  assert.equal(strict((await lines("js.percent"))[0]).subject, "50%");
}

async function bytesAsJson() {
  const message = HTTP.binary(event("js.bytes", "1", { data: Uint8Array.of(0, 255) }));
  assert.match(message.headers["content-type"], /^application\/json/);
  await send(message, 400);
}

async function jsonTextInBinary() {
  const message = HTTP.binary(event("js.text", "1", { data: "text", datacontenttype: "application/json" }));
  assert.equal(message.body, "text");
  const answer = await send(message, 400);
  assert.equal(answer.results[0].error.code, "TL-0005");
}

async function falsyData() {
  const headers = { "content-type": "application/cloudevents+json" };
  const [line] = (await lines("js.values")).filter((each) => each.endsWith(',"data":0}'));
  assert.equal(HTTP.toEvent({ headers, body: line }).data, undefined);
}

async function emptyBytes() {
  const output = vector(EXCEPTIONS[1]);
  assert.equal(JSON.parse(output).data_base64, "");
  assert.equal(strict(output).data, undefined);
}

async function wideBytes() {
  const headers = { "content-type": "application/cloudevents+json" };
  const [line] = await lines("js.structured.bytes");
  const { data } = HTTP.toEvent({ headers, body: line });
  assert.ok(data instanceof Uint32Array);
  assert.deepEqual([...data], [...DATA.bytes[0]]);
}

const checks = new Checks("cloudevents-javascript");
for (const mode of ["structured", "binary"]) {
  for (const what of Object.keys(DATA)) {
    await checks.check(`${mode}: ${what} comes back equal, as a line and followed`, () =>
      bothWays(mode, what),
    );
  }
  await checks.check(`${mode}: no data stays no data`, () => noData(mode));
}
await checks.check("structured: every attribute comes back equal and strictly valid", () =>
  everyAttribute("structured", { ...ATTRIBUTES, ...UNICODE }),
);
await checks.check("binary: every attribute comes back equal and strictly valid", () =>
  everyAttribute("binary", { ...ATTRIBUTES, subject: "o-1", partitionkey: "k-1", tenant: "acme" }),
);
await checks.check("extensions keep their type", typedExtensions);
await checks.check("every kind of JSON value comes back equal", jsonValues);
await checks.check("a batch comes back equal, and what is read joins to a batch for the SDK", batch);
await checks.check("every wire vector that we write is strictly valid and read as it is", vectors);
await checks.check(
  "strict mode refuses a source that is no URI reference, which the bus does not",
  sourceAsItCame,
);

const BINDING = "HTTP binding";
for (const [name, section, prove] of [
  ["an event without a time is given the present", "CE, time: only its producer may set it", timeIsInvented],
  ["a time loses what is below a millisecond", "CE, Type System: a timestamp is one of RFC 3339", timeIsCut],
  ["binary mode does not encode Unicode, which fetch refuses", `${BINDING} 3.1.3.2`, unicodeHeader],
  ["binary mode does not encode a percent sign", `${BINDING} 3.1.3.2`, percentHeader],
  ["binary mode calls bytes without a media type JSON", "CE, datacontenttype", bytesAsJson],
  [
    "binary mode writes a JSON string without quotes",
    `${BINDING} 3.1.2: data as its media type says`,
    jsonTextInBinary,
  ],
  ["`toEvent` drops data that is 0, false or an empty string", "JSON 3.1", falsyData],
  ["no bytes at all are read as no data", "JSON 3.1.1: `data_base64` is there", emptyBytes],
  ["`toEvent` gives bytes as an array of 32-bit numbers", "JSON 3.1: the bytes that were encoded", wideBytes],
]) {
  await checks.deviation(name, section, prove);
}
