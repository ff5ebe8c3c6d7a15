"""What a 1 % change costs: a full data run, then 1 % of the seeds edited, then 1 % of the pages.

Run: `python bench/rerun.py [--config config/understudy.yaml] [--seeds 60] [--latency 0 2]`.
With `--large` about 4,500 questions are labelled instead of some 600: every seed is reworded, each
up to twelve times, and the questions of two more files of `data/` are seeds too.
Everything happens in a temporary home on copies of the corpus and the seeds, each run in a process
of its own as `understudy run` would be, up to selected labels and their soft targets. Counted are
the calls that reached a model (what is kept is not bought), the texts really embedded, the answers
really scored, and seconds. Answers are scored if the configuration names a scorer, or with
`--scorer`, which scores with the first local student's own base.

`--latency` names one or more regimes, each measured from a full run on: with 0 the calls take what
the configured models take (the embedded ones a few milliseconds), with 2 each bought call takes two
seconds longer, as a large remote teacher's does, as many at once as the configuration allows.

Seconds have a fixed part: starting Python, Dagster's steps, reading tables. `nothing new` repeats
every step with everything kept; what an edit costs beyond it is the part that grows with the edit.
A configuration whose teacher costs money spends it: the full run buys every answer.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from orchestration.config import DEFAULT_CONFIG, Config, prepare_environment, read_config
from resources.corpus import CorpusFolder

SELECTION = (
    "corpus", "seeds", "eval_set", "paraphrases",
    "labels/teacher_answers", "labels/judged_answers", "labels/labelled_examples",
    "labels/teacher_logprobs",
)  # fmt: skip
DATA = DEFAULT_CONFIG.parents[1] / "data"
MORE_SEEDS = (DATA / "flywheel_questions.jsonl", DATA / "development" / "questions.jsonl")
"""Questions of `--large`: about these docs, and about another product, which these docs refuse."""
MANY_REWORDINGS = 12
COUNTS = ("paraphrasing", "answering", "judging", "embedded", "scored")
LIMIT_RATIO = 0.03


def main() -> None:
    """Print the figures, and with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument("--seeds", type=int, help="use only the first so many seeds")
    parser.add_argument("--large", action="store_true", help="more seeds, all of them reworded")
    parser.add_argument("--share", type=float, default=0.01, help="of the seeds and of the pages")
    parser.add_argument("--rounds", type=int, default=2, help="edits of each kind")
    parser.add_argument(
        "--latency", type=float, nargs="+", default=[0.0], help="seconds added to bought calls"
    )
    parser.add_argument("--scorer", action="store_true", help="score answers with the base model")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--force", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure_here(options.measure, force=options.force, latency=options.latency[0])
        return
    regimes = []
    for latency in options.latency:
        with tempfile.TemporaryDirectory(prefix="understudy-rerun-") as folder:
            path = copy_product(
                read_config(options.config.resolve()),
                Path(folder),
                options.seeds,
                with_scorer=options.scorer,
                is_large=options.large,
            )
            regimes.append(
                compare(path, share=options.share, rounds=options.rounds, latency=latency)
            )
        print_figures(regimes[-1])
    if options.json:
        sys.stdout.write(json.dumps(regimes) + "\n")


