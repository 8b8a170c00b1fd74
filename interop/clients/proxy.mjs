// A TCP proxy that cuts connections, as a network does: at any byte, without a farewell.

import net from "node:net";

/** Passes bytes on to the bus at `target`. The nth connection is cut after `cuts[n]` bytes of its
 * response, or after that text in it; those beyond the list are never cut. All but the first wait
 * for `gate`. */
export async function cuttingProxy(target, cuts, gate = Promise.resolve()) {
  const { hostname, port } = new URL(target);
  const heads = [];
  const sockets = new Set();
  const server = net.createServer((client) => {
    const bus = net.connect(Number(port), hostname);
    const limit = cuts[heads.length] ?? Infinity;
    let response = "";
    let left = typeof limit === "number" ? limit : Infinity;
    const at = heads.push("") - 1;
    const cut = () => [client, bus].forEach((end) => end.destroy());
    for (const end of [client, bus]) {
      sockets.add(end);
      end.on("error", cut).on("close", cut);
    }
    client.on("data", (data) => {
      heads[at] += data.toString("latin1");
      Promise.resolve(at > 0 && gate).then(() => bus.write(data));
    });
    bus.on("data", (data) => {
      const part = data.subarray(0, left);
      left -= part.length;
      if (typeof limit === "string") {
        response += part.toString("latin1");
        left = response.includes(limit) ? 0 : left;
      }
      client.write(part, () => left <= 0 && cut());
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    /** What each connection asked for. */
    heads,
    /** Cuts all connections that are open. */
    cut: () => sockets.forEach((end) => end.destroy()),
    close: () => {
      sockets.forEach((end) => end.destroy());
      server.close();
    },
  };
}
