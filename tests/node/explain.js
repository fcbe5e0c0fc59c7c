// Runs a compiled explanation: node explain.js MODEL PIXELS SHAPE, with the pixels as raw float32.
// Prints the outputs as JSON.
const fs = require("node:fs");
const ort = require("onnxruntime-node");

async function main([model, pixels, shape]) {
  const bytes = fs.readFileSync(pixels);
  const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const session = await ort.InferenceSession.create(model);
  const input = new ort.Tensor("float32", values, JSON.parse(shape));
  const found = await session.run({ [session.inputNames[0]]: input });
  const plain = Object.entries(found).map(([name, tensor]) => [
    name,
    { dims: tensor.dims, data: Array.from(tensor.data, Number) },
  ]);
  console.log(JSON.stringify(Object.fromEntries(plain)));
}

main(process.argv.slice(2));
