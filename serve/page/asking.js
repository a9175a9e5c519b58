/** One request at a time: the latest wins, what it replaces is aborted and its answer dropped. */

/** Keeps at most one task running, with its progress and its end. */
export class Latest {
  #number = 0;
  #controller = null;
  #timer = 0;

  /** Whether a task runs. */
  get busy() {
    return this.#controller !== null;
  }

  /** Runs `task` in `wait` milliseconds, unless another comes before. */
  later(task, wait) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(task, wait);
  }

  /** Aborts what runs and forgets what waits. */
  stop() {
    clearTimeout(this.#timer);
    this.#controller?.abort();
    this.#controller = null;
    this.#number += 1;
  }

  /**
   * Runs a task in place of the one before.
   *
   * @template T
   * @param {(signal: AbortSignal, isLatest: () => boolean) => Promise<T>} task
   * @returns {Promise<{latest: boolean, error: unknown}>} Whether it was still wanted when it ended, and what it
   *     threw, `null` if nothing.
   */
  async run(task) {
    this.stop();
    const number = this.#number;
    const isLatest = () => number === this.#number;
    this.#controller = new AbortController();
    let error = null;
    try {
      await task(this.#controller.signal, isLatest);
    } catch (thrown) {
      error = thrown;
    }
    const latest = isLatest();
    if (latest) this.#controller = null;
    return { latest, error };
  }
}