def copy_product(
    config: Config, folder: Path, seed_limit: int | None, *, with_scorer: bool, is_large: bool
) -> Path:
    """Copy what will be edited, link what is prepared, and return the copy's config file."""
    shutil.copytree(config.product.corpus.path, folder / "corpus")
    lines = config.seeds.path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.strip()][:seed_limit]
    kept += list_more_seeds() if is_large else []
    (folder / "seeds.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    (folder / "home").mkdir()
    if (config.home / "models").is_dir():
        (folder / "home" / "models").symlink_to(config.home / "models")
    values = config.model_dump(mode="json")
    values["home"] = str(folder / "home")
    values["product"]["corpus"]["path"] = str(folder / "corpus")
    values["seeds"]["path"] = str(folder / "seeds.jsonl")
    if is_large:
        values["seeds"] |= {"seeds_per_cluster": 1, "paraphrases_per_medoid": MANY_REWORDINGS}
    if with_scorer:
        local = next(s for s in config.students.values() if s.provider == "local")
        values["scorer"] = {"model": local.base_model, "revision": local.revision}
    path = folder / "understudy.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def list_more_seeds() -> list[str]:
    """Return a line of a seed file for every question of `MORE_SEEDS`, each once."""
    rows = [
        json.loads(line) for path in MORE_SEEDS for line in path.read_text("utf-8").splitlines()
    ]
    texts = dict.fromkeys(row.get("text") or row["question"] for row in rows)
    return [
        json.dumps({"question_id": f"more-{number:03}", "text": text, "tags": []})
        for number, text in enumerate(texts, start=1)
    ]


def compare(path: Path, *, share: float, rounds: int, latency: float) -> dict[str, Any]:
    """Return the counts and seconds of every run, in the order they were made."""
    print(f"{latency:g} s added to every bought call", flush=True)
    launch = partial(launch_run, path, latency=latency)
    runs: dict[str, list[dict[str, Any]]] = {"full": [launch("full")]}
    runs["nothing new"] = [launch("nothing new", force=True)]
    runs["planning only"] = [launch("planning only")]
    seeds, pages = path.parent / "seeds.jsonl", list_pages(read_config(path))
    seed_count = len(seeds.read_text(encoding="utf-8").splitlines())
    seed_edits, page_edits = (max(1, round(share * n)) for n in (seed_count, len(pages)))
    for number in range(rounds):
        edit_seeds(seeds, seed_edits, number)
        runs.setdefault("seeds edited", []).append(launch(f"{seed_edits} seeds edited"))
        edit_pages(pages, page_edits, number)
        runs.setdefault("pages edited", []).append(launch(f"{page_edits} pages edited"))
    return {
        "seed_count": seed_count,
        "edited_seeds": seed_edits,
        "page_count": len(pages),
        "edited_pages": page_edits,
        "latency_seconds": latency,
        "concurrency": read_config(path).teacher.concurrency,
        "runs": runs,
        "machine": f"{describe_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("dagster", "lancedb", "polars", "scikit-learn")},
        },
    }


def list_pages(config: Config) -> list[Path]:
    """Return the pages that the product reads, as it lists them."""
    corpus = config.product.corpus
    folder = CorpusFolder(
        path=corpus.path, include=corpus.include, exclude=corpus.exclude, url=corpus.url
    )
    return folder.list_files()


