"""The page: everything about a run, from its manifests, in one HTML file without scripts.

Site names and reasons are untrusted. So the template escapes everything but the figures, and the page's content
policy forbids a browser to load or run anything.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from photon_core.evidence.metrics import show
from photon_core.evidence.noise import of_round
from photon_core.evidence.record import Record, series, thin, traffic
from photon_core.formatting import amount, count, duration
from photon_core.report import curves, similarity, tables, times
from photon_core.report.style import Picture
from photon_core.report.tables import Table
from photon_core.run.line import sentence
from schemas.manifests import RoundManifest

SECTIONS = ("learning", "time")  # their first figures make the key picture

HERE = Path(__file__).parent
TIMELINES = 24  # maximum number of timelines; of more rounds, an even selection
BARS = 400  # maximum of sites x rounds over all timelines: the page stays small with many sites


@dataclass(frozen=True)
class Fold:
    summary: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Section:
    """A part of the page. An empty section is not shown."""

    id: str
    title: str
    text: str = ""
    pictures: Sequence[Picture | None] = ()
    tables: Sequence[Table] = ()
    folds: Sequence[Fold] = ()
    source: str = ""
    source_title: str = ""
    always: bool = False

    def shown(self) -> "Section":
        pictures = [picture for picture in self.pictures if picture is not None]
        full = [table for table in self.tables if table.rows]
        return replace(self, pictures=pictures, tables=full)

    @property
    def empty(self) -> bool:
        return not (self.pictures or self.tables or self.folds or self.source or self.always)


@dataclass(frozen=True)
class Fact:
    """One number of the run at a glance."""

    name: str
    value: str
    note: str = ""


def render(
    record: Record, timelines: int = TIMELINES, more: Sequence[Section] = (), remarks: Sequence[str] = ()
) -> str:
    """The whole page.

    Args:
        record: record of the run.
        timelines: maximum number of rounds with a timeline.
        more: more sections, which follow the first.
        remarks: more notes, which come first.
    """
    first, *others = sections_of(record, timelines)
    return render_sections(record, [first, *more, *others], remarks)


def render_sections(record: Record, sections: Sequence[Section], remarks: Sequence[str] = ()) -> str:
    """The page with sections that are drawn already."""
    return render_page(
        title=record.run,
        lead=lead(record),
        glance=glance(record),
        notes=[*remarks, *notes(record)],
        sections=sections,
        footer=f"Made from the manifests in {record.url}.",
    )


def render_page(
    title: str, lead: str, glance: Sequence[Fact], notes: Sequence[str], sections: Sequence[Section], footer: str
) -> str:
    """The template, filled."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)

    def figures(pictures: Iterable[Picture | None]) -> list[dict[str, str]]:
        return [{"name": p.name, "title": p.title, "svg": Markup(p.svg)} for p in pictures if p]

    shown = [section for section in (section.shown() for section in sections) if not section.empty]
    return environment.get_template("page.html").render(
        title=title,
        css=Markup((HERE / "page.css").read_text("utf-8")),
        lead=lead,
        glance=glance,
        notes=notes,
        sections=[
            {
                **vars(section),
                "pictures": figures(section.pictures),
                "folds": [{"summary": fold.summary, "pictures": figures(fold.pictures)} for fold in section.folds],
            }
            for section in shown
        ],
        footer=footer,
    )


def lead(record: Record) -> str:
    """The run in one or two sentences."""
    if not record.run_manifest:
        return f"Nothing has happened yet: {record.url} has no run of this name."
    model, local = record.federation["model"], record.federation["local"]
    shape = f"{model['n_layers']} layers of width {model['d_model']}"
    server = record.federation["server"]["optimizer"]
    size = f"{count(record.parameters)} parameters ({shape})" if record.rounds else shape
    members = "members" if record.federation.get("federations") else "sites"
    return (
        f"{len(record.sites)} {members} train one model of {size} on text that stays at its site: "
        f"{local['steps']} local steps a round with batches of {local['batch_size']} sequences, "
        f"{server} at the server."
    )


def glance(record: Record) -> list[Fact]:
    """The key numbers of the run."""
    done = record.trained
    facts = [Fact("rounds", f"{len(done)}" + (f" of {record.count}" if record.count else ""), _when(record))]
    if values := series(record.line, "perplexity"):
        best = min(values, key=lambda point: point[1])
        shown = {t: show("perplexity", value) for t, value in values}
        note = f"{shown[values[0][0]]} after round {values[0][0]}"
        better = f", best {shown[best[0]]} in {best[0]}" if best is not values[-1] else ""
        facts.append(Fact("perplexity", shown[values[-1][0]], note + better))
    if not done:
        return facts
    last = done[-1]
    absent = len(last.left_out)
    facts.append(
        Fact(
            "sites",
            f"{len(last.updates)} of {len(last.sampled)}",
            f"excluded: {absent}" if absent else "in the last round",
        )
    )
    facts.append(Fact("tokens trained", count(last.total_tokens), f"{last.global_step:,} local steps"))
    ours, theirs = traffic(record)[-1]
    ratio = f"{theirs / ours:,.0f} times less than data-parallel" if ours and theirs else ""
    facts.append(Fact("bytes moved", amount(ours), ratio))
    took = sum(sum(m.seconds.values()) for m in record.tried)
    slow = times.straggler(last)
    facts.append(
        Fact("time in rounds", duration(took), f"straggler: {slow[0]}, +{duration(slow[1])}" if slow else "")
    )
    return facts


