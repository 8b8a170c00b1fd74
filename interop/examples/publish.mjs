import { CloudEvent, HTTP } from "cloudevents";

const BUS = process.env.BUS ?? "http://127.0.0.1:7400";

const event = new CloudEvent({
  // The SDK makes an id and a time. Whoever sends an event again must send the same id.
  source: "/shop",
  type: "order.placed",
  partitionkey: "o-1",
  data: { order_id: "o-1", total_cents: 4200 },
});
const { headers, body } = HTTP.structured(event);
const answer = await fetch(`${BUS}/v1/events`, { method: "POST", headers, body });
if (!answer.ok) {
  throw new Error(await answer.text());
}

const { stored, results } = await answer.json();
console.log("stored", stored, "as number", results[0].seq);
