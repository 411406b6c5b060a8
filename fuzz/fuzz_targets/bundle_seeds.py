#!/usr/bin/env python3
"""Writes seeds for the bundle fuzz target: the documents of a bundle and all-zero weight blobs.

usage: bundle_seeds.py BUNDLE OUTPUT_FOLDER
"""

import json
import pathlib
import struct
import sys

# The model of CONFIG in bundle.rs: matrices as (rows, cols), vectors as length, by part.
PARTS = {
    0: {"token_embd.weight": (40, 32)},
    1: {
        "blk.0.attn_norm.weight": 32,
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_q.bias": 32,
        "blk.0.attn_k.bias": 16,
        "blk.0.attn_v.bias": 16,
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_norm.weight": 32,
        "blk.0.ffn_gate.weight": (48, 32),
        "blk.0.ffn_up.weight": (48, 32),
        "blk.0.ffn_down.weight": (32, 48),
    },
    2: {"output_norm.weight": 32, "output.weight": (40, 32)},
}


def tensors(name, shape):
    """Names, types, shapes and bytes of what is stored of a tensor."""
    if isinstance(shape, int):
        yield name, "F32", [shape], bytes(4 * shape)
        return
    rows, cols = shape
    k_tiles, groups = -(-cols // 32), -(-cols // 128)
    segments = [("w4", "", rows)] if rows == 16 else [("w8", ".rows.0", 16), ("w4", ".rows.16", rows - 16)]
    for precision, suffix, count in segments:
        if precision == "w8":
            yield f"{name}{suffix}.tiles", "I8", [-(-count // 32), k_tiles, 32, 32], bytes(-(-count // 32) * k_tiles * 1024)
        else:
            yield f"{name}{suffix}.tiles", "U8", [-(-count // 64), k_tiles, 64, 16], bytes(-(-count // 64) * k_tiles * 1024)
            yield f"{name}{suffix}.multipliers", "U8", [count, groups], b"\x01" * (count * groups)
        yield f"{name}{suffix}.scales", "F32", [count], bytes(4 * count)
        yield f"{name}{suffix}.row_sums", "I32", [count], bytes(4 * count)


def weight_blob(shapes):
    header, data = {}, b""
    stored = [tensor for name, shape in shapes.items() for tensor in tensors(name, shape)]
    for name, dtype, shape, content in sorted(stored, key=lambda tensor: (-len(tensor[3]) % 1024 != 0, tensor[1] == "U8")):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 4096)
    return struct.pack("<Q", len(text)) + text + data


def main():
    bundle, output = map(pathlib.Path, sys.argv[1:])
    output.mkdir(parents=True, exist_ok=True)
    for part, shapes in PARTS.items():
        (output / f"part-{part}").write_bytes(bytes([part]) + weight_blob(shapes))
    index = (bundle / "index.json").read_bytes()

    def blob(descriptor):
        return (bundle / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()

    manifest = blob(json.loads(index)["manifests"][0])
    config = blob(json.loads(manifest)["config"])
    lengths = [struct.pack("<H", len(document)) for document in (index, manifest)]
    (output / "documents").write_bytes(b"\x03" + lengths[0] + index + lengths[1] + manifest + config)
    for layer in json.loads(manifest)["layers"]:
        title = layer["annotations"]["org.opencontainers.image.title"]
        if kind := {"probes.json": 6, "quantization.json": 7}.get(title):
            (output / title).write_bytes(bytes([kind]) + blob(layer))


if __name__ == "__main__":
    main()
