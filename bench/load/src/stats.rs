//! What came of the requests: counts, histograms, gaps, and the first examples of each failure.
//! Its size does not depend on how many requests there were.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::connection::Response;
use crate::failure::{Class, Counts, Failure};
use crate::windows::{Mark, Windows};

/// Versions counted one by one; more would mean that the header is not a version.
const VERSIONS: usize = 2_000;

/// Longest time a histogram tells from a longer one, in microseconds.
const LONGEST_MICROS: u64 = 3_600_000_000;

pub struct Stats {
    pub start: Instant,
    pub modes: Vec<ModeStats>,
    pub windows: Windows,
    pub gaps: Gaps,
    pub versions: BTreeMap<String, VersionStats>,
    pub examples: Vec<Example>,
    expected: Vec<u16>,
    examples_kept: usize,
}

pub struct ModeStats {
    pub name: String,
    pub begun: u64,
    pub succeeded: u64,
    pub failures: Counts,
    pub failed_inside: u64,
    /// Those of `failures` that happened on a connection which had answered before.
    pub reused_failures: Counts,
    pub connections: u64,
    pub bytes: u64,
    pub chunks: u64,
    pub inside: Histogram<u64>,
    pub outside: Histogram<u64>,
    pub gaps: Gaps,
    pub server_closes: u64,
    pub idle_closes: u64,
    pub idle_resets: u64,
    /// WebSocket close codes; 1005 stands for a close frame without a code, 1006 for an end without a frame.
    pub closes: BTreeMap<u16, u64>,
    pub reconnects: Histogram<u64>,
    pub echoes_lost: u64,
}

/// The longest times without one success.
#[derive(Debug, Clone)]
pub struct Gaps {
    last: Instant,
    pub inside: Duration,
    pub outside: Duration,
}

#[derive(Debug)]
pub struct VersionStats {
    pub inside: u64,
    pub outside: u64,
    pub first: Instant,
    pub last: Instant,
}

#[derive(Debug)]
pub struct Example {
    pub at: Instant,
    pub mode: String,
    pub class: Class,
    pub message: String,
    pub local: Option<SocketAddr>,
    pub reused: bool,
    pub inside: bool,
}

impl Stats {
    pub fn new(
        start: Instant,
        modes: impl Iterator<Item = String>,
        expected: Vec<u16>,
        examples_kept: usize,
    ) -> Result<Self, hdrhistogram::CreationError> {
        Ok(Stats {
            start,
            modes: modes
                .map(|name| ModeStats::new(name, start))
                .collect::<Result<_, _>>()?,
            windows: Windows::default(),
            gaps: Gaps::new(start),
            versions: BTreeMap::new(),
            examples: Vec::new(),
            // A WebSocket's echoes carry the status of its handshake.
            expected: [expected, vec![101]].concat(),
            examples_kept,
        })
    }

