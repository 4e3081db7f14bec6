// A protected classifier in LiteRT.js: pixels in, distilled pixels and predictions out.

import { getGlobalLiteRtPromise, loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";
import { readDetails } from "./details.js";

const WASM = new URL("./node_modules/@litertjs/core/wasm/", import.meta.url).href;

export class Classifier {
  static async load(url) {
    await (getGlobalLiteRtPromise() ?? loadLiteRt(WASM));
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url} could not be loaded (${response.status})`);
    const content = await response.arrayBuffer();
    const model = await loadAndCompile(new Uint8Array(content), { accelerator: "wasm" });
    return new Classifier(model, readDetails(content));
  }

  constructor(model, details) {
    this.model = model;
    this.details = details;
    const [, height, width, channels] = model.getInputDetails()[0].shape;
    // A model of any size has -1, or 1, there.
    Object.assign(this, { height, width, channels });
  }

  get valueRange() {
    return this.details.value_range ?? [0, 255];
  }

  // ImageData -> { distilled: ImageData, outputs: { name: Float32Array } }
  async run(image) {
    const pixels = toModel(image, this.channels, this.valueRange);
    const shape = [1, image.height, image.width, this.channels];
    const outputs = await this.#run("serving_default", pixels, shape);
    const { distilled } = await this.#run("distill", pixels, shape);
    return { distilled, shown: toImage(distilled, image, this.channels, this.valueRange), outputs };
  }

  async #run(signature, pixels, shape) {
    const images = new Tensor(pixels, shape);
    try {
      const results = await this.model.run(signature, { images });
      const arrays = {};
      for (const [name, tensor] of Object.entries(results)) {
        arrays[name] = Float32Array.from(await tensor.data());
        tensor.delete();
      }
      return arrays;
    } finally {
      images.delete();
    }
  }
}

function toModel({ data }, channels, [low, high]) {
  const scale = (high - low) / 255;
  const pixels = new Float32Array((data.length / 4) * channels);
  for (let i = 0; i < data.length / 4; i++) {
    const rgb = data.subarray(4 * i, 4 * i + 3);
    if (channels === 1) {
      // The luma that JPEG and Pillow use.
      pixels[i] = Math.round(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) * scale + low;
    } else {
      for (let c = 0; c < 3; c++) pixels[3 * i + c] = rgb[c] * scale + low;
    }
  }
  return pixels;
}

function toImage(pixels, { width, height }, channels, [low, high]) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      const value = pixels[channels * i + (channels === 1 ? 0 : c)];
      image.data[4 * i + c] = Math.round(((value - low) / (high - low)) * 255);
    }
    image.data[4 * i + 3] = 255;
  }
  return image;
}

// A picture or video frame as ImageData of the given size: covering it, cut to the centre.
export function cropped(source, sourceWidth, sourceHeight, width, height) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const scale = Math.max(width / sourceWidth, height / sourceHeight);
  const [w, h] = [sourceWidth * scale, sourceHeight * scale];
  context.imageSmoothingEnabled = scale !== 1;
  context.imageSmoothingQuality = "high";
  context.drawImage(source, (width - w) / 2, (height - h) / 2, w, h);
  return context.getImageData(0, 0, width, height);
}

export function sigmoid(logit) {
  return 1 / (1 + Math.exp(-logit));
}

export function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((a, b) => a + b, 0);
  return exponentials.map((value) => value / sum);
}