def edit_seeds(path: Path, count: int, number: int) -> None:
    """Reword `count` seeds by one clause, as a person would; ids stay."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for row in random.Random(f"seeds {number}").sample(range(len(lines)), count):  # noqa: S311
        seed = json.loads(lines[row])
        lines[row] = json.dumps(seed | {"text": f"{seed['text']} I use version {number + 2}."})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def edit_pages(pages: list[Path], count: int, number: int) -> None:
    """Append one sentence to `count` pages."""
    for page in random.Random(f"pages {number}").sample(pages, count):  # noqa: S311
        text = page.read_text(encoding="utf-8")
        page.write_text(f"{text}\n\nReviewed for version {number + 2}.\n", encoding="utf-8")


def launch_run(path: Path, name: str, *, latency: float, force: bool = False) -> dict[str, Any]:
    """Run the chain once in a process of its own and return what it counted."""
    print(f"{name} …", flush=True)
    started = time.perf_counter()
    done = subprocess.run(  # noqa: S603  (our own interpreter, no shell)
        [
            *(sys.executable, __file__, "--measure", str(path), "--latency", str(latency)),
            *(["--force"] if force else []),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}
    print(f"  {seconds:.1f} s, {figures['counts']}", flush=True)
    return figures


def measure_here(path: Path, *, force: bool, latency: float) -> None:
    """Run the chain in this process and print one line of JSON: counts, and seconds by step."""
    config = read_config(path)
    prepare_environment(config)
    import dagster as dg

    from assets.tables import BY_KEY
    from orchestration.running import run_chain
    from resources.last_tables import LastTables
    from serving.home import Home
    from serving.models.protocols import NoProgress

    counts: Counter[str] = Counter()
    count_calls(counts, judge=config.judge.model, latency=latency)
    count_embedded(counts)
    count_scored(counts)
    outcome = run_chain(
        config,
        progress=NoProgress(),
        recipe=config.default_recipe,
        select=SELECTION,
        force=force,
        last_tables=LastTables(Home(config.home), BY_KEY),  # also where --force would do without
    )
    if not outcome.succeeded:
        raise SystemExit(outcome.failure)
    steps = {}
    if outcome.planned:
        instance = dg.DagsterInstance.get()
        (run,) = instance.get_runs(limit=1)
        stats = instance.get_run_step_stats(run.run_id)
        steps = {s.step_key: (s.end_time or 0) - (s.start_time or 0) for s in stats}
    print(json.dumps({"counts": counts, "step_seconds": steps}))


def count_calls(counts: Counter[str], *, judge: str, latency: float) -> None:
    """Count every call that was bought rather than found among the kept answers, by its purpose.

    Each takes `latency` seconds longer, as it does when the teacher is not on this machine.
    """
    from resources.chat_models import CachedChatModel

    complete = CachedChatModel.complete

    async def counted(self: Any, request: Any) -> Any:
        completion = await complete(self, request)
        if not completion.is_cached:
            is_rewording = request.response_format is not None
            purpose = "paraphrasing" if is_rewording else "answering"
            counts["judging" if self.name == judge else purpose] += 1
            await asyncio.sleep(latency)
        return completion

    CachedChatModel.complete = counted  # type: ignore[method-assign]


def count_embedded(counts: Counter[str]) -> None:
    """Count every text that a model embeds, whichever backend it has."""
    from serving.models.compiled_embedder import CompiledEmbedder
    from serving.models.embedder import SentenceEmbedder

    def wrap(kind: Any) -> None:
        embed = kind.embed

        def counted(self: Any, texts: Any) -> Any:
            counts["embedded"] += len(texts)
            return embed(self, texts)

        kind.embed = counted

    wrap(CompiledEmbedder)
    wrap(SentenceEmbedder)


def count_scored(counts: Counter[str]) -> None:
    """Count every answer whose scores landed rather than were found among the kept ones."""
    from resources.scores import ScoreStore

    keep = ScoreStore.keep

    def counted(self: Any, key: str, scores: Any) -> None:
        counts["scored"] += 1
        keep(self, key, scores)

    ScoreStore.keep = counted  # type: ignore[method-assign]


def sum_calls(run: dict[str, Any]) -> int:
    """Return the calls a run bought from teacher and judge."""
    return sum(run["counts"].get(name, 0) for name in COUNTS[:3])


def print_figures(figures: dict[str, Any]) -> None:
    """Print a table of runs, ratios to the full run, and where a rerun's seconds go."""
    runs = figures["runs"]
    full, idle = runs["full"][0], runs["nothing new"][0]
    print(f"\n{figures['machine']}; {figures['versions']}")
    print(
        f"{figures['latency_seconds']:g} s added to every bought call, "
        f"{figures['concurrency']} calls at once; "
        f"{figures['edited_seeds']} of {figures['seed_count']} seeds, "
        f"{figures['edited_pages']} of {figures['page_count']} pages edited\n"
    )
    print(f"{'run':>16}{'seconds':>9}" + "".join(f"{name:>14}" for name in COUNTS))
    for name, made in runs.items():
        for run in made:
            cells = "".join(f"{run['counts'].get(count, 0):>14}" for count in COUNTS)
            print(f"{name:>16}{run['seconds']:>9.1f}{cells}")
    print(f"\nratios to the full run (goal: at most {LIMIT_RATIO:.0%}); median (min-max)")
    for name in ("seeds edited", "pages edited"):
        made = runs[name]
        beyond = full["seconds"] - idle["seconds"]
        rows = {
            "calls": [sum_calls(run) / sum_calls(full) for run in made],
            "embedded texts": [
                run["counts"].get("embedded", 0) / full["counts"]["embedded"] for run in made
            ],
            "scored answers": [
                run["counts"].get("scored", 0) / full["counts"]["scored"] for run in made
            ]
            if full["counts"].get("scored")
            else [],
            "seconds": [run["seconds"] / full["seconds"] for run in made],
            "seconds beyond the fixed": [
                (run["seconds"] - idle["seconds"]) / beyond for run in made
            ],
        }
        for quantity, ratios in rows.items():
            if not ratios:
                continue
            spread = f"({min(ratios):.1%} to {max(ratios):.1%})"
            print(f"{name:>16}  {quantity:<26}{statistics.median(ratios):>7.1%} {spread}")
    show_steps(runs)


def show_steps(runs: dict[str, list[dict[str, Any]]]) -> None:
    """Print where seconds go: the longest steps, and what lies outside all steps."""
    names = ("full", "nothing new", "seeds edited", "pages edited")
    columns = [runs[name][-1] for name in names]
    print(f"\n{'seconds by step':<50}" + "".join(f"{name:>14}" for name in names))
    longest = {
        step: max(column["step_seconds"].get(step, 0) for column in columns[1:])
        for step in columns[0]["step_seconds"]
    }
    for step in sorted(longest, key=lambda name: -longest[name])[:16]:
        cells = "".join(f"{column['step_seconds'].get(step, 0):>14.1f}" for column in columns)
        print(f"  {step:<48}{cells}")
    outside = [column["seconds"] - sum(column["step_seconds"].values()) for column in columns]
    print(f"  {'outside steps: start, imports, planning, events':<48}"
          + "".join(f"{seconds:>14.1f}" for seconds in outside))  # fmt: skip


def describe_processor() -> str:
    """Return the processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
