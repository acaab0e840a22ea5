"""A second reader of vaults and audit logs, written from the documents alone.

    reader.py vault DIR (--key HEX | --passphrase TEXT)
    reader.py log DIR [--key HEX]

Follows docs/vault-format.md and docs/audit-log.md, and shares nothing with the first reader but the
primitives' names. Prints what it found as one line of JSON, or says on one line why it believes
nothing, and exits with 1.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import re
import struct
import sys

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

SUITE = b"\x01"


class Refused(Exception):
    """What was read is not to be believed."""


def need(condition, why):
    if not condition:
        raise Refused(why)


def sha256(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def u64(number):
    return struct.pack("<Q", number)


def read(path, limit):
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        data = file.read(limit + 1)
    need(len(data) <= limit, f"{path}: too long")
    return data


class Fields:
    """Takes little endian fields off the front of some bytes."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, length):
        taken = self.data[self.at : self.at + length]
        need(len(taken) == length, "a field is cut")
        self.at += length
        return taken

    def number(self, length):
        return int.from_bytes(self.take(length), "little")

    def expect(self, value, what):
        need(self.take(len(value)) == value, what)

    def rest(self):
        return self.data[self.at :]


# Vaults: docs/vault-format.md, by section.

# Section 3.


def expand(key, info, length):
    return HKDFExpand(hashes.SHA256(), length, info).derive(key)


def labelled(prk, name, epoch):
    return expand(prk, b"casemate-vault v1 " + name + b"\0" + SUITE + u64(epoch), 32)


# Section 4.


def open_box(key, label, context, box):
    """The content; `None` if the box is another key's."""
    need(len(box) >= 80, "a box is cut")
    salt, commitment, sealed = box[:32], box[32:64], box[64:]
    both = expand(key, label + b"\0" + SUITE + sha256(context) + salt, 64)
    if not hmac.compare_digest(both[32:], commitment):
        return None
    try:
        return AESGCM(both[:32]).decrypt(bytes(12), sealed, sha256(context))
    except InvalidTag as error:
        raise Refused("a box is damaged") from error


# Section 5.


def open_header(data, kind, kek_of):
    fields = Fields(data[:-64])
    fields.expect(b"CSMVAULT" + b"\x01\0" + SUITE, "not a vault of format 1")
    need(fields.number(1) in (12, 14, 16, 18), "chunk size")
    need(fields.number(1) in (0, 1), "padding")
    fields.expect(bytes(3), "reserved bytes")
    vault = fields.take(16)
    epoch = fields.number(8)
    count = fields.number(2)
    fields.expect(bytes(6), "reserved bytes")
    need(1 <= count <= 16, "slot count")
    need(sha256(data[:-64]) == data[-64:-32], "the header is damaged")
    root = None
    for _ in range(count):
        slot = fields.take(16)
        slot_kind, wrap, length = fields.number(1), fields.number(1), fields.number(2)
        need(wrap == 1 and length <= 1024, "slot")
        made = fields.take(8)
        parameters = fields.take(length)
        box = fields.take(112)
        if slot_kind != kind or root is not None:
            continue
        context = vault + slot + made + bytes([slot_kind, wrap]) + parameters
        root = open_box(kek_of(parameters), b"casemate-vault v1 slot", context, box)
    need(not fields.rest(), "bytes after the slots")
    need(root is not None, "the key opens no slot")
    prk = hmac.digest(vault, root, "sha256")
    mac = hmac.digest(labelled(prk, b"header", 0), data[:-32], "sha256")
    need(hmac.compare_digest(mac, data[-32:]), "the header is not authentic")
    return vault, epoch, prk


# Section 6.


def open_manifest(data, vault, key, parity):
    """Generation and content; `None` if it does not open, as a torn one does not."""
    if len(data) != 4096:
        return None
    front = b"CSMMANIF" + b"\x01\0" + SUITE + bytes(5) + vault
    generation = int.from_bytes(data[32:40], "little")
    if data[:32] != front or generation == 0 or generation % 2 != parity:
        return None
    try:
        body = open_box(key, b"casemate-vault v1 manifest", data[:40], data[40:])
    except Refused:
        return None
    return body and (generation, body)