    pub fn mark(&mut self, mark: &Mark, now: Instant) -> Result<(), &'static str> {
        self.windows.enter(mark, now)
    }

    /// The numbers of one mode.
    pub fn update(&mut self, mode: usize, change: impl FnOnce(&mut ModeStats)) {
        if let Some(mode) = self.modes.get_mut(mode) {
            change(mode);
        }
    }

    /// Takes the end of a request that counts from `scheduled`; whether it was a success.
    pub fn finish(
        &mut self,
        mode: usize,
        scheduled: Instant,
        result: Result<Response, Failure>,
    ) -> bool {
        let now = Instant::now();
        let inside = self.windows.touches(scheduled);
        if let Ok(response) = &result {
            self.count_version(response, now, inside);
        }
        let verdict = result.and_then(|response| self.judge(response));
        if inside {
            self.windows.count_request(verdict.is_err());
        }
        match verdict {
            Ok(response) => {
                self.gaps.success(now, &mut self.windows, true);
                if let Some(mode) = self.modes.get_mut(mode) {
                    mode.gaps.success(now, &mut self.windows, false);
                    mode.succeed(&response, now.saturating_duration_since(scheduled), inside);
                }
                true
            }
            Err(failure) => {
                if let Some(mode) = self.modes.get_mut(mode) {
                    mode.fail(&failure, inside);
                }
                self.keep_example(mode, failure, now, inside);
                false
            }
        }
    }

    /// The load has ended: a silence that lasted until then is a gap as well.
    pub fn close(&mut self, stopped_at: Instant) {
        self.gaps.success(stopped_at, &mut self.windows, true);
        for mode in &mut self.modes {
            mode.gaps.success(stopped_at, &mut self.windows, false);
        }
    }

    fn judge(&self, response: Response) -> Result<Response, Failure> {
        let failure = if !self.expected.contains(&response.status) {
            Failure::new(Class::WrongStatus, format!("status {}", response.status))
        } else {
            let version = response.version.as_deref().unwrap_or_default();
            match self.windows.superseded_by(version, response.opened) {
                Some(current) if response.version.is_some() => Failure::new(
                    Class::StaleVersion,
                    format!("{version} answered a connection begun after the cutover to {current}"),
                ),
                _ => return Ok(response),
            }
        };
        Err(failure.on(response.local, response.reused))
    }

    fn count_version(&mut self, response: &Response, now: Instant, inside: bool) {
        let Some(version) = &response.version else {
            return;
        };
        if !self.versions.contains_key(version) {
            if self.versions.len() >= VERSIONS {
                return;
            }
            let fresh = VersionStats {
                inside: 0,
                outside: 0,
                first: now,
                last: now,
            };
            self.versions.insert(version.clone(), fresh);
        }
        if let Some(version) = self.versions.get_mut(version) {
            version.last = now;
            if inside {
                version.inside += 1;
            } else {
                version.outside += 1;
            }
        }
    }

    fn keep_example(&mut self, mode: usize, failure: Failure, at: Instant, inside: bool) {
        let of_class = self
            .examples
            .iter()
            .filter(|example| example.class == failure.class);
        if of_class.count() < self.examples_kept {
            self.examples.push(Example {
                at,
                mode: self
                    .modes
                    .get(mode)
                    .map(|mode| mode.name.clone())
                    .unwrap_or_default(),
                class: failure.class,
                message: failure.message,
                local: failure.local,
                reused: failure.reused,
                inside,
            });
        }
    }
}

impl ModeStats {
    fn new(name: String, start: Instant) -> Result<Self, hdrhistogram::CreationError> {
        let histogram = || Histogram::new_with_bounds(1, LONGEST_MICROS, 3);
        Ok(ModeStats {
            name,
            begun: 0,
            succeeded: 0,
            failures: Counts::default(),
            failed_inside: 0,
            reused_failures: Counts::default(),
            connections: 0,
            bytes: 0,
            chunks: 0,
            inside: histogram()?,
            outside: histogram()?,
            gaps: Gaps::new(start),
            server_closes: 0,
            idle_closes: 0,
            idle_resets: 0,
            closes: BTreeMap::new(),
            reconnects: histogram()?,
            echoes_lost: 0,
        })
    }

    pub fn failed(&self) -> u64 {
        self.failures.total()
    }

    /// Requests that were still under way when the grace period ended.
    pub fn abandoned(&self) -> u64 {
        let ended = self.succeeded + self.failed() + self.echoes_lost;
        self.begun.saturating_sub(ended)
    }

    pub fn closed(&mut self, code: u16) {
        *self.closes.entry(code).or_default() += 1;
    }

    pub fn reconnected(&mut self, after: Duration) {
        record(&mut self.reconnects, after);
    }

    fn succeed(&mut self, response: &Response, latency: Duration, inside: bool) {
        self.succeeded += 1;
        self.bytes += response.bytes;
        self.chunks += response.chunks;
        record(
            if inside {
                &mut self.inside
            } else {
                &mut self.outside
            },
            latency,
        );
    }

    fn fail(&mut self, failure: &Failure, inside: bool) {
        self.failures.add(failure.class);
        self.failed_inside += u64::from(inside);
        if failure.reused {
            self.reused_failures.add(failure.class);
        }
    }
}

impl Gaps {
    fn new(start: Instant) -> Self {
        Gaps {
            last: start,
            inside: Duration::ZERO,
            outside: Duration::ZERO,
        }
    }

    fn success(&mut self, now: Instant, windows: &mut Windows, of_all_modes: bool) {
        let gap = now.saturating_duration_since(self.last);
        if windows.touches(self.last) {
            self.inside = self.inside.max(gap);
            if of_all_modes {
                windows.count_gap(gap);
            }
        } else {
            self.outside = self.outside.max(gap);
        }
        self.last = self.last.max(now);
    }
}

fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_micros()).unwrap_or(LONGEST_MICROS));
}
