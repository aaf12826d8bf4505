"""What is printed: Markdown tables, with ratios, and the targets."""

import sys


def say(what):
    """Progress, on standard error."""
    print(f"... {what}", file=sys.stderr, flush=True)


def table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def find(rows, **wanted):
    return next(row for row in rows if all(row[key] == value for key, value in wanted.items()))


def times(ours, theirs):
    return f"{ours / theirs:.2f} x"


def copies(row):
    """How many of the copies were not shed, where that is known."""
    return f", {row['copies_run']:.0%} of copies run" if "copies_run" in row else ""


def serving_tables(rows):
    parts = []
    for connections in sorted({row["connections"] for row in rows}):
        lines = []
        for row in (row for row in rows if row["connections"] == connections):
            line = [
                row["server"] + copies(row),
                f"{row['requests_a_second']:,.0f}",
                f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['cpu_us']:.0f}",
            ]
            if row["against"]:
                ours = find(rows, server=row["against"], connections=connections)
                keys = ("requests_a_second", "p50_ms", "p99_ms", "cpu_us")
                line += [", ".join(times(ours[key], row[key]) for key in keys)]
            else:
                line += [""]
            lines.append(line)
        heads = [f"at {connections} connections" if connections > 1 else "at 1 connection"]
        heads += ["requests/s", "p50 ms", "p99 ms", "CPU us a request"]
        heads += ["Rollcall's, of its: requests/s, p50, p99, CPU"]
        parts.append(table(heads, lines))
    return "\n\n".join(parts)


def protocol_table(rows):
    lines = []
    for row in rows:
        json_row = find(rows, protocol="JSON", connections=row["connections"])
        keys = ("requests_a_second", "p50_ms", "p99_ms", "cpu_us")
        ratios = ", ".join(times(row[key], json_row[key]) for key in keys)
        lines.append(
            [
                f"{row['protocol']}, {row['connections']}",
                f"{row['requests_a_second']:,.0f}",
                f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['cpu_us']:.0f}",
                "" if row is json_row else ratios,
            ]
        )
    heads = ["one thread, asked by h2load: protocol, connections", "requests/s", "p50 ms", "p99 ms"]
    return table([*heads, "CPU us a request", "of JSON's: requests/s, p50, p99, CPU"], lines)


def shadow_table(shadows):
    rows = shadows["rows"]
    lines = []
    for load in ("paced", "full"):
        for server in ("Rollcall", "nginx mirror"):
            without = find(rows, server=server, shadow="none", load=load)
            line = [f"{server}, {load}", f"{without['requests_a_second']:,.0f}"]
            line += [f"{without['p50_ms']:.2f}, {without['p99_ms']:.2f}"]
            for kind in ("fast", "slow"):
                row = find(rows, server=server, shadow=kind, load=load)
                ratios = ", ".join(times(row[key], without[key]) for key in ("p50_ms", "p99_ms"))
                line += [f"{row['p50_ms']:.2f}, {row['p99_ms']:.2f} ({ratios}){copies(row)}"]
            lines.append(line)
    heads = [
        "live p50, p99 in ms, 8 connections",
        "requests/s",
        "no shadow",
        "100 % shadow, as fast",
    ]
    return table(heads + [f"100 % shadow of {shadows['slow_ms']:.0f} ms"], lines)


def rollback_table(rows):
    def several(same, key, form):
        values = [row[key] for row in same]
        return "it gives none" if None in values else ", ".join(form.format(v) for v in values)

    lines = []
    for server in ("Rollcall", "nginx -s reload"):
        same = [row for row in rows if row["server"] == server]
        lines.append(
            [
                server,
                several(same, "share_before", "{:.0%}"),
                several(same, "command_ms", "{:.0f}"),
                several(same, "receipt_ms", "{:.1f}"),
                several(same, "last_answer_ms", "{:.1f}"),
                several(same, "answers_after_typing", "{}"),
                several(same, "begun_after_receipt", "{}"),
                several(same, "begun_after_return", "{}"),
                several(same, "dropped", "{}"),
                several(same, "bad", "{}"),
            ]
        )
    heads = ["rollback of a 10 % canary, run by run", "its share before", "command returned, ms"]
    heads += ["receipt, ms", "its last answer, ms", "its answers since the command"]
    heads += ["of these begun after the receipt", "begun after the return"]
    return table(heads + ["connections dropped", "answers not 200"], lines)