def newest_manifest(folder, vault, key):
    found = []
    for parity, name in enumerate(("manifest.a", "manifest.b")):
        path = os.path.join(folder, name)
        data = read(path, 4096) if os.path.lexists(path) else b""
        opened = open_manifest(data, vault, key, parity)
        if opened:
            found.append((*opened, sha256(data)))
    need(found, "no manifest opens")
    found.sort()
    if len(found) == 2:
        (older, _, root), (newer, body, _) = found
        need(newer == older + 1 and body[:32] == root, "the manifests are of two histories")
    return found[-1]


# Section 7.


def open_index(folder, vault, key, generation, segment):
    name, length, digest = segment
    data = read(os.path.join(folder, "index", name.hex()), 1 << 30)
    need(len(data) == length and sha256(data) == digest, "the index is not the manifest's")
    number = data[8:10]
    need(number in (b"\x01\0", b"\x02\0"), "an index of a format that is not known here")
    front = b"CSMINDEX" + number + SUITE + b"\x01" + bytes(4) + vault + name + u64(generation)
    need(data[:64] == front + u64(len(data) - 144), "the index has another front")
    body = open_box(key, b"casemate-vault v1 index", data[:64], data[64:])
    need(body is not None, "the index is another key's")
    return number[0], body


def records(index_format, body):
    fields = Fields(body)
    last = b""
    for _ in range(fields.number(4)):
        name = fields.take(fields.number(2))
        need(name > last, "names are out of order")
        last = name
        record = {"name": name.decode(), "kind": 1, "mode": 0o644, "plain": index_format == 1}
        parts = record["name"].split("/")
        need(len(name) <= 4096 and not any(p in ("", ".", "..") or "\0" in p for p in parts), "a name")
        if index_format == 1:
            plain_record(fields, record)
        else:
            full_record(fields, record)
        yield record
    need(not any(fields.rest()), "bytes after the records")


def plain_record(fields, record):
    record["object"] = fields.take(16)
    for field in ("version", "length", "modified"):
        record[field] = fields.number(8)
    extent = {"version": record["version"], "key_epoch": fields.number(8), "wrapped": fields.take(60)}
    need((fields.number(2), fields.number(4)) == (0, 1), "labels or extents of a later version")
    extent["file"] = fields.take(16)
    extent["number"] = fields.number(4)
    record["chunk"] = fields.number(1)
    need(record["chunk"] in (12, 14, 16, 18), "chunk size")
    fields.expect(SUITE + bytes(2) + bytes(8) + u64(record["length"]), "an extent")
    extent["stored"] = fields.number(8)
    extent["root"] = fields.take(32)
    need(extent["stored"] >= record["length"], "an extent")
    record["extents"] = [extent]
    chunks = -(-record["length"] >> record["chunk"])
    record["runs"] = [(0, chunks, 0, 0)] if chunks else []


def full_record(fields, record):
    record["kind"] = fields.number(1)
    need(record["kind"] in (1, 2, 3), "kind")
    fields.expect(b"\0", "reserved bytes")
    record["mode"], record["modified"] = fields.number(2), fields.number(8)
    need(record["mode"] <= 0o7777, "permissions")
    if record["kind"] == 2:
        return
    record["object"] = fields.take(16)
    record["version"], record["length"] = fields.number(8), fields.number(8)
    record["chunk"] = fields.number(1)
    need(record["chunk"] in (12, 14, 16, 18), "chunk size")
    fields.expect(bytes(3), "reserved bytes")
    extents, runs = fields.number(4), fields.number(4)
    need(extents <= 64, "too many extents")
    record["extents"] = [full_extent(fields) for _ in range(extents)]
    record["runs"], free = [], 0
    for _ in range(runs):
        at, count, extent, first = (fields.number(4) for _ in range(4))
        need(extent < extents and count > 0 and at >= free, "a run")
        chunks = max(1, -(-record["extents"][extent]["stored"] >> record["chunk"]))
        free = at + count
        need(first + count <= chunks and free <= -(-record["length"] >> record["chunk"]), "a run")
        record["runs"].append((at, count, extent, first))


