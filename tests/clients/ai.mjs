// Scenarios of the AI SDK and its providers: NAME URL PICTURE. The result is printed as JSON.
import { readFile } from "node:fs/promises";
import { createFal } from "@ai-sdk/fal";
import { createOpenAI } from "@ai-sdk/openai";
import { createReplicate } from "@ai-sdk/replicate";
import { generateImage } from "ai";

const [scenario, url, path] = process.argv.slice(2);
const replicate = createReplicate({ apiToken: "KEY", baseURL: `${url}/v1` }).image("overpaint/miniature");
const fal = createFal({ apiKey: "KEY", baseURL: `${url}/fal/run` }).image("fal-ai/fast-sdxl");
const openai = createOpenAI({ apiKey: "KEY", baseURL: `${url}/v1` });
const gptImage = openai.image("gpt-image-1");
const cup = "a cup";
const repaint = { text: cup, images: [await readFile(path)] };

const scenarios = {
  replicate: {
    model: replicate,
    prompt: cup,
    seed: 9,
    aspectRatio: "16:9",
    providerOptions: { replicate: { output_format: "webp", output_quality: 80 } },
  },
  replicateSize: { model: replicate, prompt: cup, seed: 9, size: "512x512", n: 2 },
  replicateRepaint: { model: replicate, prompt: repaint, seed: 9 },
  fal: {
    model: fal,
    prompt: cup,
    seed: 9,
    aspectRatio: "16:9",
    providerOptions: { fal: { outputFormat: "jpeg", enableSafetyChecker: false, safetyTolerance: "2" } },
  },
  falRepaint: { model: fal, prompt: repaint, seed: 9 },
  openai: { model: gptImage, prompt: cup, size: "1024x1024", n: 2 },
  openaiDallE: {
    model: openai.image("dall-e-3"),
    prompt: cup,
    size: "1024x1024",
    providerOptions: { openai: { style: "vivid", quality: "hd" } },
  },
  openaiRepaint: { model: gptImage, prompt: repaint },
};

const { images } = await generateImage({ ...scenarios[scenario], maxRetries: 0 });
console.log(JSON.stringify(images.map((image) => image.base64)));
