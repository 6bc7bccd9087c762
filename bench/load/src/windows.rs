//! The swaps as they were marked from outside: when each began, cut over and ended, and which version
//! may answer a connection. Pure: it is told what time it is.

use std::time::{Duration, Instant};

/// Windows kept one by one; later ones count in the totals only.
const KEPT: usize = 2_000;

/// One line of the control input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    SwapStart,
    /// New connections go to this version from now on.
    Cutover(String),
    SwapEnd,
    Stop,
}

impl Mark {
    pub fn parse(line: &str) -> Option<Mark> {
        let mut words = line.split_whitespace();
        let mark = match (words.next()?, words.next()) {
            ("swap-start", None) => Mark::SwapStart,
            ("cutover", Some(version)) => Mark::Cutover(version.to_owned()),
            ("swap-end", None) => Mark::SwapEnd,
            ("stop", None) => Mark::Stop,
            _ => return None,
        };
        words.next().is_none().then_some(mark)
    }
}

/// One swap.
#[derive(Debug, Clone)]
pub struct Window {
    pub start: Instant,
    pub cutover: Option<(Instant, String)>,
    pub end: Option<Instant>,
    pub requests: u64,
    pub failed: u64,
    pub longest_gap: Duration,
}

#[derive(Debug, Default)]
pub struct Windows {
    kept: Vec<Window>,
    current: Option<Window>,
    count: u64,
    /// Which version must answer connections begun since then. Nothing is known between the start of a swap
    /// and its cutover: the mark comes a little after the fact.
    settled: Option<(Instant, String)>,
    before: Option<String>,
    closed_time: Duration,
    last_end: Option<Instant>,
}

