// Reading the exporter's JSON out of a .tflite file: a flatbuffer whose root table has its metadata
// in field 6 and its buffers in field 4.

const NAME = "fd_keras.json";

class Table {
  constructor(view, position) {
    this.view = view;
    this.position = position;
    this.vtable = position - view.getInt32(position, true);
  }

  // Where field number `index` lies; 0 when it is not there.
  field(index) {
    const slot = 4 + 2 * index;
    if (slot >= this.view.getUint16(this.vtable, true)) return 0;
    const offset = this.view.getUint16(this.vtable + slot, true);
    return offset && this.position + offset;
  }

  // The start and the length of the vector, or string, that a field points to.
  vector(index) {
    const at = this.field(index);
    if (!at) return { start: 0, length: 0 };
    const start = at + this.view.getUint32(at, true);
    return { start: start + 4, length: this.view.getUint32(start, true) };
  }

  tables(index) {
    const { start, length } = this.vector(index);
    return Array.from({ length }, (_, i) => {
      const at = start + 4 * i;
      return new Table(this.view, at + this.view.getUint32(at, true));
    });
  }

  text(index) {
    const { start, length } = this.vector(index);
    return new TextDecoder().decode(new Uint8Array(this.view.buffer, start, length));
  }
}

// What fd_keras wrote about a .tflite file, given as an ArrayBuffer; {} for other files.
export function readDetails(buffer) {
  const view = new DataView(buffer);
  const root = new Table(view, view.getUint32(0, true));
  const entry = root.tables(6).find((metadata) => metadata.text(0) === NAME);
  if (!entry) return {};
  const at = entry.field(1);
  return JSON.parse(root.tables(4)[at ? view.getUint32(at, true) : 0].text(0));
}
