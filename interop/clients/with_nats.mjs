// nats.js: a service of its own on the same server, which needs nothing of ours but WIRE.md.

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { connect, headers } from "@nats-io/transport-node";
import { CloudEvent, HTTP } from "cloudevents";
import { BUS, Checks, WATCHDOG_MS } from "./checks.mjs";

const STRUCTURED = "application/cloudevents+json";
const TEXT = 'größe "日本語" 100% 😀';
const NOON = "2026-01-31T12:00:00.123456Z";

// What the caller has set for a bus of theirs must not reach this one.
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("TRUNKLINE_")));
env.TRUNKLINE_URL = BUS;

async function run(program, words) {
  const { stdout } = await promisify(execFile)(program, words, { env, timeout: WATCHDOG_MS });
  return stdout;
}
const trunkline = (...words) => run(process.env.TRUNKLINE_BIN, ["--quiet", ...words]);
const foreign = (...words) => run(process.env.FOREIGN_BIN, words);

/** What is stored of a type, as CloudEvents, oldest first. */
async function replay(type) {
  const text = await trunkline("replay", type, "--from", "first", "--json");
  return text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
}

const event = (type, id, more = {}) => ({ specversion: "1.0", id, source: "/nats-js", type, time: NOON, ...more });

/** A header's value: what is no visible ASCII, and `"` and `%`, by its bytes (HTTP 3.1.3.2). */
const encoded = (text) => text.replace(/[^\x21-\x7e]+|["%]/gu, encodeURIComponent);

function headersOf(pairs) {
  const map = headers();
  Object.entries(pairs).forEach(([name, value]) => map.set(name, value));
  return map;
}

const client = await connect({ servers: BUS });
const js = jetstream(client);
const jsm = await jetstreamManager(client);
await foreign("make");

/** The messages of a subject by an ordered pull consumer of this client. */
async function fetched(subject, count) {
  const consumer = await js.consumers.get("EVENTS", { filter_subjects: subject });
  const found = [];
  for await (const message of await consumer.fetch({ max_messages: count, expires: 5_000 })) {
    found.push(message);
  }
  return found;
}

async function structured() {
  const sent = [
    event("js.structured", "s-1", { data: { [TEXT]: [1, 2.5, null] }, subject: TEXT, tenant: TEXT }),
    event("js.structured", "s-2", { datacontenttype: "text/plain", data: TEXT }),
    event("js.structured", "s-3", { data_base64: "AAH/" }),
  ];
  const media = [STRUCTURED, undefined, `${STRUCTURED}; charset=utf-8`];
  for (const [at, each] of sent.entries()) {
    const options = { msgID: each.id };
    if (media[at]) {
      options.headers = headersOf({ "content-type": media[at] });
    }
    const ack = await js.publish("events.js.structured", JSON.stringify(each), options);
    assert.deepEqual([ack.stream, ack.duplicate], ["EVENTS", false]);
  }
  assert.deepEqual(await replay("js.structured"), sent);
}

async function binary() {
  const own = {
    specversion: "1.0",
    source: "/nats-js",
    type: "js.binary",
    time: NOON,
    subject: TEXT,
    partitionkey: TEXT,
    tenant: TEXT,
  };
  const rows = [
    ["application/json", '{"a":[1]}', { data: { a: [1] } }],
    ["text/plain", TEXT, { data: TEXT }],
    ["image/png", Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0, 0xff), { data_base64: "iVBORwD/" }],
  ];
  for (const [at, [type, data]] of rows.entries()) {
    const pairs = Object.entries({ ...own, id: `b-${at}` }).map(([name, value]) => [`ce-${name}`, encoded(value)]);
    const map = headersOf({ ...Object.fromEntries(pairs), "content-type": type });
    await js.publish("events.js.binary", data, { headers: map, msgID: `b-${at}` });
  }
  const expected = rows.map(([datacontenttype, , data], at) => ({ ...own, id: `b-${at}`, datacontenttype, ...data }));
  assert.deepEqual(await replay("js.binary"), expected);
}

async function withTheSdk() {
  const sent = new CloudEvent({ id: "k-1", source: "/sdk", type: "js.sdk", time: NOON, datacontenttype: "application/json", tenant: "acme", data: { größe: [1] } });
  for (const mode of ["structured", "binary"]) {
    const message = HTTP[mode](sent);
    await js.publish("events.js.sdk", message.body, { headers: headersOf(message.headers) });
  }
  const expected = JSON.parse(JSON.stringify(sent));
  for (const each of await replay("js.sdk")) {
    assert.equal(Date.parse(each.time), Date.parse(expected.time));
    assert.deepEqual({ ...each, time: 0 }, { ...expected, time: 0 });
  }
}

async function reads() {
  const rows = [
    [[JSON.stringify({ [TEXT]: [1, 2.5] }), "--key", TEXT], { [TEXT]: [1, 2.5] }],
    [[TEXT, "--content-type", "text/plain"], TEXT],
    [["null"], null],
  ];
  for (const [words] of rows) {
    await trunkline("pub", "js.read", ...words);
  }
  const stored = await replay("js.read");
  const messages = await fetched("events.js.read", rows.length);
  assert.equal(messages.length, rows.length);
  for (const [at, message] of messages.entries()) {
    assert.equal(message.subject, "events.js.read");
    assert.deepEqual(message.json(), stored[at]);
    assert.equal(message.headers.get("Nats-Msg-Id"), stored[at].id);
    assert.equal(message.headers.get("content-type"), STRUCTURED);
    // By the strict rules of the SDK, which gives every attribute back.
    const got = new CloudEvent(message.json(), true);
    const { data, time, ...attributes } = stored[at];
    for (const [name, value] of Object.entries(attributes)) {
      assert.equal(got[name], value, name);
    }
    assert.deepEqual([got.data, Date.parse(got.time)], [rows[at][1], Date.parse(time)]);
  }
  const last = await jsm.direct.getMessage("EVENTS", { last_by_subj: "events.js.read" });
  assert.deepEqual(last.json(), stored.at(-1));
  const whole = [];
  for await (const message of await jsm.direct.getBatch("EVENTS", { seq: 1, next_by_subj: "events.js.read", batch: 10 })) {
    whole.push(message.json());
  }
  assert.deepEqual(whole, stored);
}

async function once() {
  const each = event("js.once", "once-1", { data: 1 });
  await trunkline("pub", "js.once", "1", "--id", "js-once-1");
  const again = await js.publish("events.js.once", JSON.stringify(each), { msgID: "js-once-1" });
  assert.equal(again.duplicate, true);
  const second = { ...each, id: "js-once-2" };
  await js.publish("events.js.once", JSON.stringify(second), { msgID: "js-once-2" });
  await trunkline("pub", "js.once", "1", "--id", "js-once-2");
  assert.deepEqual((await replay("js.once")).map(({ id }) => id), ["js-once-1", "js-once-2"]);
}

async function deadLetter() {
  await jsm.consumers.add("EVENTS", { durable_name: "audit", ack_policy: "explicit", filter_subject: "events.work.>" });
  for (const order of ["a", "bad"]) {
    await trunkline("pub", "work.ordered", JSON.stringify({ order_id: order }), "--id", `w-${order}`);
  }
  await foreign("handle", "2");
  const audit = await js.consumers.get("EVENTS", "audit");
  const seen = [];
  for await (const message of await audit.fetch({ max_messages: 2, expires: 5_000 })) {
    seen.push(message.json().data.order_id);
    message.ack();
  }
  assert.deepEqual(seen, ["a", "bad"]);
  const letters = await js.consumers.get("EVENTS_DLQ");
  const letter = await letters.next({ expires: 5_000 });
  const seq = Number(letter.headers.get("Trunkline-Seq"));
  assert.equal(letter.subject, `dlq.EVENTS.billing.${seq}`);
  const original = await jsm.streams.getMessage("EVENTS", { seq });
  assert.equal(Buffer.compare(letter.data, original.data), 0, "byte for byte");
  assert.equal(letter.headers.get("Trunkline-Error"), "it is bad");
}

async function state() {
  await foreign("state");
  const bucket = await new Kvm(client).open("FOREIGN");
  const keys = [];
  for await (const key of await bucket.keys()) {
    keys.push(key);
  }
  assert.deepEqual(keys.filter((key) => !key.startsWith("_")).sort(), ["billing.cursor", "billing.name"]);
  assert.equal((await bucket.get("billing.cursor")).string(), "17");
  assert.equal((await bucket.get("billing.name")).string(), "größe 😀");
  assert.match((await bucket.get("billing.gone")).operation, /^(DEL|PURGE)$/);
}

async function hears() {
  const heard = client.subscribe("live.>", { max: 2 });
  await client.flush();
  await foreign("emit", "2");
  const pages = [];
  for await (const message of heard) {
    assert.equal(message.subject, "live.page.viewed");
    pages.push(new CloudEvent(message.json(), true).data.page);
  }
  assert.deepEqual(pages, ["/größe/0", "/größe/1"]);
}

async function isHeard() {
  const listener = spawn(process.env.FOREIGN_BIN, ["hear", "2"], { env, stdio: ["ignore", "pipe", "inherit"] });
  try {
    const said = [];
    for await (const line of createInterface({ input: listener.stdout })) {
      said.push(line);
      if (line === "listening") {
        const sent = event("page.viewed", "v-1", { data: { page: TEXT } });
        client.publish("live.page.viewed", JSON.stringify(sent));
        const pairs = { "ce-specversion": "1.0", "ce-id": "v-2", "ce-source": "/s", "ce-type": "page.viewed" };
        const map = headersOf({ ...pairs, "content-type": "application/json" });
        client.publish("live.page.viewed", JSON.stringify({ page: TEXT }), { headers: map });
      }
    }
    assert.deepEqual(said, ["listening", `v-1 ${TEXT}`, `v-2 ${TEXT}`]);
  } finally {
    listener.kill();
  }
}

const checks = new Checks("nats-js");
await checks.check("structured events come back equal, with a media type and without any header", structured);
await checks.check("binary events with percent-encoded values come back equal", binary);
await checks.check("what the CloudEvents SDK writes comes back equal in both modes", withTheSdk);
await checks.check("what Trunkline publishes is a CloudEvent by a pull consumer and by direct get", reads);
await checks.check("a repeated id is stored once, whoever sends it", once);
await checks.check("a durable of its own beside Trunkline's; a dead letter byte for byte", deadLetter);
await checks.check("a state bucket is a KV bucket", state);
await checks.check("hears ephemeral events", hears);
await checks.check("its ephemeral events are heard in both modes", isHeard);
await client.close();
