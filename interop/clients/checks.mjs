// What every check reports: `ok NAME` or `FAILED: NAME: WHY`, one line each, which `run.py` counts.

/** No check waits longer than this, in milliseconds. */
export const WATCHDOG_MS = 30_000;

/** Where the bus of this group of checks listens. */
export const BUS = process.env.BUS;

/** The checks of one client. */
export class Checks {
  constructor(client) {
    this.client = client;
  }

  async check(name, prove) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`nothing happened for ${WATCHDOG_MS} ms`)), WATCHDOG_MS);
    });
    try {
      await Promise.race([prove(), late]);
      console.log(`ok ${this.client}: ${name}`);
    } catch (error) {
      process.exitCode = 1; // One failed check must not hide what the others have to say.
      const why = `${error?.name}: ${error?.message}`.replace(/\s+/g, " ").slice(0, 2000);
      console.log(`FAILED: ${this.client}: ${name}: ${why}`);
    } finally {
      clearTimeout(timer);
    }
  }

  /** A client that departs from a specification; `prove` shows that it does. Once the client is
   * mended the check fails, so that the exception is removed here and in `interop/README.md`. */
  deviation(what, section, prove) {
    return this.check(`${what} (the client departs from ${section})`, prove);
  }
}