def full_extent(fields):
    extent = {"file": fields.take(16), "number": fields.number(4)}
    fields.expect(SUITE + bytes(3), "an extent")
    extent["version"], extent["key_epoch"] = fields.number(8), fields.number(8)
    extent["wrapped"], extent["stored"] = fields.take(60), fields.number(8)
    extent["root"] = fields.take(32)
    return extent


# Section 8.


def tree(nodes):
    """The root of RFC 6962, section 2.1, over leaves or aligned subtrees."""
    if len(nodes) == 1:
        return nodes[0]
    half = 1 << (len(nodes) - 1).bit_length() - 1
    return sha256(b"\1", tree(nodes[:half]), tree(nodes[half:]))


def unwrap(key, vault, record, extent):
    context = b"casemate-vault v1 dek\0" + vault + record["object"]
    context = sha256(context, u64(extent["version"]), u64(extent["key_epoch"]))
    try:
        return AESGCMSIV(key).decrypt(extent["wrapped"][:12], extent["wrapped"][12:], context)
    except InvalidTag as error:
        raise Refused("a wrapped key is not this object's") from error


def open_object(folder, vault, wrap_of, record):
    """The content, every byte of it verified."""
    extents = [open_extent(folder, vault, wrap_of, record, extent) for extent in record["extents"]]
    size, length = 1 << record["chunk"], record["length"]
    content = bytearray(length)
    for at, count, extent, first in record["runs"]:
        for i in range(count):
            chunk = extents[extent][first + i]
            start = (at + i) * size
            chunk = chunk[: length - start]
            content[start : start + len(chunk)] = chunk
    if record["plain"]:
        need(not any(b"".join(extents[0])[length:]), "padding is not zeros")
    return bytes(content)


