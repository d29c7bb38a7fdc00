// Scenarios of fal's JavaScript client: NAME URL PICTURE. The result is printed as JSON.
import { readFile } from "node:fs/promises";
import { fal } from "@fal-ai/client";

const [scenario, url, path] = process.argv.slice(2);
const picture = await readFile(path);
const blob = new Blob([picture], { type: "image/png" });
fal.config({ credentials: "KEY", proxyUrl: { url: `${url}/fal/proxy`, when: "always" } });
const APP = "fal-ai/fast-sdxl";

const fetched = async (address) => {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return Buffer.from(await answer.arrayBuffer()).toString("base64");
};
const read = async ({ images }) => Promise.all(images.map((image) => fetched(image.url)));

const scenarios = {
  async run() {
    const input = { prompt: "a cup", seed: 9, num_images: 2 };
    const { data, requestId } = await fal.run(APP, { input });
    return { requestId, pictures: await read(data) };
  },
  async subscribe() {
    const logs = [];
    const input = { prompt: "note", image_url: blob, embeddings: [], output_format: "jpeg", seed: 9 };
    const { data, requestId } = await fal.subscribe(`${APP}/image-to-image`, {
      input,
      logs: true,
      pollInterval: 50,
      onQueueUpdate: (update) => logs.push(...(update.logs ?? []).map(({ message }) => message)),
    });
    return { requestId, logs, pictures: await read(data), prompt: data.prompt, seed: data.seed };
  },
  async upload() {
    const address = await fal.storage.upload(new File([picture], "a b.png", { type: "image/png" }));
    return { address, content: await fetched(address) };
  },
  async stream() {
    const input = { prompt: "a cup", seed: 9, num_inference_steps: 20 };
    const stream = await fal.stream(APP, { input });
    let events = 0;
    for await (const _ of stream) events += 1;
    const pictures = await read(await stream.done());
    return { requestId: stream.requestId, events, pictures };
  },
  async queue() {
    const { request_id: requestId } = await fal.queue.submit(APP, {
      input: { prompt: "a cup", seed: 9 },
      startTimeout: 60,
      priority: "low",
    });
    const done = await fal.queue.subscribeToStatus(APP, { requestId, mode: "streaming", logs: true });
    const { data, requestId: received } = await fal.queue.result(APP, { requestId });
    return { requestId, received, status: done.status, pictures: await read(data) };
  },
  async cancel() {
    const input = { prompt: "a cup", num_inference_steps: 500 };
    const { request_id: requestId } = await fal.queue.submit(APP, { input });
    const { status } = await fal.queue.status(APP, { requestId });
    await fal.queue.cancel(APP, { requestId });
    return { requestId, status };
  },
  async errors() {
    const found = {};
    const attempt = async (name, call) => {
      try {
        await call();
      } catch (error) {
        found[name] = { name: error.name, status: error.status, body: error.body };
      }
    };
    await attempt("invalid", () => fal.run(APP, { input: { prompt: "a", num_inference_steps: 0 } }));
    await attempt("missing", () => fal.queue.status(APP, { requestId: "0".repeat(32) }));
    return found;
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
