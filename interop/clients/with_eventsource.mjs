// EventSource, of npm and of Node itself: it comes back by itself and misses nothing.

import assert from "node:assert/strict";
import { EventSource as OfNpm } from "eventsource";
import { BUS, Checks } from "./checks.mjs";
import { cuttingProxy } from "./proxy.mjs";

const TEXT = "größe 日本語 😀 \u2028";
const checks = new Checks("eventsource");

async function publish(type, from, count) {
  const event = (number) => ({
    specversion: "1.0",
    id: `${type} ${number}`,
    source: "/es",
    type,
    data: TEXT + number,
  });
  const lines = Array.from({ length: count }, (_, at) => JSON.stringify(event(from + at)));
  const answer = await fetch(`${BUS}/v1/events`, {
    method: "POST",
    headers: { "content-type": "application/x-ndjson" },
    body: lines.join("\n"),
  });
  assert.equal(answer.status, 200);
}

const numbers = (from, to) => Array.from({ length: to - from }, (_, at) => from + at);

/** The number of an event that came back whole. */
function number(message) {
  const { id, data } = JSON.parse(message.data);
  const at = Number(id.split(" ").at(-1));
  assert.equal(data, TEXT + at);
  return at;
}

/** Follows until it has seen so many events. */
function follow(EventSource, url, count, opened = () => {}, saw = () => {}) {
  const source = new EventSource(url);
  const seen = [];
  const whole = new Promise((resolve, reject) => {
    source.onopen = () => Promise.resolve(opened()).catch(reject);
    for (const name of ["gap", "reset", "invalid"]) {
      source.addEventListener(name, (event) => reject(new Error(`${name}: ${event.data}`)));
    }
    source.onmessage = (message) => {
      seen.push(number(message));
      saw(seen.length);
      if (seen.length === count) {
        resolve(seen);
      }
    };
  });
  return whole.finally(() => source.close());
}

const lastEventIds = (proxy) => proxy.heads.map((head) => /^last-event-id: (.*)\r$/im.exec(head)?.[1]);

/** Cut at these bytes, most often within an event, and without a word each time. */
async function cutAndBack(EventSource, name) {
  const type = `es.cut.${name}`;
  await publish(type, 0, 300);
  const proxy = await cuttingProxy(BUS, [1_500, 20_011]);
  try {
    const url = `${proxy.url}/v1/events?filter=${type}&from=first`;
    assert.deepEqual(await follow(EventSource, url, 300), numbers(0, 300));
    const [first, ...others] = lastEventIds(proxy);
    assert.equal(first, undefined);
    assert.equal(others.length, 2);
    others.forEach((id) => assert.match(id, /^EVENTS:\d+$/));
  } finally {
    proxy.close();
  }
}

/** What is published while the connection is down is not lost. */
async function publishedMeanwhile(EventSource, name) {
  const type = `es.meanwhile.${name}`;
  const proxy = await cuttingProxy(BUS, []);
  let opened = 0;
  const begin = async () => {
    opened += 1;
    await (opened === 1 && publish(type, 0, 10));
  };
  const interrupt = (count) => {
    if (count === 10 && opened === 1) {
      proxy.cut();
      publish(type, 10, 10);
    }
  };
  try {
    const seen = await follow(EventSource, `${proxy.url}/v1/events?filter=${type}`, 20, begin, interrupt);
    assert.deepEqual(seen, numbers(0, 20));
  } finally {
    proxy.close();
  }
}

/** The id comes ahead of the first event, so that a reader that saw none resumes where it began. */
async function cutBeforeTheFirst(EventSource, name) {
  const type = `es.silent.${name}`;
  let open;
  const gate = new Promise((resolve) => (open = resolve));
  // Cut after the first block, which is that id, and back only when there is something to miss.
  const proxy = await cuttingProxy(BUS, ["\n\n"], gate);
  let opened = 0;
  const source = new EventSource(`${proxy.url}/v1/events?filter=${type}`);
  try {
    return await new Promise((resolve, reject) => {
      const seen = [];
      source.onmessage = (message) => {
        seen.push(number(message));
        if (seen.at(-1) === 3) {
          resolve(seen);
        }
      };
      source.onopen = () => {
        opened += 1;
        const published = opened === 1 ? publish(type, 0, 3).then(open) : publish(type, 3, 1);
        published.catch(reject);
      };
    });
  } finally {
    source.close();
    proxy.close();
  }
}

async function reset(EventSource, name) {
  const type = `es.reset.${name}`;
  await publish(type, 0, 1);
  const url = `${BUS}/v1/events?filter=${type}&from=first&last-event-id=EVENTS:999999999`;
  const source = new EventSource(url);
  try {
    const told = await new Promise((resolve) => source.addEventListener("reset", resolve));
    assert.equal(JSON.parse(told.data).asked, 999999999);
  } finally {
    source.close();
  }
}

const implementations = { npm: OfNpm };
if (globalThis.EventSource) {
  implementations.node = globalThis.EventSource;
}
// Each waits for three seconds before it comes back, so they wait side by side.
await Promise.all(
  Object.entries(implementations).flatMap(([name, EventSource]) => [
    checks.check(`${name}: cut twice anywhere, it comes back and sees all of it once`, () =>
      cutAndBack(EventSource, name),
    ),
    checks.check(`${name}: what is published while it is cut off is not lost`, () =>
      publishedMeanwhile(EventSource, name),
    ),
    checks.check(`${name}: a stream that began anew is told as a reset`, () => reset(EventSource, name)),
  ]),
);
const silent = "a reader that is cut before its first event resumes where it began";
await Promise.all([
  checks.deviation(
    `npm: ${silent}, which it does not: it forgets an id without data`,
    "HTML 9.2.6: the last event id is set before the data is looked at",
    async () => assert.deepEqual(await cutBeforeTheFirst(OfNpm, "npm"), [3]),
  ),
  implementations.node &&
    checks.check(`node: ${silent}`, async () =>
      assert.deepEqual(await cutBeforeTheFirst(implementations.node, "node"), numbers(0, 4)),
    ),
]);
