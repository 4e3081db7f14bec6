// The page: a file or the camera, shown as it is and distilled, with the prediction.

import { Classifier, cropped, sigmoid, softmax } from "./classifier.js";

const SHOWN_CLASSES = 5;
// For models that take any size.
const DEFAULT_SIZE = 224;
// Smaller images are shown with their pixels, not blurred.
const PIXELATED_BELOW = 128;

const element = (id) => document.getElementById(id);
const parameters = new URLSearchParams(location.search);

function say(text, isError = false) {
  element("status").textContent = text;
  element("status").className = isError ? "error" : "";
}

function draw(id, image) {
  const { width, height } = image;
  Object.assign(element(id), { width, height, className: width < PIXELATED_BELOW ? "small" : "" });
  element(id).getContext("2d").putImageData(image, 0, 0);
}

// The probabilities of the classes. A single output is that of class 1, or its logit where the file
// says that 0 is the threshold, or where it is no probability.
function probabilities(outputs, threshold) {
  if (outputs.length === 1) {
    const [output] = outputs;
    const isLogit = threshold === undefined ? output < 0 || output > 1 : threshold === 0;
    const second = isLogit ? sigmoid(output) : output;
    return [1 - second, second];
  }
  const isNormal = outputs.every((p) => p >= 0) && Math.abs(outputs.reduce((a, b) => a + b) - 1) < 1e-3;
  return isNormal ? Array.from(outputs) : softmax(outputs);
}

function showClasses(outputs, { labels, thresholds }) {
  const name = ["predictions", "logits", "probabilities"].find((name) => outputs[name]);
  const rows = [];
  if (name) {
    const scores = probabilities(outputs[name], thresholds?.[name]);
    const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a]);
    for (const i of order.slice(0, SHOWN_CLASSES)) {
      rows.push([labels?.[i] ?? `class ${i}`, `${(100 * scores[i]).toFixed(1)} %`, scores[i]]);
    }
  }
  // A detector's score is how far distilling moved the probabilities, from 0 to 2.
  if (outputs.score) {
    const flag = outputs.flag ? (outputs.flag[0] ? " (flagged)" : " (not flagged)") : "";
    rows.push([`Detector's score${flag}`, outputs.score[0].toFixed(3), 0]);
  }
  element("classes").replaceChildren(...rows.map(([name, value, share]) => tableRow(name, value, share)));
}

// A row of the table, with a bar behind it.
function tableRow(name, value, share) {
  const row = document.createElement("tr");
  row.style.setProperty("--share", `${100 * share}%`);
  for (const text of [name, value]) row.insertCell().textContent = text;
  return row;
}

async function show(classifier, source, sourceWidth, sourceHeight) {
  const width = classifier.width > 1 ? classifier.width : DEFAULT_SIZE;
  const height = classifier.height > 1 ? classifier.height : DEFAULT_SIZE;
  const image = cropped(source, sourceWidth, sourceHeight, width, height);
  const start = performance.now();
  const { shown, outputs } = await classifier.run(image);
  draw("original", image);
  draw("distilled", shown);
  showClasses(outputs, classifier.details);
  say(`Distilled and classified in ${(performance.now() - start).toFixed(0)} ms`);
}

async function showFile(classifier, blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  await show(classifier, bitmap, bitmap.width, bitmap.height);
  bitmap.close();
}

async function startCamera(classifier) {
  const video = element("video");
  video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
  element("camera").textContent = "Stop the camera";
  await video.play();
  while (video.srcObject) {
    await show(classifier, video, video.videoWidth, video.videoHeight);
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  for (const track of element("video").srcObject?.getTracks() ?? []) track.stop();
  element("video").srcObject = null;
  element("camera").textContent = "Camera";
}

async function toggleCamera(classifier) {
  if (element("video").srcObject) return stopCamera();
  try {
    await startCamera(classifier);
  } finally {
    stopCamera();
  }
}

function guarded(action) {
  return action.catch((error) => say(String(error), true));
}

async function main() {
  const classifier = await Classifier.load(parameters.get("model") ?? "model.tflite");
  element("file").onchange = (event) => {
    stopCamera();
    const [file] = event.target.files;
    if (file) guarded(showFile(classifier, file));
  };
  element("camera").onclick = () => guarded(toggleCamera(classifier));
  element("file").disabled = element("camera").disabled = false;
  say("Choose an image.");
  const example = parameters.get("image");
  if (example) await showFile(classifier, await (await fetch(example)).blob());
}

guarded(main());