impl Windows {
    /// Enters a mark; a mark without its place in the order is answered with what was wrong.
    pub fn enter(&mut self, mark: &Mark, now: Instant) -> Result<(), &'static str> {
        match mark {
            Mark::SwapStart if self.is_open() => Err("swap-start inside a swap"),
            Mark::SwapStart => {
                self.shelve();
                self.count += 1;
                self.current = Some(Window::new(now));
                self.before = self.settled.take().map(|(_, version)| version);
                Ok(())
            }
            Mark::Cutover(version) => {
                self.settled = Some((now, version.clone()));
                match self.open() {
                    Some(window) => {
                        window.cutover = Some((now, version.clone()));
                        Ok(())
                    }
                    None => Err("cutover outside a swap"),
                }
            }
            Mark::SwapEnd => {
                let window = self.open().ok_or("swap-end without swap-start")?;
                let lasted = now.saturating_duration_since(window.start);
                window.end = Some(now);
                self.closed_time += lasted;
                self.last_end = Some(now);
                // A swap given up before its cutover: the version before it goes on.
                if self.settled.is_none() {
                    self.settled = self.before.take().map(|version| (now, version));
                }
                Ok(())
            }
            Mark::Stop => Ok(()),
        }
    }

    /// Whether something that began at `start` and ends now lies in a window, in part or whole.
    pub fn touches(&self, start: Instant) -> bool {
        self.is_open() || self.last_end.is_some_and(|end| end >= start)
    }

    /// The version that should have answered instead of `version` on a connection begun at `opened`.
    pub fn superseded_by(&self, version: &str, opened: Instant) -> Option<&str> {
        match &self.settled {
            Some((since, current)) if opened >= *since && version != current => Some(current),
            _ => None,
        }
    }

    /// Counts a finished request that touched a window in that window.
    pub fn count_request(&mut self, failed: bool) {
        if let Some(window) = &mut self.current {
            window.requests += 1;
            window.failed += u64::from(failed);
        }
    }

    pub fn count_gap(&mut self, gap: Duration) {
        if let Some(window) = &mut self.current {
            window.longest_gap = window.longest_gap.max(gap);
        }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The time spent inside windows until `now`.
    pub fn total_time(&self, now: Instant) -> Duration {
        let open = self.current.as_ref().filter(|window| window.end.is_none());
        self.closed_time
            + open.map_or(Duration::ZERO, |window| {
                now.saturating_duration_since(window.start)
            })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Window> {
        self.kept.iter().chain(&self.current)
    }

    fn is_open(&self) -> bool {
        self.current
            .as_ref()
            .is_some_and(|window| window.end.is_none())
    }

    fn open(&mut self) -> Option<&mut Window> {
        self.current.as_mut().filter(|window| window.end.is_none())
    }

    fn shelve(&mut self) {
        if let Some(window) = self.current.take() {
            if self.kept.len() < KEPT {
                self.kept.push(window);
            }
        }
    }
}

impl Window {
    fn new(start: Instant) -> Self {
        Window {
            start,
            cutover: None,
            end: None,
            requests: 0,
            failed: 0,
            longest_gap: Duration::ZERO,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(base: Instant, milliseconds: u64) -> Instant {
        base + Duration::from_millis(milliseconds)
    }

    fn cutover(version: &str) -> Mark {
        Mark::Cutover(version.to_owned())
    }

    #[test]
    fn lines_are_read() {
        assert_eq!(Mark::parse(" swap-start "), Some(Mark::SwapStart));
        assert_eq!(Mark::parse("cutover 0.2.0"), Some(cutover("0.2.0")));
        assert_eq!(Mark::parse("stop"), Some(Mark::Stop));
        for line in ["", "cutover", "cutover a b", "swap-end now", "halt"] {
            assert_eq!(Mark::parse(line), None, "{line}");
        }
    }

    #[test]
    fn what_overlaps_a_window_is_inside() {
        let base = Instant::now();
        let mut windows = Windows::default();
        assert!(!windows.touches(base));
        windows.enter(&Mark::SwapStart, at(base, 100)).unwrap();
        assert!(windows.touches(at(base, 50)));
        windows.enter(&Mark::SwapEnd, at(base, 200)).unwrap();
        assert!(windows.touches(at(base, 150)), "began inside, ended later");
        assert!(windows.touches(at(base, 50)), "lasted all through it");
        assert!(!windows.touches(at(base, 201)));
        assert_eq!(
            windows.total_time(at(base, 900)),
            Duration::from_millis(100)
        );
    }

    #[test]
    fn an_old_version_is_stale_only_on_connections_begun_after_the_cutover() {
        let base = Instant::now();
        let mut windows = Windows::default();
        windows.enter(&Mark::SwapStart, base).unwrap();
        assert_eq!(windows.superseded_by("1", at(base, 1)), None);
        windows.enter(&cutover("2"), at(base, 10)).unwrap();
        assert_eq!(windows.superseded_by("1", at(base, 9)), None);
        assert_eq!(windows.superseded_by("1", at(base, 11)), Some("2"));
        assert_eq!(windows.superseded_by("2", at(base, 11)), None);
    }

    #[test]
    fn going_back_to_a_version_is_not_stale_while_the_swap_is_under_way() {
        let base = Instant::now();
        let mut windows = Windows::default();
        for (time, mark) in [
            (0, Mark::SwapStart),
            (1, cutover("2")),
            (2, Mark::SwapEnd),
            (3, Mark::SwapStart),
        ] {
            windows.enter(&mark, at(base, time)).unwrap();
        }
        assert_eq!(
            windows.superseded_by("1", at(base, 4)),
            None,
            "its mark may still be on the way"
        );
        windows.enter(&cutover("1"), at(base, 5)).unwrap();
        assert_eq!(windows.superseded_by("2", at(base, 6)), Some("1"));
    }

    #[test]
    fn a_swap_given_up_leaves_the_version_before_it_in_charge() {
        let base = Instant::now();
        let mut windows = Windows::default();
        for (time, mark) in [
            (0, Mark::SwapStart),
            (1, cutover("2")),
            (2, Mark::SwapEnd),
            (3, Mark::SwapStart),
            (4, Mark::SwapEnd),
        ] {
            windows.enter(&mark, at(base, time)).unwrap();
        }
        assert_eq!(windows.superseded_by("3", at(base, 5)), Some("2"));
    }

    #[test]
    fn marks_out_of_order_are_said() {
        let now = Instant::now();
        let mut windows = Windows::default();
        assert!(windows.enter(&Mark::SwapEnd, now).is_err());
        assert!(windows.enter(&Mark::SwapStart, now).is_ok());
        assert!(windows.enter(&Mark::SwapStart, now).is_err());
        assert_eq!(windows.count(), 1);
    }
}