def open_extent(folder, vault, wrap_of, record, extent):
    """The chunks, every byte of them verified."""
    dek = unwrap(wrap_of(extent["key_epoch"]), vault, record, extent)
    path = os.path.join(folder, "objects", extent["file"].hex())
    size, stored = 1 << record["chunk"], extent["stored"]
    count = max(1, -(-stored // size))
    need(count <= 1 << 26, "too many chunks")
    groups = -(-count // 256)
    length = 96 + stored + 16 * count + 32 * groups
    data = read(path, length)
    need(len(data) == length, "an object has another length")
    front = b"CSMOBJCT" + b"\x01\0" + SUITE + bytes([record["chunk"]])
    front += struct.pack("<I", extent["number"]) + extent["file"] + record["object"]
    front += u64(extent["version"]) + bytes(8)
    need(data[:64] == front, "an object is not the index's")
    info = b"casemate-vault v1 extent\0" + SUITE + vault + sha256(front)
    both = expand(dek, info, 64)
    need(hmac.compare_digest(both[32:], data[64:96]), "an object is another key's")

    tags = data[96 + stored : 96 + stored + 16 * count]
    roots = data[96 + stored + 16 * count :]
    number = struct.pack("<I", extent["number"])
    leaves = [sha256(b"\0", u64(i), number, tags[16 * i : 16 * i + 16]) for i in range(count)]
    found = [tree(leaves[at : at + 256]) for at in range(0, count, 256)]
    need(b"".join(found) == roots, "group roots are not the tags'")
    need(tree(found) == extent["root"], "an object does not have the index's root")

    cipher, header = AESGCM(both[:32]), sha256(data[:96])
    content = []
    for i in range(count):
        last = int(i == count - 1)
        start, end = 96 + i * size, 96 + min((i + 1) * size, stored)
        nonce = bytes(4) + u64(2 * i + last)
        sealed = data[start:end] + tags[16 * i : 16 * i + 16]
        try:
            content.append(cipher.decrypt(nonce, sealed, header + u64(i) + bytes([last])))
        except InvalidTag as error:
            raise Refused(f"chunk {i} is damaged") from error
    return content


def read_vault(folder, kind, kek_of):
    vault, epoch, prk = open_header(read(os.path.join(folder, "vault"), 65536), kind, kek_of)
    generation, body, root = newest_manifest(folder, vault, labelled(prk, b"manifest", 0))
    fields = Fields(body)
    fields.take(32)
    header_epoch, key_epoch = fields.number(8), fields.number(8)
    need(epoch in (header_epoch, header_epoch + 1), "the header is not the manifest's")
    fields.take(8 + 8 + 32 + 8 + 8)
    objects, segments = fields.number(8), fields.number(2)
    need(segments == 1, "several segments belong to a later version")
    segment = fields.take(16), fields.number(8), fields.take(32)
    need(not any(fields.rest()), "bytes after the segment")
    index = open_index(folder, vault, labelled(prk, b"index", key_epoch), generation, segment)

    def wrap_of(epoch):
        need(epoch in (key_epoch, key_epoch - 1), "a key of another epoch")
        return labelled(prk, b"wrap", epoch)

    found, directories = {}, {}
    for record in records(*index):
        if record["kind"] == 2:
            directories[record["name"]] = {"mode": record["mode"], "modified": record["modified"]}
            continue
        content = open_object(folder, vault, wrap_of, record)
        found[record["name"]] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "version": record["version"],
            "modified": record["modified"],
            "mode": record["mode"],
            "link": record["kind"] == 3,
        }
    need(len(found) == objects, "the index does not have the manifest's number of objects")
    return {"id": vault.hex(), "generation": generation, "root": root.hex(), "objects": found, "directories": directories}


def argon2(phrase):
    def kek_of(parameters):
        need(len(parameters) == 28, "passphrase parameters")
        memory, passes, lanes = struct.unpack("<III", parameters[:12])
        need(8 << 10 <= memory <= 1 << 20 and 1 <= passes <= 16 and 1 <= lanes <= 16, "costs")
        need(memory * passes <= 4 << 20, "costs")
        salt = parameters[12:]
        kdf = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory)
        return kdf.derive(phrase)

    return kek_of


# Logs: docs/audit-log.md, and the C2SP documents it names.


def cbor(data, at, depth=0):
    """One item of deterministic CBOR (RFC 8949, section 4.2.1); the item and where it ends."""
    need(at < len(data) and depth < 40, "a record is cut")
    kind, info = data[at] >> 5, data[at] & 31
    at += 1
    if kind == 7 and info in (20, 21, 22):
        return (False, True, None)[info - 20], at
    if kind == 7 and info in (25, 26, 27):
        size = 1 << info - 24
        need(at + size <= len(data), "a record is cut")
        return struct.unpack(">" + "efd"[info - 25], data[at : at + size])[0], at + size
    need(kind in (0, 1, 2, 3, 4, 5), "a CBOR type that records do not have")
    size = 0 if info < 24 else 1 << info - 24
    need(info <= 27 and at + size <= len(data), "a CBOR head")
    number = int.from_bytes(data[at : at + size], "big") if size else info
    need(not size or number >= (24, 1 << 8, 1 << 16, 1 << 32)[info - 24], "a CBOR head is too long")
    at += size
    if kind == 0:
        return number, at
    if kind == 1:
        return -1 - number, at
    if kind in (2, 3):
        need(at + number <= len(data), "a record is cut")
        taken = data[at : at + number]
        return (taken if kind == 2 else taken.decode()), at + number
    need(number <= len(data) - at, "a record is cut")
    if kind == 4:
        items = []
        for _ in range(number):
            item, at = cbor(data, at, depth + 1)
            items.append(item)
        return items, at
    pairs, last = {}, b""
    for _ in range(number):
        start = at
        key, at = cbor(data, at, depth + 1)
        need(isinstance(key, str) and data[start:at] > last, "CBOR keys are out of order")
        last = data[start:at]
        pairs[key], at = cbor(data, at, depth + 1)
    return pairs, at


def tile_path(folder, level, number, width):
    parts = [f"{number % 1000:03}"]
    while number >= 1000:
        number //= 1000
        parts.insert(0, f"x{number % 1000:03}")
    if width < 256:
        parts[-1] += ".p"
        parts.append(str(width))
    return os.path.join(folder, "tile", str(level), *parts)


def open_note(note, name, public):
    """Origin, size and root of a checkpoint that this key signed."""
    text, _, signatures = note.rpartition("\n\n")
    need(signatures.endswith("\n"), "the checkpoint is cut")
    text += "\n"
    identity = sha256(name.encode(), b"\n\x01", public)[:4]
    signed = []
    for line in signatures[:-1].split("\n"):
        match = re.fullmatch("\u2014 ([^ +]+) ([A-Za-z0-9+/=]+)", line)
        need(match, "a signature line")
        blob = base64.b64decode(match[2], validate=True)
        if match[1] == name and blob[:4] == identity:
            signed.append(blob[4:])
    need(len(signed) == 1, "the checkpoint is not signed once by the log's key")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signed[0], text.encode())
    except InvalidSignature as error:
        raise Refused("the checkpoint's signature does not verify") from error
    lines = text.split("\n")
    need(len(lines) >= 4 and lines[0] == name and re.fullmatch("0|[1-9][0-9]*", lines[1]), "a checkpoint")
    root = base64.b64decode(lines[2], validate=True)
    need(len(root) == 32, "a root has 32 bytes")
    return int(lines[1]), root


