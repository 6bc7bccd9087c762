//! The result of a run: one JSON object, and a table for people.

use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{json, Map, Value};

use crate::failure::{Class, Counts};
use crate::schedule::Reason;
use crate::stats::{Example, Gaps, ModeStats, Stats};
use crate::windows::Window;

/// How a run went, beyond what was counted.
pub struct Run {
    pub url: String,
    pub reason: Option<Reason>,
    pub stopped_at: Instant,
}

pub fn json(stats: &Stats, run: &Run) -> Value {
    let totals = Totals::of(stats);
    json!({
        "url": run.url,
        "seconds": rounded(run.stopped_at.saturating_duration_since(stats.start).as_secs_f64()),
        "stopped_by": run.reason.map(Reason::name),
        "requests": totals.requests,
        "succeeded": totals.succeeded,
        "failed": totals.failures.total(),
        "failed_inside": totals.failed_inside,
        "failed_outside": totals.failures.total() - totals.failed_inside,
        "abandoned": totals.abandoned,
        "connections": totals.connections,
        "failures": counts(&totals.failures),
        "longest_gap_ms": gaps(&stats.gaps),
        "modes": Value::Object(stats.modes.iter().map(|mode| (mode.name.clone(), self::mode(mode))).collect()),
        "versions": versions(stats),
        "windows": windows(stats, run.stopped_at),
        "examples": examples(stats),
    })
}

struct Totals {
    requests: u64,
    succeeded: u64,
    failures: Counts,
    failed_inside: u64,
    abandoned: u64,
    connections: u64,
}

impl Totals {
    fn of(stats: &Stats) -> Self {
        let mut failures = Counts::default();
        for mode in &stats.modes {
            failures.merge(&mode.failures);
        }
        let sum = |of: fn(&ModeStats) -> u64| stats.modes.iter().map(of).sum();
        Totals {
            requests: sum(|mode| mode.begun),
            succeeded: sum(|mode| mode.succeeded),
            failures,
            failed_inside: sum(|mode| mode.failed_inside),
            abandoned: sum(ModeStats::abandoned),
            connections: sum(|mode| mode.connections),
        }
    }
}

fn mode(mode: &ModeStats) -> Value {
    json!({
        "requests": mode.begun,
        "succeeded": mode.succeeded,
        "failed": mode.failed(),
        "failed_inside": mode.failed_inside,
        "failed_outside": mode.failed() - mode.failed_inside,
        "abandoned": mode.abandoned(),
        "connections": mode.connections,
        "failures": counts(&mode.failures),
        "failures_on_reused": counts(&mode.reused_failures),
        "latency_ms": { "inside": percentiles(&mode.inside), "outside": percentiles(&mode.outside) },
        "longest_gap_ms": gaps(&mode.gaps),
        "bytes": mode.bytes,
        "chunks": mode.chunks,
        "server_closes": mode.server_closes,
        "idle_closes": mode.idle_closes,
        "idle_resets": mode.idle_resets,
        "websocket": {
            "closes": mode.closes.iter().map(|(code, count)| (code.to_string(), json!(count))).collect::<Map<_, _>>(),
            "echoes_lost": mode.echoes_lost,
            "reconnect_ms": percentiles(&mode.reconnects),
        },
    })
}

fn counts(counts: &Counts) -> Value {
    let entry = |class: Class| (class.name().to_owned(), json!(counts.get(class)));
    Value::Object(Class::ALL.into_iter().map(entry).collect())
}

fn percentiles(histogram: &Histogram<u64>) -> Value {
    // No value at all when there is nothing to tell: a 0 would look like a measurement.
    let measured =
        |micros| (!histogram.is_empty()).then(|| milliseconds(Duration::from_micros(micros)));
    let at = |quantile| measured(histogram.value_at_quantile(quantile));
    json!({
        "count": histogram.len(),
        "p50": at(0.5),
        "p90": at(0.9),
        "p99": at(0.99),
        "p99_9": at(0.999),
        "max": measured(histogram.max()),
    })
}

fn gaps(gaps: &Gaps) -> Value {
    json!({ "inside": milliseconds(gaps.inside), "outside": milliseconds(gaps.outside) })
}