def notes(record: Record) -> list[str]:
    """The notes at the top of the page: rollbacks, the sites excluded from the last round, and its noise."""
    texts = [f"{_capital(sentence(m))}." for m in record.rounds if m.kind != "train"][-3:]
    if not record.trained:
        first = ["No round is committed yet. Figures and tables appear with the first one."]
        return texts or (first if record.run_manifest else [])
    last = record.trained[-1]
    texts += [f"Round {last.round} excluded {site}: {why}" for site, why in sorted(last.left_out.items())[:5]]
    if len(last.left_out) > 5:
        texts.append(f"Round {last.round} excluded {len(last.left_out) - 5} more sites, which are listed below.")
    texts += [f"{_capital(text)}." for text in of_round(last, record.updates)]
    return texts


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _when(record: Record) -> str:
    if not record.rounds:
        return ""
    return f"last on {record.rounds[-1].created[:16].replace('T', ' ')} UTC"


def sections_of(record: Record, timelines: int = TIMELINES) -> list[Section]:
    """Every section with its figures and tables."""
    trouble = tables.trouble_table(record)
    checks = tables.check_table(record)
    failed = sum(row.mark == "bad" for row in checks.rows)
    return [
        Section(
            "learning", "Learning",
            "Perplexity of the averaged model on text that every site holds out, and the sites' own losses. "
            "A curve that differs from the others means that the site's text differs.",
            [curves.perplexity(record), curves.before_and_after(record), curves.domains(record)],
        ),
        _time_section(record, timelines),
        Section(
            "sites", "Sites",
            "The contribution of each site. Loss is the mean over the local steps of the site's last round. "
            "Perplexity is the averaged model's, on the site's held-out text. Last round is the time until the "
            "site's update was committed.",
            tables=[tables.site_table(record), tables.round_table(record)],
        ),
        Section(
            "agreement", "Agreement",
            "Size and direction of the sites' updates. The longer a site trains alone, or the more its text "
            "differs, the smaller its cosine.",
            [curves.norms(record), curves.cosines(record), similarity.matrix(record)],
        ),
        Section(
            "traffic", "Traffic and speed",
            "Every download of the model and every upload of an update, compared with the gradients that "
            "data-parallel training of the same steps would move with a ring all-reduce in float32.",
            [curves.bytes_moved(record), curves.speed(record)],
        ),
        Section(
            "trouble", "Excluded, retried",
            "" if trouble.rows else "Nothing: every sampled site's update was used, at the first attempt.",
            tables=[trouble], always=bool(record.trained),
        ),
        Section(
            "data", "Data checks",
            f"{len(checks.rows)} expectations at {len({row.cells[0] for row in checks.rows})} sites before the "
            + (f"last round's training; {failed} not met." if failed else "last round's training, all met."),
            tables=[checks],
        ),
        Section(
            "again", "How to reproduce the model",
            "The same file, data, versions and seed give the same model, bit for bit.",
            tables=[tables.hash_table(record), tables.version_table(record)],
            source=_yaml(record), source_title="The federation file, all defaults filled in",
        ),
    ]  # fmt: skip


def _time_section(record: Record, timelines: int) -> Section:
    timed = [m for m in record.tried if times.has_timeline(m)]
    most = max(1, min(timelines, BARS // max(1, len(record.sites))))
    shown = thin(timed, most)
    pictures = {m.round: picture for m in shown if (picture := times.gantt(m))}
    newest = pictures.pop(shown[-1].round, None) if shown else None
    return Section(
        "time", "Time",
        "The phases of the rounds. The site at the bottom of a timeline, in bold, is the straggler, which the "
        "round waited for. The dotted line is the start of the aggregation." if timed else "",
        [newest, times.site_seconds(record)],
        folds=[Fold(_earlier(timed, shown), list(reversed(pictures.values())))] if pictures else [],
    )  # fmt: skip


def _earlier(timed: Sequence[RoundManifest], shown: Sequence[RoundManifest]) -> str:
    if len(shown) == len(timed):
        return (
            f"Timelines of the {len(shown) - 1} previous rounds"
            if len(shown) > 2
            else "Timeline of the previous round"
        )
    return f"Timelines of {len(shown) - 1} of the {len(timed) - 1} previous rounds"


def _yaml(record: Record) -> str:
    if not record.run_manifest:
        return ""
    import yaml

    return yaml.safe_dump(
        record.federation, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )


def picture(sections: Sequence[Section]) -> str:
    """Two figures of the page beside each other, as a self-contained file; empty before the first round."""
    first = [section.pictures[0] for section in sections if section.id in SECTIONS and section.pictures]
    shown: list[Picture] = [figure for figure in first if figure is not None]
    if not shown:
        return ""
    width, height, parts = 0.0, 0.0, []
    for figure in shown:
        start = figure.svg.index('viewBox="') + len('viewBox="')
        _, _, w, h = map(float, figure.svg[start : figure.svg.index('"', start)].split())
        place = f'<svg x="{width:.0f}" y="24" width="{w:.0f}" height="{h:.0f}" '
        title = f'<text x="{width + 6:.0f}" y="16" font-size="14" font-weight="bold">{_text(figure.title)}</text>'
        parts.append(title + place + figure.svg.removeprefix("<svg "))
        width, height = width + w + 20, max(height, h + 24)
    body = "\n".join(parts).replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    box = f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>'
    family = 'font-family="system-ui, sans-serif" fill="#1f2933"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {family}>{box}{body}</svg>'


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