def read_log(folder, pinned):
    vkey = read(os.path.join(folder, "key.pub"), 1024).decode()
    match = re.fullmatch(r"([^ +\n]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)\n", vkey)
    need(match, "key.pub is not a verifier key")
    name, public = match[1], base64.b64decode(match[3], validate=True)
    need(public[:1] == b"\x01" and len(public) == 33, "key.pub is not Ed25519")
    public = public[1:]
    need(sha256(name.encode(), b"\n\x01", public)[:4].hex() == match[2], "key.pub has another id")
    need(pinned in (None, public), "key.pub is not the pinned key")
    note = read(os.path.join(folder, "checkpoint"), 65536).decode()
    size, root = open_note(note, name, public)

    leaves, kinds = [], {}
    for bundle in range(-(-size // 256)):
        width = min(256, size - 256 * bundle)
        data = read(tile_path(folder, "entries", bundle, width), 256 * 20000)
        at = 0
        for _ in range(width):
            need(at + 2 <= len(data), "an entry bundle is cut")
            length = int.from_bytes(data[at : at + 2], "big")
            entry = data[at + 2 : at + 2 + length]
            at += 2 + length
            need(at <= len(data), "an entry bundle is cut")
            record, end = cbor(entry, 0)
            need(end == len(entry), "bytes after a record")
            order = ["seq", "boot", "kind", "mono", "time", "origin", "payload"]
            need(isinstance(record, dict) and list(record) == order, "a record has other fields")
            need(record["seq"] == len(leaves) and record["origin"] == name, "a record is out of place")
            kinds[record["kind"]] = kinds.get(record["kind"], 0) + 1
            leaves.append(sha256(b"\0", entry))
        need(at == len(data), "bytes after an entry bundle")
    need((tree(leaves) if leaves else sha256()) == root, "the records do not have the signed root")

    level, hashes_ = 0, leaves
    while hashes_:
        for tile in range(-(-len(hashes_) // 256)):
            part = hashes_[256 * tile : 256 * tile + 256]
            data = read(tile_path(folder, level, tile, len(part)), 8192)
            need(data == b"".join(part), "a tile is not the records'")
        hashes_ = [tree(hashes_[at : at + 256]) for at in range(0, len(hashes_) // 256 * 256, 256)]
        level += 1
    return {"origin": name, "key": public.hex(), "size": size, "root": root.hex(), "kinds": kinds}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("vault", "log"))
    parser.add_argument("folder")
    parser.add_argument("--key", type=bytes.fromhex)
    parser.add_argument("--passphrase")
    options = parser.parse_args()
    try:
        if options.what == "log":
            found = read_log(options.folder, options.key)
        elif options.passphrase is not None:
            found = read_vault(options.folder, 2, argon2(options.passphrase.encode()))
        else:
            need(options.key is not None and len(options.key) == 32, "a vault needs its key")
            found = read_vault(options.folder, 1, lambda _: options.key)
    except (Refused, UnicodeDecodeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
