"""`mmray plan`: what a spec's job would do, how long it would take, what it would cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmray.cli.run import Overrides
from mmray.cli.told import AsJson, emit, say, show, told

if TYPE_CHECKING:
    from mmray.jobs.planned import PlanResult


def plan(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="YAML file of the job.")],
    overrides: Overrides = None,
    price: Annotated[
        float | None, typer.Option(metavar="PER_NODE_HOUR", min=0, help="Gives the cost too.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Machines like this one; left out: 1, or the cluster.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="What the probe takes once models are loaded, about.")
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do and take, from a short probe of its real stages; writes nothing."""
    with told(as_json) as job:
        from mmray.jobs.plan import plan as make
        from mmray.jobs.probe import Limits
        from mmray.specs import KINDS, load_spec, read_fields

        fields = read_fields(spec, overrides or ())
        job.kind = next((kind for kind in KINDS if kind == fields.get("job")), None)
        loaded = load_spec(fields)
        say("mmray: planning; where work is left, a probe loads the model and runs the real stages")
        found = make(loaded, price=price, nodes=nodes, limits=Limits(seconds=seconds))
    if as_json:
        emit(found.line())
    else:
        show(_facts(found))


def _facts(found: "PlanResult") -> dict[str, str]:
    """What a person wants to know of a plan; `~` stands before what was not counted."""
    shards = found.shards
    rest = ", ".join(f"{shards[n]:,} {n}" for n in ("finished", "changed", "removed") if shards[n])
    done = f"{found.rows_skipped:,} rows finished before"
    if found.rows_quarantined:
        done += f", {found.rows_quarantined:,} of them in quarantine"
    facts = {
        "shards": f"{shards['left']:,} of {shards['total']:,} have work left"
        + (f" ({rest})" if rest else ""),
        "done": done,
    }
    if found.status == "nothing":
        return facts | {"left": "nothing to do"} | _notes(found)
    facts["left"] = f"{found.rows} rows in {found.fragments} fragments" + _sizes(found)
    facts["layout"] = _layout(found)
    facts |= _probe(found)
    facts |= _times(found)
    facts["bottleneck"] = f"{found.bottleneck}. {found.advice[:1].upper()}{found.advice[1:]}"
    return facts | _notes(found)


def _notes(found: "PlanResult") -> dict[str, str]:
    one = len(found.notes) == 1
    return {"note" if one else f"note {n}": note for n, note in enumerate(found.notes, 1)}


def _sizes(found: "PlanResult") -> str:
    words = ""
    if found.bytes_per_row is not None:
        words += f", ~{found.bytes_per_row / 1024:,.1f} KiB each"
    if abs(found.rows_per_sample - 1) > 1e-9:
        words += f"; ~{found.rows_per_sample:.2f} rows of the store come of each"
    return words


def _layout(found: "PlanResult") -> str:
    made = found.layout
    nodes = f"{made['nodes']:,} node{'s' if made['nodes'] > 1 else ''}"
    actors = f"{made['actors']:,} actor{'s' if made['actors'] > 1 else ''} of {made['cpus']:g} CPU"
    if made["kind"] == "fused":
        return f"fused, {actors} on {nodes}"
    tasks = f"{made['decode_tasks']:,} decode tasks of {made['decode_cpus']:g} CPU"
    return f"split, {tasks} feed {actors} and {made['gpus']:g} GPU on {nodes}"


def _probe(found: "PlanResult") -> dict[str, str]:
    probe = found.probe
    if probe is None:
        return {}
    each = ", ".join(f"{name} {1000 * spent:,.2f} ms" for name, spent in probe.stages.items())
    workers = f"{probe.processes} worker{'s' if probe.processes > 1 else ''}"
    facts = {
        "probe": f"{probe.samples:,} rows by {workers} on {probe.device}: {each} a row",
    }
    if probe.quarantined:
        kinds = {row.error_type: row.message for row in probe.examples}
        reasons = "; ".join(f"{kind}: {message}" for kind, message in kinds.items())
        facts["quarantined"] = f"{probe.quarantined:,} in the probe ({reasons})"
    return facts


def _times(found: "PlanResult") -> dict[str, str]:
    from mmray.report.words import duration

    startup = ", ".join(f"{name} {duration(spent)}" for name, spent in found.startup.items())
    tail = f", {duration(found.tail)} of it by uneven shards" if found.tail >= 0.05 else ""
    facts = {
        "time": f"~{duration(found.seconds)}",
        "start-up": f"~{duration(sum(found.startup.values()))} ({startup})",
        "work": f"~{duration(found.work)}{tail}",
        "finish": f"~{duration(found.finish)}",
    }
    if found.cost is not None:
        facts["cost"] = f"~{found.cost:,.2f} for {found.node_hours:,.2f} node-hours"
    return facts
