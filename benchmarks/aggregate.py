"""The server's step compared with plain reads of the same files and with Flower's FedAvg; its memory at 7B.

    python -m benchmarks.aggregate --quick            # 2 and 4 sites of 10 M
    python -m benchmarks.aggregate                    # everything, about an hour on a quiet machine of 2 cores
    python -m benchmarks.aggregate --only 125M-8 7B-64-synthetic
    python -m benchmarks.aggregate --only 75M-2 75M-8 125M-8 125M-16 --no-s3 --picture benchmarks/aggregate.svg

A case is MODEL-SITES[-CODEC]. Measured for each: plain reads of the updates' files into one buffer, the
aggregation from local files, both again through an S3 endpoint on loopback, and Flower's two ways of FedAvg if its
arrays fit into memory. Each runs in a separate process. GB/s is bytes of the updates per second, with files in the
page cache. MODEL-SITES-synthetic aggregates updates that a filesystem generates as they are read; with :N at the
end, only the N largest of the model's tensors. Prints rows for RESULTS.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Neighbours, finish, heading, machine, say
from benchmarks.peers.flower import PeerMissing, flower_aggregate
from benchmarks.updates import RUN, bytes_of, largest, make_run, shapes_of
from photon_core.store.store import Store

CASES = ["125M-8", "125M-16", "125M-64", "1.3B-4", "125M-8-int8:256", "7B-64-synthetic"]
QUICK = ["10M-2", "10M-4", "10M-4-int8:256", "10M-4-synthetic"]
CACHED = 0.45  # share of the memory for the updates' distinct files, so that they fit into the page cache
SECRETS = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small models, under a minute; not to be quoted")
    parser.add_argument("--only", nargs="+", metavar="CASE", help=f"cases such as {', '.join(CASES)}")
    parser.add_argument("--no-flower", action="store_true", help="skip Flower")
    parser.add_argument("--no-s3", action="store_true", help="measure local files only")
    parser.add_argument("--picture", type=Path, help="SVG file for time and memory against sites and parameters")
    arguments = parser.parse_args()
    at, neighbours = machine(), Neighbours()
    rows: list[Row] = []
    for case in arguments.only or (QUICK if arguments.quick else CASES):
        rows += measure(case, flower=not arguments.no_flower, s3=not arguments.no_s3)
    title = "Aggregation" + (" (quick: too small to be quoted)" if arguments.quick else "")
    heading(title, at, neighbours.share())
    show(rows)
    if arguments.picture:
        draw(rows, arguments.picture)
    finish({**headline(rows), "rows": rows, "quick": arguments.quick}, at)


def measure(case: str, *, flower: bool, s3: bool) -> list[Row]:
    """Measure every way of one case."""
    size, count, codec = [*case.split("-", 2), "float32"][:3]
    sites, shapes = int(count), shapes_of(size)
    codec, _, tensors = codec.partition(":") if codec.startswith("synthetic") else (codec, "", "")
    shapes = largest(shapes, int(tensors) if tensors else len(shapes))
    common = {"case": case, "parameters": bytes_of(shapes) // 4, "sites": sites}
    if codec == "synthetic":
        say(f"{case}: updates generated while they are read")
        return [
            {
                **common,
                "way": "photon, synthetic",
                **child({"what": "synthetic", "size": size, "sites": sites, "tensors": len(shapes)}),
            }
        ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    distinct = max(1, min(sites, int(CACHED * memory / bytes_of(shapes)) - 2))
    common["distinct"] = distinct
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="photon-bench-") as name:
        folder = Path(name)
        say(f"{case}: writing {distinct} distinct updates")
        make_run(Store(str(folder / "bucket")), shapes, sites, codec, distinct)
        task: dict[str, Any] = {"url": str(folder / "bucket"), "sites": sites}
        child({**task, "what": "read"})  # fills the page cache
        for what, way in (("read", "plain reads"), ("aggregate", "photon")):
            say(f"{case}: {way}")
            rows.append({**common, "way": way, **child({**task, "what": what})})
        forget(folder / "bucket")
        if s3:
            with s3_server(folder) as endpoint:
                task |= {"url": "s3://bucket", "options": {"endpoint_url": endpoint}}
                for what, way in (("read", "plain reads, S3"), ("aggregate", "photon, S3")):
                    say(f"{case}: {way}")
                    rows.append({**common, "way": way, **child({**task, "what": what})})
        if flower and codec == "float32":
            (folder / "shapes.json").write_text(json.dumps(shapes))
            for way in ("classic", "records"):
                rows.append(
                    {**common, "way": f"Flower, {way}", **peer(way, sites, folder, bytes_of(shapes), memory)}
                )
    return rows


def forget(store: Path) -> None:
    """Remove the result of the aggregation: the next pass would reuse its finished shards."""
    for name in ("model", "finished"):
        shutil.rmtree(store / RUN / "rounds" / "000001" / name, ignore_errors=True)


def child(task: dict[str, Any]) -> dict[str, float]:
    """Run benchmarks.measured in a separate process."""
    command = [sys.executable, "-m", "benchmarks.measured", json.dumps(task)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | SECRETS, stdout=subprocess.PIPE, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peer(way: str, sites: int, folder: Path, size: int, memory: int) -> dict[str, Any]:
    """Flower's figures, or the reason why there are none."""
    needed = (2 * sites + 1 if way == "classic" else sites + 2) * size
    if needed > 0.9 * memory:
        return {"note": f"needs {needed / 2**30:.0f} GiB"}
    say(f"Flower, {way}: {sites} sites")
    try:
        return dict(flower_aggregate(way, sites, folder / "shapes.json"))
    except PeerMissing as reason:
        say(f"Flower is skipped: {reason}")
        return {"note": "not run"}


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """An S3 endpoint with the folder's folders as buckets. Yields its URL."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.s3_files", str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()


def show(rows: list[Row]) -> None:
    """Print the table in Markdown, for RESULTS.md."""
    print("\n| case | way | distinct updates | seconds | CPU seconds | GB/s | of plain reads | peak GiB |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        if "note" in row:
            print(f"| {row['case']} | {row['way']} | | {row['note']} | | | | |")
            continue
        limit = of_limit(rows, row)
        share = f"{limit:.2f}" if limit and row["way"].startswith("photon") else ""
        seconds = f"{row['seconds']:.2f} | {row['cpu_s']:.2f} | {row['gb_s']:.2f}"
        print(f"| {row['case']} | {row['way']} | {row.get('distinct', '')} | {seconds} | ", end="")
        print(f"{share} | {row['peak_gib']:.2f} |")
    print("\nDistinct updates: the other sites' files are hard links to them, so that all fit in the page cache;")
    print("every site has its own manifest. Peak: memory beyond the imports, without file pages (Flower: total).")


def of_limit(rows: list[Row], row: Row) -> float | None:
    """Throughput relative to plain reads from the same place."""
    place = "plain reads, S3" if row["way"].endswith("S3") else "plain reads"
    found = [r for r in rows if r["case"] == row["case"] and r["way"] == place]
    return float(row["gb_s"] / found[0]["gb_s"]) if found else None


def headline(rows: list[Row]) -> dict[str, float]:
    """vs_flower (its faster way), vs_read_limit, peak_rss_gib: the worst case, from local files."""
    ours = [row for row in rows if row["way"] == "photon"]
    pairs = [
        row["gb_s"] / max(r["gb_s"] for r in peers)
        for row in ours
        if (peers := [r for r in rows if r["case"] == row["case"] and "Flower" in r["way"] and "gb_s" in r])
    ]
    limits = [limit for row in ours if (limit := of_limit(rows, row)) is not None]
    photon = [row["peak_gib"] for row in rows if row["way"].startswith("photon")]
    found = {"peak_rss_gib": max(photon, default=0.0)}
    if pairs:
        found["vs_flower"] = min(pairs)
    if limits:
        found["vs_read_limit"] = min(limits)
    return {name: round(value, 3) for name, value in found.items()}


def draw(rows: list[Row], target: Path) -> None:
    """Draw seconds and memory against the bytes of a round's updates, one colour per way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for way in dict.fromkeys(row["way"] for row in rows):
        points = sorted(
            (row["parameters"] * row["sites"] * 4e-9, row["seconds"], row["peak_gib"])
            for row in rows
            if row["way"] == way and "seconds" in row
        )
        if points:
            x, seconds, peak = zip(*points, strict=True)
            time.plot(x, seconds, "o-", label=way, markersize=3)
            memory.plot(x, peak, "o-", label=way, markersize=3)
    for axes, label in ((time, "seconds"), (memory, "peak memory (GiB)")):
        axes.set(xscale="log", yscale="log", xlabel="sites x parameters x 4 bytes (GB)", ylabel=label)
        axes.grid(alpha=0.3)
    time.legend(fontsize=6, loc="lower right")
    figure.savefig(target, format="svg")


if __name__ == "__main__":
    main()