fn versions(stats: &Stats) -> Value {
    let entry = |(name, version): (&String, &crate::stats::VersionStats)| {
        let value = json!({
            "responses": version.inside + version.outside,
            "inside": version.inside,
            "outside": version.outside,
            "first_ms": offset(stats, version.first),
            "last_ms": offset(stats, version.last),
        });
        (name.clone(), value)
    };
    Value::Object(stats.versions.iter().map(entry).collect())
}

fn windows(stats: &Stats, now: Instant) -> Value {
    let window = |window: &Window| {
        json!({
            "start_ms": offset(stats, window.start),
            "cutover_ms": window.cutover.as_ref().map(|(when, _)| offset(stats, *when)),
            "version": window.cutover.as_ref().map(|(_, version)| version),
            "end_ms": window.end.map(|end| offset(stats, end)),
            "requests": window.requests,
            "failed": window.failed,
            "longest_gap_ms": milliseconds(window.longest_gap),
        })
    };
    json!({
        "count": stats.windows.count(),
        "total_ms": milliseconds(stats.windows.total_time(now)),
        "list": stats.windows.iter().map(window).collect::<Vec<_>>(),
    })
}

fn examples(stats: &Stats) -> Value {
    let mut by_class = Map::new();
    for class in Class::ALL {
        let of_class = stats
            .examples
            .iter()
            .filter(|example| example.class == class);
        let list: Vec<Value> = of_class
            .map(|example| self::example(stats, example))
            .collect();
        if !list.is_empty() {
            by_class.insert(class.name().to_owned(), Value::Array(list));
        }
    }
    Value::Object(by_class)
}

fn example(stats: &Stats, example: &Example) -> Value {
    json!({
        "at_ms": offset(stats, example.at),
        "mode": example.mode,
        "message": example.message,
        "local": example.local.map(|local| local.to_string()),
        "reused": example.reused,
        "inside": example.inside,
    })
}

/// The same for a terminal.
pub fn table(stats: &Stats, run: &Run) -> Result<String, fmt::Error> {
    let mut out = String::new();
    writeln!(
        out,
        "{:<12} {:>7} {:>10} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  failures",
        "mode", "window", "answered", "failed", "p50 ms", "p90", "p99", "p99.9", "max", "gap"
    )?;
    for mode in &stats.modes {
        let sides = [
            ("inside", &mode.inside, mode.failed_inside, mode.gaps.inside),
            (
                "outside",
                &mode.outside,
                mode.failed() - mode.failed_inside,
                mode.gaps.outside,
            ),
        ];
        for (side, histogram, failed, gap) in sides {
            let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
            writeln!(
                out,
                "{:<12} {side:>7} {:>10} {failed:>8} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>9.1}  {}",
                mode.name,
                histogram.len(),
                at(0.5),
                at(0.9),
                at(0.99),
                at(0.999),
                histogram.max() as f64 / 1_000.0,
                gap.as_secs_f64() * 1_000.0,
                if side == "outside" { named(&mode.failures) } else { String::new() },
            )?;
        }
    }
    let totals = Totals::of(stats);
    let seconds = run
        .stopped_at
        .saturating_duration_since(stats.start)
        .as_secs_f64();
    writeln!(
        out,
        "{} requests in {seconds:.1} s ({:.0}/s), {} failed, {} abandoned, {} connections, {} windows",
        totals.requests,
        totals.requests as f64 / seconds.max(0.001),
        totals.failures.total(),
        totals.abandoned,
        totals.connections,
        stats.windows.count(),
    )?;
    for example in &stats.examples {
        writeln!(
            out,
            "  {:>10.3} ms {} {}: {}{}{}",
            offset(stats, example.at),
            example.mode,
            example.class.name(),
            example.message,
            example
                .local
                .map(|local| format!(" [{local}]"))
                .unwrap_or_default(),
            if example.reused {
                " on a reused connection"
            } else {
                ""
            },
        )?;
    }
    Ok(out)
}

fn named(counts: &Counts) -> String {
    Class::ALL
        .into_iter()
        .filter(|class| counts.get(*class) > 0)
        .map(|class| format!("{}={}", class.name(), counts.get(class)))
        .collect::<Vec<_>>()
        .join(" ")
}

fn offset(stats: &Stats, at: Instant) -> f64 {
    milliseconds(at.saturating_duration_since(stats.start))
}

fn milliseconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1_000.0)
}

fn rounded(value: f64) -> f64 {
    (value * 1_000.0).round() / 1_000.0
}
