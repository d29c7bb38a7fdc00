// Scenarios of Replicate's JavaScript client: NAME URL PICTURE. The result is printed as JSON.
import { readFile } from "node:fs/promises";
import Replicate from "replicate";

const [scenario, url, path] = process.argv.slice(2);
const picture = await readFile(path);
const blob = new Blob([picture], { type: "image/png" });
const replicate = new Replicate({ auth: "KEY", baseUrl: `${url}/v1` });
const MODEL = "overpaint/miniature";
const PINNED = "stability-ai/sdxl:39ed52f2a78e934b3ba6e2a89f5b1c712de7dfea535525255b1aa35c5565e08b";
const wait = { mode: "poll", interval: 50 };

const read = async (output) =>
  Promise.all(
    output.map(async (file) => Buffer.from(await (await file.blob()).arrayBuffer()).toString("base64")),
  );

const scenarios = {
  async run() {
    return read(await replicate.run(MODEL, { input: { prompt: "a cup", seed: 9, num_outputs: 2 } }));
  },
  async runPinned() {
    return read(await replicate.run(PINNED, { input: { prompt: "a cup", seed: 9 }, wait }));
  },
  async repaint() {
    const input = { prompt: "a cup", image: blob, mask: picture, prompt_strength: 0.5, seed: 9 };
    return read(await replicate.run(MODEL, { input }));
  },
  async poll() {
    const made = await replicate.predictions.create({
      version: PINNED,
      input: { prompt: "note", num_inference_steps: 20, seed: 9 },
    });
    const done = await replicate.wait(made, { interval: 50 });
    const { results } = await replicate.predictions.list();
    return { ...done, atFirst: made.status, listed: results.some(({ id }) => id === made.id) };
  },
  async cancel() {
    const input = { prompt: "a cup", num_inference_steps: 500 };
    const made = await replicate.predictions.create({ model: MODEL, input });
    await replicate.predictions.cancel(made.id);
    return (await replicate.wait(made, { interval: 50 })).status;
  },
  async stream() {
    const events = [];
    for await (const event of replicate.stream(MODEL, { input: { prompt: "note", seed: 9 } }))
      events.push({ event: event.event, data: `${event.data}` });
    return events;
  },
  async files() {
    const sent = await replicate.files.create(blob);
    const described = await replicate.files.get(sent.id);
    const listed = (await replicate.files.list()).results.some(({ id }) => id === sent.id);
    const input = { prompt: "a cup", image: described.urls.get, seed: 9 };
    const pictures = await read(await replicate.run(MODEL, { input }));
    const deleted = await replicate.files.delete(sent.id);
    return { sent, listed, pictures, deleted };
  },
  async errors() {
    const messages = {};
    const attempt = async (name, call) => {
      try {
        await call();
      } catch (error) {
        messages[name] = { status: error.response?.status, message: error.message };
      }
    };
    await attempt("failed", () => replicate.run(MODEL, { input: { prompt: "refuse" }, wait }));
    await attempt("invalid", () => replicate.run(MODEL, { input: { num_inference_steps: 0 } }));
    await attempt("missing", () => replicate.models.get("x", "y"));
    return messages;
  },
  async describe() {
    const deployed = await replicate.deployments.predictions.create("acme", "sdxl", {
      input: { prompt: "a cup" },
      wait: true,
    });
    return {
      account: (await replicate.accounts.current()).type,
      collections: (await replicate.collections.list()).results,
      deployed: deployed.status,
      deployments: (await replicate.deployments.list()).results.map(({ name }) => name),
      found: (await replicate.models.search("sdxl")).results.map(({ name }) => name),
      hardware: (await replicate.hardware.list()).map(({ sku }) => sku),
      models: (await replicate.models.list()).results.map(({ name }) => name),
      secret: (await replicate.webhooks.default.secret.get()).key.slice(0, 6),
      trainings: (await replicate.trainings.list()).results,
    };
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
