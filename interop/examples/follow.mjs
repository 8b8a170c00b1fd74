import { CloudEvent } from "cloudevents";
import { EventSource } from "eventsource"; // Browsers have it built in.

const BUS = process.env.BUS ?? "http://127.0.0.1:7400";
let orders = 0;

const source = new EventSource(`${BUS}/v1/events?filter=order.placed&from=first`);
source.onmessage = ({ data }) => {
  const event = new CloudEvent(JSON.parse(data)); // Throws at what is no valid CloudEvent.
  console.log(`${event.data.order_id} from ${event.source}: ${event.data.total_cents} cents`);
  orders += 1;
  if (orders === 2) {
    source.close(); // A service would not stop.
  }
};
// It comes back by itself after the connection broke, with the id of the last event that it saw.
source.onerror = ({ message }) => console.error(message ?? "the connection broke");
for (const note of ["gap", "reset", "invalid"]) {
  source.addEventListener(note, ({ data }) => console.error(note, data));
}