def target(what, met, figure, promise=False):
    return {"what": what, "met": bool(met), "figure": figure, "promise": promise}


def serving_targets(rows):
    def cpu_us(server, connections):
        return find(rows, server=server, connections=connections)["cpu_us"]

    found = []
    for connections in sorted({row["connections"] for row in rows}):
        forms = ("Rollcall, one thread", "Rollcall, one thread, binary")
        ours = max(cpu_us(form, connections) for form in forms)
        for peer, part in (("MLServer, in process", 1 / 10), ("FastAPI + orjson, bare", 1 / 3)):
            ratio = ours / cpu_us(peer, connections)
            what = f"CPU a request at {connections}, JSON and binary, at most {part:.2f} x of: {peer}"
            found.append(target(what, ratio <= part, f"{ratio:.2f} x, the more of the two"))

    def p99_ratio(row):
        ours = find(rows, server=row["against"], connections=row["connections"])
        return ours["p99_ms"] / row["p99_ms"]

    nearest = max((row for row in rows if row["against"]), key=p99_ratio)
    ratio = p99_ratio(nearest)
    figure = f"{ratio:.2f} x of {nearest['server']} at {nearest['connections']}, the nearest"
    found.append(target("p99 below every peer's", ratio < 1, figure))
    return found


def protocol_targets(rows):
    found = []
    for protocol in ("binary", "gRPC"):
        ratios = {}
        for row in (row for row in rows if row["protocol"] == protocol):
            json_row = find(rows, protocol="JSON", connections=row["connections"])
            ratios[row["connections"]] = row["cpu_us"] / json_row["cpu_us"]
        at = max(ratios, key=ratios.get)
        what = f"CPU a request no more than JSON's: {protocol}"
        found.append(target(what, ratios[at] <= 1, f"{ratios[at]:.2f} x at {at}, the most"))
    return found


def shadow_targets(shadows):
    rows = [
        row for row in shadows["rows"] if row["server"] == "Rollcall" and row["load"] == "paced"
    ]
    without = find(rows, shadow="none")["p99_ms"]
    found = []
    for kind, name in (("fast", "as fast"), ("slow", f"of {shadows['slow_ms']:.0f} ms")):
        ratio = find(rows, shadow=kind)["p99_ms"] / without
        what = f"a 100 % shadow {name} adds at most 5 % to live p99 while a core is free"
        found.append(target(what, ratio <= 1.05, f"{ratio - 1:+.1%}"))
    return found


def rollback_targets(rows):
    rows = [row for row in rows if row["server"] == "Rollcall"]
    late = sum(row["begun_after_receipt"] for row in rows)
    lost = sum(row["dropped"] + row["bad"] for row in rows)
    return [
        target("no answer of the withdrawn version begun after the receipt", late == 0, late, True),
        target("no connection dropped, no answer but 200", lost == 0, lost, True),
    ]


def targets(found):
    """Which are met. Those that are promises hold on any machine, the others are figures."""
    result = []
    for name, check in (
        ("serving", serving_targets),
        ("protocols", protocol_targets),
        ("shadows", shadow_targets),
        ("rollbacks", rollback_targets),
    ):
        if name in found:
            result += check(found[name])
    return result


def markdown(found, options):
    """Everything, for people."""
    parts = [
        f"{found['cores']} cores, load {found['load_before']:.1f} before the start; JSON bodies "
        f"of {found['body_bytes']} bytes; medians of {options.repetitions} runs of "
        f"{options.seconds} s."
    ]
    for name, show in (
        ("serving", serving_tables),
        ("protocols", protocol_table),
        ("shadows", shadow_table),
        ("rollbacks", rollback_table),
    ):
        if name in found:
            parts.append(show(found[name]))
    lines = [
        [entry["what"], "met" if entry["met"] else "MISSED", str(entry["figure"])]
        for entry in found["targets"]
    ]
    parts.append(table(["target", "", "measured"], lines))
    return "\n\n".join(parts)
