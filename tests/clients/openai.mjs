// Scenarios of OpenAI's JavaScript client: NAME URL PICTURE. The result is printed as JSON.
import { readFile } from "node:fs/promises";
import OpenAI, { toFile } from "openai";

const [scenario, url, path] = process.argv.slice(2);
const picture = await readFile(path);
const file = (name) => toFile(picture, name, { type: "image/png" });
const openai = new OpenAI({ apiKey: "KEY", baseURL: `${url}/v1`, maxRetries: 0 });

const read = ({ data }) => data.map((image) => image.b64_json);

const scenarios = {
  async generate() {
    return read(
      await openai.images.generate({ model: "gpt-image-1", prompt: "a cup", n: 2, seed: 9, quality: "low" }),
    );
  },
  async generateLink() {
    const made = await openai.images.generate({
      model: "dall-e-3",
      prompt: "a cup",
      style: "vivid",
      quality: "hd",
      size: "1024x1024",
      seed: 9,
    });
    const answer = await fetch(made.data[0].url);
    return [Buffer.from(await answer.arrayBuffer()).toString("base64")];
  },
  async edit() {
    return read(
      await openai.images.edit({
        model: "gpt-image-1",
        prompt: "a cup",
        image: [await file("a.png"), await file("b.png")],
        input_fidelity: "low",
        seed: 9,
      }),
    );
  },
  async variation() {
    return read(
      await openai.images.createVariation({
        image: await file("a.png"),
        response_format: "b64_json",
        seed: 9,
      }),
    );
  },
  async stream() {
    const options = { model: "gpt-image-1", prompt: "a cup", stream: true, partial_images: 2, seed: 9 };
    const types = [];
    let last;
    for await (const event of await openai.images.generate(options)) {
      types.push(event.type);
      last = event;
    }
    return { types, pictures: [last.b64_json] };
  },
  async models() {
    const names = [];
    for await (const model of openai.models.list()) names.push(model.id);
    return { names, alias: (await openai.models.retrieve("dall-e-3")).id };
  },
  async errors() {
    const found = {};
    const attempt = async (name, call) => {
      try {
        await call();
      } catch (error) {
        found[name] = { name: error.constructor.name, status: error.status, param: error.param };
      }
    };
    await attempt("invalid", () => openai.images.generate({ prompt: "a cup", n: 11 }));
    await attempt("missing", () => openai.models.retrieve("nosuch"));
    return found;
  },
};

console.log(JSON.stringify(await scenarios[scenario]()));
